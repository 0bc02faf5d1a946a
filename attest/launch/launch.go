// Package launch starts processes and attests, later, that a process is one of those it started.
//
// `ward up` runs its sample workloads as the user who typed it, so neither a uid nor a unit tells them apart.
// What does is that Ward itself started them. A [Supervisor] keeps every child unreaped until it has exited and
// has been struck off its list; an unreaped pid cannot be given to another process. So a pinned process whose
// pid is on the list is that child, and gets the selector `launch: NAME`, with the name that Start was given.
//
// Only the child itself gets it: not what the child forks, nor what is run by others under its user. Whoever can
// trace or inject code into the child (the same user, as far as the host lets it) can act through it; that is
// why `launch` is for demonstrations and tests and is not available from config files.
//
// Links: pidfd_open(2), waitpid(2) on zombies.
package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// ErrClosed: the supervisor has been closed and starts nothing more.
var ErrClosed = errors.New("launch: the supervisor has been closed")

// Supervisor starts children and attests them: it implements attest.Attestor. The zero value is ready.
type Supervisor struct {
	mu       sync.Mutex
	children map[int]*Child // by pid; none of them has been reaped
	closed   bool
}

// Child is one started process.
type Child struct {
	name  string
	cmd   *exec.Cmd
	pidfd *os.File
	inode uint64 // of pidfd in pidfs, 0 where it identifies nothing
	done  chan struct{}
	err   error // what Wait returned, once done is closed
}

// Name is "launch".
func (*Supervisor) Name() string { return "launch" }

// Attest yields launch: NAME when p is a child that has not exited.
func (s *Supervisor) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.children[p.PID()]
	if c == nil {
		return nil, nil
	}
	// The pid alone is proof, together with p being alive afterwards; the kernel's own name confirms it.
	if i, ok := p.(interface{ PidfsInode() (uint64, bool) }); ok && c.inode != 0 {
		if inode, known := i.PidfsInode(); known && inode != c.inode {
			return nil, fmt.Errorf("%w: pid %d is the child %q, its pidfd is another's", attest.ErrMismatch, p.PID(), c.name)
		}
	}
	return []attest.Selector{{Type: attest.Launch, Value: c.name}}, nil
}

// Start starts cmd as the child name, which consists of letters, digits, dots, dashes and underscores. Several
// children may have one name. The supervisor waits for cmd: call Child.Wait, never cmd.Wait.
func (s *Supervisor) Start(name string, cmd *exec.Cmd) (*Child, error) {
	if !validName(name) {
		return nil, fmt.Errorf("launch: the name %q: use letters, digits, dots, dashes and underscores", name)
	}
	pidfd := -1
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.PidFD != nil {
		return nil, errors.New("launch: SysProcAttr.PidFD is the supervisor's to set")
	}
	cmd.SysProcAttr.PidFD = &pidfd

	// Nobody may ask about the child before it is on the list.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	c, err := newChild(name, cmd, pidfd)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	if s.children == nil {
		s.children = make(map[int]*Child)
	}
	s.children[cmd.Process.Pid] = c
	go s.reap(c)
	return c, nil
}

func newChild(name string, cmd *exec.Cmd, pidfd int) (*Child, error) {
	var err error
	if pidfd < 0 { // the kernel did not hand it out; an unreaped child's pid is its own
		if pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
			return nil, fmt.Errorf("launch: pidfd_open: %w", err)
		}
	}
	// Nonblocking, so that the Go runtime waits for it without a thread.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("launch: fcntl: %w", err)
	}
	return &Child{name: name, cmd: cmd, inode: pidfsInode(pidfd), pidfd: os.NewFile(uintptr(pidfd), "pidfd"), done: make(chan struct{})}, nil
}

// reap waits for the child's end, strikes it off, and only then lets its pid go.
func (s *Supervisor) reap(c *Child) {
	ended := c.awaitExit()
	s.mu.Lock()
	delete(s.children, c.PID())
	s.mu.Unlock()
	c.err = c.cmd.Wait()
	if c.err == nil {
		c.err = ended
	}
	_ = c.pidfd.Close()
	close(c.done)
}

// awaitExit returns once the child is a zombie.
func (c *Child) awaitExit() error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if errors.Is(err, unix.EINTR) {
			n, err = 0, nil
		}
		inner = err
		return n > 0 || err != nil
	})
	return errors.Join(err, inner)
}

// Close asks every child to end (SIGTERM), kills those that have not when ctx ends, and returns when all are
// gone. Nothing can be started any more.
func (s *Supervisor) Close(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	var children []*Child
	for _, c := range s.children {
		children = append(children, c)
	}
	s.mu.Unlock()
	for _, c := range children {
		_ = c.Signal(unix.SIGTERM)
	}
	for _, c := range children {
		select {
		case <-c.done:
			continue
		case <-ctx.Done():
		}
		_ = c.Signal(unix.SIGKILL)
		<-c.done
	}
}

// Name is what the child was started as.
func (c *Child) Name() string { return c.name }

// PID is the child's own until Done is closed.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed once the child has exited and was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait waits for Done and returns what exec.Cmd.Wait does.
func (c *Child) Wait() error {
	<-c.done
	return c.err
}

// Signal sends sig to the child, never to another process that has its pid. It fails once the child has exited.
func (c *Child) Signal(sig syscall.Signal) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return inner
}

// pidfsInode is the inode of pidfd, 0 before Linux 6.9, where all pidfds share one.
func pidfsInode(pidfd int) uint64 {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(pidfd, &fs) != nil || fs.Type != unix.PID_FS_MAGIC || unix.Fstat(pidfd, &st) != nil {
		return 0
	}
	return st.Ino
}

func validName(name string) bool {
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		default:
			return false
		}
	}
	return name != ""
}
