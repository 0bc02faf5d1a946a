package attest

import (
	"context"
	"sync"
)

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

// Take waits until uid's turn is free or ctx ends. The turn is the caller's until it calls done, once.
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
