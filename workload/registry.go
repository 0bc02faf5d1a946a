package workload

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
)

const (
	entryTable  = "workload.entry"
	deviceTable = "workload.device"
	byID        = "id"
	byBoundary  = "boundary"
)

// Tables is the schema of what a Registry reads, to be merged with that of other trees into one database.
func Tables() map[string]*memdb.TableSchema {
	return map[string]*memdb.TableSchema{
		entryTable: {Name: entryTable, Indexes: map[string]*memdb.IndexSchema{
			byID:       {Name: byID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Name"}},
			byBoundary: {Name: byBoundary, Indexer: boundaryIndex{}},
		}},
		deviceTable: {Name: deviceTable, Indexes: map[string]*memdb.IndexSchema{
			byID: {Name: byID, Unique: true, Indexer: deviceIndex{}},
		}},
	}
}

// Registry finds the entries that a process matches. Several may share a database.
type Registry struct{ db *memdb.MemDB }

// NewRegistry reads from db, whose schema contains Tables.
func NewRegistry(db *memdb.MemDB) *Registry { return &Registry{db: db} }

// Load makes entries and devices the whole content of the two tables within txn, a write transaction that
// the caller commits, or aborts on an error. Every fault is in the error, not only the first. Rows that stay
// as they are keep their place, so that only watchers of what changed wake up. The values are kept and must
// not be changed afterwards.
func (r *Registry) Load(txn *memdb.Txn, entries []*Entry, devices []*Device) error {
	var faults []error
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		faults = append(faults, e.validate()...)
		if names[e.Name] {
			faults = append(faults, fmt.Errorf("entry %q exists twice", e.Name))
		}
		names[e.Name] = true
	}
	ids := make(map[string]bool, len(devices))
	for _, d := range devices {
		switch key := d.ID.String(); {
		case d.ID.Path() == "":
			faults = append(faults, fmt.Errorf("device %q has an ID without a path", key))
		case ids[key]:
			faults = append(faults, fmt.Errorf("device %q exists twice", key))
		default:
			ids[key] = true
		}
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	if err := replace(txn, entryTable, entries, func(e *Entry) string { return e.Name }); err != nil {
		return err
	}
	return replace(txn, deviceTable, devices, func(d *Device) string { return d.ID.String() })
}

// replace writes the difference between the table and rows.
func replace[T any](txn *memdb.Txn, table string, rows []*T, key func(*T) string) error {
	wanted := make(map[string]*T, len(rows))
	for _, row := range rows {
		wanted[key(row)] = row
	}
	it, err := txn.Get(table, byID)
	if err != nil {
		return err
	}
	var gone []*T
	for raw := it.Next(); raw != nil; raw = it.Next() {
		old := raw.(*T)
		row, stays := wanted[key(old)]
		switch {
		case !stays:
			gone = append(gone, old)
		case reflect.DeepEqual(old, row):
			delete(wanted, key(old))
		}
	}
	for _, old := range gone {
		if err := txn.Delete(table, old); err != nil {
			return err
		}
	}
	for _, row := range wanted {
		if err := txn.Insert(table, row); err != nil {
			return err
		}
	}
	return nil
}

// Match returns the entries all of whose selectors are attested, firmly enough for the entry. The default
// identity is first: the entry with the most selectors, then the one whose name sorts first. One of the
// channels in changed is closed when the answer may have become another; it may also be closed for nothing.
func (r *Registry) Match(att attest.Attestation) (entries []*Entry, changed []<-chan struct{}) {
	txn := r.db.Txn(false)
	for _, s := range att.Selectors {
		if boundaryRank(s.Type) == 0 {
			continue
		}
		it, err := txn.Get(entryTable, byBoundary, s)
		if err != nil {
			panic(fmt.Sprintf("workload: the registry's database was made without Tables: %v", err))
		}
		changed = append(changed, it.WatchCh())
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if e := raw.(*Entry); e.matches(att) {
				entries = append(entries, e)
			}
		}
	}
	// WAPI §8: the first identity is the default. The order must not depend on how entries are stored.
	slices.SortFunc(entries, func(a, b *Entry) int {
		return cmp.Or(cmp.Compare(len(b.Selectors), len(a.Selectors)), cmp.Compare(a.Name, b.Name))
	})
	return entries, changed
}

// Entries returns all entries by name, and a channel that is closed when any of them changes.
func (r *Registry) Entries() ([]*Entry, <-chan struct{}) { return all[Entry](r.db, entryTable) }

// Devices returns all devices by ID, and a channel that is closed when any of them changes.
func (r *Registry) Devices() ([]*Device, <-chan struct{}) { return all[Device](r.db, deviceTable) }

func all[T any](db *memdb.MemDB, table string) (rows []*T, changed <-chan struct{}) {
	it, err := db.Txn(false).Get(table, byID)
	if err != nil {
		panic(fmt.Sprintf("workload: the registry's database was made without Tables: %v", err))
	}
	for raw := it.Next(); raw != nil; raw = it.Next() {
		rows = append(rows, raw.(*T))
	}
	return rows, it.WatchCh()
}

// entry returns the entry of this name, or nil.
func (r *Registry) entry(name string) *Entry {
	raw, err := r.db.Txn(false).First(entryTable, byID, name)
	if err != nil || raw == nil {
		return nil
	}
	return raw.(*Entry)
}

// Near is an entry that a process does not match, and why.
type Near struct {
	Entry   *Entry
	Missing attest.Selectors // what was not attested
	TooWeak bool             // attested, but less firmly than MinStrength asks for
}

// Nearest returns up to n entries that the attestation misses by the least, for the operator's eyes only:
// to a process that was refused they would say what to imitate. It reads every entry.
func (r *Registry) Nearest(att attest.Attestation, n int) []Near {
	entries, _ := r.Entries()
	var near []Near
	for _, e := range entries {
		var missing attest.Selectors
		for _, s := range e.Selectors {
			if !att.Selectors.Contains(attest.Selectors{s}) {
				missing = append(missing, s)
			}
		}
		weak := len(missing) == 0 && !e.matches(att)
		if (len(missing) > 0 || weak) && len(missing) < len(e.Selectors) {
			near = append(near, Near{Entry: e, Missing: missing, TooWeak: weak})
		}
	}
	slices.SortStableFunc(near, func(a, b Near) int { return cmp.Compare(len(a.Missing), len(b.Missing)) })
	return near[:min(n, len(near))]
}

// matches reports whether every selector is attested, and at least as firmly as the entry asks for.
func (e *Entry) matches(att attest.Attestation) bool {
	if !att.Selectors.Contains(e.Selectors) {
		return false
	}
	firm := att.Strength
	for _, s := range e.Selectors {
		firm = min(firm, s.Strength())
	}
	return firm >= max(e.MinStrength, attest.Weak)
}

// maxHint is the longest hint that is supported.
const maxHint = 1024 // WAPI §8: values of more than 1024 bytes SHOULD NOT be supported

// maxID is the longest SPIFFE ID that is minted.
const maxID = 2048 // SPIFFE-ID §2.3

// validate returns every reason why the entry must not be loaded.
func (e *Entry) validate() (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("entry %q "+format, append([]any{e.Name}, args...)...))
	}
	if e.Name == "" {
		fault("has no name")
	}
	if e.ID.Path() == "" { // X509-SVID §3.1: leaf certificate SPIFFE IDs MUST have a non-root path
		fault("has no SPIFFE ID with a path")
	}
	if len(e.ID.String()) > maxID {
		fault("has a SPIFFE ID of more than %d bytes", maxID)
	}
	if len(e.Hint) > maxHint {
		fault("has a hint of more than %d bytes", maxHint)
	}
	if !slices.Equal(e.Selectors, attest.NewSelectors(e.Selectors...)) {
		fault("has selectors that are not a sorted set")
	}
	if _, bounded := e.boundary(); !bounded {
		fault("names no boundary: it needs %s, %s or %s", attest.UnixUID, attest.SystemdUnit, attest.Launch)
	}
	if e.MinStrength > attest.Strong {
		fault("asks for a strength that does not exist")
	}
	if e.X509TTL < 0 {
		fault("has a negative TTL")
	}
	if e.MaxAge != 0 && e.MaxAge < MinAge {
		fault("has a max_age of %s; the least is %s", e.MaxAge, MinAge)
	}
	return faults
}

// boundaryRank orders the selectors that an unprivileged attacker cannot take on by how few processes share
// one. Others rank 0 and never carry an entry alone (see package attest).
func boundaryRank(selectorType string) int {
	switch selectorType {
	case attest.Launch:
		return 3
	case attest.SystemdUnit:
		return 2
	case attest.UnixUID:
		return 1
	}
	return 0
}

// boundary is the narrowest boundary among the entry's selectors. Entries are indexed by it.
func (e *Entry) boundary() (best attest.Selector, found bool) {
	for _, s := range e.Selectors {
		if boundaryRank(s.Type) > boundaryRank(best.Type) && s.Value != "" {
			best, found = s, true
		}
	}
	return best, found
}

// Bounded reports whether selectors name a boundary that an unprivileged attacker cannot take on: what grants anything
// must.
func Bounded(s attest.Selectors) bool {
	for _, one := range s {
		if boundaryRank(one.Type) > 0 && one.Value != "" {
			return true
		}
	}
	return false
}

// boundaryIndex finds entries by the one selector that a matching process must have.
type boundaryIndex struct{}

// FromObject implements memdb.SingleIndexer.
func (boundaryIndex) FromObject(raw any) (bool, []byte, error) {
	e, ok := raw.(*Entry)
	if !ok {
		return false, nil, fmt.Errorf("%T is not an entry", raw)
	}
	s, found := e.boundary()
	return found, boundaryKey(s), nil
}

// FromArgs implements memdb.Indexer.
func (boundaryIndex) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if s, ok := args[0].(attest.Selector); ok {
			return boundaryKey(s), nil
		}
	}
	return nil, errors.New("the argument must be one selector")
}

// boundaryKey ends in a zero byte, so that uid 10 is no prefix of uid 1000.
func boundaryKey(s attest.Selector) []byte { return []byte(s.Type + "\x00" + s.Value + "\x00") }

// deviceIndex finds devices by SPIFFE ID.
type deviceIndex struct{}

// FromObject implements memdb.SingleIndexer.
func (deviceIndex) FromObject(raw any) (bool, []byte, error) {
	d, ok := raw.(*Device)
	if !ok {
		return false, nil, fmt.Errorf("%T is not a device", raw)
	}
	return true, []byte(d.ID.String() + "\x00"), nil
}

// FromArgs implements memdb.Indexer.
func (deviceIndex) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if id, ok := args[0].(spiffeid.ID); ok {
			return []byte(id.String() + "\x00"), nil
		}
	}
	return nil, errors.New("the argument must be one SPIFFE ID")
}
