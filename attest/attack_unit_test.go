package attest_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
)

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
	t.Run("a caller that changes its cgroup between two connections", func(t *testing.T) {
		if without.PeerPidfd {
			_, err := pinner.Refer(l, nil)
			wantError(t, err, peer.ErrNoReference)
			return
		}
		caller := inCgroup(t, "/system.slice/bridge.service")
		caller.do("unix " + l.Addr().String())
		c, _ := acceptReferred(t, pinner, l)
		before := standing(t, c)
		caller.do("cgroup " + root + "/clinic.slice/bridge.service")
		caller.do("unix " + l.Addr().String())
		c, _ = acceptReferred(t, pinner, l)
		if now := standing(t, c); now.Same(before) || before.Cgroup != 0 && now.Cgroup == before.Cgroup {
			t.Errorf("%+v; before it was %+v", now, before)
		}
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
		deadline := time.Now().Add(patience)
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
