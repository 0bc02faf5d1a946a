package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// parts is what is built outside of the guest: two packages, the example servers, and this program.
type parts struct {
	root     string // of the repository
	old, new string // the packages, of two versions of the same Ward
	demo     string
	self     string
}

const oldVersion, newVersion = "0.0.1", "0.0.2"

func build(ctx context.Context, work string) (*parts, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	p := &parts{root: strings.TrimSpace(string(out)), demo: filepath.Join(work, "demo"), self: filepath.Join(work, "guest")}
	in := func(dir string, env []string, name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "CGO_ENABLED=0"), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(string(out), 40))
		}
		return nil
	}
	for file, pkg := range map[string]string{p.demo: "./examples/demo", p.self: "./systemd/guest"} {
		if err := in(p.root, nil, "go", "build", "-trimpath", "-o", file, pkg); err != nil {
			return nil, err
		}
	}
	for version, into := range map[string]*string{oldVersion: &p.old, newVersion: &p.new} {
		dir := filepath.Join(work, "dist-"+version)
		if err := in(p.root, []string{"VERSION=" + version}, "bash", "systemd/package/build", dir); err != nil {
			return nil, err
		}
		found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("%d packages were built in %s: %w", len(found), dir, err)
		}
		*into = found[0]
	}
	return p, nil
}

// putInto copies the parts into the guest's tree: the packages into root's home, as if they had been downloaded.
func (p *parts) putInto(tree string) error {
	for from, to := range map[string]string{p.demo: "opt/demo/demo", p.self: "opt/portal/guest",
		p.old: "root/" + filepath.Base(p.old), p.new: "srv/new/" + filepath.Base(p.new)} {
		if err := copyFile(from, filepath.Join(tree, to)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // a folder of a system
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		return err
	}
	return dst.Close()
}
