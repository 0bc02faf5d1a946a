package wire

import (
	"container/list"
	"sync"
)

// pending are the connections that are being admitted. Where there are too many, the one that has taken longest gives
// way to the one that has just come: peers that mean to speak are through in milliseconds, and whoever opens
// connections in silence only drives out its own.
type pending struct {
	max int

	mu   sync.Mutex
	list list.List // of func(), the oldest first
}

// add takes in a connection that giveWay ends early; done says that it has been judged.
func (p *pending) add(giveWay func()) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list.Len() >= p.max {
		p.list.Remove(p.list.Front()).(func())()
	}
	e := p.list.PushBack(giveWay)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.list.Remove(e) // nothing when it has given way
	}
}
