package attest_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// A caller is named to the agent and exits; its pid is given to a trusted process before the agent looks. The attacker
// gets nothing: the pidfd's inode is another.
func TestAttackReferencePidReuse(t *testing.T) {
	rootOnly(t, "make a pid namespace and choose pids in it")
	if !inNamespaces(t, func(cmd *exec.Cmd) {
		attributes(cmd).Cloneflags = unix.CLONE_NEWPID
		attributes(cmd).Unshareflags = unix.CLONE_NEWNS
	}) {
		return
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	path := program(t)
	attacker := start(t, path)
	attacker.do("unix " + l.Addr().String())
	c, r := acceptReferred(t, pinner, l)
	pid := attacker.pid()
	attacker.kill()
	_, err := pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrExited)
	var victim *process
	for range 1000 { // a thread of ours may take the number first
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		if victim = start(t, path); victim.pid() == pid {
			break
		}
		victim.kill()
	}
	if victim.pid() != pid {
		t.Fatal("the attack did not come about: the pid was not given out again")
	}
	_, err = pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrReference)
	await(t, c.Done(), "the exit")
	wantError(t, c.Confirm(), attest.ErrExited)
}

// A caller connects as one user and is another when the agent looks, as by a set-user-ID program: pid and inode are
// still its own. The attacker gets nothing.
func TestAttackReferenceUIDSpoof(t *testing.T) {
	rootOnly(t, "run processes as other users")
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	c, r := acceptReferred(t, pinner, l)
	attacker.do("setresuid 12345")
	_, err := pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrMismatch)
	wantError(t, c.Confirm(), attest.ErrMismatch)

	t.Run("over TCP", func(t *testing.T) {
		l := listenTCP(t, "127.0.0.1:0")
		attacker := start(t, "")
		attacker.do("tcp " + l.Addr().String())
		_, r := acceptReferred(t, pinner, l)
		attacker.do("setresuid 12345")
		_, err := pinner.Resolve(t.Context(), r)
		wantError(t, err, attest.ErrMismatch)
	})
}

// A caller is named to the agent, and execs a trusted program before the agent looks. The attacker gets what the
// package says is not promised: path and hash of that program, beside its own user and unit, which entries must name.
// Once the agent has looked, an exec ends it (TestAttackExecSwapAtOnce).
func TestAttackReferenceExecBefore(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	_, r := acceptReferred(t, pinner, l)
	trusted := copyProgram(t, "trusted")
	attacker.exec(trusted)
	p := resolve(t, pinner, r)
	a := run(t, p, allAttestors(t))
	if got := values(a.Selectors, attest.UnixUID); len(got) != 1 || got[0] != strconv.Itoa(os.Getuid()) {
		t.Errorf("the attacker gets another user: %v", got)
	}
	t.Logf("the attacker gets: %v", a.Selectors)
}

// A caller's TCP connection is named to the agent and reset, and a trusted process connects from the same port. The
// attacker gets nothing: the cookie is another, and the connection is not confirmed.
func TestAttackReferenceTupleReuse(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	port := freePort(t)
	attacker := start(t, "")
	attacker.do(fmt.Sprintf("tcp %s %d", l.Addr(), port))
	attacker.do("send GET /Patient")
	c, r := acceptReferred(t, pinner, l)
	attacker.do("reset")
	_, err := pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrReference)
	victim := start(t, "")
	victim.do(fmt.Sprintf("tcp %s %d", l.Addr(), port))
	_, theirs := acceptReferred(t, pinner, l)
	if theirs.Conn.Client != r.Conn.Client {
		t.Fatalf("the attack did not come about: %v, %v", theirs, r)
	}
	_, err = pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrReference)
	wantError(t, c.Confirm(), peer.ErrNotAttributable)
	if p := resolve(t, pinner, theirs); p.PID() != victim.pid() {
		t.Fatalf("pid %d; want %d", p.PID(), victim.pid())
	}
}

// The connection ends while the agent answers: what it answered is not of the bytes that are there to be read. The
// attacker gets nothing.
func TestAttackReferenceEndsBeforeConfirm(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	attacker := start(t, "")
	attacker.do("tcp " + l.Addr().String())
	attacker.do("send GET /Patient")
	c, r := acceptReferred(t, pinner, l)
	resolve(t, pinner, r)
	attacker.do("close")
	wantError(t, c.Confirm(), peer.ErrNotAttributable)
	_, err := pinner.Resolve(t.Context(), r)
	wantError(t, err, attest.ErrReference)
}

// References that name nothing. The attacker, who would have to be the proxy itself, gets nothing.
func TestAttackReferenceForged(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	caller := start(t, "")
	caller.do("unix " + unixListener.Addr().String())
	_, process := acceptReferred(t, pinner, unixListener)
	caller.do("tcp " + tcpListener.Addr().String())
	_, conn := acceptReferred(t, pinner, tcpListener)
	bend := func(r attest.Reference, f func(*attest.Reference)) attest.Reference { f(&r); return r }
	for name, r := range map[string]attest.Reference{
		"nothing":           {},
		"both":              {Process: process.Process, Conn: conn.Conn},
		"a bare pid":        bend(process, func(r *attest.Reference) { r.Process.Inode = 0 }),
		"another inode":     bend(process, func(r *attest.Reference) { r.Process.Inode++ }),
		"another pid":       bend(process, func(r *attest.Reference) { r.Process.PID = os.Getpid() }),
		"a negative pid":    bend(process, func(r *attest.Reference) { r.Process.PID = -1 }),
		"another cookie":    bend(conn, func(r *attest.Reference) { r.Conn.Cookie++ }),
		"no cookie":         bend(conn, func(r *attest.Reference) { r.Conn.Cookie = 0 }),
		"another namespace": bend(conn, func(r *attest.Reference) { r.Conn.NetNS++ }),
		"nobody's address":  bend(conn, func(r *attest.Reference) { r.Conn.Dialed = netip.MustParseAddrPort("127.128.0.5:80") }),
		"our own end": bend(conn, func(r *attest.Reference) {
			r.Conn.Client, r.Conn.Dialed = r.Conn.Dialed, r.Conn.Client
		}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pinner.Resolve(t.Context(), r)
			wantError(t, err, attest.ErrReference)
		})
	}
}

// A captured egress, without any capability, refers to a process that never called it: a pidfd, and with it the inode, is
// anybody's to take. It gets that process pinned and so, where its entry says proxy: true, its lent SVID while it lives.
// References do not promise otherwise, which is why the agent's trail has each lending with its process.
func TestAttackReferenceToWhoeverNeverCalled(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	victim := start(t, "")
	fd, err := unix.PidfdOpen(victim.pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	forged := attest.Reference{Process: attest.ProcessReference{PID: victim.pid(), Inode: st.Ino,
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}} //nolint:gosec // ids fit
	a := run(t, resolve(t, pinner, forged), allAttestors(t))
	t.Logf("the attacker gets: %v", a.Selectors)
	other := forged
	other.Process.UID++ // in another user's name, such as one that the process had
	_, err = pinner.Resolve(t.Context(), other)
	wantError(t, err, attest.ErrMismatch)
	victim.kill()
	_, err = pinner.Resolve(t.Context(), forged)
	wantError(t, err, attest.ErrExited)
}

// A connection that was named is passed to another process, which speaks on it, and a descriptor is passed to the
// proxy. The attacker gets nothing.
func TestAttackReferredConnectionPassed(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	owner := start(t, "")
	owner.do("unix " + l.Addr().String())
	owner.do("fork inherit")
	c, _ := acceptReferred(t, pinner, l)
	owner.do("child send theirs")
	n, err := c.Read(make([]byte, 64))
	wantError(t, err, peer.ErrPassed)
	if n != 0 {
		t.Fatal("the attacker's bytes came through")
	}
	if _, err := c.Write([]byte("secret")); err == nil {
		t.Fatal("the connection goes on")
	}

	t.Run("to who reads with a lent buffer", func(t *testing.T) {
		owner := start(t, "")
		owner.do("unix " + l.Addr().String())
		owner.do("fork inherit")
		c, _ := acceptReferred(t, pinner, l)
		owner.do("child send theirs")
		buf := make([]byte, 64)
		n, err := c.ReadLent(func() []byte { return buf }, func() {})
		wantError(t, err, peer.ErrPassed)
		if n != 0 || !bytes.Equal(buf, make([]byte, 64)) {
			t.Fatal("the attacker's bytes came through")
		}
		if _, err := c.Write([]byte("secret")); err == nil {
			t.Fatal("the connection goes on")
		}
	})
	t.Run("and its owner exits", func(t *testing.T) {
		owner := start(t, "")
		owner.do("unix " + l.Addr().String())
		owner.do("fork inherit")
		c, _ := acceptReferred(t, pinner, l)
		if err := owner.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		await(t, c.Done(), "the exit")
		_, err := c.Write([]byte("secret"))
		wantError(t, err, attest.ErrExited)
	})
	t.Run("a descriptor", func(t *testing.T) {
		attacker := start(t, "")
		attacker.do("unix " + l.Addr().String())
		c, _ := acceptReferred(t, pinner, l)
		if _, err := attacker.ask("descriptor x"); err != nil {
			t.Logf("the attacker gets: %v", err) // Linux 6.16: SO_PASSRIGHTS
			return
		}
		_, err := c.Read(make([]byte, 8))
		wantError(t, err, peer.ErrPassed)
	})
}

// A connection of another network namespace may have the addresses of a trusted one here. The attacker gets nothing.
func TestAttackReferenceOtherNamespace(t *testing.T) {
	rootOnly(t, "make a network namespace")
	pinner := newPinner(t, peer.Options{})
	var conn net.Conn = inOtherNetns(t)
	defer conn.Close()
	_, err := pinner.Referred(conn)
	wantError(t, err, peer.ErrNotAttributable)
}
