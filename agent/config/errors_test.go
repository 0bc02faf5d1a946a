package config_test

import (
	"bytes"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/wardmesh/ward/agent/config"
)

var update = flag.Bool("update", false, "rewrite the golden messages")

// TestMessages loads each broken config in testdata/errors and compares what an operator would read, on a terminal
// and elsewhere. The cases are named by the code that they are about.
func TestMessages(t *testing.T) {
	cases, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatal("no cases", err)
	}
	shown := make(map[string]bool)
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			golden := map[string]string{}
			keep := &txtar.Archive{Comment: archive.Comment}
			for _, f := range archive.Files {
				if f.Name == "errors" || f.Name == "terminal" {
					golden[f.Name] = string(f.Data)
					continue
				}
				keep.Files = append(keep.Files, f)
				write(t, filepath.Join(dir, f.Name), string(f.Data))
			}
			_, err = config.Load(filepath.Join(dir, "ward.yaml"), config.Options{})
			errs, ok := errors.AsType[config.Errors](err)
			if !ok {
				t.Fatalf("Load = %v, want Errors", err)
			}
			var terminal bytes.Buffer
			if err := errs.Render(&terminal, config.Style{Excerpt: true}); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{"errors": errs.Error() + "\n", "terminal": terminal.String()}
			for k, v := range got {
				got[k] = strings.ReplaceAll(v, dir+"/", "")
			}
			code, _, _ := strings.Cut(name, "-")
			if !slices.ContainsFunc(errs, func(e config.Error) bool { return e.Code == code }) {
				t.Errorf("the case is named after %s, which is not among its errors", code)
			}
			for _, e := range errs {
				shown[e.Code] = true
			}
			if *update {
				for _, k := range []string{"errors", "terminal"} {
					keep.Files = append(keep.Files, txtar.File{Name: k, Data: []byte(got[k])})
				}
				if err := os.WriteFile(file, txtar.Format(keep), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(golden, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
	// The rest needs a file system and has tests of its own.
	elsewhere := []string{"W0101", "W0102", "W0103", "W0110", "W0401", "W0402"}
	for _, code := range config.Codes() {
		if !shown[code] && !slices.Contains(elsewhere, code) {
			t.Errorf("no case shows %s", code)
		}
	}
}

// TestCodes keeps codes, their use and their pages together.
func TestCodes(t *testing.T) {
	declared, used := make(map[string]string), make(map[string]int)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	literal := regexp.MustCompile(`^"W\d{4}"$`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if lit, ok := firstLiteral(n); ok && literal.MatchString(lit) {
					declared[n.Names[0].Name] = strings.Trim(lit, `"`)
					return false
				}
			case *ast.Ident:
				used[n.Name]++
			case *ast.BasicLit:
				if literal.MatchString(n.Value) {
					t.Errorf("%s uses %s without its name", name, n.Value)
				}
			}
			return true
		})
	}
	byCode := make(map[string]string)
	for name, code := range declared {
		if other := byCode[code]; other != "" {
			t.Errorf("%s is both %s and %s", code, name, other)
		}
		byCode[code] = name
		page, ok := config.Explain(code)
		if !ok {
			t.Errorf("%s has no page", code)
			continue
		}
		for _, part := range []string{"\nCause: ", "\nExample: ", "\nMend: "} {
			if !strings.Contains(page, part) {
				t.Errorf("the page of %s has no %q", code, strings.TrimSpace(part))
			}
		}
		if used[name] == 0 && !ast.IsExported(name) {
			t.Errorf("%s (%s) is never used", code, name)
		}
	}
	for _, code := range config.Codes() {
		if byCode[code] == "" {
			t.Errorf("%s has a page and no code", code)
		}
	}
	if !slices.IsSorted(config.Codes()) {
		t.Error("the pages are not in order")
	}
	if page, ok := config.Explain("W9999"); ok {
		t.Errorf("Explain of an unknown code gives %q", page)
	}
}

func firstLiteral(n *ast.ValueSpec) (string, bool) {
	if len(n.Values) != 1 {
		return "", false
	}
	lit, ok := n.Values[0].(*ast.BasicLit)
	if !ok {
		return "", false
	}
	return lit.Value, true
}

// TestExcerpt: what is shown of a broken file must be harmless on a terminal, and the mark must stand under its
// place, whatever the width of the characters.
func TestExcerpt(t *testing.T) {
	errs := config.Errors{
		{File: "a\x1b[2J.yaml", Line: 1, Column: 1, Width: 1, Code: "W0106", Problem: "p", Advice: "a"},
	}
	var b bytes.Buffer
	if err := errs.Render(&b, config.Style{Excerpt: true}); err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsRune(b.Bytes(), 0x1b) {
		t.Errorf("an escape sequence reaches the terminal: %q", b.String())
	}

	err := config.Check("ward.yaml", []byte("trust_domain: a.example\nlog: {level: 漢字, format: 漢字}\nx\x1b[2J: 1\n"))
	errs, ok := errors.AsType[config.Errors](err)
	if !ok {
		t.Fatal(err)
	}
	b.Reset()
	if err := errs.Render(&b, config.Style{Excerpt: true}); err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsRune(b.Bytes(), 0x1b) {
		t.Errorf("an escape sequence reaches the terminal: %q", b.String())
	}

	err = config.Check("ward.yaml", []byte("trust_domain: a.example\nlog: {level: 漢字, format: 漢字}\n"))
	errs, _ = errors.AsType[config.Errors](err)
	b.Reset()
	if err := errs.Render(&b, config.Style{Excerpt: true, Color: false}); err != nil {
		t.Fatal(err)
	}
	want := `ward.yaml:2:14: "漢字" is not one of debug, info, warn, error [W0208]; use one of them
    2 | log: {level: 漢字, format: 漢字}
      |              ^^^^
ward.yaml:2:26: "漢字" is not one of json, console [W0208]; use one of them
    2 | log: {level: 漢字, format: 漢字}
      |                            ^^^^
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	long := "trust_domain: a.example\ndeny: [" + strings.Repeat("/app/some/workload, ", 50) + "app]\n"
	err = config.Check("ward.yaml", []byte(long))
	errs, _ = errors.AsType[config.Errors](err)
	b.Reset()
	if err := errs.Render(&b, config.Style{Excerpt: true, Color: true}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, " ") && len(line) > 140 {
			t.Errorf("an excerpt of %d characters would wrap", len(line))
		}
	}
	if !strings.Contains(b.String(), "\x1b[31m^^^\x1b[0m") {
		t.Errorf("no coloured mark of the right width in:\n%s", b.String())
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
