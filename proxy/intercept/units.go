package intercept

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// cgroup is where a unit runs. Its id is the inode of its folder, which is never used again while the host is up.
type cgroup struct {
	id    uint64
	level uint32 // how deep it lies below the root of the tree
	path  string // within the tree, for people
}

// match matches sockets that were made in the cgroup or below it.
func (c cgroup) match() []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: c.level, Register: reg}, equal(binaryutil.NativeEndian.PutUint64(c.id))}
}

// systemSlice is where the service manager keeps the system's units. Further in than a unit, names mean nothing: who
// runs there may have made them.
const systemSlice = "system.slice"

// slicesBelow lists the folders of the tree at mount in which the service manager keeps units: system.slice and the slices
// in it. One that others than root can write is not the service manager's.
func slicesBelow(mount string) ([]string, error) {
	var found []string
	var walk func(dir string) error
	walk = func(dir string) error {
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return gone(&os.PathError{Op: "lstat", Path: dir, Err: err})
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != 0 || st.Mode&0o022 != 0 {
			return fmt.Errorf("%s is not a folder of root's alone: its units cannot be told by their names", dir)
		}
		found = append(found, dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return gone(err)
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasSuffix(e.Name(), ".slice") {
				if err := walk(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := walk(filepath.Join(mount, systemSlice))
	return found, err
}

// gone forgives that a folder has vanished: units come and go while they are looked for.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// locate finds the cgroups of those units that run.
func locate(mount string, units map[string]bool) (map[string]cgroup, error) {
	found := map[string]cgroup{}
	if len(units) == 0 {
		return found, nil
	}
	if mount == "" {
		return nil, errors.New("units are told by their cgroup, and cgroup2 is not mounted on this host; intercept by unix.uid instead")
	}
	dirs, err := slicesBelow(mount)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		for unit := range maps.Keys(units) {
			var st unix.Stat_t
			at := filepath.Join(dir, unit)
			if unix.Lstat(at, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			rel, err := filepath.Rel(mount, at)
			if err != nil {
				return nil, err
			}
			found[unit] = cgroup{id: st.Ino, level: uint32(strings.Count(rel, "/") + 1), path: "/" + rel}
		}
	}
	return found, nil
}

// units are the units whose traffic r intercepts.
func (r Rules) units() map[string]bool {
	units := map[string]bool{}
	for _, f := range r.Flows {
		if f.Unit != "" {
			units[f.Unit] = true
		}
	}
	return units
}
