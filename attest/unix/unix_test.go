package unix

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/attest"
)

// somebody is a process of which /proc must tell the groups.
type somebody struct {
	attest.Process
	proc *os.File
}

func (somebody) UID() uint32      { return 0 }
func (somebody) GID() uint32      { return 4294967294 }
func (s somebody) Proc() *os.File { return s.proc }

func TestAttestFromProc(t *testing.T) {
	proc, err := os.Open("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	facts, err := Attestor{}.Attest(t.Context(), somebody{proc: proc})
	if err != nil {
		t.Fatal(err)
	}
	want := []attest.Selector{{Type: attest.UnixUID, Value: "0"}, {Type: attest.UnixGID, Value: "4294967294"}}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		want = append(want, attest.Selector{Type: attest.UnixGroup, Value: decimal(uint32(g))})
	}
	if diff := cmp.Diff(attest.NewSelectors(want...), attest.NewSelectors(facts...)); diff != "" {
		t.Error(diff)
	}
}

func TestParseGroups(t *testing.T) {
	got, err := parseGroups([]byte("Name:\tGroups:\\t0\nGroups:\t4 27 1000 \nNStgid:\t1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint32{4, 27, 1000}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "Name:\tx\n", "Groups:\t-1\n", "Groups:\t4294967296\n", "Groups:\tx\n"} {
		if got, err := parseGroups([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func FuzzParseGroups(f *testing.F) {
	f.Add([]byte("Name:\tx\nGroups:\t4 27\n"))
	f.Fuzz(func(t *testing.T, status []byte) { _, _ = parseGroups(status) })
}
