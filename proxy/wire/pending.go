package wire

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

// pending are the connections that are being admitted. Where there are too many, one gives way. Peers that mean to speak
// are through in milliseconds. A source that has more than half of the places is a flood, and drives out the one of its own
// that has taken longest. Else the one that has taken longest of all goes if it has had its time: attackers that stall from
// many sources must not drive out a ward that calls for many workloads from one. Where all have just come, it is one of
// the source that has the most.
type pending struct {
	max int

	mu      sync.Mutex
	n       int
	came    uint64                      // how many have come so far
	sources map[netip.Prefix]*list.List // of *waiter, the oldest first; none is empty
}

// stalls is after what time an unfinished handshake is taken to stall, should its place be needed.
const stalls = time.Second

// waiter is a connection that is being admitted.
type waiter struct {
	of      *pending
	giveWay func()
	number  uint64
	since   time.Time
	source  netip.Prefix
	place   *list.Element // nil once it has been judged or has given way
}

// add takes in a connection from a source; giveWay ends it early.
func (p *pending) add(source netip.Prefix, giveWay func()) *waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came++
	w := &waiter{of: p, giveWay: giveWay, number: p.came, since: time.Now()}
	p.put(w, source)
	if p.n > p.max {
		out := p.worst(w.since)
		p.take(out)
		out.giveWay()
	}
	return w
}

// done says that w has been judged.
func (w *waiter) done() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	w.of.take(w) // nothing when it has given way
}

// comesFrom says that w has turned out to come from another source: it was handed on.
func (w *waiter) comesFrom(source netip.Prefix) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.place != nil {
		w.of.take(w)
		w.of.put(w, source)
	}
}

// put and take do not lock.
func (p *pending) put(w *waiter, source netip.Prefix) {
	l := p.sources[source]
	if l == nil {
		if p.sources == nil {
			p.sources = map[netip.Prefix]*list.List{}
		}
		l = list.New()
		p.sources[source] = l
	}
	w.source, w.place = source, l.PushBack(w)
	p.n++
}

func (p *pending) take(w *waiter) {
	if w.place == nil {
		return
	}
	l := p.sources[w.source]
	l.Remove(w.place)
	w.place = nil
	if l.Len() == 0 {
		delete(p.sources, w.source)
	}
	p.n--
}

// worst is who gives way. There are max sources at the most, and looking at each costs less than the handshake that is
// about to begin.
func (p *pending) worst(now time.Time) *waiter {
	var most, oldest *waiter
	size := 0
	for _, l := range p.sources {
		first := l.Front().Value.(*waiter)
		if l.Len() > size || l.Len() == size && first.number < most.number {
			most, size = first, l.Len()
		}
		if oldest == nil || first.number < oldest.number {
			oldest = first
		}
	}
	if size <= p.max/2 && now.Sub(oldest.since) >= stalls {
		return oldest
	}
	return most
}

// host is the address of a peer, IPv4 as such; not valid for a peer that has none.
func host(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return t.AddrPort().Addr().Unmap().WithZone("")
}

// sourceOf is what counts as one source: an IPv4 address, or the /64 that a single IPv6 host commands. Peers without an
// address are one source.
func sourceOf(a net.Addr) netip.Prefix {
	h := host(a)
	bits := h.BitLen()
	if h.Is6() {
		bits = 64
	}
	p, _ := h.Prefix(bits)
	return p
}
