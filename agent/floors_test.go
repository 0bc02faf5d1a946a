package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The floors of the house, as a contract that is tested: which package may import which. It keeps each piece small
// enough to be understood, and above all it keeps what decides apart from what merely runs.
//
//	0  attest · proxy/fhir · proxy/wire · workload/endpoint (may import attest), with what lies beneath them
//	1  workload (may import attest and workload/endpoint) · proxy (may import proxy/fhir and proxy/wire)
//	2  sub-packages: their own root and floor 0 of their own tree, never a sibling
//	3  agent/config, agent/authority, agent/seal, agent/admin, agent/handover: nothing of Ward · agent/sandbox, which says what a config needs: agent/config
//	4  agent/daemon, which alone joins the trees · agent/up, which alone may import the examples · agent/doctor, which
//	   looks from outside and stands on agent/config and agent/admin alone
//	5  agent
//
// Tests may use their whole tree, because they try its parts together, but they may not leave it upwards.

const modulePath = "github.com/wardmesh/ward"

// pkg is a package as the rules see it: paths within the module, and imports within the module only.
type pkg struct {
	path    string
	imports []string
	tests   []string
}

// treeOf is the tree in which a package stands. Trees do not know of each other; the agent joins them.
func treeOf(p string) string {
	first, _, _ := strings.Cut(p, "/")
	return first
}

// within reports whether p is dir or lies beneath it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// ground is the floor 0 package that p is or lies beneath, or "". Attest is one as a root: its sub-packages, the
// attestors, stand on floor 2.
func ground(p string) string {
	for _, g := range []string{"proxy/fhir", "proxy/wire", "workload/endpoint"} {
		if within(p, g) {
			return g
		}
	}
	if p == "attest" {
		return p
	}
	return ""
}

// unit is the sub-package of a tree that p is or lies beneath: siblings are different units.
func unit(p string) string {
	parts := strings.SplitN(p, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

// allowed says whether from may import to. A refusal comes with the rule that it rests on.
func allowed(from, to string) (rule string, ok bool) {
	tree := treeOf(from)
	switch {
	case treeOf(to) == "examples" && tree != "examples":
		return "nothing but agent/up imports examples", from == "agent/up"
	case tree == "examples":
		return "an example imports only what lies in its own folder: it runs Ward from outside", unit(from) == unit(to)
	case within(to, "agent/up"):
		return "agent/up is a demonstration: only package main may import it", from == "agent" || within(from, "agent/up")
	case from == "agent":
		return "", true // floor 5
	case within(from, "agent/doctor"):
		return "agent/doctor compares config with the host and with what daemons say: it imports agent/config and agent/admin", to == "agent/config" || to == "agent/admin"
	case within(from, "agent/daemon"), within(from, "agent/up"):
		return "floor 4 stands below package main", to != "agent" // and the demonstration runs the daemon
	case from == "agent/sandbox":
		return "agent/sandbox imports agent/config and nothing else of Ward", to == "agent/config"
	case tree == "agent":
		return "floor 3 (agent/config, agent/authority, agent/admin) imports nothing else of Ward: agent/daemon joins it with the rest", unit(from) == unit(to)
	case within(from, "proxy/wire/http1"):
		return "proxy/wire/http1 knows bytes alone: it imports nothing of Ward", within(to, "proxy/wire/http1")
	case ground(from) != "":
		return "floor 0 (attest, proxy/fhir, proxy/wire, workload/endpoint) imports nothing else of Ward, but that workload may import attest",
			ground(to) == ground(from) || tree == "workload" && to == "attest"
	case treeOf(to) == "agent":
		return "nothing below the agent imports it", false
	case treeOf(to) != tree:
		return "the one edge across trees below the agent is workload → attest", tree == "workload" && to == "attest"
	case from == tree:
		return "a root (floor 1) imports floor 0 of its own tree and no sub-package that implements it", ground(to) != "" && ground(to) == to
	case to == tree, ground(to) == to:
		return "", true // floor 2 on its own root, and on floor 0 of its own tree
	}
	return "a sub-package (floor 2) imports its own root and floor 0 of its own tree, never a sibling", unit(from) == unit(to)
}

// allowedInTest is the looser rule for tests: the whole tree and what it stands on.
func allowedInTest(from, to string) (rule string, ok bool) {
	if rule, ok := allowed(from, to); ok {
		return rule, ok
	}
	rule = "a test may use its own tree, and a test of workload the attest tree, but nothing above"
	switch tree := treeOf(from); {
	case tree == "agent":
		return "agent/config imports nothing of Ward, and only agent/up may import examples, in tests as elsewhere",
			!within(from, "agent/config") && treeOf(to) != "examples"
	case tree == "examples":
		return rule, false
	default:
		return rule, treeOf(to) == tree || tree == "workload" && treeOf(to) == "attest"
	}
}

// broken lists every rule that the packages break, a sentence each.
func broken(pkgs []pkg) []string {
	var out []string
	graph := map[string][]string{}
	for _, p := range pkgs {
		graph[p.path] = p.imports
		if name := path.Base(p.path); slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types"}, name) {
			out = append(out, fmt.Sprintf("package %s is called %q: name a package by its noun", p.path, name))
		}
		for _, to := range p.imports {
			if rule, ok := allowed(p.path, to); !ok {
				out = append(out, fmt.Sprintf("%s imports %s: %s", p.path, to, rule))
			}
		}
		for _, to := range p.tests {
			if rule, ok := allowedInTest(p.path, to); !ok {
				out = append(out, fmt.Sprintf("a test of %s imports %s: %s", p.path, to, rule))
			}
		}
	}
	// What `ward run` needs is the daemon and all that it reaches, by whatever way.
	for to, way := range reach(graph, "agent/daemon") {
		if within(to, "agent/up") || treeOf(to) == "examples" {
			out = append(out, fmt.Sprintf("%s: what ward run needs must not reach the demonstration or an example", strings.Join(way, " → ")))
		}
	}
	slices.Sort(out)
	return out
}

// reach is every package that from imports, directly or not, with a way that leads there.
func reach(graph map[string][]string, from string) map[string][]string {
	seen := map[string][]string{from: {from}}
	for next := []string{from}; len(next) > 0; next = next[1:] {
		for _, to := range graph[next[0]] {
			if seen[to] == nil {
				seen[to] = append(slices.Clone(seen[next[0]]), to)
				next = append(next, to)
			}
		}
	}
	return seen
}

func TestFloors(t *testing.T) {
	pkgs := listPackages(t)
	for _, s := range broken(pkgs) {
		t.Error(s)
	}
	// A test that looks at nothing proves nothing.
	for _, want := range []string{"agent", "agent/config", "agent/daemon", "agent/up", "attest", "workload", "proxy", "proxy/fhir", "proxy/wire", "proxy/wire/http1"} {
		if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.path == want }) {
			t.Errorf("package %s was not looked at", want)
		}
	}
}

// The rules themselves: what they let pass and what they do not.
func TestFloorRules(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok, test bool // allowed in the package, allowed in its tests
	}{
		{"workload", "attest", true, true},
		{"workload/api", "attest", true, true},
		{"workload/api", "workload", true, true},
		{"workload/broker", "workload/broker/wardref", true, true},
		{"workload/broker", "workload/endpoint", true, true},
		{"workload/endpoint", "attest", true, true},
		{"proxy", "proxy/fhir", true, true},
		{"proxy", "proxy/wire", true, true},
		{"proxy/token", "proxy", true, true},
		{"proxy/token", "proxy/fhir", true, true},
		{"attest/exe", "attest", true, true},
		{"attest/container/runc", "attest/container", true, true},
		{"proxy/wire/h1", "proxy/wire", true, true},
		{"proxy/wire", "proxy/wire/http1", true, true},
		{"agent/daemon", "proxy/audit", true, true},
		{"agent/up", "agent/daemon", true, true},
		{"agent/up", "examples/demo/provider", true, true},
		{"agent/sandbox", "agent/config", true, true},
		{"agent", "agent/up", true, true},
		{"examples/interop", "examples/interop/server", true, true},

		{"proxy/audit", "proxy/policy", false, true},
		{"proxy", "proxy/audit", false, true},
		{"proxy/fhir", "proxy", false, true},
		{"proxy/wire/http1", "proxy/wire", false, true},
		{"proxy/wire/http1", "proxy/fhir", false, true},
		{"proxy", "proxy/wire/http1", false, true},
		{"proxy/fhir", "proxy/wire", false, true},
		{"attest", "attest/peer", false, true},
		{"attest/exe", "attest/peer", false, true},
		{"attest", "workload", false, false},
		{"workload", "attest/peer", false, true},
		{"workload/endpoint", "workload", false, true},
		{"workload/endpoint", "workload/api", false, true},
		{"workload/endpoint", "attest/peer", false, true},
		{"workload/api", "workload/broker", false, true},
		{"workload", "proxy", false, false},
		{"proxy", "workload", false, false},
		{"proxy/bind", "attest", false, false},
		{"proxy/audit", "agent/config", false, false},
		{"agent/sandbox", "agent/authority", false, true},
		{"agent/config", "proxy", false, false},
		{"agent/config", "agent/admin", false, false},
		{"agent/authority", "workload", false, true},
		{"agent/authority", "agent/seal", false, true},
		{"agent/seal", "agent/authority", false, true},
		{"agent/handover", "agent/config", false, true},
		{"agent/daemon", "agent/handover", true, true},
		{"agent/admin", "agent/config", false, true},
		{"agent/doctor", "agent/config", true, true},
		{"agent/doctor", "attest", false, true},
		{"agent/config", "agent/doctor", false, false},
		{"agent/daemon", "agent/up", false, true},
		{"agent/daemon", "agent", false, true},
		{"agent/daemon", "examples/clinic", false, false},
		{"agent", "examples/clinic", false, false},
		{"proxy/policy", "examples/clinic", false, false},
		{"examples/interop", "proxy/audit", false, false},
		{"examples/interop", "examples/demo/provider", false, false},
	} {
		if rule, ok := allowed(tt.from, tt.to); ok != tt.ok {
			t.Errorf("%s imports %s: allowed is %v (%s)", tt.from, tt.to, ok, rule)
		}
		if rule, ok := allowedInTest(tt.from, tt.to); ok != tt.test {
			t.Errorf("a test of %s imports %s: allowed is %v (%s)", tt.from, tt.to, ok, rule)
		}
	}
	said := broken([]pkg{
		{path: "proxy/util"},
		{path: "agent/daemon", imports: []string{"proxy"}},
		{path: "proxy", imports: []string{"examples/demo"}},
	})
	want := []string{
		`agent/daemon → proxy → examples/demo: what ward run needs must not reach the demonstration or an example`,
		`package proxy/util is called "util": name a package by its noun`,
		`proxy imports examples/demo: nothing but agent/up imports examples`,
	}
	if !slices.Equal(said, want) {
		t.Errorf("broken says\n%s", strings.Join(said, "\n"))
	}
}

// listPackages asks the go command for every package of the module.
func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	inside := func(imports ...string) (own []string) {
		for _, i := range imports {
			if p, ok := strings.CutPrefix(i, modulePath+"/"); ok && !slices.Contains(own, p) {
				own = append(own, p)
			}
		}
		return own
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); err != nil {
			break
		}
		name, ok := strings.CutPrefix(p.ImportPath, modulePath+"/")
		if !ok {
			t.Errorf("%s: the module's root holds no package", p.ImportPath)
			continue
		}
		// A package's own external test imports it; that is no edge.
		tests := slices.DeleteFunc(inside(append(p.TestImports, p.XTestImports...)...), func(i string) bool { return i == name })
		pkgs = append(pkgs, pkg{name, inside(p.Imports...), tests})
	}
	return pkgs
}

// The top level is fixed.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := os.ReadFile("../.gitignore")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	allowed := []string{"agent", "attest", "examples", "proxy", "systemd", "workload", "go.mod", "go.sum", "README.md", "LICENSE"}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || slices.Contains(allowed, name) {
			continue
		}
		if !slices.ContainsFunc(strings.Fields(string(ignored)), func(pattern string) bool {
			ok, err := path.Match(strings.Trim(pattern, "/"), name)
			return err == nil && ok
		}) {
			t.Errorf("%s lies at the top level, which is fixed to %s and dotfiles", name, strings.Join(allowed, ", "))
		}
	}
}

// No package keeps state of its own: no init functions, and nothing at package level that changes while the program
// runs. Two Wards in one process, as tests run them, must share nothing.
func TestNoGlobals(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		if base := e.Name(); base != ".." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules") {
			return filepath.SkipDir
		}
		sources, err := parseDir(name)
		if err != nil {
			return err
		}
		files += len(sources.files)
		for _, s := range sources.globals() {
			t.Error(strings.TrimPrefix(s, "../"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("only %d files were looked at", files)
	}
}

func TestGlobalsAreFound(t *testing.T) {
	const src = `package p

import ("sync"; "go.uber.org/zap"; "github.com/prometheus/client_golang/prometheus")

var registry = map[string]int{}
var other map[string]int
var list []string
var count int
var lock sync.Mutex
var log = zap.NewNop()
var calls = prometheus.NewCounter(prometheus.CounterOpts{})

var table = map[string]int{"a": 1}
var ErrX = sentinel{}
var compiled = func() int { n := 0; n++; return n }()

type sentinel struct{ n int }

func init() { registry["a"] = 1 }
func set() { other = nil; list = append(list, "x"); count++; delete(registry, "a") }
func fine() { table := map[string]int{}; table["b"] = 2; x := sentinel{}; x.n = 1 }
func (sentinel) init() {}
`
	file := filepath.Join(t.TempDir(), "p.go")
	if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := parseDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, line := range s.globals() {
		_, line, _ = strings.Cut(line, ": ")
		line, _, _ = strings.Cut(line, ";")
		found = append(found, line)
	}
	slices.Sort(found)
	want := []string{
		"func init", "var calls is a prometheus.NewCounter at package level", "var count is written while the program runs",
		"var list is written while the program runs", "var lock is a sync.Mutex at package level", "var log is a zap.NewNop at package level",
		"var other is written while the program runs", "var registry is written while the program runs",
	}
	if got := slices.Compact(found); !slices.Equal(got, want) {
		t.Errorf("found\n%s", strings.Join(got, "\n"))
	}
}

// sources is the non-test, hand-written files of a folder.
type sources struct {
	set   *token.FileSet
	files []*ast.File
	vars  map[string]bool // the package-level variables of all files
}

func parseDir(dir string) (*sources, error) {
	s := &sources{set: token.NewFileSet(), vars: map[string]bool{}}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(s.set, name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if ast.IsGenerated(f) {
			continue
		}
		s.files = append(s.files, f)
		for _, v := range packageVars(f) {
			for _, n := range v.Names {
				s.vars[n.Name] = true
			}
		}
	}
	return s, nil
}

func packageVars(f *ast.File) (out []*ast.ValueSpec) {
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, s := range g.Specs {
				out = append(out, s.(*ast.ValueSpec))
			}
		}
	}
	return out
}

// globals lists what a package must not have.
func (s *sources) globals() (out []string) {
	say := func(at ast.Node, what, instead string) {
		p := s.set.Position(at.Pos())
		out = append(out, fmt.Sprintf("%s:%d:%d: %s; %s", p.Filename, p.Line, p.Column, what, instead))
	}
	for _, f := range s.files {
		for _, v := range packageVars(f) {
			if kind := stateful(v); kind != "" {
				say(v, fmt.Sprintf("var %s is a %s at package level", v.Names[0].Name, kind), "pass one in")
			}
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if fn.Recv == nil && fn.Name.Name == "init" {
				say(fn, "func init", "build what it builds where it is used, and pass it in")
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				for _, target := range written(n) {
					if id := s.variable(f, target); id != nil {
						say(id, fmt.Sprintf("var %s is written while the program runs", id.Name), "make it a field of what uses it")
					}
				}
				return true
			})
		}
	}
	return out
}

// stateful names the type of a variable that changes by its nature, or that is a logger or a metric.
func stateful(v *ast.ValueSpec) string {
	made := v.Type
	if len(v.Values) == 1 {
		if call, ok := v.Values[0].(*ast.CallExpr); ok {
			made = call.Fun
		}
	}
	sel, ok := made.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	from, ok := sel.X.(*ast.Ident)
	if !ok {
		return ""
	}
	switch from.Name {
	case "atomic", "zap", "prometheus", "promauto":
		return from.Name + "." + sel.Sel.Name
	case "sync": // a pool holds nothing that anyone could miss, and OnceValue is a constant that is computed late
		if slices.Contains([]string{"Map", "Mutex", "RWMutex", "WaitGroup", "Once"}, sel.Sel.Name) {
			return from.Name + "." + sel.Sel.Name
		}
	}
	return ""
}

// written lists what a statement writes to.
func written(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
			return n.Args[:1]
		}
	}
	return nil
}

// variable is the package-level variable that an expression writes to, or nil.
func (s *sources) variable(f *ast.File, e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.Ident:
			if x.Name == "_" || !s.vars[x.Name] {
				return nil
			}
			// The parser resolves names within a file; what it leaves open belongs to another file of the package.
			if x.Obj == nil || slices.ContainsFunc(packageVars(f), func(v *ast.ValueSpec) bool { return x.Obj.Decl == v }) {
				return x
			}
			return nil
		default:
			return nil
		}
	}
}
