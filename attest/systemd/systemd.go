// Package systemd attests the unit in which a process runs.
//
// The system manager puts each unit into a cgroup of the unit's name, and only root can move a process into
// it. So the unit is read off the process's cgroup: it is the outermost .service or .scope below system.slice.
// An unprivileged attacker cannot take on a system unit, so `systemd.unit` is a boundary.
//
// Further in, names mean nothing: a user's own manager (user@1000.service) and every unit with Delegate=yes
// may make a cgroup called bridge.service. Such a name is yielded as `systemd.user_unit`, which is weak. A unit
// outside system.slice yields no systemd.unit. A delegating unit vouches for everything in it: an entry for
// containerd.service is an entry for every container that it runs.
//
// Paths in /proc/PID/cgroup are told from the reader's cgroup namespace, so a process cannot lie by making a
// namespace of its own; one outside Ward's namespace has no unit. The path is also compared with the cgroup
// tree itself: with its id, where the pinned process knows it, and with the owner of the slices, who must be
// root: otherwise /system.slice itself may be a user's making.
//
// Of a server (Attestor.Cgroup) the unit may also be init.scope: the system manager, which makes the sockets of socket
// units itself. No workload ever has it.
//
// Links: cgroups(7), cgroup_namespaces(7), systemd.slice(5), systemd.resource-control(5) on Delegate=.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Attestor yields systemd.unit and systemd.user_unit. It is made by New.
type Attestor struct {
	mount string // of cgroup2; "" where there is none, and then there are no facts
	cache *otter.Cache[uint64, []attest.Selector]
}

// cacheSize bounds how many cgroups are remembered; a host with more reads some of them again.
const cacheSize = 4096

// New finds where cgroup2 is mounted. A host without it has no unit selectors.
func New() (*Attestor, error) {
	mount, err := attest.Cgroup2Mount()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	cache, err := otter.New(&otter.Options[uint64, []attest.Selector]{MaximumSize: cacheSize})
	if err != nil {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	return &Attestor{mount: mount, cache: cache}, nil
}

// Name is "systemd".
func (*Attestor) Name() string { return "systemd" }

// Attest implements attest.Attestor.
func (a *Attestor) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	if a.mount == "" {
		return nil, nil
	}
	// An id stands for one cgroup until the host restarts, and a cgroup keeps its name and place.
	id, known := cgroupID(p)
	if known {
		if facts, ok := a.cache.GetIfPresent(id); ok {
			return facts, nil
		}
	}
	cgroup, err := attest.Cgroup(p)
	if err != nil {
		return nil, err
	}
	facts, err := a.facts(cgroup, id)
	if err != nil {
		return nil, err
	}
	if known {
		a.cache.Set(id, facts)
	}
	return facts, nil
}

// initScope is where pid 1 runs, the system manager itself. It is beneath no slice, where only root can make a cgroup.
const initScope = "init.scope"

// Cgroup yields the facts of a cgroup that is known by its id (0 where only its path is) and its path as attest.Cgroup
// tells it, as that of a server is (attest/peer). There the system manager itself may be met, as the maker of a
// socket, and it has the unit init.scope.
func (a *Attestor) Cgroup(id uint64, path string) ([]attest.Selector, error) {
	if a.mount == "" {
		return nil, nil
	}
	facts, err := a.facts(path, id)
	if err == nil && path == "/"+initScope {
		facts = []attest.Selector{{Type: attest.SystemdUnit, Value: initScope}}
	}
	return facts, err
}

// facts are those of a process in cgroup, whose id is 0 when it is not known.
func (a *Attestor) facts(cgroup string, id uint64) ([]attest.Selector, error) {
	if cgroup == "" {
		return nil, nil
	}
	if id != 0 {
		var st unix.Stat_t
		if err := unix.Lstat(a.mount+cgroup, &st); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", cgroup, err)
		}
		if st.Ino != id {
			// It moved meanwhile, or cgroup2 is mounted from another namespace than this process's.
			return nil, fmt.Errorf("%w: cgroup %s has id %d, the process is in %d", attest.ErrMismatch, cgroup, st.Ino, id)
		}
	}
	u := parseUnits(cgroup)
	if u.system != "" {
		if err := a.ownedByRoot(u.slice); err != nil {
			return nil, err
		}
	}
	var facts []attest.Selector
	if u.system != "" {
		facts = append(facts, attest.Selector{Type: attest.SystemdUnit, Value: u.system})
	}
	if u.user != "" {
		facts = append(facts, attest.Selector{Type: attest.SystemdUserUnit, Value: u.user})
	}
	return facts, nil
}

// ownedByRoot makes sure that only root can have made what lies in slice: it and the slices above it are root's.
func (a *Attestor) ownedByRoot(slice string) error {
	for ; slice != "/"; slice = path.Dir(slice) {
		var st unix.Stat_t
		if err := unix.Lstat(a.mount+slice, &st); err != nil {
			return fmt.Errorf("cgroup %s: %w", slice, err)
		}
		if st.Uid != 0 || st.Mode&0o022 != 0 {
			return fmt.Errorf("%w: cgroup %s is not root's alone, so it is not the system manager's", attest.ErrMismatch, slice)
		}
	}
	return nil
}

// cgroupID asks the process as it was pinned.
func cgroupID(p attest.Process) (uint64, bool) {
	if c, ok := p.(interface{ CgroupID() (uint64, bool) }); ok {
		return c.CgroupID()
	}
	return 0, false
}

// units are the names in one cgroup path.
type units struct {
	system string // the system manager's, "" for none
	slice  string // the cgroup in which it lies
	user   string // what somebody further in has named, "" for nothing
}

// parseUnits reads the path of a cgroup. It decides what counts as a unit: see the package's comment.
func parseUnits(cgroup string) units {
	parts := strings.Split(strings.TrimPrefix(cgroup, "/"), "/")
	// The outermost unit: slices, and then the first .service or .scope.
	outer := 0
	for outer < len(parts) && strings.HasSuffix(parts[outer], ".slice") {
		outer++
	}
	var u units
	inner := outer // where names begin to be anybody's
	if outer < len(parts) && isUnit(parts[outer]) && parts[0] == "system.slice" && outer > 0 && !isUserManager(parts[outer]) {
		u.system = unescape(parts[outer])
		u.slice = "/" + strings.Join(parts[:outer], "/")
		inner = outer + 1
	} else if outer < len(parts) && isUnit(parts[outer]) {
		// A unit of the system manager, outside system.slice or a user's manager: it has no name here.
		inner = outer + 1
	}
	for _, part := range parts[inner:] {
		if isUnit(part) {
			u.user = unescape(part)
			break
		}
	}
	return u
}

func isUnit(name string) bool {
	return strings.HasSuffix(name, ".service") && name != ".service" ||
		strings.HasSuffix(name, ".scope") && name != ".scope"
}

// isUserManager: what runs beneath user@UID.service is named by that user.
func isUserManager(name string) bool {
	return strings.HasPrefix(unescape(name), "user@") && strings.HasSuffix(name, ".service")
}

// unescape undoes systemd's cg_escape: a leading underscore for names that cgroupfs keeps for itself.
func unescape(name string) string { return strings.TrimPrefix(name, "_") }
