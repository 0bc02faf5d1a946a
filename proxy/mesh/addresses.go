package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses gives each service a virtual address of its own, which stays with it: applications and pools remember
// addresses far longer than DNS tells them to, and one that became another service's would take their calls, and the
// users' tokens in them, to the wrong place. So an address is written down before it is first told, survives restarts,
// and is given to another service only when its own has been gone for a [Quarantine].
//
// The table is one small file that is replaced whole, with a checksum over all of it: a table that is damaged is an
// error, never a new allocation. An address is first looked for at a place that depends on the name alone, so that
// hosts mostly agree, and a host that has lost its table mostly gives the same ones again.
type Addresses struct {
	file string
	rng  netip.Prefix
	lock *os.File
	now  func() time.Time

	mu      sync.Mutex
	records map[string]record // by service
}

// record is one line of the table.
type record struct {
	Address netip.Addr `json:"address"`
	// Gone is when the service was last taken out of config; zero while it is there.
	Gone time.Time `json:"gone,omitzero"`
}

// Quarantine is how long an address stays with a service that is gone.
const Quarantine = 90 * 24 * time.Hour

const (
	addressesFile   = "addresses"
	addressesFormat = "ward mesh addresses 1 sha256 "
	addressesMax    = 16 << 20
)

// TableError says that the table of virtual addresses cannot be used.
type TableError struct {
	Path string
	Err  error
}

func (e *TableError) Error() string {
	return fmt.Sprintf("the table of virtual addresses %s is damaged: %v; restore it from a backup, or, if no application can remember an address any more (after a restart of the host), move it aside", e.Path, e.Err)
}

func (e *TableError) Unwrap() error { return e.Err }

// OpenAddresses opens the table in the folder dir, or makes an empty one where there is none. rng is the range from
// which addresses come. One process at a time can have it open.
func OpenAddresses(dir string, rng netip.Prefix, now func() time.Time) (*Addresses, error) {
	if !rng.IsValid() || !rng.Addr().Is4() || rng.Bits() > 30 || rng != rng.Masked() {
		return nil, fmt.Errorf("mesh: %s is not a range of IPv4 addresses", rng)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	// The table itself is replaced by a rename, so the lock is beside it.
	lock, err := os.OpenFile(filepath.Join(dir, addressesFile+".lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("mesh: another process uses the table of virtual addresses in %s: %w", dir, err)
	}
	a := &Addresses{file: filepath.Join(dir, addressesFile), rng: rng, lock: lock, now: now, records: map[string]record{}}
	b, err := os.ReadFile(a.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return a, nil
	case err != nil:
		_ = lock.Close()
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if a.records, err = parseAddresses(b); err != nil {
		_ = lock.Close()
		return nil, &TableError{a.file, err}
	}
	return a, nil
}

// Close releases the table.
func (a *Addresses) Close() error { return a.lock.Close() }

// parseAddresses reads a table: a line with the checksum of all that follows, and then JSON.
func parseAddresses(b []byte) (map[string]record, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	sum, known := strings.CutPrefix(string(head), addressesFormat)
	switch {
	case len(b) > addressesMax:
		return nil, errors.New("it is too large")
	case !ok || !known:
		return nil, errors.New("it does not begin as a table of this version does")
	}
	if want := sha256.Sum256(body); sum != hex.EncodeToString(want[:]) {
		return nil, errors.New("its checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var records map[string]record
	if err := dec.Decode(&records); err != nil {
		return nil, err
	}
	if dec.More() || records == nil {
		return nil, errors.New("it is not one table")
	}
	owners := map[netip.Addr]string{}
	for name, r := range records {
		if name == "" || !r.Address.Is4() {
			return nil, fmt.Errorf("%q has no IPv4 address", name)
		}
		if other, taken := owners[r.Address]; taken {
			return nil, fmt.Errorf("%s belongs to %q and to %q", r.Address, other, name)
		}
		owners[r.Address] = name
	}
	return records, nil
}

// Assign makes names the services there are. Each that has no address is given one, and the table is on disk before
// Assign returns; when it cannot be written, nothing has changed. Addresses outside the range, from a config before,
// are given up.
func (a *Addresses) Assign(names []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	next := make(map[string]record, len(names))
	taken := map[netip.Addr]bool{}
	changed := false
	for name, r := range a.records {
		switch {
		case !a.rng.Contains(r.Address):
			changed = true
			continue
		case slices.Contains(names, name):
			changed = changed || !r.Gone.IsZero()
			r.Gone = time.Time{}
		case r.Gone.IsZero():
			r.Gone, changed = now, true
		case now.Sub(r.Gone) > Quarantine:
			changed = true
			continue
		}
		next[name], taken[r.Address] = r, true
	}
	sorted := slices.Sorted(slices.Values(names))
	for _, name := range sorted {
		if _, ok := next[name]; ok {
			continue
		}
		addr, err := a.free(name, taken)
		if err != nil {
			return err
		}
		next[name], taken[addr], changed = record{Address: addr}, true, true
	}
	if !changed {
		return nil
	}
	if err := a.save(next); err != nil {
		return fmt.Errorf("mesh: the table of virtual addresses: %w", err)
	}
	a.records = next
	return nil
}

// free finds an address for name: the first one that is free from a place that the name decides. The first and the last
// address of the range are nobody's.
func (a *Addresses) free(name string, taken map[netip.Addr]bool) (netip.Addr, error) {
	size := uint64(1)<<(32-a.rng.Bits()) - 2
	sum := sha256.Sum256([]byte(name))
	start := binary.BigEndian.Uint64(sum[:]) % size
	base := a.rng.Addr().As4()
	for i := range min(size, uint64(len(taken))+1) {
		offset := 1 + uint32((start+i)%size) //nolint:gosec // less than 2^32
		addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(base[:])+offset)))
		if !taken[addr] {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("mesh: no address of %s is left for %s; widen mesh.range (addresses of services that are gone are kept for %d days)", a.rng, name, int(Quarantine.Hours()/24))
}

// save replaces the table on disk, durably.
func (a *Addresses) save(records map[string]record) error {
	body, err := json.MarshalIndent(records, "", " ")
	if err != nil {
		return err
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	temp := a.file + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte(addressesFormat+hex.EncodeToString(sum[:])+"\n"), body...))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, a.file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(a.file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Address implements Locator.
func (a *Addresses) Address(service string) netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r, ok := a.records[service]; ok && r.Gone.IsZero() {
		return r.Address
	}
	return netip.Addr{}
}

// All is the address of each service there is.
func (a *Addresses) All() map[string]netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[string]netip.Addr{}
	for name, r := range a.records {
		if r.Gone.IsZero() {
			all[name] = r.Address
		}
	}
	return all
}
