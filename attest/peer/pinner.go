package peer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
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
	// Sweep is how often each held process is checked for an execve or a change of user; an exit is seen at once. 0
	// stands for one second where the kernel also reports them (Status), and for as often as may be without taking
	// more than a fiftieth of a processor, at most every 50 ms, where it does not. More than one second is refused.
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
	ExecEvents  bool // the proc connector, needs Linux 6.6 and the host's own pid, user and network namespace
}

const (
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

	execs   execs
	changes changes

	searching sync.RWMutex // held for reading while groups and diag are in use, for writing to close them

	mu    sync.Mutex
	next  uint64
	held  map[uint64]*Process
	byPID map[int][]*Process // the same
	// referred are connections whose callers are named and not pinned.
	referred map[uint64]*Referred
	count    map[uint32]int // of both, by user
	closed   bool
}

// New returns a Pinner for the network, pid and cgroup namespaces of the calling thread.
func New(o Options) (*Pinner, error) {
	if o.Sweep < 0 || o.Sweep > maxSweep {
		return nil, fmt.Errorf("peer: the sweep interval is %v; it must be between 0 and %v", o.Sweep, maxSweep)
	}
	if o.PerUser < 0 {
		return nil, fmt.Errorf("peer: %d processes per user; it must not be negative", o.PerUser)
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
	p := &Pinner{
		options: o, count: make(map[uint32]int), watcher: make(chan struct{}),
		held: make(map[uint64]*Process), byPID: make(map[int][]*Process), referred: make(map[uint64]*Referred),
	}
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
	p.execs.open(p)
	go p.watch()
	return p, nil
}

// perUser is how many connections one user may have where this process may open so many files.
func perUser(files uint64) int {
	return int(min(defaultPerUser, max(minPerUser, files/3/filesPerConn)))
}

// Close ends every held process with ErrClosed and stops the watching.
func (p *Pinner) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	held := slices.Collect(maps.Values(p.held))
	referred := slices.Collect(maps.Values(p.referred))
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.execs.close()
	p.changes.close()
	for _, process := range held {
		_ = process.Close()
	}
	for _, r := range referred {
		_ = r.Close()
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
