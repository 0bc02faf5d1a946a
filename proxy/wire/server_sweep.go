package wire

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tick is how often it is looked whether those are still there for whom an exchange lasts, and how long one lasts before
// anybody looks.
const tick = 250 * time.Millisecond

// An exchange that has lasted for more than seldom ticks is looked at in one tick of so many: its peer has had time, and
// thousands of peers that are slow on purpose would otherwise be looked at all at once, four times a second, while calls
// wait.
const seldom = 8

// sweeper notices peers that go away while they are waited upon. Their connections are not read from meanwhile, and a
// reader for each would cost every exchange what only long ones need: one goroutine looks after them all, and only while
// there are exchanges.
type sweeper struct {
	now      atomic.Uint64 // the number of the tick, from 1 on
	sweeping atomic.Bool
}

// watched begins an exchange: from the tick after next on, its connection is looked at. A sweeper that is about to stop
// looks for exchanges once more after it has said so: that this is one must be seen by then.
func (s *Server) watched(a *admitted) {
	a.since.Store(s.now.Load() + 1)
	if a.hungUp != nil && !s.sweeping.Load() && s.sweeping.CompareAndSwap(false, true) {
		go s.sweep()
	}
}

// sweep looks until there are no exchanges.
func (s *Server) sweep() {
	t := time.NewTicker(tick)
	defer t.Stop()
	var old []*admitted
	for {
		select {
		case <-t.C:
		case <-s.context.Done():
			return
		}
		now := s.now.Add(1)
		var any bool
		old, any = s.exchanging(old[:0], now)
		for _, a := range old {
			if a.hungUp() {
				a.cancel()
			}
		}
		clear(old)
		if any {
			continue
		}
		// An exchange that began meanwhile has seen a sweeper at work, and leaves it to this one.
		s.sweeping.Store(false)
		if _, any := s.exchanging(nil, 0); !any || !s.sweeping.CompareAndSwap(false, true) {
			return
		}
	}
}

// exchanging gives the connections whose exchanges began before the last tick and are to be looked at now, and says
// whether there are any exchanges that can be.
func (s *Server) exchanging(old []*admitted, now uint64) (_ []*admitted, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.admitted {
		since := a.since.Load()
		if since == 0 || a.hungUp == nil {
			continue
		}
		if any = true; since < now && (now-since <= seldom || (now-since)%seldom == 0) {
			old = append(old, a)
		}
	}
	return old, any
}

// watch gives a function that says whether c's peer has gone. c is a socket, or stands on one; a connection that keeps
// its socket to itself may say so in its own way. Nil: it cannot be seen.
func watch(c net.Conn) func() bool {
	for {
		if own, ok := c.(interface{ HungUp() bool }); ok {
			return own.HungUp
		}
		if sc, ok := c.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return nil
			}
			return func() bool { return hungUp(raw) }
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = over.NetConn()
	}
}

// hungUp asks the kernel whether the other end has closed, or has ended its sending: who asks and closes the door behind
// itself is taken to have left. A connection that has been closed on this side is one that nobody waits at, either.
func hungUp(raw syscall.RawConn) (gone bool) {
	err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor fits
		n, err := unix.Poll(p, 0)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(p, 0)
		}
		gone = n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
