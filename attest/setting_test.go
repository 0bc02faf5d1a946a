package attest_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	wardunix "github.com/wardmesh/ward/attest/unix"
)

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

// wantReplaced wants the end of a process that has replaced its program. A check in the middle of an execve by another
// thread than the first sees the first one ended, and says so; the session ends just the same.
func wantReplaced(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, attest.ErrReplaced) && !errors.Is(err, attest.ErrExited) {
		t.Fatalf("got %v; want %v", err, attest.ErrReplaced)
	}
	t.Logf("the attacker gets: %v", err)
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

func await(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s is not noticed", what)
	}
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
