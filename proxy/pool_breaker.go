package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// breaker spares a destination that has failed several times in a row: for a while calls to it are refused at once, then
// one is let through, and the others wait for what becomes of it, for a moment. A caller has breakers of its own, because
// a destination may refuse one caller and serve the next. It serves all processes of that caller, so no single call of
// theirs may keep it open: one that is let through and takes its time is not waited for.
type breaker struct {
	mu     sync.Mutex
	failed int       // calls in a row, while it was closed
	opened int       // times in a row; 0: it is closed
	until  time.Time // nobody is let through before
	tries  uint64    // how many have been let through while it was open
	last   error
}

const (
	// breakAfter failures in a row the breaker opens.
	breakAfter = 5
	// It stays open for breakFirst, then for twice as long each time, up to breakMost: less a half at random, so that
	// wards which lost a destination together do not come back together.
	breakFirst = time.Second
	breakMost  = 30 * time.Second
	// tryTime is how long the others wait for what becomes of the call that was let through.
	tryTime = time.Second
)

// try is the number of a call that was let through while the breaker was open; 0: it was closed.
type try uint64

// enter lets a call through, or refuses it. Each call that is let through is told to leave.
func (b *breaker) enter(now time.Time, service string) (try, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened == 0 {
		return 0, nil
	}
	if now.Before(b.until) {
		return 0, Refuse(CauseUpstreamDown, "%s has failed time and again: %w", service, b.last)
	}
	b.tries++
	b.until = now.Add(tryTime)
	return try(b.tries), nil
}

// verdict is what a call's end says of its destination.
type verdict uint8

const (
	nothing verdict = iota
	works
	fails
)

// leave says how a call has fared. While the breaker is open only the call let through last has a say in for how long:
// others that fail now began before it opened, and tell nothing new however many there are.
func (b *breaker) leave(now time.Time, t try, v verdict, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	latest := t != 0 && uint64(t) == b.tries
	switch {
	case v == works:
		b.failed, b.opened, b.last = 0, 0, nil
	case b.opened > 0 && !latest:
	case v == nothing:
		if b.opened > 0 {
			b.until = now // the next may try
		}
	default:
		b.last = err
		if b.failed++; b.failed < breakAfter {
			return
		}
		d := min(breakFirst<<min(b.opened, 10), breakMost)
		b.until = now.Add(d - rand.N(d/2))
		b.opened++
	}
}

// errConnect is in every failure to open a connection, but for those that had no time.
var errConnect = errors.New("no connection")

// connectTime is how long it takes at least to find that a destination does not answer. A call that has waited for so
// long that it has less left says nothing of it.
const connectTime = 3 * time.Second

// RoundTrip implements RoundTripper: it asks the breaker first.
func (e *pooled) RoundTrip(ctx context.Context, r *wire.Request) (*wire.Response, error) {
	t, err := e.breaker.enter(e.now(), e.service.Name)
	if err != nil {
		return nil, err
	}
	v := nothing // should a defect end this
	var reply *wire.Response
	defer func() { e.breaker.leave(e.now(), t, v, err) }()
	reply, err = e.client.RoundTrip(ctx, r)
	v = judge(ctx, err)
	return reply, err
}

// judge tells what a call's end says: only that the destination cannot be connected to, or gives no reply to a request
// that it has got whole, counts against it. That it is slow does not, for a slow service is not a broken one; nor does
// what the caller did, or has not done yet; and whatever it replies, a refusal too, shows that it works.
func judge(ctx context.Context, err error) verdict {
	switch {
	case err == nil:
		return works
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, wire.ErrUnfinished):
		return nothing
	case errors.Is(err, errConnect), errors.Is(err, wire.ErrNoReply) && ctx.Err() == nil:
		return fails
	}
	return nothing
}
