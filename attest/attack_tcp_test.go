package attest_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// A TCP client resets its connection, and a trusted process connects from the same port.
func TestAttackTCPTupleReuse(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	port := freePort(t)
	attacker := start(t, "")
	attacker.do(fmt.Sprintf("tcp %s %d", l.Addr(), port))
	attacker.do("send GET /Patient")
	first := accept[*net.TCPConn](t, l)
	attacker.do("reset")
	victim := start(t, "")
	victim.do(fmt.Sprintf("tcp %s %d", l.Addr(), port))
	second := accept[*net.TCPConn](t, l)
	if first.RemoteAddr().String() != second.RemoteAddr().String() {
		t.Fatalf("the attack did not come about: %v, %v", first.RemoteAddr(), second.RemoteAddr())
	}
	_, err := pinner.TCP(t.Context(), first)
	wantError(t, err, peer.ErrNotAttributable)
	p, err := pinner.TCP(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if p.PID() != victim.pid() {
		t.Fatalf("pid %d; want %d", p.PID(), victim.pid())
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l := listenTCP(t, "127.0.0.1:0")
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	return port
}

// Sockets that nobody holds are reported as uid 0's.
func TestAttackTCPOrphans(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	t.Run("closed by the client", func(t *testing.T) { // FIN_WAIT2, without an owner
		attacker := start(t, "")
		attacker.do("tcp " + l.Addr().String())
		conn := accept[*net.TCPConn](t, l)
		attacker.do("close")
		_, err := pinner.TCP(t.Context(), conn)
		wantError(t, err, peer.ErrNotAttributable)
	})
	t.Run("TIME_WAIT", func(t *testing.T) { // both have closed, the client first
		attacker := start(t, "")
		attacker.do("tcp " + l.Addr().String())
		conn := accept[*net.TCPConn](t, l)
		attacker.do("close")
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_, err := pinner.TCP(t.Context(), conn)
		wantError(t, err, peer.ErrNotAttributable)
	})
	t.Run("exited", func(t *testing.T) {
		attacker := start(t, "")
		attacker.do("tcp " + l.Addr().String())
		conn := accept[*net.TCPConn](t, l)
		attacker.kill()
		_, err := pinner.TCP(t.Context(), conn)
		wantError(t, err, peer.ErrNotAttributable)
	})
}

// A process shares its TCP connection with one that is somebody else.
func TestAttackTCPSharedConnection(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	pinner := newPinner(t, peer.Options{})
	t.Run("same", func(t *testing.T) { // as after an ordinary fork
		owner := start(t, "")
		owner.do("tcp " + l.Addr().String())
		owner.do("fork inherit")
		p, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
		if err != nil {
			t.Fatal(err)
		}
		run(t, p, allAttestors(t))
		if p.PID() != owner.pid() || len(p.Others()) != 1 {
			t.Fatalf("pid %d and %d others; want %d and its child", p.PID(), len(p.Others()), owner.pid())
		}
	})
	t.Run("another program", func(t *testing.T) {
		owner := start(t, "")
		owner.do("tcp " + l.Addr().String())
		owner.do("fork inherit")
		p, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(owner.in, "child exec "+copyProgram(t, "other")) // answers by being another program
		_ = owner.lines.Scan()
		_, err = attest.Run(t.Context(), p, allAttestors(t))
		wantReplaced(t, err)
		await(t, p.Done(), "the exec of a process that shares the connection")
	})
	t.Run("another user", func(t *testing.T) {
		rootOnly(t, "run processes as other users")
		owner := start(t, "")
		owner.do("tcp " + l.Addr().String())
		owner.do("forkas 12345")
		_, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
		wantError(t, err, attest.ErrMismatch)
	})
	t.Run("another program before it was pinned", func(t *testing.T) {
		owner := start(t, "")
		owner.do("tcp " + l.Addr().String())
		owner.do("fork inherit")
		owner.exec(copyProgram(t, "other"))
		p, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
		if err != nil {
			t.Fatal(err)
		}
		_, err = attest.Run(t.Context(), p, allAttestors(t))
		wantError(t, err, attest.ErrMismatch)
	})
}
