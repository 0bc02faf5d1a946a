package endpoint

import (
	"errors"
	"sync"
	"time"
)

// Room is a bound on how many may be somewhere at a time. Rooms of one server are told apart by their names.
type Room struct {
	Name    string // also the reason by which a refusal is counted
	Most    int
	PerUser bool // every user has one of their own
}

func (r Room) of(uid uint32) seat {
	if !r.PerUser {
		uid = 0
	}
	return seat{r.Name, uid}
}

type seat struct {
	room string
	uid  uint32
}

// burst is how far ahead of their rate a user may run.
const burst = 2 * time.Second

// sweepAt is how many users' rates are remembered before those that are at rest are forgotten.
const sweepAt = 1024

// places counts what is taken.
type places struct {
	mu    sync.Mutex
	taken map[seat]int
	due   map[uint32]time.Time // GCRA: when the user's next connection would be due at the steady rate
}

func newPlaces() *places { return &places{taken: make(map[seat]int), due: make(map[uint32]time.Time)} }

// take takes one place in each room, or none, and returns why not, or "".
func (p *places) take(uid uint32, rate int, rooms ...Room) (reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rooms {
		if p.taken[r.of(uid)] >= r.Most {
			return r.Name
		}
	}
	if rate > 0 && !p.pace(uid, time.Second/time.Duration(rate)) {
		return "user-rate"
	}
	for _, r := range rooms {
		p.taken[r.of(uid)]++
	}
	return ""
}

// leave gives the places back.
func (p *places) leave(uid uint32, rooms ...Room) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rooms {
		at := r.of(uid)
		if p.taken[at]--; p.taken[at] == 0 {
			delete(p.taken, at)
		}
	}
}

// pace charges one to the user's rate, if it has room.
func (p *places) pace(uid uint32, every time.Duration) bool {
	now := time.Now()
	due, known := p.due[uid]
	if !known {
		p.sweep(now)
	}
	if due.Before(now) {
		due = now
	}
	if due = due.Add(every); due.Sub(now) > burst {
		return false
	}
	p.due[uid] = due
	return true
}

// sweep forgets users who have no burst to answer for, when there are many.
func (p *places) sweep(now time.Time) {
	if len(p.due) < sweepAt {
		return
	}
	for uid, due := range p.due {
		if due.Before(now) {
			delete(p.due, uid)
		}
	}
}

// Limit is a field of an API's limits and what its zero stands for.
type Limit struct {
	Field   *int
	Initial int
}

// Fill gives each field that is 0 its initial value.
func Fill(limits ...Limit) error {
	for _, l := range limits {
		switch {
		case *l.Field < 0:
			return errors.New("a limit is negative")
		case *l.Field == 0:
			*l.Field = l.Initial
		}
	}
	return nil
}
