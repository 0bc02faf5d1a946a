package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFiles is how many files conf.d may hold.
const maxFiles = 1000

// Options says how config is loaded.
type Options struct {
	// Owner is the user who, beside root, may own the files. Zero stands for the user that this process runs as.
	Owner int
}

func (o Options) owner() int {
	if o.Owner == 0 {
		return os.Geteuid()
	}
	return o.Owner
}

// Load reads the config file at path and the files conf.d/*.yaml beside it, in the order of their names, and
// checks all of it, with the files and folders that it names as sources of trust. Every error that there is comes
// back at once, as Errors.
func Load(path string, opts Options) (*Config, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", path, err)
	}
	d := newDecoder(filepath.Dir(abs))
	var files []*source
	if src := d.read(path, opts); src != nil {
		files = append(files, src)
	}
	for _, name := range d.fragments(filepath.Join(filepath.Dir(path), "conf.d"), opts) {
		if src := d.read(name, opts); src != nil {
			files = append(files, src)
		}
	}
	c := d.decode(path, files)
	d.trusted(c, opts)
	return d.result(c)
}

// Check parses src as if it were the config file at name, without touching the file system: no permissions, no
// conf.d, none of the files that it names. Errors come back as Errors.
func Check(name string, src []byte) error {
	_, err := Parse(name, src)
	return err
}

// Parse is Check, and returns the Config.
func Parse(name string, src []byte) (*Config, error) {
	dir := filepath.Dir(name)
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("/etc/ward", dir) // Check must not depend on where it is run
	}
	d := newDecoder(dir)
	return d.result(d.decode(name, []*source{d.parse(name, src)}))
}

func newDecoder(dir string) *decoder {
	return &decoder{dir: dir, places: make(map[string]span), failed: make(map[string]bool)}
}

// decode makes a Config of the files. It is of use only when there were no errors.
func (d *decoder) decode(name string, files []*source) *Config {
	c := &Config{file: name, places: d.places}
	sum := sha256.New()
	for _, f := range files {
		c.files = append(c.files, f.name)
		fmt.Fprintf(sum, "%s\x00%s\x00", filepath.Base(f.name), strings.Join(f.lines, "\n"))
	}
	c.digest = hex.EncodeToString(sum.Sum(nil)[:8])
	d.findDomain(files)
	top := object{c.keys()}
	for _, f := range files {
		if f.root != nil {
			d.src = f
			top.decode(d, f.root, "")
		}
	}
	d.src = nil
	// A file that could not be read or parsed may hold whatever else seems to be missing.
	for _, f := range d.sources {
		f.root = nil
		if f.broken {
			return c
		}
	}
	top.complete(d, "")
	d.rules(c)
	return c
}

// findDomain looks for the trust domain before anything else is decoded: it may stand last, and every ID needs it.
func (d *decoder) findDomain(files []*source) {
	for _, f := range files {
		if f.root == nil {
			continue
		}
		for i := 0; i+1 < len(f.root.Content); i += 2 {
			name, n := f.root.Content[i], f.root.Content[i+1]
			if name.Value == "trust_domain" && n.Kind == yaml.ScalarNode {
				if td, bad := parseTrustDomain(d, n.Value); bad == nil {
					d.domain = td
					return
				}
			}
		}
	}
}

func (d *decoder) result(c *Config) (*Config, error) {
	if len(d.errs) == 0 {
		return c, nil
	}
	d.errs.sort()
	d.errs.hideSecrets()
	return nil, d.errs
}

// missing makes a source of a file that has no text, so that an error can name it.
func (d *decoder) missing(name string) *source {
	src := &source{name: name, order: len(d.sources), broken: true}
	d.sources = append(d.sources, src)
	return src
}

// read reads and parses one file. It returns nil, having said why, when there is nothing to decode.
func (d *decoder) read(name string, opts Options) *source {
	file, err := open(name, opts.owner())
	if err != nil {
		d.fail(d.missing(name).top(), "", unreadable(name, err))
		return nil
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		d.fail(d.missing(name).top(), "", unreadable(name, err))
		return nil
	}
	return d.parse(name, text)
}

// unreadable is the fault of a file that could not be opened or read, or may not be trusted.
func unreadable(name string, err error) fault {
	if unsafe, ok := errors.AsType[*UnsafeError](err); ok {
		return fault{codeUnsafe, unsafe.Error(), unsafe.Mend()}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault{codeUnreadable, quote(name) + " does not exist", "create it, or correct the path"}
	case errors.Is(err, fs.ErrPermission):
		return fault{codeUnreadable, fmt.Sprintf("%s may not be read by uid %d", quote(name), os.Geteuid()), "run as its owner, or as root"}
	}
	return fault{codeUnreadable, quote(name) + " cannot be read: " + printable(reason(err)), "mend that"}
}

// reason is an error without the path that it repeats.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// fragments lists the files of conf.d. The folder need not exist.
func (d *decoder) fragments(dir string, opts Options) []string {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// Whoever can add a file to the folder can add to the config, so a sticky bit does not help here.
	if err := GuardDir(dir, opts); err != nil {
		d.fail(d.missing(dir).top(), "", unreadable(dir, err))
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.fail(d.missing(dir).top(), "", unreadable(dir, err))
		return nil
	}
	var names []string
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case strings.HasSuffix(e.Name(), ".yaml"):
			names = append(names, name)
		case strings.HasSuffix(e.Name(), ".yml"):
			d.fail(d.missing(name).top(), "", fault{codeFragment, quote(e.Name()) + " would not be read", "rename it to end in .yaml, or remove it"})
		}
	}
	if len(names) > maxFiles {
		d.fail(d.missing(dir).top(), "", fault{codeFragment, fmt.Sprintf("the folder holds %d config files; %d are allowed", len(names), maxFiles), "merge some"})
		return nil
	}
	return names
}

// trusted checks the files that config names and that decide whom Ward trusts.
func (d *decoder) trusted(c *Config, opts Options) {
	for i, t := range c.Tokens {
		for _, f := range []struct{ key, name string }{{"jwks_file", t.JWKSFile}, {"ca_file", t.CAFile}} {
			at := fmt.Sprintf("tokens[%d].%s", i, f.key)
			if f.name == "" || !d.ok(at) {
				continue
			}
			if err := Guard(f.name, opts); err != nil {
				d.failAt(at, named(f.name, err))
			}
		}
	}
	if c.Policies.Dir == "" || !d.ok("policies.dir") {
		return
	}
	// A folder that is missing is reported by what reads the policies, which knows whether any are needed.
	if _, err := os.Lstat(c.Policies.Dir); errors.Is(err, fs.ErrNotExist) && !d.set("policies.dir") {
		return
	}
	if err := GuardDir(c.Policies.Dir, opts); err != nil {
		d.failAt("policies.dir", named(c.Policies.Dir, err))
		return
	}
	entries, err := os.ReadDir(c.Policies.Dir)
	if err != nil {
		d.failAt("policies.dir", named(c.Policies.Dir, err))
		return
	}
	for _, e := range entries {
		name := filepath.Join(c.Policies.Dir, e.Name())
		if e.IsDir() {
			continue
		}
		if err := Guard(name, opts); err != nil {
			d.failAt("policies.dir", named(name, err))
		}
	}
}

// named is unreadable for a file that config names.
func named(name string, err error) fault {
	f := unreadable(name, err)
	if f.code == codeUnreadable {
		f.code = codeNamedFile
	}
	return f
}

// At is where the value of a key stands: `services[2].upstream.address`. For a key that has its default it is the
// nearest key above that stands somewhere, and the top of the file in the end.
func (c *Config) At(path string) Pos {
	return place(c.places, &source{name: c.file}, path).pos()
}

// Problem is an error at a key, for packages that find out later what is wrong with its value. Code is one of the
// Code constants of this package; problem and advice are as in Error.
func (c *Config) Problem(path, code, problem, advice string) Error {
	at := place(c.places, &source{name: c.file}, path)
	return Error{File: at.src.name, Line: at.line, Column: at.column, Width: at.width,
		Code: code, Problem: problem, Advice: advice, order: at.src.order, text: at.src.line(at.line)}
}

// Blocks returns the fenced yaml blocks of a Markdown text that begin with the key trust_domain: whole configs, in
// documents whose blocks must keep parsing.
func Blocks(markdown []byte) [][]byte {
	var blocks [][]byte
	for rest := markdown; ; {
		_, after, found := bytes.Cut(rest, []byte("\n```yaml\n"))
		if !found {
			return blocks
		}
		block, tail, closed := bytes.Cut(after, []byte("\n```"))
		if !closed {
			return blocks
		}
		if bytes.HasPrefix(block, []byte("trust_domain:")) {
			blocks = append(blocks, append(bytes.Clone(block), '\n'))
		}
		rest = tail
	}
}
