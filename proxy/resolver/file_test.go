package resolver_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy/resolver"
)

func zone() resolver.Zone {
	return resolver.Zone{Name: "mesh.internal", Server: netip.MustParseAddrPort("127.77.0.53:53")}
}

// noBus is a host without D-Bus whose files are below a folder.
func noBus(t *testing.T, resolv string) (resolver.Options, string) {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "etc", "resolv.conf")
	if err := os.WriteFile(path, []byte(resolv), 0o640); err != nil {
		t.Fatal(err)
	}
	return resolver.Options{Root: root, Bus: "unix:path=" + filepath.Join(root, "no-bus"), Log: zap.NewNop()}, path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const original = "search clinic.example\nnameserver 10.0.0.53\n"

const wired = "# ward mesh: begin (removed by ward mesh clear)\nnameserver 127.77.0.53\n# ward mesh: end\n" + original

func TestFile(t *testing.T) {
	o, path := noBus(t, original)
	kind, err := resolver.Detect(t.Context(), o)
	if err != nil || kind != resolver.File {
		t.Fatal(kind, err)
	}
	for range 2 { // the second time changes nothing
		if err := resolver.Apply(t.Context(), o, kind, zone()); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != wired {
			t.Errorf("%s", got)
		}
		if got := read(t, path+".ward-backup"); got != original {
			t.Errorf("backup: %s", got)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Error(fi.Mode(), err)
	}
	// What others write meanwhile stays when Ward goes.
	if err := os.WriteFile(path, []byte(wired+"options edns0\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	removed, err := resolver.Clear(t.Context(), o)
	if err != nil || len(removed) != 1 || !strings.Contains(removed[0], path) {
		t.Errorf("%q, %v", removed, err)
	}
	if got := read(t, path); got != original+"options edns0\n" {
		t.Errorf("%s", got)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if removed, err := resolver.Clear(t.Context(), o); err != nil || len(removed) != 0 {
		t.Errorf("%q, %v", removed, err)
	}
}

// A dead server in front would slow every look-up of the host.
func TestStopTakesTheBlockOut(t *testing.T) {
	o, path := noBus(t, original)
	if err := resolver.Apply(t.Context(), o, resolver.File, zone()); err != nil {
		t.Fatal(err)
	}
	if err := resolver.Stopped(t.Context(), o, resolver.File); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != original {
		t.Errorf("%s", got)
	}
}

func TestFilesThatAreNotWards(t *testing.T) {
	t.Run("a link", func(t *testing.T) {
		o, path := noBus(t, original)
		if err := os.Rename(path, path+".real"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path+".real", path); err != nil {
			t.Fatal(err)
		}
		if _, err := resolver.Detect(t.Context(), o); err == nil {
			t.Error("detected")
		}
		if err := resolver.Apply(t.Context(), o, resolver.File, zone()); err == nil || read(t, path) != original {
			t.Error(err)
		}
		if removed, err := resolver.Clear(t.Context(), o); err != nil || len(removed) != 0 {
			t.Errorf("%q, %v", removed, err)
		}
	})
	t.Run("options rotate", func(t *testing.T) {
		o, path := noBus(t, original+"options edns0 rotate\n")
		if err := resolver.Apply(t.Context(), o, resolver.File, zone()); err == nil || strings.Contains(read(t, path), "ward") {
			t.Error(err)
		}
	})
	t.Run("another port", func(t *testing.T) {
		o, _ := noBus(t, original)
		z := zone()
		z.Server = netip.MustParseAddrPort("127.77.0.53:5353")
		if err := resolver.Apply(t.Context(), o, resolver.File, z); err == nil {
			t.Error("taken")
		}
	})
	t.Run("a begin without an end", func(t *testing.T) {
		torn := "# ward mesh: begin (removed by ward mesh clear)\nnameserver 10.0.0.53\n"
		o, path := noBus(t, torn)
		if _, err := resolver.Clear(t.Context(), o); err != nil || read(t, path) != torn {
			t.Error(err)
		}
	})
}
