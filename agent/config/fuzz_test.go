package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/wardmesh/ward/agent/config"
)

// FuzzParse: whatever the bytes, there is a whole Config, or errors that each have a place inside the text, a page
// and an advice.
func FuzzParse(f *testing.F) {
	good, err := os.ReadFile("testdata/good.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	cases, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range cases {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := config.Parse("ward.yaml", src)
		if err == nil {
			if c == nil || c.TrustDomain.IsZero() {
				t.Fatal("accepted without a trust domain")
			}
			for _, w := range c.Workloads {
				if w.ID.IsZero() || w.Name == "" || len(w.Select) == 0 || w.ID.TrustDomain() != c.TrustDomain {
					t.Fatalf("accepted workload %+v", w)
				}
			}
			return
		}
		errs, ok := errors.AsType[config.Errors](err)
		if !ok || len(errs) == 0 || c != nil {
			t.Fatalf("Parse = %v, %v", c, err)
		}
		lines := 1
		for _, b := range src {
			if b == '\n' {
				lines++
			}
		}
		for _, e := range errs {
			if e.File != "ward.yaml" || e.Line < 1 || e.Line > lines || e.Column < 1 || e.Width < 1 || e.Problem == "" || e.Advice == "" {
				t.Fatalf("an error without a place or words: %+v", e)
			}
			if _, ok := config.Explain(e.Code); !ok {
				t.Fatalf("no page for %s", e.Code)
			}
		}
		if err := errs.Render(discard{}, config.Style{Excerpt: true, Color: true}); err != nil {
			t.Fatal(err)
		}
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
