package peer

import (
	"bytes"
	"fmt"
	"math"
	"os"

	"github.com/wardmesh/ward/attest"
)

// users knows which ids have a meaning in Ward's own user namespace. Those of others all look like the
// overflow ids, and would be taken for each other.
type users struct {
	overflowUID, overflowGID uint32
	ambiguousUID             bool // some users are not mapped, so the overflow uid may be anybody
	ambiguousGID             bool
}

func loadUsers() (users, error) {
	var u users
	for _, x := range []struct {
		overflow, ids string
		id            *uint32
		ambiguous     *bool
	}{
		{"/proc/sys/kernel/overflowuid", "/proc/self/uid_map", &u.overflowUID, &u.ambiguousUID},
		{"/proc/sys/kernel/overflowgid", "/proc/self/gid_map", &u.overflowGID, &u.ambiguousGID},
	} {
		*x.id = 65534 // the kernel's default, where /proc/sys is hidden (ProcSubset=pid)
		if b, err := os.ReadFile(x.overflow); err == nil {
			n, ok := decimal(bytes.TrimSpace(b))
			if !ok || n > math.MaxUint32 {
				return users{}, fmt.Errorf("%s: not a number", x.overflow)
			}
			*x.id = uint32(n)
		}
		b, err := os.ReadFile(x.ids)
		if err != nil {
			return users{}, err
		}
		whole, err := mapsAll(b)
		if err != nil {
			return users{}, fmt.Errorf("%s: %w", x.ids, err)
		}
		*x.ambiguous = !whole
	}
	return u, nil
}

// mapsAll reports whether an id map (user_namespaces(7)) is the initial namespace's: one range of all ids.
func mapsAll(idMap []byte) (bool, error) {
	ranges, err := ids(idMap)
	if err != nil {
		return false, err
	}
	return len(ranges) == 3 && ranges[0] == 0 && ranges[1] == 0 && ranges[2] == math.MaxUint32, nil
}

// known refuses an id that may stand for several users or groups.
func (u users) known(uid, gid uint32) error {
	if u.ambiguousGID && gid == u.overflowGID {
		return fmt.Errorf("%w: gid %d stands for everybody outside this user namespace", attest.ErrMismatch, gid)
	}
	return u.knownUID(uid)
}

func (u users) knownUID(uid uint32) error {
	if u.ambiguousUID && uid == u.overflowUID {
		return fmt.Errorf("%w: uid %d stands for everybody outside this user namespace", attest.ErrMismatch, uid)
	}
	return nil
}
