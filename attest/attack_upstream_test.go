package attest_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
)

func units(t testing.TB) peer.Units {
	t.Helper()
	s, err := systemd.New()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serving dials address and attests who is there. Whoever it is has been sent nothing.
func serving(t testing.TB, p *peer.Pinner, address string, accept func()) (attest.Attestation, error) {
	t.Helper()
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	accept()
	return p.Serving(t.Context(), c, units(t))
}

func wantServer(t testing.TB, a attest.Attestation, err error, uid string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{uid}, values(a.Selectors, attest.UnixUID)); diff != "" {
		t.Errorf("unix.uid: %s", diff)
	}
	t.Logf("the server is: %v", a.Selectors)
}

func notYet() {}

// The server at a loopback port restarts, and another user binds the port meanwhile. The squatter gets a connection
// without a byte in it, and is seen to be another user.
func TestAttackUpstreamPortSquat(t *testing.T) {
	rootOnly(t, "run processes as other users")
	pinner := newPinner(t, peer.Options{})
	server, squatter := start(t, "", asUser(12345)), start(t, "", asUser(12346))
	address := server.do("listen 127.0.0.1:0")
	a, err := serving(t, pinner, address, func() { server.do("accept") })
	wantServer(t, a, err, "12345")
	server.do("close") // of the connection first, so that the port is free at once
	server.do("unlisten")
	squatter.do("listen " + address)

	t.Run("accepted", func(t *testing.T) {
		a, err := serving(t, pinner, address, func() { squatter.do("accept") })
		wantServer(t, a, err, "12346")
	})
	t.Run("not accepted", func(t *testing.T) {
		a, err := serving(t, pinner, address, notYet)
		wantServer(t, a, err, "12346")
		squatter.do("accept")
	})
	// Whoever asked who listens at the port would be told the server.
	t.Run("accepted, and the server is back", func(t *testing.T) {
		a, err := serving(t, pinner, address, func() {
			squatter.do("accept")
			squatter.do("unlisten")
			server.do("listen " + address)
		})
		wantServer(t, a, err, "12346")
	})
}

// The squatter leaves before it has accepted, and the server is back. The squatter gets nothing: the connection is dead.
func TestAttackUpstreamSquatterLeaves(t *testing.T) {
	rootOnly(t, "run processes as other users")
	pinner := newPinner(t, peer.Options{})
	server, squatter := start(t, "", asUser(12345)), start(t, "", asUser(12346))
	address := squatter.do("listen 127.0.0.1:0")
	_, err := serving(t, pinner, address, func() {
		squatter.do("unlisten")
		server.do("listen " + address)
	})
	wantError(t, err, peer.ErrNotAttributable)
}

// A server that has exited or closed the connection is nobody.
func TestServerGone(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	for _, how := range []string{"close", "reset"} {
		t.Run(how, func(t *testing.T) {
			server := start(t, "")
			_, err := serving(t, pinner, server.do("listen 127.0.0.1:0"), func() {
				server.do("accept")
				server.do(how)
			})
			wantError(t, err, peer.ErrNotAttributable)
		})
	}
	t.Run("connected to itself", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "self")
		defer f.Close()
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		own, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, own); err != nil {
			t.Fatal(err)
		}
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = pinner.Serving(t.Context(), c, units(t))
		wantError(t, err, peer.ErrNotAttributable)
	})
	t.Run("in another network namespace", func(t *testing.T) {
		rootOnly(t, "make a network namespace")
		conn := inOtherNetns(t)
		defer conn.Close()
		_, err := pinner.Serving(t.Context(), conn, units(t))
		wantError(t, err, peer.ErrNotAttributable)
	})
}

// Somebody puts another socket where the server's was, in a folder that is not guarded. The attacker gets a connection
// without a byte in it, and is seen to be another user.
func TestAttackUpstreamPathReplaced(t *testing.T) {
	rootOnly(t, "run processes as other users")
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			dir := t.TempDir()
			for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, "s")
			server, attacker := start(t, "", asUser(12345)), start(t, "", asUser(12346))
			server.do("listen " + path)
			a, err := serving(t, pinner, path, notYet)
			wantServer(t, a, err, "12345")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			attacker.do("listen " + path)
			a, err = serving(t, pinner, path, notYet)
			wantServer(t, a, err, "12346")
			// Nor does it help to leave the socket to a process of the server's.
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			attacker.kill()
			if a, err = pinner.Serving(t.Context(), c, units(t)); err == nil {
				wantServer(t, a, err, "12346")
				if unit := values(a.Selectors, attest.SystemdUnit); unit != nil {
					t.Errorf("one that has exited has the unit %v", unit)
				}
			}
		})
	}
}

// Another unit of the server's own user shares its port (SO_REUSEPORT; the kernel refuses that to other users). The
// attacker gets a connection without a byte in it, and is seen to be another unit.
func TestAttackUpstreamReusePort(t *testing.T) {
	rootOnly(t, "make cgroups and a cgroup namespace")
	if os.Getenv(inside) == "" {
		inOwnCgroups(t)
		return
	}
	root := mountCgroups(t, "/system.slice/fhir.service", "/system.slice/other.service", "/init.scope")
	in := func(cgroup string) *process { return start(t, "", asUser(12345), inCgroupDir(t, root+cgroup)) }
	for name, without := range fallbacks() {
		if without.SockCgroup {
			continue // no unit is known
		}
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			server, attacker := in("/system.slice/fhir.service"), in("/system.slice/other.service")
			address := server.do("listen 127.0.0.1:0 shared")
			a, err := serving(t, pinner, address, func() { server.do("accept") })
			wantServer(t, a, err, "12345")
			wantUnits(t, a, "fhir.service", "")

			stranger := start(t, "", asUser(12346))
			if _, err := stranger.ask("listen " + address + " shared"); err == nil {
				t.Error("another user may share the port")
			}
			attacker.do("listen " + address + " shared")
			// Whom the kernel gives a connection depends on its source port.
			if _, err := serving(t, pinner, address, notYet); err == nil {
				t.Error("attested while either may have it")
			} else {
				wantError(t, err, attest.ErrMismatch)
			}
			server.do("unlisten")
			a, err = serving(t, pinner, address, func() { attacker.do("accept") })
			wantServer(t, a, err, "12345")
			wantUnits(t, a, "other.service", "")
		})
	}
	t.Run("the unit over a Unix socket", func(t *testing.T) {
		for name, without := range fallbacks() {
			t.Run(name, func(t *testing.T) {
				server := start(t, "", inCgroupDir(t, root+"/system.slice/fhir.service"))
				a, err := serving(t, newPinner(t, peer.Options{Without: without}), server.do("listen "+filepath.Join(t.TempDir(), "s")), notYet)
				wantServer(t, a, err, "0")
				wantUnits(t, a, "fhir.service", "")
				if weak := a.Strength == attest.Weak; weak != without.PeerPidfd {
					t.Errorf("strength %v", a.Strength)
				}
			})
		}
	})
	t.Run("a socket of the system manager's", func(t *testing.T) {
		manager := start(t, "", inCgroupDir(t, root+"/init.scope"))
		pinner := newPinner(t, peer.Options{})
		a, err := serving(t, pinner, manager.do("listen "+filepath.Join(t.TempDir(), "s")), notYet)
		wantServer(t, a, err, "0")
		wantUnits(t, a, "init.scope", "")
		a, err = serving(t, pinner, manager.do("listen 127.0.0.1:0"), notYet)
		wantServer(t, a, err, "0")
		wantUnits(t, a, "init.scope", "")
		manager.do("setresuid 12345") // as the service that accepts
		manager.do("accept")
		a, err = serving(t, pinner, manager.do("listen 127.0.0.1:0"), func() { manager.do("accept") })
		wantServer(t, a, err, "12345")
		wantUnits(t, a, "init.scope", "")
	})
}

// inOwnCgroups runs the calling test again in a cgroup of its own, which is the root of those that it sees.
func inOwnCgroups(t *testing.T) {
	t.Helper()
	root, err := attest.Cgroup2Mount()
	if err != nil {
		t.Skipf("SKIPPED: needs cgroup2: %v", err)
	}
	dir, err := os.MkdirTemp(root, "ward-test-")
	if err != nil {
		t.Skipf("SKIPPED: needs a writable cgroup2: %v", err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	inNamespaces(t, func(cmd *exec.Cmd) {
		inCgroupDir(t, dir)(cmd)
		attributes(cmd).Unshareflags = unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS
	})
}

func mountCgroups(t *testing.T, cgroups ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	for _, c := range cgroups {
		if err := os.MkdirAll(root+c, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func inCgroupDir(t testing.TB, dir string) func(*exec.Cmd) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(cmd *exec.Cmd) {
		attributes(cmd).UseCgroupFD, attributes(cmd).CgroupFD = true, int(f.Fd())
	}
}

// What a server costs to attest, on each new connection to it.
func BenchmarkServing(b *testing.B) {
	pinner := newPinner(b, peer.Options{})
	units := units(b)
	for _, network := range []string{"unix", "tcp"} {
		b.Run(network, func(b *testing.B) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(b.TempDir(), "s")
			}
			server := start(b, "")
			address = server.do("listen " + address)
			c, err := net.Dial(network, address)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			server.do("accept")
			var a attest.Attestation
			for b.Loop() {
				if a, err = pinner.Serving(b.Context(), c, units); err != nil {
					b.Fatal(err)
				}
			}
			if !slices.Equal(values(a.Selectors, attest.UnixUID), []string{"0"}) && os.Getuid() == 0 {
				b.Fatal(a)
			}
		})
	}
}
