package broker_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload/broker"
	"github.com/wardmesh/ward/workload/broker/wardref"
)

var (
	someProcess = attest.Reference{Process: attest.ProcessReference{PID: 812, Inode: 1 << 40, UID: 1000, GID: 1000}}
	someConn    = attest.Reference{Conn: attest.ConnReference{Client: netip.MustParseAddrPort("127.0.0.1:51234"),
		Dialed: netip.MustParseAddrPort("127.18.0.4:80"), Cookie: 77, NetNS: 4026531840}}
	sameAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
)

func TestReferencesArriveAsTheyLeft(t *testing.T) {
	six := attest.Reference{Conn: attest.ConnReference{Client: netip.MustParseAddrPort("[::1]:51234"),
		Dialed: netip.MustParseAddrPort("[::ffff:127.0.0.1]:80"), Cookie: 1, NetNS: 1}}
	root := attest.Reference{Process: attest.ProcessReference{PID: 1, Inode: 1}}
	for _, r := range []attest.Reference{someProcess, someConn, six, root} {
		w, err := broker.Pack(r)
		if err != nil {
			t.Errorf("%v: %v", r, err)
			continue
		}
		got, err := broker.Unpack(w)
		if diff := cmp.Diff(r, got, sameAddr); err != nil || diff != "" {
			t.Errorf("%v: %v %s", r, err, diff)
		}
	}
}

func TestUnsoundReferencesAreNotSent(t *testing.T) {
	both := someProcess
	both.Conn = someConn.Conn
	for _, r := range []attest.Reference{
		{}, both, {Process: attest.ProcessReference{PID: 1}}, {Process: attest.ProcessReference{Inode: 1}}, {Process: attest.ProcessReference{PID: 1 << 31, Inode: 1}},
		{Conn: attest.ConnReference{Client: netip.MustParseAddrPort("127.0.0.1:0"), Dialed: someConn.Conn.Dialed, Cookie: 1, NetNS: 1}},
	} {
		if _, err := broker.Pack(r); !errors.Is(err, attest.ErrReference) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// any packs what a request could carry.
func packAny(t testing.TB, m proto.Message) *spiffe.WorkloadReference {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &spiffe.WorkloadReference{Reference: a}
}

const wardType = "type.googleapis.com/ward.broker.v1.Reference"

// bytesOf is our type around whatever bytes.
func bytesOf(b ...byte) *spiffe.WorkloadReference {
	return &spiffe.WorkloadReference{Reference: &anypb.Any{TypeUrl: wardType, Value: b}}
}

// refused is what must never name anybody.
func refused(t testing.TB) map[string]*spiffe.WorkloadReference {
	good, err := broker.Pack(someProcess)
	if err != nil {
		t.Fatal(err)
	}
	value := good.GetReference().GetValue()
	process := func(p *wardref.Process) *spiffe.WorkloadReference {
		return packAny(t, &wardref.Reference{Subject: &wardref.Reference_Process{Process: p}})
	}
	end := func(port uint32, addr ...byte) *wardref.Endpoint { return &wardref.Endpoint{Address: addr, Port: port} }
	conn := func(c *wardref.Connection) *spiffe.WorkloadReference {
		return packAny(t, &wardref.Reference{Subject: &wardref.Reference_Connection{Connection: c}})
	}
	local := end(80, 127, 0, 0, 1)
	return map[string]*spiffe.WorkloadReference{
		"BA 3.1.1 no reference":               nil,
		"BA 3.1.1 an empty one":               {},
		"BA 3.1.1 of no type":                 {Reference: &anypb.Any{Value: value}},
		"BA 3.1.3 a bare pid":                 packAny(t, &spiffe.WorkloadPIDReference{Pid: 812}),
		"BA 4.8 a negative pid":               packAny(t, &spiffe.WorkloadPIDReference{Pid: -1}),
		"BA 3.1.4 a Kubernetes object":        packAny(t, &spiffe.KubernetesObjectReference{Uid: "a1b2c3d4-e5f6-7890-abcd-ef1234567890"}),
		"BA 3.1.4 another's type":             {Reference: &anypb.Any{TypeUrl: "type.googleapis.com/acme.Reference", Value: value}},
		"our type within another's name":      {Reference: &anypb.Any{TypeUrl: "type.googleapis.com/x.ward.broker.v1.Reference", Value: value}},
		"our type, empty":                     bytesOf(),
		"our type, cut short":                 bytesOf(value[:len(value)-1]...),
		"no protocol buffer":                  bytesOf(0xff, 0xff, 0xff),
		"an unknown field":                    bytesOf(append([]byte{0x78, 0x01}, value...)...),
		"an unknown field at the end":         bytesOf(append(append([]byte{}, value...), 0x78, 0x01)...),
		"an unknown field within":             bytesOf(0x0a, 0x06, 0x08, 0x01, 0x10, 0x01, 0x78, 0x01),
		"a process twice":                     bytesOf(append(append([]byte{}, value...), value...)...),
		"a field twice":                       bytesOf(0x0a, 0x06, 0x08, 0x01, 0x08, 0x02, 0x10, 0x01),
		"a number longer than it needs to be": bytesOf(0x0a, 0x05, 0x08, 0x81, 0x00, 0x10, 0x01),
		"fields out of order":                 bytesOf(0x0a, 0x04, 0x10, 0x01, 0x08, 0x01),
		"a pid without an inode":              process(&wardref.Process{Pid: 1}),
		"an inode without a pid":              process(&wardref.Process{PidfsInode: 1}),
		"a pid below zero":                    process(&wardref.Process{Pid: -1, PidfsInode: 1}),
		"a connection without a cookie":       conn(&wardref.Connection{Client: local, Dialed: local, Netns: 1}),
		"without a network namespace":         conn(&wardref.Connection{Client: local, Dialed: local, Cookie: 1}),
		"without a client":                    conn(&wardref.Connection{Dialed: local, Cookie: 1, Netns: 1}),
		"without what was dialled":            conn(&wardref.Connection{Client: local, Cookie: 1, Netns: 1}),
		"without a port":                      conn(&wardref.Connection{Client: end(0, 127, 0, 0, 1), Dialed: local, Cookie: 1, Netns: 1}),
		"a port of 17 bits":                   conn(&wardref.Connection{Client: end(1<<16, 127, 0, 0, 1), Dialed: local, Cookie: 1, Netns: 1}),
		"an address of 5 bytes":               conn(&wardref.Connection{Client: end(1, 127, 0, 0, 0, 1), Dialed: local, Cookie: 1, Netns: 1}),
	}
}

func TestReferencesThatAreRefused(t *testing.T) {
	for name, w := range refused(t) {
		if r, err := broker.Unpack(w); !errors.Is(err, attest.ErrReference) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestEverySoundReferenceHasOneSpelling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := attest.Reference{Process: attest.ProcessReference{
			PID: rapid.IntRange(1, 1<<22).Draw(t, "pid"), Inode: rapid.Uint64Range(1, 1<<63).Draw(t, "inode"),
			UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
		}}
		w, err := broker.Pack(r)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever is put behind it makes it unsound.
		w.Reference.Value = append(w.Reference.Value, rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "more")...)
		if got, err := broker.Unpack(w); err == nil {
			t.Fatalf("%+v", got)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	for _, r := range []attest.Reference{someProcess, someConn} {
		w, err := broker.Pack(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(w.GetReference().GetTypeUrl(), w.GetReference().GetValue())
	}
	for _, w := range refused(f) {
		if w.GetReference() != nil {
			f.Add(w.GetReference().GetTypeUrl(), w.GetReference().GetValue())
		}
	}
	f.Fuzz(func(t *testing.T, kind string, value []byte) {
		w := &spiffe.WorkloadReference{Reference: &anypb.Any{TypeUrl: kind, Value: value}}
		r, err := broker.Unpack(w)
		if err != nil {
			if !errors.Is(err, attest.ErrReference) {
				t.Fatalf("%v", err)
			}
			return
		}
		if err := r.Check(); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		again, err := broker.Pack(r)
		if err != nil || string(again.GetReference().GetValue()) != string(value) {
			t.Fatalf("%+v is %x and %x: %v", r, value, again.GetReference().GetValue(), err)
		}
	})
}
