package peer

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// A cgroup is found by its id with and without the right to open handles, and its members with it.
func TestCgroups(t *testing.T) {
	root, err := attest.Cgroup2Mount()
	if err != nil {
		t.Skipf("SKIPPED: needs cgroup2: %v", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	dir := root + pathOf(t, own)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	for _, noHandles := range []bool{false, true} {
		c, err := openCgroups(noHandles)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		for range 2 { // the second time from what is remembered
			pids, err := c.members(st.Ino)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(pids, os.Getpid()) {
				t.Errorf("without handles %v: this process is not among %v", noHandles, pids)
			}
		}
		if _, err := c.members(1 << 60); !errors.Is(err, errNoCgroup) {
			t.Errorf("without handles %v: an id that is none: %v", noHandles, err)
		}
	}
}

// A remembered cgroup that has been removed is not taken for one that has its place now.
func TestCgroupsReplaced(t *testing.T) {
	root, err := attest.Cgroup2Mount()
	if err != nil {
		t.Skipf("SKIPPED: needs cgroup2: %v", err)
	}
	dir, err := os.MkdirTemp(root, "ward-test-")
	if err != nil {
		t.Skipf("SKIPPED: needs root, to make cgroups: %v", err)
	}
	defer os.Remove(dir)
	id := func() uint64 {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	c, err := openCgroups(true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	before := id()
	if _, err := c.members(before); err != nil {
		t.Fatal(err)
	}
	if got, err := c.id("/" + filepath.Base(dir)); err != nil || got != before {
		t.Errorf("id %d, %v; want %d", got, err, before)
	}
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.members(before); !errors.Is(err, errNoCgroup) {
		t.Errorf("the removed cgroup: %v", err)
	}
	if _, err := c.members(id()); err != nil {
		t.Errorf("the new one: %v", err)
	}
}

func pathOf(t *testing.T, file []byte) string {
	t.Helper()
	for line := range strings.Lines(string(file)) {
		if p, found := strings.CutPrefix(line, "0::"); found {
			return strings.TrimSuffix(p, "\n")
		}
	}
	t.Skip("SKIPPED: needs to be in a cgroup of cgroup2")
	return ""
}
