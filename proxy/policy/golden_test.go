package policy

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what was got into the golden files")

// golden runs got on each archive below testdata/folder and compares its answer with the archive's last file, `want`.
func golden(t *testing.T, folder string, got func(t *testing.T, files []txtar.File) string) {
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*.txt"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			last := len(a.Files) - 1
			if a.Files[last].Name != "want" {
				t.Fatal("the last file is not want")
			}
			answer := got(t, a.Files[:last])
			if *update {
				a.Files[last].Data = []byte(answer)
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(a.Files[last].Data), answer); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplainGolden(t *testing.T) {
	golden(t, "explain", func(t *testing.T, files []txtar.File) string {
		var set []File
		var inputs []byte
		for _, f := range files {
			if f.Name == "inputs.json" {
				inputs = f.Data
			} else {
				set = append(set, File{Name: f.Name, Content: f.Data})
			}
		}
		s, err := Parse(set)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Explain(s, inputs)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if n, err := e.WriteTo(&b); err != nil || n != int64(b.Len()) {
			t.Errorf("WriteTo gave %d, %v for %d bytes", n, err, b.Len())
		}
		return b.String()
	})
}

func TestProblemsGolden(t *testing.T) {
	golden(t, "problems", func(t *testing.T, files []txtar.File) string {
		var set []File
		for _, f := range files {
			set = append(set, File{Name: f.Name, Content: f.Data})
		}
		_, err := Parse(set)
		var problems Problems
		if !errors.As(err, &problems) {
			t.Fatalf("not Problems but %v", err)
		}
		return err.Error() + "\n"
	})
}

func TestSchemaGolden(t *testing.T) {
	const path = "testdata/ward.cedarschema"
	if *update {
		if err := os.WriteFile(path, []byte(Schema()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), Schema()); diff != "" {
		t.Errorf("the schema has changed (-want +got); is every old policy and record still read rightly?\n%s", diff)
	}
}
