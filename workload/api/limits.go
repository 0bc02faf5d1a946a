package api

import (
	"errors"
	"sync"
	"time"
)

// Limits bound what local users can take. A zero field stands for its default.
type Limits struct {
	Conns          int // open connections of all users together; 8192
	ConnsPerUID    int // open connections of one user; 512
	RatePerUID     int // new connections of one user per second, after a burst of twice as many; 200
	StreamsPerUID  int // calls under way for one user; 1024
	StreamsPerConn int // calls under way on one connection; further ones wait at the client; 64
}

func (l Limits) filled() (Limits, error) {
	for _, f := range []struct {
		field   *int
		initial int
	}{{&l.Conns, 8192}, {&l.ConnsPerUID, 512}, {&l.RatePerUID, 200}, {&l.StreamsPerUID, 1024}, {&l.StreamsPerConn, 64}} {
		switch {
		case *f.field < 0:
			return l, errors.New("workload api: a limit is negative")
		case *f.field == 0:
			*f.field = f.initial
		}
	}
	return l, nil
}

// sweepAt is how many users are remembered before those without anything open are forgotten.
const sweepAt = 1024

// tenants counts what each user has open.
type tenants struct {
	l     Limits
	every time.Duration // the rate's interval
	slack time.Duration // how far ahead of the rate a burst may run

	mu      sync.Mutex
	users   map[uint32]*tenant
	conns   int
	streams int
}

type tenant struct {
	conns, streams int
	tat            time.Time // GCRA: when the next connection would be due at the steady rate
}

func newTenants(l Limits) *tenants {
	every := time.Second / time.Duration(l.RatePerUID)
	return &tenants{l: l, every: every, slack: 2 * time.Second, users: make(map[uint32]*tenant)}
}

// openConn returns why not, or "".
func (t *tenants) openConn(uid uint32) (reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns >= t.l.Conns {
		return "all-connections"
	}
	now := time.Now()
	u := t.users[uid]
	if u == nil {
		t.sweep(now)
		u = &tenant{}
		t.users[uid] = u
	}
	if u.conns >= t.l.ConnsPerUID {
		return "user-connections"
	}
	if u.tat.Before(now) {
		u.tat = now
	}
	if u.tat.Sub(now)+t.every > t.slack {
		return "user-rate"
	}
	u.tat = u.tat.Add(t.every)
	u.conns++
	t.conns++
	return ""
}

func (t *tenants) closeConn(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[uid].conns--
	t.conns--
}

// openStream reports whether one more is allowed.
func (t *tenants) openStream(uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[uid]
	if u == nil || u.streams >= t.l.StreamsPerUID {
		return false // a user without a connection is one whose connection has just been closed
	}
	u.streams++
	t.streams++
	return true
}

func (t *tenants) closeStream(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[uid].streams--
	t.streams--
}

// sweep forgets users who have nothing open and no burst to answer for, when there are many.
func (t *tenants) sweep(now time.Time) {
	if len(t.users) < sweepAt {
		return
	}
	for uid, u := range t.users {
		if u.conns == 0 && u.streams == 0 && u.tat.Before(now) {
			delete(t.users, uid)
		}
	}
}

func (t *tenants) counts() (conns, streams int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conns, t.streams
}
