package attest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	wardunix "github.com/wardmesh/ward/attest/unix"
)

// The tests of this file are the attacks of the threat model. Each shows first that the attack is real, as far
// as the kernel lets it be seen, and then what the attacker gets.

func newPinner(t testing.TB, o peer.Options) *peer.Pinner {
	t.Helper()
	if o.Sweep == 0 {
		o.Sweep = 5 * time.Millisecond
	}
	p, err := peer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func allAttestors(t testing.TB) []attest.Attestor {
	t.Helper()
	s, err := systemd.New()
	if err != nil {
		t.Fatal(err)
	}
	e, err := exe.New(exe.Options{SHA256: true})
	if err != nil {
		t.Fatal(err)
	}
	return []attest.Attestor{wardunix.Attestor{}, s, e}
}

func listenUnix(t testing.TB) *net.UnixListener {
	t.Helper()
	dir, err := os.MkdirTemp("", "ward-attest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lc := net.ListenConfig{Control: peer.Control}
	l, err := lc.Listen(t.Context(), "unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for path, mode := range map[string]os.FileMode{dir: 0o755, l.Addr().String(): 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return l.(*net.UnixListener)
}

func listenTCP(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func accept[C net.Conn](t testing.TB, l net.Listener) C {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(C)
}

// acceptPinned accepts as production does.
func acceptPinned(t testing.TB, p *peer.Pinner, l net.Listener) (*peer.Conn, *peer.Process) {
	t.Helper()
	w, err := p.Listen(l, func(err error) { t.Errorf("refused: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	c := accept[*peer.Conn](t, w)
	process, err := c.Process()
	if err != nil {
		t.Fatal(err)
	}
	return c, process
}

func run(t testing.TB, p attest.Process, attestors []attest.Attestor) attest.Attestation {
	t.Helper()
	a, err := attest.Run(t.Context(), p, attestors)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func values(s attest.Selectors, kind string) (v []string) {
	for _, x := range s {
		if x.Type == kind {
			v = append(v, x.Value)
		}
	}
	return v
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v; want %v", err, want)
	}
	t.Logf("the attacker gets: %v", err)
}

func await(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s is not noticed", what)
	}
}

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

func peerCred(t *testing.T, conn *net.UnixConn) (cred *unix.Ucred) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
	return cred
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
			wantError(t, err, attest.ErrReplaced)
			await(t, p.Done(), "the exec")
			_, err = conn.Read(make([]byte, 8))
			wantError(t, err, attest.ErrReplaced)
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
	wantError(t, err, attest.ErrReplaced)
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
	wantError(t, err, attest.ErrReplaced)
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
	// Without frequent sweeps: one in the middle of the exec would see a layout that is half made.
	layoutOnly, err := newPinner(t, peer.Options{Sweep: time.Second, Without: peer.Missing{Pagemap: true}}).Unix(conn)
	if err != nil {
		t.Fatal(err)
	}
	attacker.exec(path)
	if err := layoutOnly.Alive(); err != nil {
		t.Fatalf("the attack did not come about: %v", err)
	}
	wantError(t, p.Alive(), attest.ErrReplaced)
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
		wantError(t, err, attest.ErrReplaced)
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

// The process exits at any moment of its attestation.
func TestAttackExitDuringAttestation(t *testing.T) {
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			l := listenUnix(t)
			path := program(t)
			for at := range len(allAttestors(t)) + 1 {
				attacker := start(t, path)
				attacker.do("unix " + l.Addr().String())
				p, err := pinner.Unix(accept[*net.UnixConn](t, l))
				if err != nil {
					t.Fatal(err)
				}
				all := allAttestors(t)
				attestors := append(append(append([]attest.Attestor{}, all[:at]...), between(attacker.kill)), all[at:]...)
				_, err = attest.Run(t.Context(), p, attestors)
				wantError(t, err, attest.ErrExited)
			}
		})
	}
}

// The same, left to chance.
func TestAttackExitRace(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	path := program(t)
	attestors := allAttestors(t)
	want := attest.Selector{Type: attest.ExePath, Value: path}
	for i := range 60 {
		attacker := start(t, path)
		var pin func() (*peer.Process, error)
		if i%2 == 0 {
			attacker.do("unix " + unixListener.Addr().String())
			conn := accept[*net.UnixConn](t, unixListener)
			pin = func() (*peer.Process, error) { return pinner.Unix(conn) }
		} else {
			attacker.do("tcp " + tcpListener.Addr().String())
			conn := accept[*net.TCPConn](t, tcpListener)
			pin = func() (*peer.Process, error) { return pinner.TCP(t.Context(), conn) }
		}
		killed := make(chan struct{})
		go func() { defer close(killed); attacker.kill() }()
		p, err := pin()
		if err == nil {
			var a attest.Attestation
			if a, err = attest.Run(t.Context(), p, attestors); err == nil && !a.Selectors.Contains(attest.Selectors{want}) {
				t.Fatalf("attested as %v", a.Selectors)
			}
			p.Close()
		}
		if err != nil && !errors.Is(err, attest.ErrExited) && !errors.Is(err, peer.ErrNotAttributable) {
			t.Fatal(err)
		}
		<-killed
	}
}

// A name that is a unit's, in a cgroup that a user may make; and a socket that changes its cgroup.
func TestAttackUnitSpoof(t *testing.T) {
	rootOnly(t, "make cgroups and a cgroup namespace")
	if os.Getenv(inside) == "" {
		root, err := attest.Cgroup2Mount()
		if err != nil {
			t.Skipf("SKIPPED: needs cgroup2: %v", err)
		}
		dir, err := os.MkdirTemp(root, "ward-test-")
		if err != nil {
			t.Skipf("SKIPPED: needs a writable cgroup2: %v", err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		inNamespaces(t, func(cmd *exec.Cmd) {
			a := attributes(cmd)
			a.UseCgroupFD, a.CgroupFD = true, int(f.Fd())
			a.Unshareflags = unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS
		})
		return
	}
	// The cgroup made for this test is the root of everything that is seen here.
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	if got, err := attest.Cgroup2Mount(); err != nil || got != root {
		t.Fatalf("cgroup2 at %s, %v; want %s", got, err, root)
	}
	const manager = "/user.slice/user-1000.slice/user@1000.service"
	for _, c := range []string{
		"/system.slice/bridge.service", "/system.slice/system-a.slice/a@1.service", "/system.slice/delegating.service/bridge.service",
		manager + "/app.slice/bridge.service", manager + "/system.slice/bridge.service", "/clinic.slice/bridge.service",
		"/user.slice/user-1000.slice/session-1.scope",
	} {
		if err := os.MkdirAll(root+c, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) { unitSpoofs(t, root, manager, without) })
	}
}

func unitSpoofs(t *testing.T, root, manager string, without peer.Missing) {
	pinner := newPinner(t, peer.Options{Without: without})
	l := listenUnix(t)
	path := program(t)
	s, err := systemd.New()
	if err != nil {
		t.Fatal(err)
	}
	inCgroup := func(t *testing.T, cgroup string) *process {
		f, err := os.Open(root + cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return start(t, path, func(cmd *exec.Cmd) {
			attributes(cmd).UseCgroupFD, attributes(cmd).CgroupFD = true, int(f.Fd())
		})
	}
	for _, c := range []struct{ name, cgroup, unit, userUnit string }{
		{"the unit", "/system.slice/bridge.service", "bridge.service", ""},
		{"a unit in a slice of its own", "/system.slice/system-a.slice/a@1.service", "a@1.service", ""},
		{"beneath a user's manager", manager + "/app.slice/bridge.service", "", "bridge.service"},
		{"beneath a user's manager, in a system.slice", manager + "/system.slice/bridge.service", "", "bridge.service"},
		{"in a delegated subtree", "/system.slice/delegating.service/bridge.service", "delegating.service", "bridge.service"},
		{"outside system.slice", "/clinic.slice/bridge.service", "", ""},
		{"a session", "/user.slice/user-1000.slice/session-1.scope", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			actor := inCgroup(t, c.cgroup)
			actor.do("unix " + l.Addr().String())
			_, p := acceptPinned(t, pinner, l)
			wantUnits(t, run(t, p, []attest.Attestor{s}), c.unit, c.userUnit)
		})
	}
	t.Run("in a cgroup namespace of its own", func(t *testing.T) {
		f, err := os.Open(root + manager)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		attacker := start(t, path, func(cmd *exec.Cmd) {
			a := attributes(cmd)
			a.UseCgroupFD, a.CgroupFD, a.Unshareflags = true, int(f.Fd()), unix.CLONE_NEWCGROUP
		})
		attacker.do("cgroup " + root + manager + "/system.slice/bridge.service")
		if own := attacker.do("cat /proc/self/cgroup"); !strings.Contains(own, "0::/system.slice/bridge.service") {
			t.Fatalf("the attack did not come about: it sees itself in %s", own)
		}
		attacker.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		wantUnits(t, run(t, p, []attest.Attestor{s}), "", "bridge.service")
	})
	t.Run("a slice that is not root's", func(t *testing.T) {
		if err := os.Chown(root+"/system.slice", 12345, 12345); err != nil {
			t.Fatal(err)
		}
		defer os.Chown(root+"/system.slice", 0, 0)
		fresh, err := systemd.New()
		if err != nil {
			t.Fatal(err)
		}
		actor := inCgroup(t, "/system.slice/bridge.service")
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		_, err = attest.Run(t.Context(), p, []attest.Attestor{fresh})
		wantError(t, err, attest.ErrMismatch)
	})
	t.Run("a TCP socket made in another cgroup", func(t *testing.T) {
		l := listenTCP(t, "127.0.0.1:0")
		owner := inCgroup(t, "/system.slice/bridge.service")
		owner.do("tcp " + l.Addr().String())
		conn := accept[*net.TCPConn](t, l)
		p, err := pinner.TCP(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		wantUnits(t, run(t, p, []attest.Attestor{s}), "bridge.service", "")
		owner.do("cgroup " + root + "/clinic.slice/bridge.service")
		// Where only the cgroup that made it is searched, its holder is not there; else the two are seen to differ.
		if _, err = pinner.TCP(t.Context(), conn); !errors.Is(err, attest.ErrMismatch) && !errors.Is(err, peer.ErrNotAttributable) && !without.SockCgroup {
			t.Fatalf("got %v", err)
		}
		t.Logf("the attacker gets: %v", err)
	})
}

func wantUnits(t *testing.T, a attest.Attestation, unit, userUnit string) {
	t.Helper()
	t.Logf("the process gets: %v", a.Selectors)
	if got := strings.Join(values(a.Selectors, attest.SystemdUnit), " "); got != unit {
		t.Errorf("systemd.unit %q; want %q", got, unit)
	}
	if got := strings.Join(values(a.Selectors, attest.SystemdUserUnit), " "); got != userUnit {
		t.Errorf("systemd.user_unit %q; want %q", got, userUnit)
	}
}

// removeCgroup removes a subtree, of which nothing runs any more.
func removeCgroup(t testing.TB, dir string) {
	var all []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	for i := len(all) - 1; i >= 0; i-- {
		// Processes that have just been killed may still be on their way out.
		deadline := time.Now().Add(10 * time.Second)
		err := syscall.Rmdir(all[i])
		for errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline) {
			_ = os.WriteFile(filepath.Join(all[i], "cgroup.kill"), []byte("1"), 0)
			err = syscall.Rmdir(all[i])
		}
		if err != nil {
			t.Errorf("left behind: %s: %v", all[i], err)
		}
	}
}

// fallbacks are the kernels and privileges with which everything must work.
func fallbacks() map[string]peer.Missing {
	return map[string]peer.Missing{
		"all":                 {},
		"before Linux 6.13":   {PidfdInfo: true},
		"before Linux 6.5":    {PidfdInfo: true, PeerPidfd: true},
		"without privileges":  {PidfdGetfd: true, FileHandles: true},
		"least of everything": {PidfdInfo: true, PeerPidfd: true, PidfdGetfd: true, FileHandles: true, SockCgroup: true, Pagemap: true},
	}
}

// between is an attestor that lets something happen in the middle of an attestation.
type between func()

func (between) Name() string { return "between" }

func (f between) Attest(context.Context, attest.Process) ([]attest.Selector, error) {
	f()
	return nil, nil
}
