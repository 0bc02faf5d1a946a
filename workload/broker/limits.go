package broker

import (
	"errors"
	"sync"
	"time"
)

// Limits bound what can be taken of the server. A zero field stands for its default.
type Limits struct {
	Conns      int // open connections of users who can be a broker; 32
	Strangers  int // open connections of all others, who are told no and then closed; 16
	RatePerUID int // new connections of one user per second, after a burst of twice as many; 20
	Streams    int // calls under way of all brokers together; 16384
}

func (l Limits) filled() (Limits, error) {
	for _, f := range []struct {
		field   *int
		initial int
	}{{&l.Conns, 32}, {&l.Strangers, 16}, {&l.RatePerUID, 20}, {&l.Streams, 16384}} {
		switch {
		case *f.field < 0:
			return l, errors.New("workload broker: a limit is negative")
		case *f.field == 0:
			*f.field = f.initial
		}
	}
	return l, nil
}

// sweepAt is how many users' rates are remembered before those that are at rest are forgotten.
const sweepAt = 1024

// places counts what is open.
type places struct {
	l Limits

	mu        sync.Mutex
	rates     map[uint32]time.Time // GCRA: when the user's next connection would be due at the steady rate
	conns     int
	strangers int
	streams   int
}

func newPlaces(l Limits) *places { return &places{l: l, rates: make(map[uint32]time.Time)} }

// pace charges a connection to the rate of its user and returns why not, or "".
func (p *places) pace(uid uint32) (reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if len(p.rates) >= sweepAt {
		for other, due := range p.rates {
			if due.Before(now) {
				delete(p.rates, other)
			}
		}
	}
	due := p.rates[uid]
	if due.Before(now) {
		due = now
	}
	due = due.Add(time.Second / time.Duration(p.l.RatePerUID))
	if due.Sub(now) > 2*time.Second {
		return "user-rate"
	}
	p.rates[uid] = due
	return ""
}

// openConn returns how to give the place back, or why there is none.
func (p *places) openConn(stranger bool) (leave func(), reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, most, reason := &p.conns, p.l.Conns, "all-connections"
	if stranger {
		n, most, reason = &p.strangers, p.l.Strangers, "strangers"
	}
	if *n >= most {
		return nil, reason
	}
	*n++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		*n--
	}, ""
}

func (p *places) openStream() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams >= p.l.Streams {
		return false
	}
	p.streams++
	return true
}

func (p *places) closeStream() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams--
}

func (p *places) counts() (conns, streams int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns + p.strangers, p.streams
}
