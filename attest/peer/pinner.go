package peer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Errors of this package, beside those of package attest.
var (
	// ErrClosed: the process or the pinner was closed by its holder.
	ErrClosed = errors.New("the pinned process has been closed")
	// ErrPassed: a message on the connection came from another process than the one that connected, or carried
	// file descriptors.
	ErrPassed = errors.New("the connection is used by another process than its own")
	// ErrTooMany: the user of the process has as many connections as one user may have.
	ErrTooMany = errors.New("the user has too many connections")
)

// Options of a Pinner. The zero value is what production uses.
type Options struct {
	// Sweep is how often each held process is checked for an execve or a change of user; an exit is seen at once.
	// 0 stands for one second, which is also the most.
	Sweep time.Duration
	// PerUser is how many processes of one user may be held at once, one for each connection; 0 stands for 4096,
	// or for fewer where they would take more than a third of the files that this process may open: one user must
	// not exhaust them for all.
	PerUser int
	// Without does without kernel interfaces that may be there, as an older kernel or a process with fewer
	// privileges has to.
	Without Missing
}

// Missing names kernel interfaces that have a fallback.
type Missing struct {
	PeerPidfd   bool // SO_PEERPIDFD, Linux 6.5; the fallback is attest.Weak
	PidfdInfo   bool // PIDFD_GET_INFO, Linux 6.13
	PidfdGetfd  bool // pidfd_getfd(2), needs the right to ptrace the process
	SockCgroup  bool // INET_DIAG_CGROUP_ID, needs CONFIG_SOCK_CGROUP_DATA
	Pagemap     bool // /proc/PID/pagemap, needs CONFIG_PROC_PAGE_MONITOR
	FileHandles bool // open_by_handle_at(2), needs CAP_DAC_READ_SEARCH
}

const (
	maxSweep       = time.Second
	defaultPerUser = 4096
	// Each connection is a file, and four more that pin its process.
	filesPerConn = 5
	minPerUser   = 64
)

// Pinner pins processes and watches those that are held. All its methods may be called at once.
type Pinner struct {
	options Options
	users   users
	groups  *cgroups
	diag    *diag
	turns   attest.Turns

	epoll   *os.File // holds the pidfd of every held process; becomes readable when one of them exits
	raw     syscall.RawConn
	watcher chan struct{} // closed when the watching goroutine has ended

	searching sync.RWMutex // held for reading while groups and diag are in use, for writing to close them

	mu     sync.Mutex
	next   uint64
	held   map[uint64]*Process
	count  map[uint32]int // of held, by user
	sweep  *time.Timer    // runs while anything is held
	closed bool
}

// New returns a Pinner for the network, pid and cgroup namespaces of the calling thread.
func New(o Options) (*Pinner, error) {
	if o.Sweep < 0 || o.Sweep > maxSweep {
		return nil, fmt.Errorf("peer: the sweep interval is %v; it must be between 0 and %v", o.Sweep, maxSweep)
	}
	if o.PerUser < 0 {
		return nil, fmt.Errorf("peer: %d processes per user; it must not be negative", o.PerUser)
	}
	if o.Sweep == 0 {
		o.Sweep = maxSweep
	}
	if o.PerUser == 0 {
		var files unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
			return nil, os.NewSyscallError("getrlimit", err)
		}
		o.PerUser = perUser(files.Cur)
	}
	// Through a /proc of another pid namespace every pid would name somebody else.
	if self, err := os.Readlink("/proc/self"); err != nil {
		return nil, fmt.Errorf("peer: /proc must be mounted: %w", err)
	} else if self != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("peer: the /proc mounted here belongs to another pid namespace; mount this one's")
	}
	p := &Pinner{options: o, held: make(map[uint64]*Process), count: make(map[uint32]int), watcher: make(chan struct{})}
	var err error
	if p.users, err = loadUsers(); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	if p.groups, err = openCgroups(o.Without.FileHandles); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	if p.diag, err = openDiag(); err != nil {
		p.groups.close()
		return nil, fmt.Errorf("peer: %w", err)
	}
	if err := p.openEpoll(); err != nil {
		p.groups.close()
		p.diag.close()
		return nil, fmt.Errorf("peer: %w", err)
	}
	p.sweep = time.AfterFunc(o.Sweep, p.sweepHeld)
	p.sweep.Stop()
	go p.watch()
	return p, nil
}

// perUser is how many connections one user may have where this process may open so many files.
func perUser(files uint64) int {
	return int(min(defaultPerUser, max(minPerUser, files/3/filesPerConn)))
}

// openEpoll hands the epoll descriptor to the Go runtime's own poller, so that waiting costs no thread.
func (p *Pinner) openEpoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	p.epoll = os.NewFile(uintptr(fd), "epoll")
	p.raw, err = p.epoll.SyscallConn()
	return err
}

// Close ends every held process with ErrClosed and stops the watching.
func (p *Pinner) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	held := p.snapshot()
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.sweep.Stop()
	for _, process := range held {
		_ = process.Close()
	}
	err := p.epoll.Close()
	<-p.watcher
	p.searching.Lock()
	defer p.searching.Unlock()
	p.groups.close()
	p.diag.close()
	return err
}

func (p *Pinner) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// hold starts watching process.
func (p *Pinner) hold(process *Process) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if p.count[process.uid] >= p.options.PerUser {
		return fmt.Errorf("%w: uid %d has %d", ErrTooMany, process.uid, p.options.PerUser)
	}
	p.next++
	process.id = p.next
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(process.id), Pad: int32(process.id >> 32)}
	err := p.epollCtl(unix.EPOLL_CTL_ADD, process.pidfd, &event)
	if err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	p.held[process.id] = process
	p.count[process.uid]++
	if len(p.held) == 1 {
		p.sweep.Reset(p.options.Sweep)
	}
	return nil
}

// forget stops watching process, whose pidfd is still open.
func (p *Pinner) forget(process *Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, held := p.held[process.id]; !held {
		return
	}
	delete(p.held, process.id)
	if p.count[process.uid]--; p.count[process.uid] == 0 {
		delete(p.count, process.uid)
	}
	_ = p.epollCtl(unix.EPOLL_CTL_DEL, process.pidfd, nil) // fails only when the pinner is closed
	if len(p.held) == 0 {
		p.sweep.Stop()
	}
}

func (p *Pinner) epollCtl(op, fd int, event *unix.EpollEvent) error {
	var inner error
	if err := p.raw.Control(func(epoll uintptr) { inner = unix.EpollCtl(int(epoll), op, fd, event) }); err != nil {
		return err
	}
	return inner
}

// watch ends each process whose pidfd reports its exit, until the pinner is closed.
func (p *Pinner) watch() {
	defer close(p.watcher)
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := p.raw.Read(func(epoll uintptr) bool {
			n, _ = unix.EpollWait(int(epoll), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			id := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			p.mu.Lock()
			process := p.held[id]
			p.mu.Unlock()
			if process != nil {
				process.end(attest.ErrExited)
			}
		}
	}
}

// sweepHeld checks every held process and sets the timer again while there are any.
func (p *Pinner) sweepHeld() {
	p.mu.Lock()
	held := p.snapshot()
	p.mu.Unlock()
	for _, process := range held {
		_ = process.Alive() // ends the process when it is no longer the one that was pinned
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) > 0 && !p.closed {
		p.sweep.Reset(p.options.Sweep)
	}
}

func (p *Pinner) snapshot() []*Process {
	held := make([]*Process, 0, len(p.held))
	for _, process := range p.held {
		held = append(held, process)
	}
	return held
}
