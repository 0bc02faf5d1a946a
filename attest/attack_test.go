package attest_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// The tests of this file are the attacks of the threat model. Each shows first that the attack is real, as far
// as the kernel lets it be seen, and then what the attacker gets.

// A process connects and exits; its pid is given to a trusted one before the connection is accepted.
func TestAttackPidReuse(t *testing.T) {
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
	trusted := copyProgram(t, "trusted")
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	pid := attacker.pid()
	attacker.kill()
	var victim *process
	for range 1000 { // a thread of ours may take the number first
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		if victim = start(t, trusted); victim.pid() == pid {
			break
		}
		victim.kill()
	}
	conn := accept[*net.UnixConn](t, l)
	cred := peerCred(t, conn)
	if int(cred.Pid) != victim.pid() {
		t.Fatalf("the attack did not come about: SO_PEERCRED names %d, the trusted process is %d", cred.Pid, victim.pid())
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cred.Pid))
	if err != nil || link != trusted {
		t.Fatalf("%s %v", link, err)
	}
	t.Logf("SO_PEERCRED and /proc name %s as the peer", link)

	t.Run("pidfd", func(t *testing.T) {
		_, err := newPinner(t, peer.Options{}).Unix(conn)
		wantError(t, err, attest.ErrExited)
	})
	t.Run("pidfd without info", func(t *testing.T) {
		_, err := newPinner(t, peer.Options{Without: peer.Missing{PidfdInfo: true}}).Unix(conn)
		wantError(t, err, attest.ErrExited)
	})
	t.Run("before Linux 6.5", func(t *testing.T) {
		// Nothing tells the two apart, which is why an entry can ask for strong attestation.
		p, err := newPinner(t, peer.Options{Without: peer.Missing{PeerPidfd: true, PidfdInfo: true}}).Unix(conn)
		if err != nil {
			t.Fatal(err)
		}
		a := run(t, p, allAttestors(t))
		if a.Strength != attest.Weak {
			t.Fatalf("strength %v", a.Strength)
		}
		t.Logf("the attacker gets: a weak attestation of %v", a.Selectors)
	})
}

// A process connects, leaves the connection to a child, and execs a trusted program.
func TestAttackExecSwap(t *testing.T) {
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			trusted := copyProgram(t, "trusted")
			pinner := newPinner(t, peer.Options{Without: without})
			l := listenUnix(t)
			attacker := start(t, "")
			attacker.do("unix " + l.Addr().String())
			conn, p := acceptPinned(t, pinner, l)
			attacker.do("fork inherit")
			attacker.exec(trusted)
			if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID())); err != nil || link != trusted {
				t.Fatalf("the attack did not come about: %s %v", link, err)
			}
			_, err := attest.Run(t.Context(), p, allAttestors(t))
			wantReplaced(t, err)
			await(t, p.Done(), "the exec")
			_, err = conn.Read(make([]byte, 8))
			wantReplaced(t, err)
		})
	}
}

// The same, with a stream that nobody asks about: it ends by itself.
func TestAttackExecSwapUnderStream(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	conn, p := acceptPinned(t, pinner, l)
	attacker.exec(copyProgram(t, "trusted"))
	_, err := conn.Read(make([]byte, 8)) // blocks until the connection is ended
	wantReplaced(t, err)
	await(t, p.Done(), "the exec")
}

// The same, in the middle of the attestation: every fact may be from before or after.
func TestAttackExecDuringAttestation(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	trusted := copyProgram(t, "trusted")
	attestors := append([]attest.Attestor{between(func() { attacker.exec(trusted) })}, allAttestors(t)...)
	_, err := attest.Run(t.Context(), p, attestors)
	wantReplaced(t, err)
}

// A program that is laid out in memory exactly as the one before: randomisation off, and everything of one length.
func TestAttackExecWithSameLayout(t *testing.T) {
	setarch, err := exec.LookPath("setarch")
	if err != nil {
		t.Skip("SKIPPED: needs setarch of util-linux, to switch off address randomisation")
	}
	l := listenUnix(t)
	path := program(t)
	attacker := start(t, path, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = setarch, []string{"setarch", "-R", path}
	})
	attacker.exec(path) // so that its arguments and environment are what they are at the next time
	attacker.do("unix " + l.Addr().String())
	conn := accept[*net.UnixConn](t, l)
	p, err := newPinner(t, peer.Options{}).Unix(conn)
	if err != nil {
		t.Fatal(err)
	}
	// Without frequent sweeps or events: a look in the middle of the exec would see a layout that is half made.
	layoutOnly, err := newPinner(t, peer.Options{Sweep: time.Second, Without: peer.Missing{Pagemap: true, ExecEvents: true}}).Unix(conn)
	if err != nil {
		t.Fatal(err)
	}
	attacker.exec(path)
	if err := layoutOnly.Alive(); err != nil {
		t.Fatalf("the attack did not come about: %v", err)
	}
	wantReplaced(t, p.Alive())
}

// The connection is passed to another process, which speaks on it.
func TestAttackPassedConnection(t *testing.T) {
	for _, how := range []string{"inherited", "SCM_RIGHTS"} {
		t.Run(how, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{})
			l := listenUnix(t)
			owner := start(t, "")
			owner.do("unix " + l.Addr().String())
			if how == "inherited" {
				owner.do("fork inherit")
			} else {
				owner.do("fork")
				owner.do("pass")
				owner.do("child take")
			}
			conn, _ := acceptPinned(t, pinner, l)
			owner.do("send mine")
			buf := make([]byte, 64)
			if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "mine" {
				t.Fatalf("%q %v", buf[:n], err)
			}
			// Both messages wait: the first must come, and not a byte of the second.
			owner.do("send mine too")
			owner.do("child send theirs")
			if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "mine too" {
				t.Fatalf("%q %v", buf[:n], err)
			}
			n, err := conn.Read(buf)
			wantError(t, err, peer.ErrPassed)
			if n != 0 || strings.Contains(string(buf), "theirs") {
				t.Fatalf("the attacker's bytes came through: %q", buf)
			}
			if _, err := conn.Write([]byte("secret")); err == nil {
				t.Fatal("the connection goes on")
			}
		})
	}
}

// The owner of a passed connection exits: nothing more is sent to whoever still holds it.
func TestAttackOrphanedConnection(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	owner := start(t, "")
	owner.do("unix " + l.Addr().String())
	owner.do("fork inherit")
	conn, p := acceptPinned(t, pinner, l)
	if err := owner.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done(), "the exit")
	_, err := conn.Write([]byte("secret"))
	wantError(t, err, attest.ErrExited)
}

// A descriptor is passed to Ward itself.
func TestAttackDescriptorToWard(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	attacker := start(t, "")
	attacker.do("unix " + l.Addr().String())
	conn, _ := acceptPinned(t, pinner, l)
	if _, err := attacker.ask("descriptor x"); err != nil {
		t.Logf("the attacker gets: %v", err) // Linux 6.16: SO_PASSRIGHTS
		return
	}
	_, err := conn.Read(make([]byte, 8))
	wantError(t, err, peer.ErrPassed)
}

// A process connects as one user and becomes another.
func TestAttackUIDSpoof(t *testing.T) {
	rootOnly(t, "run processes as other users")
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			l := listenUnix(t)

			t.Run("after it was pinned", func(t *testing.T) {
				attacker := start(t, "")
				attacker.do("unix " + l.Addr().String())
				_, p := acceptPinned(t, pinner, l)
				attacker.do("setresuid 12345")
				_, err := attest.Run(t.Context(), p, allAttestors(t))
				wantError(t, err, attest.ErrMismatch)
				await(t, p.Done(), "the change of user")
			})
			t.Run("before it was accepted", func(t *testing.T) {
				attacker := start(t, "")
				attacker.do("unix " + l.Addr().String())
				attacker.do("setresuid 12345")
				_, err := pinner.Unix(accept[*net.UnixConn](t, l))
				wantError(t, err, attest.ErrMismatch)
			})
			t.Run("over TCP", func(t *testing.T) {
				l := listenTCP(t, "127.0.0.1:0")
				attacker := start(t, "")
				attacker.do("tcp " + l.Addr().String())
				attacker.do("setresuid 12345")
				_, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
				wantError(t, err, attest.ErrMismatch)
			})
		})
	}
}
