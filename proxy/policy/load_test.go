package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const everyone = `@id("all") permit (principal, action, resource);`

// folder writes files into a new folder that Load accepts.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "policy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mode(t, dir, 0o755)
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		mode(t, path, 0o644)
	}
	return dir
}

// mode sets a mode whatever the umask is.
func mode(t *testing.T, path string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, m); err != nil {
		t.Fatal(err)
	}
}

func TestLoadPassesOverOtherFiles(t *testing.T) {
	dir := folder(t, map[string]string{"b.cedar": everyone, "a.cedar": "// nothing", "README.md": "# x", ".#b.cedar": "nonsense", "b.cedar~": "nonsense"})
	if err := os.Mkdir(filepath.Join(dir, "tests"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 1 {
		t.Errorf("%d policies", s.Len())
	}
	kept, err := Parse(s.Source())
	if err != nil {
		t.Fatal(err)
	}
	if kept.Hash() != s.Hash() || len(s.Hash()) != 12 {
		t.Errorf("loaded as %q, kept as %q", s.Hash(), kept.Hash())
	}
}

// Whatever is in a set is in its hash: names, contents, and where one ends and the other begins.
func TestHash(t *testing.T) {
	seen := map[string]int{}
	sets := [][]File{
		{{"a.cedar", []byte(everyone)}},
		{{"b.cedar", []byte(everyone)}},
		{{"a.cedar", []byte(everyone + " ")}},
		{{"a.cedar", []byte(everyone)}, {"b.cedar", nil}},
		{{"a.cedar", []byte("//")}, {"b.cedar", []byte(everyone)}},
		{{"a.cedar", nil}, {"b.cedar", []byte("//" + "\n" + everyone)}},
		{{"a.cedar", []byte("//\n")}, {"b.cedar", []byte(everyone)}},
	}
	for i, files := range sets {
		s, err := Parse(files)
		if err != nil {
			t.Fatal(err)
		}
		if j, ok := seen[s.Hash()]; ok {
			t.Errorf("sets %d and %d have the same hash", i, j)
		}
		seen[s.Hash()] = i
	}
	a, _ := Parse([]File{{"a.cedar", []byte("//")}, {"b.cedar", []byte(everyone)}})
	b, _ := Parse([]File{{"b.cedar", []byte(everyone)}, {"a.cedar", []byte("//")}})
	if a.Hash() != b.Hash() {
		t.Error("the order in which files are read changes the hash")
	}
}

func TestLoadRefuses(t *testing.T) {
	good := map[string]string{"a.cedar": everyone}
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string // DIR stands for the folder
	}{
		"no folder": {func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, "DIR: the policy folder cannot be read: no such file or directory; make it, readable for this user"},
		"an empty folder": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "a.cedar")); err != nil {
				t.Fatal(err)
			}
		}, "DIR: there is no policy here, so every call would be refused; write policies in *.cedar files; " +
			`if refusing everything is meant, write: @id("nothing") forbid (principal, action, resource);`},
		"a folder that a group can write": {func(t *testing.T, dir string) { mode(t, dir, 0o775) },
			"DIR: its mode 0775 lets others write policy; chown it to root and chmod go-w it"},
		"a file that others can write": {func(t *testing.T, dir string) { mode(t, dir+"/a.cedar", 0o646) },
			"DIR/a.cedar: its mode 0646 lets others write policy; chown it to root and chmod go-w it"},
		"a symbolic link": {func(t *testing.T, dir string) {
			if err := os.Symlink("a.cedar", dir+"/b.cedar"); err != nil {
				t.Fatal(err)
			}
		}, "DIR/b.cedar: this is a symbolic link, and whoever owns its target would write policy; put the file itself here"},
		"a folder in the place of a file": {func(t *testing.T, dir string) {
			if err := os.Mkdir(dir+"/b.cedar", 0o755); err != nil {
				t.Fatal(err)
			}
		}, "DIR/b.cedar: this is no regular file; put the file itself here"},
		"a pipe that nobody writes": {func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(dir+"/b.cedar", 0o644); err != nil {
				t.Fatal(err)
			}
		}, "DIR/b.cedar: this is no regular file; put the file itself here"},
		"a forbid in a file that would be passed over": {func(t *testing.T, dir string) {
			if err := os.WriteFile(dir+"/b.CEDAR", []byte(everyone), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "DIR/b.CEDAR: this looks like a policy file but would be passed over; rename it to end with .cedar, or move it away"},
		"a file that is too large": {func(t *testing.T, dir string) {
			if err := os.WriteFile(dir+"/b.cedar", []byte(strings.Repeat(" ", maxFile+1)), 0o644); err != nil {
				t.Fatal(err)
			}
			mode(t, dir+"/b.cedar", 0o644)
		}, "DIR/b.cedar: the file is larger than 256 KiB; split it"},
		"bytes that are no text": {func(t *testing.T, dir string) {
			if err := os.WriteFile(dir+"/b.cedar", []byte("// \xff"), 0o644); err != nil {
				t.Fatal(err)
			}
			mode(t, dir+"/b.cedar", 0o644)
		}, "DIR/b.cedar: the file is not plain UTF-8; save it as UTF-8 without a byte order mark"},
		"several faults at once": {func(t *testing.T, dir string) {
			mode(t, dir+"/a.cedar", 0o666)
			for name, text := range map[string]string{"b.cedar": "permit", "c.cedar": "permit (principal, action, resource);"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				mode(t, filepath.Join(dir, name), 0o644)
			}
		}, "DIR/a.cedar: its mode 0666 lets others write policy; chown it to root and chmod go-w it\n" +
			"DIR/b.cedar:1:7: the file ends where ( is expected; finish the policy\n" +
			`DIR/c.cedar:1:1: this policy has no @id; write @id("…") before it: decisions, records and explanations name it so`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, good)
			tc.spoil(t, dir)
			refused(t, dir, tc.want)
		})
	}
}

func refused(t *testing.T, dir, want string) {
	t.Helper()
	_, err := Load(dir)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("not Problems: %v", err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(want, "DIR", dir), err.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadRefusesOthersFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root: only root can give a file to somebody else")
	}
	dir := folder(t, map[string]string{"a.cedar": everyone})
	if err := os.Chown(dir+"/a.cedar", 4242, -1); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, "DIR/a.cedar: uid 4242 owns it and could write policy; chown it to root and chmod go-w it")
	if err := os.Chown(dir+"/a.cedar", 0, -1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 4242, -1); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, "DIR: uid 4242 owns it and could write policy; chown it to root and chmod go-w it")
}

func TestNearest(t *testing.T) {
	for _, tc := range [][2]string{{"rols", "roles"}, {"ROLES", "roles"}, {"purpsoe", "purpose"}, {"nonsense", ""}, {"", ""}, {"i", ""}} {
		if got := nearest(tc[0], []string{"roles", "purpose", "id", "patients"}); got != tc[1] {
			t.Errorf("%q: %q, want %q", tc[0], got, tc[1])
		}
	}
}
