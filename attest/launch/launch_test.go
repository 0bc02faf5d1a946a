package launch

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wardmesh/ward/attest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s is not noticed", what)
	}
}

// A child that has exited is nobody, and its pid is free only after it was struck off.
func TestLaunchExit(t *testing.T) {
	var s Supervisor
	c, err := s.Start("short", exec.Command("sh", "-c", "exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, c.Done(), "the exit")
	var status *exec.ExitError
	if err := c.Wait(); !errors.As(err, &status) || status.ExitCode() != 3 {
		t.Errorf("got %v; want exit status 3", err)
	}
	if facts, err := s.Attest(t.Context(), numbered{pid: c.PID()}); err != nil || facts != nil {
		t.Errorf("after its exit its pid is %v, %v", facts, err)
	}
	long, err := s.Start("long", exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if facts, err := s.Attest(t.Context(), numbered{pid: long.PID(), inode: 1}); !errors.Is(err, attest.ErrMismatch) {
		t.Errorf("another process under the child's pid is %v, %v", facts, err)
	}
	s.Close(t.Context())
	if err := long.Wait(); err == nil {
		t.Error("Close has left the child running")
	}
	if _, err := s.Start("late", exec.Command("true")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	stubborn := &Supervisor{}
	d, err := stubborn.Start("stubborn", exec.Command("sh", "-c", `trap "" TERM; while :; do read x < /dev/zero; done`))
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	stubborn.Close(ended)
	await(t, d.Done(), "the kill")
}

// numbered is a process of which nothing but its numbers is known.
type numbered struct {
	attest.Process
	pid   int
	inode uint64
}

func (n numbered) PID() int                   { return n.pid }
func (n numbered) PidfsInode() (uint64, bool) { return n.inode, n.inode != 0 }
