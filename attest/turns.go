package attest

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// maxTurns is how many of one user's steps may wait or be under way. Those who wait hold a place of something that all
// users share, such as the connections that a listener admits at a time.
const maxTurns = 1024

// ErrCrowded: so much of one user waits to be attested that no more is taken.
var ErrCrowded = errors.New("too much of this user waits to be attested")

// Turns lets each user have one costly step at a time. Attesting a process costs more when its user makes it
// so (a huge executable, a hundred thousand open files); whoever does that waits for itself, not others for it.
// The zero value is ready to use.
type Turns struct {
	mu    sync.Mutex
	users map[uint32]*turn
}

type turn struct {
	taken   chan struct{} // holds one value while somebody has the turn
	waiters int           // who has it or waits for it
}

// Take waits until uid's turn is free or ctx ends; it does not wait, and gives an ErrCrowded, while too many do. The turn
// is the caller's until it calls done, once.
func (t *Turns) Take(ctx context.Context, uid uint32) (done func(), err error) {
	t.mu.Lock()
	if t.users == nil {
		t.users = make(map[uint32]*turn)
	}
	u := t.users[uid]
	if u == nil {
		u = &turn{taken: make(chan struct{}, 1)}
		t.users[uid] = u
	}
	if u.waiters == maxTurns {
		t.mu.Unlock()
		return nil, fmt.Errorf("%w: uid %d", ErrCrowded, uid)
	}
	u.waiters++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if u.waiters--; u.waiters == 0 {
			delete(t.users, uid)
		}
	}
	select {
	case u.taken <- struct{}{}:
		return func() { <-u.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
