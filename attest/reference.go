package attest

import (
	"errors"
	"fmt"
	"net/netip"
)

// Reference names a local process to another ward of this host, in a way that cannot come to mean another process on
// the way. A proxy that has no capability of its own takes one from a connection and hands it to the agent, which pins
// what it names (attest/peer does both). Exactly one of its parts is set.
//
// A bare pid is no reference: it may belong to somebody else by the time it is read.
type Reference struct {
	Process ProcessReference
	Conn    ConnReference
}

// ProcessReference names a process by its pid and by the inode of its pidfd, which is unique for as long as the host
// runs (pidfs, Linux 6.9). Zero when unset.
//
// UID and GID are the effective ones of the socket's peer at connect. Whoever resolves the reference refuses a process
// that has others by now: a process that connects and then executes a set-user-ID program is still the same process,
// and must not be taken for that program's user.
type ProcessReference struct {
	PID      int
	Inode    uint64
	UID, GID uint32
}

// ConnReference names whoever holds one end of a loopback TCP connection: the client's own socket as the client sees
// it, by address, by the kernel's cookie for it, which is never used twice, and by the network namespace in which both
// lie. Zero when unset.
type ConnReference struct {
	Client netip.AddrPort // the client's own address
	Dialed netip.AddrPort // what it connected to, before any redirection
	Cookie uint64         // SO_COOKIE of the client's socket
	NetNS  uint64         // inode of the network namespace
}

// ErrReference: the reference is not one that names a process soundly.
var ErrReference = errors.New("not a sound reference to a process")

// Check refuses a reference that is incomplete or ambiguous.
func (r Reference) Check() error {
	p, c := r.Process != ProcessReference{}, r.Conn != ConnReference{}
	switch {
	case p == c:
		return fmt.Errorf("%w: it must name a process or a connection, and not both", ErrReference)
	case p && (r.Process.PID <= 0 || r.Process.Inode == 0):
		return fmt.Errorf("%w: a pid without its pidfs inode", ErrReference)
	case c && (!r.Conn.Client.IsValid() || !r.Conn.Dialed.IsValid() || r.Conn.Cookie == 0 || r.Conn.NetNS == 0):
		return fmt.Errorf("%w: a connection without its addresses, cookie and network namespace", ErrReference)
	}
	return nil
}

// String is for operators: `pid 812` or `tcp 127.0.0.1:51234`.
func (r Reference) String() string {
	if r.Process.PID != 0 {
		return fmt.Sprintf("pid %d", r.Process.PID)
	}
	return "tcp " + r.Conn.Client.String()
}
