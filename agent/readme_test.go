package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/wardmesh/ward/agent/config"
)

// documents are the Markdown files of the repository.
func documents(t *testing.T) map[string][]byte {
	t.Helper()
	docs := map[string][]byte{}
	err := filepath.WalkDir("..", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == "node_modules" || e.Name() == "testdata" || hidden(e.Name())):
			return filepath.SkipDir
		case e.IsDir() || filepath.Ext(name) != ".md":
			return nil
		}
		docs[name], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// hidden reports whether a folder is none of the repository's own: caches and the like.
func hidden(name string) bool {
	return strings.HasPrefix(name, ".") && name != ".." && name != ".github"
}

// Whatever config the documents show can be copied: it has no errors.
func TestDocumentedConfig(t *testing.T) {
	for name, text := range documents(t) {
		for i, block := range config.Blocks(text) {
			if err := config.Check(name, block); err != nil {
				t.Errorf("%s, config %d:\n%v", name, i+1, err)
			}
		}
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Blocks(readme)) == 0 {
		t.Error("the README shows no config")
	}
}

// What the README shows of a command is what a script has seen: the golden file with the command's name, in which …
// stands for lines that are left out.
func TestDocumentedTranscripts(t *testing.T) {
	golden := map[string]string{}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scripts {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			golden[f.Name] = string(f.Data)
		}
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)\n```console\n\\$ ([^\n]*)\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) == 0 {
		t.Fatal("the README shows no transcript")
	}
	for _, b := range blocks {
		command, shown := string(b[1]), mask(string(b[2]))
		said, ok := golden[command]
		if !ok {
			t.Errorf("no script has seen: %s", command)
			continue
		}
		rest := strings.SplitAfter(said, "\n")
		skips := false
		for line := range strings.Lines(shown) {
			if line == "…\n" {
				skips = true
				continue
			}
			i := 0
			for skips && i < len(rest) && rest[i] != line {
				i++
			}
			if i == len(rest) || rest[i] != line {
				t.Errorf("%s does not say, at this place:\n%s", command, line)
				break
			}
			rest, skips = rest[i+1:], false
		}
		if !skips && strings.Join(rest, "") != "" {
			t.Errorf("%s says more than the README shows:\n%s", command, strings.Join(rest, ""))
		}
	}
}

// Links between documents, and to places in them, lead somewhere.
func TestDocumentedLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllSubmatch(text, -1) {
			target, place, _ := strings.Cut(string(m[1]), "#")
			if strings.Contains(target, "://") {
				continue
			}
			to, there := name, text
			if target != "" {
				to = filepath.Join(filepath.Dir(name), target)
				if _, err := os.Stat(to); err != nil {
					t.Errorf("%s: the link %s leads nowhere", name, m[1])
					continue
				}
				there, _ = os.ReadFile(to)
			}
			if place != "" && !bytes.Contains(anchors(there), []byte("\n"+place+"\n")) {
				t.Errorf("%s: %s has no heading for %s", name, to, m[1])
			}
		}
	}
}

// anchors are the names of a document's headings, one a line, as forges make them.
func anchors(text []byte) []byte {
	var out strings.Builder
	out.WriteByte('\n')
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(string(m[1])), "")
		out.WriteString(strings.ReplaceAll(plain, " ", "-") + "\n")
	}
	return []byte(out.String())
}
