package wire

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Most of what an idle connection would weigh is a goroutine that waits for its next request: 4 KiB of stack, or more
// where a call has made it grow. So a connection that has waited for a while has none: one goroutine a server waits for
// all that rest, by a set of epoll(7)'s, and whichever has something to say is served in a fresh goroutine. Go's own
// poller is of no use for that: it wakes goroutines.

const (
	// restless is how long a connection waits for its next request before it rests: those that are in use stay where they
	// are.
	restless = time.Second
	// turn is how often those that rest are looked at: whether somebody has closed one, of which no set tells, and whether
	// its time is over.
	turn = time.Second
)

// restful is a connection that a set can tell of. One that keeps its socket to itself offers it, too.
type restful interface {
	EpollCtl(epoll, op int, event *unix.EpollEvent) error
	Closed() bool
}

// repose is what lets a set tell of c, a socket, or what stands on one. Nil: nothing does.
func repose(c net.Conn) restful {
	for {
		if own, ok := c.(restful); ok {
			return own
		}
		if sc, ok := c.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				return &socket{raw}
			}
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = over.NetConn()
	}
}

// socket is a bare one.
type socket struct{ raw syscall.RawConn }

// EpollCtl implements restful.
func (s *socket) EpollCtl(epoll, op int, event *unix.EpollEvent) error {
	var inner error
	if err := s.raw.Control(func(fd uintptr) { inner = unix.EpollCtl(epoll, op, int(fd), event) }); err != nil {
		return err
	}
	return inner
}

// Closed implements restful.
func (s *socket) Closed() bool { return s.raw.Control(func(uintptr) {}) != nil }

// resters are the connections of a server that rest. There is a set, and a goroutine, only while there are some.
type resters struct {
	mu    sync.Mutex
	epoll *os.File
	raw   syscall.RawConn // of epoll
	next  uint64
	all   map[uint64]*admitted
}

// rest lets a connection rest until there is something to read from it, or never will be, or its time is over: then it is
// served again. False: it cannot.
func (s *Server) rest(a *admitted) bool {
	r := &s.resters
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.place.kept != nil && s.places.turn(a) { // it has come meanwhile, and whoever gave it has found nobody at rest
		return false
	}
	if r.epoll == nil && r.open() != nil {
		return false
	}
	if r.all == nil {
		r.all = map[uint64]*admitted{}
		go s.attendAll(r.raw)
	}
	r.next++
	a.resting = r.next
	if r.control(a, unix.EPOLL_CTL_ADD) != nil {
		a.resting = 0
		return false
	}
	r.all[a.resting] = a
	return true
}

// open makes the set, and hands it to Go's poller, so that to wait for it costs no thread. The caller holds mu.
func (r *resters) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return err
	}
	epoll := os.NewFile(uintptr(fd), "epoll")
	raw, err := epoll.SyscallConn()
	if err == nil {
		err = epoll.SetReadDeadline(time.Now().Add(turn)) // fails where the poller has not taken it
	}
	if err != nil {
		_ = epoll.Close()
		return err
	}
	r.epoll, r.raw = epoll, raw
	return nil
}

// control adds a to the set, or takes it out. The caller holds mu.
func (r *resters) control(a *admitted, op int) error {
	tells := uint32(unix.EPOLLIN | unix.EPOLLRDHUP)
	if a.place.kept != nil { // nothing is read from it before its turn
		tells = unix.EPOLLRDHUP
	}
	event := unix.EpollEvent{Events: tells, Fd: int32(a.resting), Pad: int32(a.resting >> 32)} //nolint:gosec // the two halves of a number
	var inner error
	if err := r.raw.Control(func(epoll uintptr) { inner = a.repose.EpollCtl(int(epoll), op, &event) }); err != nil {
		return err
	}
	return inner
}

// wake has a connection served again, if it rests as number n.
func (s *Server) wake(a *admitted, n uint64) {
	r := &s.resters
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == 0 || a.resting != n {
		return
	}
	delete(r.all, n)
	_ = r.control(a, unix.EPOLL_CTL_DEL) // a closed one is out of it already
	a.resting = 0
	go s.serve(a)
}

// rouse has a connection served again, if it rests.
func (s *Server) rouse(a *admitted) {
	s.resters.mu.Lock()
	n := a.resting
	s.resters.mu.Unlock()
	s.wake(a, n)
}

// hush ends the waiting for those that rest, when there are none any more and will be none.
func (s *Server) hush() {
	s.resters.mu.Lock()
	defer s.resters.mu.Unlock()
	if s.resters.epoll != nil {
		_ = s.resters.epoll.SetReadDeadline(time.Unix(1, 0))
	}
}

// attendAll waits for those that rest, until none has done so for a turn.
func (s *Server) attendAll(raw syscall.RawConn) {
	events := make([]unix.EpollEvent, 128)
	looked := time.Now()
	for {
		n := 0
		_ = raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0) // what interrupts it leaves it to the next turn
			return n > 0
		})
		now := time.Now()
		look := now.Sub(looked) >= turn
		if look {
			looked = now
		}
		awake, over := s.stirred(events[:max(n, 0)], look, now)
		if over {
			return
		}
		for _, a := range awake {
			s.rouse(a)
		}
	}
}

// stirred are those of which the set has told, and if one is to look those that have been closed, or whose time is nearly
// over. If nobody rests any more it ends the set.
func (s *Server) stirred(events []unix.EpollEvent, look bool, now time.Time) (awake []*admitted, over bool) {
	r := &s.resters
	r.mu.Lock()
	defer r.mu.Unlock()
	ended := s.context.Err() != nil
	if len(r.all) == 0 && (look || ended) {
		_ = r.epoll.Close()
		r.epoll, r.raw, r.all = nil, nil, nil
		return nil, true
	}
	if look && !ended {
		_ = r.epoll.SetReadDeadline(now.Add(turn))
	}
	for _, e := range events {
		if a := r.all[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]; a != nil { //nolint:gosec // the two halves of a number
			awake = append(awake, a)
		}
	}
	if look {
		for _, a := range r.all {
			if a.repose.Closed() || a.deadline().Sub(now) <= turn {
				awake = append(awake, a)
			}
		}
	}
	return awake, false
}
