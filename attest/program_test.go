package attest_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/launch"
	"github.com/wardmesh/ward/attest/peer"
)

func TestLaunch(t *testing.T) {
	path := program(t)
	l := listenUnix(t)
	pinner := newPinner(t, peer.Options{})
	var s launch.Supervisor
	defer s.Close(t.Context())
	begin := func(name string) *process {
		cmd := exec.Command(path)
		cmd.Env = append(os.Environ(), actorEnv+"=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Start(name, cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); c.Wait() })
		r := &remote{cmd: cmd, in: in, lines: bufio.NewScanner(out)}
		if err := r.ready(); err != nil {
			t.Fatal(err)
		}
		return &process{remote: r, t: t}
	}
	names := func(actor *process) []string {
		t.Helper()
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		return values(run(t, p, []attest.Attestor{&s}).Selectors, attest.Launch)
	}
	ehr, portal := begin("ehr"), begin("portal")
	if diff := cmp.Diff([]string{"ehr"}, names(ehr)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"portal"}, names(portal)); diff != "" {
		t.Error(diff)
	}
	if got := names(start(t, path)); got != nil {
		t.Errorf("a process that was not launched is %v", got)
	}
	portal.do("fork")
	portal.do("child unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	if got := values(run(t, p, []attest.Attestor{&s}).Selectors, attest.Launch); got != nil {
		t.Errorf("what a child has started itself is %v", got)
	}
	for _, name := range []string{"", "a b", "a/b", "ä"} {
		if _, err := s.Start(name, exec.Command(path)); err == nil {
			t.Errorf("the name %q is accepted", name)
		}
	}
}

// The path of an executable is a fact only if it leads to what runs.
func TestExecutable(t *testing.T) {
	l := listenUnix(t)
	pinner := newPinner(t, peer.Options{})
	e, err := exe.New(exe.Options{SHA256: true})
	if err != nil {
		t.Fatal(err)
	}
	attestOf := func(t *testing.T, path string, then func()) attest.Selectors {
		actor := start(t, path)
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		then()
		defer actor.kill() // nobody may write to what runs
		return run(t, p, []attest.Attestor{e}).Selectors
	}
	t.Run("deleted", func(t *testing.T) {
		path := program(t)
		s := attestOf(t, path, func() { os.Remove(path) })
		if values(s, attest.ExePath) != nil || len(values(s, attest.ExeSHA256)) != 1 {
			t.Error(s)
		}
	})
	t.Run("deleted by name only", func(t *testing.T) {
		path := copyProgram(t, "actor (deleted)")
		s := attestOf(t, path, func() {})
		if diff := cmp.Diff([]string{path}, values(s, attest.ExePath)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("replaced", func(t *testing.T) {
		path := program(t)
		s := attestOf(t, path, func() {
			if err := os.Rename(copyProgram(t, "trusted"), path); err != nil {
				t.Fatal(err)
			}
		})
		if values(s, attest.ExePath) != nil {
			t.Error(s)
		}
	})
	t.Run("too large to hash", func(t *testing.T) {
		small, err := exe.New(exe.Options{SHA256: true, MaxBytes: 1000})
		if err != nil {
			t.Fatal(err)
		}
		actor := start(t, "")
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		s := run(t, p, []attest.Attestor{small}).Selectors
		if values(s, attest.ExeSHA256) != nil || len(values(s, attest.ExePath)) != 1 {
			t.Error(s)
		}
	})
	t.Run("changed in place", func(t *testing.T) {
		path := program(t)
		before := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		// The same length, and as good as the same times; what is appended to an ELF file does not hinder it.
		appendTo(t, path, "a")
		a := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		if out, err := exec.Command("truncate", "-s", "-1", path).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		appendTo(t, path, "b")
		b := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		if before == a || a == b || before == b {
			t.Errorf("hashes %s, %s, %s", before, a, b)
		}
	})
	t.Run("another file at its path in a mount namespace", func(t *testing.T) {
		rootOnly(t, "mount")
		trusted := copyProgram(t, "trusted")
		evil := copyProgram(t, "evil")
		appendTo(t, evil, "x")
		actor := start(t, "/bin/sh", func(cmd *exec.Cmd) {
			cmd.Args = []string{"sh", "-c", `mount --bind "$0" "$1" && exec "$1"`, evil, trusted}
			attributes(cmd).Unshareflags = unix.CLONE_NEWNS
		})
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID())); err != nil || link != trusted {
			t.Fatalf("the attack did not come about: %s %v", link, err)
		}
		s := run(t, p, []attest.Attestor{e}).Selectors
		if got := values(s, attest.ExePath); got != nil {
			t.Errorf("the attacker gets the path %v", got)
		}
	})
}

// appendTo writes from another process: a descriptor of ours could be inherited, and then nobody may exec the file.
func appendTo(t *testing.T, path, text string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", `printf %s "$1" >> "$0"`, path, text).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
}
