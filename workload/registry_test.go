package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/attest"
)

func sel(pairs ...string) attest.Selectors {
	var out []attest.Selector
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, attest.Selector{Type: pairs[i], Value: pairs[i+1]})
	}
	return attest.NewSelectors(out...)
}

func entry(name string, selectors ...string) *Entry {
	return &Entry{Name: name, ID: spiffeid.RequireFromPath(clinic, "/"+name), Selectors: sel(selectors...)}
}

// directory is a database with the registry's tables.
func directory(t testing.TB, entries ...*Entry) *memdb.MemDB {
	t.Helper()
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: Tables()})
	if err != nil {
		t.Fatal(err)
	}
	load(t, db, entries...)
	return db
}

func load(t testing.TB, db *memdb.MemDB, entries ...*Entry) {
	t.Helper()
	txn := db.Txn(true)
	defer txn.Abort()
	if err := NewRegistry(db).Load(txn, entries, nil); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
}

func names(entries []*Entry) []string {
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

func TestMatch(t *testing.T) {
	firm := func(e *Entry) *Entry { e.MinStrength = attest.Strong; return e }
	r := NewRegistry(directory(t,
		entry("portal", "unix.uid", "1000"),
		entry("portal-exe", "unix.uid", "1000", "exe.path", "/usr/bin/portal"),
		entry("another-exe", "unix.uid", "1000", "exe.path", "/usr/bin/portal"),
		entry("bridge", "systemd.unit", "bridge.service", "unix.uid", "1001"),
		entry("ten", "unix.uid", "10"),
		firm(entry("firm", "unix.uid", "1002")),
		entry("user-unit", "unix.uid", "1003", "systemd.user_unit", "app.service"),
		firm(entry("firm-user-unit", "unix.uid", "1003", "systemd.user_unit", "app.service")),
		entry("child", "launch", "child"),
	))
	for _, tc := range []struct {
		name      string
		selectors attest.Selectors
		strength  attest.Strength
		want      []string
	}{
		{"most selectors first, then by name", sel("unix.uid", "1000", "exe.path", "/usr/bin/portal"), attest.Strong, []string{"another-exe", "portal-exe", "portal"}},
		{"all selectors are needed", sel("systemd.unit", "bridge.service", "unix.uid", "1000"), attest.Strong, []string{"portal"}},
		{"the unit and the uid", sel("systemd.unit", "bridge.service", "unix.uid", "1001"), attest.Strong, []string{"bridge"}},
		{"a uid is no prefix of another", sel("unix.uid", "100"), attest.Strong, []string{}},
		{"a weak attestation misses a firm entry", sel("unix.uid", "1002"), attest.Weak, []string{}},
		{"a strong one meets it", sel("unix.uid", "1002"), attest.Strong, []string{"firm"}},
		{"a weak attestation suffices elsewhere", sel("unix.uid", "10"), attest.Weak, []string{"ten"}},
		{"a user's own unit is weak however firmly pinned", sel("unix.uid", "1003", "systemd.user_unit", "app.service"), attest.Strong, []string{"user-unit"}},
		{"launch", sel("launch", "child", "unix.uid", "5"), attest.Strong, []string{"child"}},
		{"no strength at all matches nothing", sel("unix.uid", "10"), 0, []string{}},
		{"no selectors match nothing", nil, attest.Strong, []string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _ := r.Match(attest.Attestation{Selectors: tc.selectors, Strength: tc.strength})
			if diff := cmp.Diff(tc.want, names(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The index must not change what matches: the plain answer is every entry, looked at one by one.
func TestMatchEqualsScan(t *testing.T) {
	types := []string{attest.UnixUID, attest.UnixGID, attest.SystemdUnit, attest.SystemdUserUnit, attest.ExePath, attest.Launch}
	rapid.Check(t, func(t *rapid.T) {
		selectors := rapid.Custom(func(t *rapid.T) attest.Selectors {
			var out []attest.Selector
			for _, ty := range types {
				if v := rapid.SampledFrom([]string{"", "1", "2", "12"}).Draw(t, ty); v != "" {
					out = append(out, attest.Selector{Type: ty, Value: v})
				}
			}
			return attest.NewSelectors(out...)
		})
		var entries []*Entry
		for i := range rapid.IntRange(0, 20).Draw(t, "entries") {
			e := &Entry{Name: fmt.Sprint(i), ID: spiffeid.RequireFromPath(clinic, fmt.Sprintf("/%d", i)), Selectors: selectors.Draw(t, "entry")}
			e.MinStrength = attest.Strength(rapid.IntRange(0, 2).Draw(t, "min"))
			if len(e.validate()) == 0 {
				entries = append(entries, e)
			}
		}
		db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: Tables()})
		if err != nil {
			t.Fatal(err)
		}
		r, txn := NewRegistry(db), db.Txn(true)
		if err := r.Load(txn, entries, nil); err != nil {
			t.Fatal(err)
		}
		txn.Commit()
		att := attest.Attestation{Selectors: selectors.Draw(t, "attested"), Strength: attest.Strength(rapid.IntRange(1, 2).Draw(t, "strength"))}
		var want []string
		for _, e := range entries {
			if e.matches(att) {
				want = append(want, e.Name)
			}
		}
		got, _ := r.Match(att)
		have := names(got)
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Fatalf("matched %v, want %v", have, want)
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	with := func(change func(*Entry)) *Entry {
		e := entry("e", "unix.uid", "1")
		change(e)
		return e
	}
	long := spiffeid.RequireFromPath(clinic, "/"+strings.Repeat("a", 2048))
	for _, tc := range []struct {
		name    string
		entries []*Entry
		devices []*Device
		want    []string
	}{
		{"only a path", []*Entry{entry("e", "exe.path", "/bin/a")}, nil, []string{`entry "e" names no boundary`}},
		{"only a hash", []*Entry{entry("e", "exe.sha256", "00")}, nil, []string{"names no boundary"}},
		{"only a group", []*Entry{entry("e", "unix.gid", "1")}, nil, []string{"names no boundary"}},
		{"only a user's unit", []*Entry{entry("e", "systemd.user_unit", "a.service")}, nil, []string{"names no boundary"}},
		{"no selectors", []*Entry{entry("e")}, nil, []string{"names no boundary"}},
		{"SPIFFE-ID 2.3", []*Entry{with(func(e *Entry) { e.ID = long })}, nil, []string{"more than 2048 bytes"}},
		{"X509-SVID 3.1", []*Entry{with(func(e *Entry) { e.ID = clinic.ID() })}, nil, []string{"no SPIFFE ID with a path"}},
		{"WAPI 8", []*Entry{with(func(e *Entry) { e.Hint = strings.Repeat("h", 1025) })}, nil, []string{"hint of more than 1024 bytes"}},
		{"unsorted", []*Entry{with(func(e *Entry) {
			e.Selectors = attest.Selectors{{Type: "unix.uid", Value: "1"}, {Type: "exe.path", Value: "/a"}}
		})}, nil, []string{"sorted set"}},
		{"all faults at once", []*Entry{with(func(e *Entry) { e.X509TTL = -1; e.MinStrength = 3; e.Name = "" })}, nil,
			[]string{"no name", "negative TTL", "strength that does not exist"}},
		{"twice", []*Entry{entry("e", "unix.uid", "1"), entry("e", "unix.uid", "2")}, nil, []string{`entry "e" exists twice`}},
		{"device without path", nil, []*Device{{ID: clinic.ID()}}, []string{"ID without a path"}},
		{"device twice", nil, []*Device{{ID: long}, {ID: long}}, []string{"exists twice"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := directory(t, entry("kept", "unix.uid", "7"))
			r, txn := NewRegistry(db), db.Txn(true)
			err := r.Load(txn, tc.entries, tc.devices)
			txn.Abort()
			if err == nil {
				t.Fatal("loaded")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if kept, _ := r.Entries(); !slices.Equal(names(kept), []string{"kept"}) {
				t.Errorf("entries are now %v", names(kept))
			}
		})
	}
}

func TestLoadWakesThoseConcerned(t *testing.T) {
	db := directory(t, entry("a", "unix.uid", "1"), entry("b", "unix.uid", "2"))
	r := NewRegistry(db)
	uid := func(v string) attest.Attestation {
		return attest.Attestation{Selectors: sel("unix.uid", v), Strength: attest.Strong}
	}
	before, changed1 := r.Match(uid("1"))
	_, changed2 := r.Match(uid("2"))

	edited := entry("b", "unix.uid", "2")
	edited.Hint = "h"
	load(t, db, entry("a", "unix.uid", "1"), edited)
	if !fired(changed2) {
		t.Error("the edit of b woke nobody")
	}
	if fired(changed1) {
		t.Error("a was woken by the edit of b")
	}
	after, _ := r.Match(uid("1"))
	if before[0] != after[0] {
		t.Error("an entry that stays as it is was replaced")
	}

	load(t, db, edited)
	if !fired(changed1) {
		t.Error("the removal of a woke nobody")
	}
	if got, _ := r.Match(uid("1")); len(got) > 0 {
		t.Errorf("matched %v after removal", names(got))
	}
}

func TestDevices(t *testing.T) {
	db := directory(t)
	r := NewRegistry(db)
	device := func(name, patient string) *Device {
		return &Device{ID: spiffeid.RequireFromPath(clinic, "/device/"+name), Patients: []Window{{Patient: patient}}, Assurance: "bonded"}
	}
	put := func(devices ...*Device) {
		txn := db.Txn(true)
		defer txn.Abort()
		if err := r.Load(txn, nil, devices); err != nil {
			t.Fatal(err)
		}
		txn.Commit()
	}
	put(device("b", "Patient/1"), device("a", "Patient/2"))
	before, changed := r.Devices()
	put(device("a", "Patient/2"), device("b", "Patient/1"))
	if fired([]<-chan struct{}{changed}) {
		t.Error("woken for nothing")
	}
	put(device("a", "Patient/3"))
	after, _ := r.Devices()
	if !fired([]<-chan struct{}{changed}) || len(before) != 2 || len(after) != 1 || after[0].Patients[0].Patient != "Patient/3" {
		t.Errorf("before %v, after %v", before, after)
	}
}

func TestNearest(t *testing.T) {
	firm := entry("firm", "unix.uid", "1000")
	firm.MinStrength = attest.Strong
	r := NewRegistry(directory(t, firm,
		entry("one-off", "unix.uid", "1000", "exe.path", "/usr/bin/portal"),
		entry("two-off", "unix.uid", "1000", "exe.path", "/usr/bin/portal", "exe.sha256", "00"),
		entry("far", "unix.uid", "5"),
	))
	var got []string
	for _, n := range r.Nearest(attest.Attestation{Selectors: sel("unix.uid", "1000", "exe.path", "/bin/x"), Strength: attest.Weak}, 2) {
		got = append(got, fmt.Sprintf("%s weak=%v missing %s", n.Entry.Name, n.TooWeak, n.Missing))
	}
	want := []string{"firm weak=true missing ", "one-off weak=false missing exe.path: /usr/bin/portal"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func fired(changed []<-chan struct{}) bool {
	for _, ch := range changed {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

func BenchmarkMatch(b *testing.B) {
	var entries []*Entry
	for i := range 5000 {
		entries = append(entries, entry(fmt.Sprintf("e%d", i), "unix.uid", fmt.Sprint(i), "exe.path", "/usr/bin/portal"))
	}
	r := NewRegistry(directory(b, entries...))
	att := attest.Attestation{Selectors: sel("unix.uid", "4321", "exe.path", "/usr/bin/portal", "systemd.unit", "a.service"), Strength: attest.Strong}
	b.ReportAllocs()
	for b.Loop() {
		if got, _ := r.Match(att); len(got) != 1 {
			b.Fatal(len(got))
		}
	}
}
