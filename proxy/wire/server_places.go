package wire

import (
	"container/list"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A request that has come in part occupies a goroutine and a desk until the rest has come, or its deadline, and then its
// peer may come again: with thousands of connections, one caller could keep a ward busy with nothing else. So one caller
// has places for some unfinished requests. Whoever brings whole requests, of a desk's size, never takes one; of a larger
// head only a part is here at first. Of more than there are places for, what has come is kept, and they wait for their turn, unread, one after another: they cost little more than
// connections that idle, next to no time, and may stay for as long as these. Their deadlines begin with their turn.

// mostUnfinished is how many requests of one caller may be received at a time that have not come whole. Those of
// hundreds of honest connections that come in two packets are not there for long enough to be so many.
const mostUnfinished = 32

// errTurn: what has come of a request waits for its turn.
var errTurn = errors.New("wire: the caller has too many unfinished requests")

// places are those of a server's callers, by what Server.Whose says of them.
type places struct {
	mu      sync.Mutex
	callers map[any]*line
}

// line is a caller that has unfinished requests.
type line struct {
	taken   int
	waiting list.List // of *admitted, in the order of their coming
}

// place is what a connection has in its caller's line.
type place struct {
	taken atomic.Bool // or stood in line for

	// Guarded by places' mutex.
	of    *line // nil: neither
	whose any
	waits *list.Element // nil: it has one

	// The serving goroutine's.
	kept []byte // what has come of the request that waits; nil: none does
	came bool   // its turn came after a wait
	free bool   // it needs none: no more will come
	late bool   // its turn has not come in time
}

// take gives a's request, which has not come whole, a place. False: it stands in line for one.
func (s *Server) take(a *admitted) bool {
	if s.Whose == nil || a.repose == nil || a.place.free || a.blind() {
		return true
	}
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.place.of != nil {
		return a.place.waits == nil
	}
	whose := s.Whose(a.value)
	l := p.callers[whose]
	if l == nil {
		if p.callers == nil {
			p.callers = map[any]*line{}
		}
		l = &line{}
		p.callers[whose] = l
	}
	a.place.taken.Store(true)
	a.place.of, a.place.whose = l, whose
	if l.taken < mostUnfinished {
		l.taken++
		return true
	}
	a.place.waits = l.waiting.PushBack(a)
	return false
}

// blind says that of what is here only a first byte can be had without waiting: whether a request has come whole cannot be
// told then. Neither TLS nor what the daemon accepts is such a connection.
func (a *admitted) blind() bool { return a.raw == nil && a.lender == nil && a.bulk == nil }

// leavePlace says that a's request has come whole, or never will: whoever is next has its place.
func (s *Server) leavePlace(a *admitted) {
	if !a.place.taken.Load() {
		return
	}
	if next := s.places.leave(a); next != nil {
		s.rouse(next)
	}
}

// leave gives back what a has, and says whose turn it is.
func (p *places) leave(a *admitted) (next *admitted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := a.place.of
	if l == nil {
		return nil
	}
	if a.place.waits != nil {
		l.waiting.Remove(a.place.waits)
	} else if first := l.waiting.Front(); first != nil {
		next = l.waiting.Remove(first).(*admitted)
		next.place.waits = nil
	} else if l.taken--; l.taken == 0 {
		delete(p.callers, a.place.whose)
	}
	a.place.of, a.place.waits, a.place.whose = nil, nil, nil
	a.place.taken.Store(false)
	return next
}

// turn says whether a's turn has come.
func (p *places) turn(a *admitted) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.place.waits == nil
}

// queue keeps what has come of a request until its turn.
func (a *admitted) queue() {
	a.place.kept = append(make([]byte, 0, a.w-a.r), a.buf[a.r:a.w]...)
	a.release()
	a.allow(a.server.IdleTimeout)
}

// resume goes on with a request whose turn has come, or that will not come whole any more: its peer has gone, or ended its
// sending, or its time is over. False: none of it, and it waits on.
func (a *admitted) resume() bool {
	if !a.server.places.turn(a) {
		a.place.late = time.Until(a.deadline()) <= turn
		if !a.place.late && a.hungUp != nil && !a.hungUp() {
			return false
		}
		a.place.free = true
		a.server.leavePlace(a)
	}
	kept := a.place.kept
	a.place.kept, a.place.came = nil, true
	a.sit()
	if len(kept) > len(a.buf) {
		a.buf = make([]byte, 2*len(kept))
	}
	a.w = copy(a.buf, kept)
	return true
}

// shorter is d, or for who has waited for its turn up to a quarter less: it has had time, and those whose turn came at
// once should not all end at once, again and again.
func (p *place) shorter(d time.Duration) time.Duration {
	if p.came {
		d -= rand.N(d/4 + 1)
	}
	p.came = false
	return d
}

// entire says whether a short body has come with its head, which has n bytes. A long one is none of a request's unfinished
// part: it is passed on as it comes.
func (a *admitted) entire(n int) bool {
	length := a.desk.head.Length
	if length <= 0 || length > int64(len(a.buf)-n) {
		return true
	}
	for int64(a.w-a.r-n) < length {
		a.room()
		m, err := a.atHand()
		if a.w += m; err != nil || m == 0 {
			return false
		}
	}
	return true
}

// atHand reads what need not be waited for: what TLS has held back.
func (a *admitted) atHand() (int, error) {
	if a.bulk == nil {
		return 0, errDry
	}
	a.bulk.dry = true
	n, err := a.Read(a.buf[a.w:])
	a.bulk.dry = false
	return n, err
}
