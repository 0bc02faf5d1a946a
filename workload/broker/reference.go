package broker

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload/broker/wardref"
)

// Pack turns a sound reference into what a request carries.
func Pack(r attest.Reference) (*spiffe.WorkloadReference, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	m := &wardref.Reference{}
	if p, c := r.Process, r.Conn; p != (attest.ProcessReference{}) {
		if p.PID > math.MaxInt32 {
			return nil, fmt.Errorf("%w: no pid is as large as %d", attest.ErrReference, p.PID)
		}
		m.Subject = &wardref.Reference_Process{Process: &wardref.Process{Pid: int32(p.PID), PidfsInode: p.Inode, Uid: p.UID, Gid: p.GID}} //nolint:gosec // checked above
	} else {
		m.Subject = &wardref.Reference_Connection{Connection: &wardref.Connection{
			Client: packEndpoint(c.Client), Dialed: packEndpoint(c.Dialed), Cookie: c.Cookie, Netns: c.NetNS,
		}}
	}
	packed, err := anypb.New(m)
	if err != nil {
		return nil, err
	}
	w := &spiffe.WorkloadReference{Reference: packed}
	// What the agent would refuse is a fault on this side, and better said here.
	if _, err := Unpack(w); err != nil {
		return nil, err
	}
	return w, nil
}

func packEndpoint(a netip.AddrPort) *wardref.Endpoint {
	return &wardref.Endpoint{Address: a.Addr().WithZone("").AsSlice(), Port: uint32(a.Port())}
}

// Unpack reads a reference, strictly: what it does not know, or could be read in two ways, is an attest.ErrReference.
func Unpack(w *spiffe.WorkloadReference) (attest.Reference, error) {
	var none attest.Reference
	packed := w.GetReference()
	switch {
	case packed == nil || packed.GetTypeUrl() == "":
		// BA §3.1.1: servers MUST reject requests that lack a reference.
		return none, fmt.Errorf("%w: there is none", attest.ErrReference)
	case packed.MessageIs((*spiffe.WorkloadPIDReference)(nil)):
		return none, fmt.Errorf("%w: a bare pid may be another process's by now; send %s", attest.ErrReference, (*wardref.Reference)(nil).ProtoReflect().Descriptor().FullName())
	case !packed.MessageIs((*wardref.Reference)(nil)):
		// BA §3.1.4: a type that is not recognized MUST be rejected.
		return none, fmt.Errorf("%w: its type is not known here; send %s", attest.ErrReference, (*wardref.Reference)(nil).ProtoReflect().Descriptor().FullName())
	}
	m := &wardref.Reference{}
	if err := proto.Unmarshal(packed.GetValue(), m); err != nil {
		return none, fmt.Errorf("%w: it is not well formed", attest.ErrReference)
	}
	// One reference has one spelling: no field twice, of which only one would count, and none that is unknown.
	if canonical, err := (proto.MarshalOptions{Deterministic: true}).Marshal(m); err != nil || !bytes.Equal(canonical, packed.GetValue()) || hasUnknown(m) {
		return none, fmt.Errorf("%w: it has fields twice, unknown or out of order", attest.ErrReference)
	}
	var r attest.Reference
	switch s := m.GetSubject().(type) {
	case *wardref.Reference_Process:
		r.Process = attest.ProcessReference{PID: int(s.Process.GetPid()), Inode: s.Process.GetPidfsInode(), UID: s.Process.GetUid(), GID: s.Process.GetGid()}
	case *wardref.Reference_Connection:
		r.Conn = attest.ConnReference{Cookie: s.Connection.GetCookie(), NetNS: s.Connection.GetNetns()}
		var clientOK, dialedOK bool
		r.Conn.Client, clientOK = unpackEndpoint(s.Connection.GetClient())
		r.Conn.Dialed, dialedOK = unpackEndpoint(s.Connection.GetDialed())
		if !clientOK || !dialedOK {
			return none, fmt.Errorf("%w: an address needs 4 or 16 bytes and a port", attest.ErrReference)
		}
	}
	return r, r.Check()
}

// hasUnknown reports whether bytes were kept that no field is for.
func hasUnknown(m *wardref.Reference) bool {
	c := m.GetConnection()
	for _, part := range []proto.Message{m, m.GetProcess(), c, c.GetClient(), c.GetDialed()} {
		if r := part.ProtoReflect(); r.IsValid() && len(r.GetUnknown()) > 0 {
			return true
		}
	}
	return false
}

func unpackEndpoint(e *wardref.Endpoint) (netip.AddrPort, bool) {
	addr, ok := netip.AddrFromSlice(e.GetAddress())
	if !ok || e.GetPort() == 0 || e.GetPort() > math.MaxUint16 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, uint16(e.GetPort())), true //nolint:gosec // checked above
}
