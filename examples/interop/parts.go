package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// files are the programs that are run with the real parts, and the lists of what is installed.
//
//go:embed node/*.mjs node/*.json lenient python
var files embed.FS

// tools are what the machine brings.
type tools struct {
	Node, NPM, Python, Curl string
	NodeVersion             string
	PythonHome              string // where Python's own library lies
	PythonVersion           string
	CurlVersion             string
}

// parts is everything that the program needs to know once it is inside its namespaces.
type parts struct {
	Dir     string // where everything happens
	Tools   tools
	Node    string            // folder with node_modules
	Lenient string            // folder with the lenient FHIR server's node_modules, "" when it does not play
	Site    string            // Python's site-packages
	What    map[string]string // package: version
}

// findTools looks for what the machine must bring, and says what is lacking.
func findTools(ctx context.Context) (t tools, lacking []string) {
	if os.Getuid() != 0 {
		lacking = append(lacking, "root, for namespaces and users of their own")
	}
	for _, tool := range []struct {
		name string
		into *string
	}{{"node", &t.Node}, {"npm", &t.NPM}, {"python3", &t.Python}, {"curl", &t.Curl}, {"getent", new(string)}, {"go", new(string)}} {
		p, err := exec.LookPath(tool.name)
		if err != nil {
			lacking = append(lacking, tool.name)
		}
		*tool.into = p
	}
	if len(lacking) > 0 {
		return t, lacking
	}
	// A shim or a wrapper script may stand in the PATH: what is run later is the real program.
	out, err := output(ctx, t.Node, "-p", "process.execPath + ' ' + process.versions.node")
	real, version, _ := strings.Cut(out, " ")
	var major, minor int
	if _, serr := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || serr != nil || major < 20 || major == 20 && minor < 19 {
		lacking = append(lacking, "node 20.19 or later (here: "+version+")")
	}
	t.Node, t.NodeVersion = real, version
	out, err = output(ctx, t.Python, "-c", "import sys, ensurepip, venv; print(sys.base_prefix, '%d.%d.%d' % sys.version_info[:3], sys.version_info >= (3, 10))")
	f := strings.Fields(out)
	if err != nil || len(f) != 3 || f[2] != "True" {
		return t, append(lacking, "python 3.10 or later with venv")
	}
	t.PythonHome, t.PythonVersion = f[0], f[1]
	if out, err = output(ctx, t.Curl, "--version"); err == nil && len(strings.Fields(out)) > 1 {
		t.CurlVersion = strings.Fields(out)[1]
	}
	return t, lacking
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	return strings.TrimSpace(string(out)), err
}

// install has npm and pip put the pinned parts into the cache, unless they are there.
func install(ctx context.Context, o options, t tools, progress io.Writer) (*parts, error) {
	cache := o.cache
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no folder for the cache: %w; name one with -cache", err)
		}
		cache = filepath.Join(base, "ward-interop")
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	node, err := cached(cache, "node", []string{"node/package.json", "node/package-lock.json"}, t.NodeVersion, func(dir string) error {
		fmt.Fprintln(progress, "installing with npm:", dir)
		return command(ctx, progress, dir, t.NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	})
	if err != nil {
		return nil, err
	}
	python, err := cached(cache, "python", []string{"python/requirements.txt"}, t.PythonVersion, func(dir string) error {
		fmt.Fprintln(progress, "installing with pip:", dir)
		if err := command(ctx, progress, dir, t.Python, "-m", "venv", "venv"); err != nil {
			return err
		}
		return command(ctx, progress, dir, filepath.Join("venv", "bin", "python3"), "-m", "pip", "install", "--quiet", "--no-deps",
			"--only-binary", ":all:", "--requirement", "requirements.txt")
	})
	if err != nil {
		return nil, err
	}
	site, err := filepath.Glob(filepath.Join(python, "venv", "lib", "python3*", "site-packages"))
	if err != nil || len(site) != 1 {
		return nil, fmt.Errorf("%s: no site-packages", python)
	}
	p := &parts{Tools: t, Node: node, Site: site[0]}
	if p.What, err = versions(); err != nil || !o.bypass {
		return p, err
	}
	return p, p.installLenient(ctx, cache, progress)
}

// cached gives the cache's folder for the parts that lists name, and has them installed when it is not there. It
// appears whole or not at all.
func cached(cache, kind string, lists []string, version string, install func(dir string) error) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, version)
	for _, name := range lists {
		b, err := files.ReadFile(name)
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	dir := filepath.Join(cache, kind+"-"+hex.EncodeToString(sum.Sum(nil))[:16])
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	tmp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // the applications' users read it
		return "", err
	}
	for _, name := range lists {
		b, _ := files.ReadFile(name)
		if err := os.WriteFile(filepath.Join(tmp, filepath.Base(name)), b, 0o644); err != nil { //nolint:gosec // as above
			return "", err
		}
	}
	if err := install(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, serr := os.Stat(dir); serr != nil { // else another run was faster
			return "", err
		}
	}
	return dir, nil
}

func command(ctx context.Context, out io.Writer, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return nil
}

// versions reads the pinned versions of the parts that are named when they are spoken of.
func versions() (map[string]string, error) {
	b, err := files.ReadFile("node/package.json")
	if err != nil {
		return nil, err
	}
	var p struct {
		Dependencies map[string]string `json:"dependencies"`
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, err
	}
	if b, err = files.ReadFile("python/requirements.txt"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), "=="); ok {
			p.Dependencies[name] = version
		}
	}
	return p.Dependencies, nil
}

// layOut makes the folder in which everything happens, readable by the applications' users: programs, the ward
// binary, and private places for whoever needs one.
func layOut(ctx context.Context, o options, p *parts, progress io.Writer) (string, error) {
	dir, err := os.MkdirTemp("/run", "ward-interop-")
	if err != nil {
		if dir, err = os.MkdirTemp("/tmp", "ward-interop-"); err != nil {
			return "", err
		}
	}
	p.Dir = dir
	for _, d := range []struct {
		name string
		mode fs.FileMode
		uid  int
	}{{".", 0o755, 0}, {"bin", 0o755, 0}, {"node", 0o755, 0}, {"node/node_modules", 0o755, 0}, {"lenient", 0o755, 0},
		{"lenient/node_modules", 0o755, 0}, {"python", 0o755, 0}, {"python/home", 0o755, 0},
		{"python/site", 0o755, 0}, {"run", 0o755, 0}, {"run/egress", 0o755, 0}, {"state", 0o700, 0}, {"state/policy", 0o700, 0},
		{"logs", 0o700, 0}, {"fhir", 0o700, uidFHIR}} {
		path := p.at(d.name)
		if err := errors.Join(os.MkdirAll(path, d.mode), os.Chmod(path, d.mode), os.Chown(path, d.uid, d.uid)); err != nil {
			return dir, err
		}
	}
	err = fs.WalkDir(files, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(p.at(name), b, 0o644) //nolint:gosec // programs without secrets
	})
	if err != nil {
		return dir, err
	}
	if err := os.WriteFile(p.at("bin", "node"), nil, 0o755); err != nil { //nolint:gosec // a place to mount node on
		return dir, err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return dir, err
	}
	if err := os.WriteFile(p.at("parts.json"), b, 0o600); err != nil {
		return dir, err
	}
	root, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil || root == "" {
		return dir, errors.New("this is not Ward's repository: run it there")
	}
	if err := copyPolicies(filepath.Join(root, "examples", "clinic", "policy"), p.at("state", "policy")); err != nil {
		return dir, err
	}
	if o.ward != "" {
		if b, err = os.ReadFile(o.ward); err != nil {
			return dir, err
		}
		return dir, os.WriteFile(p.at("bin", "ward"), b, 0o755) //nolint:gosec // to be executed by all
	}
	return dir, build(ctx, root, p.at("bin", "ward"), progress)
}

// copyPolicies takes the starter policy set for a clinic.
func copyPolicies(from, to string) error {
	names, err := filepath.Glob(filepath.Join(from, "*.cedar"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no policies in %s", from)
	}
	for _, name := range names {
		b, err := os.ReadFile(name) //nolint:gosec // the repository's own
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// build makes the binary as it is shipped.
func build(ctx context.Context, root, to string, progress io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "./agent") //nolint:gosec // our own folder
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, progress, progress
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build ./agent: %w", err)
	}
	return nil
}

func readParts(dir string) (*parts, error) {
	b, err := os.ReadFile(filepath.Join(dir, "parts.json"))
	if err != nil {
		return nil, err
	}
	p := &parts{}
	return p, json.Unmarshal(b, p)
}
