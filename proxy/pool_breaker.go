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
// one is let through, and the others wait for what becomes of it. A caller has breakers of its own, because a
// destination may refuse one caller and serve the next.
type breaker struct {
	mu     sync.Mutex
	failed int       // times in a row
	until  time.Time // nobody is let through before
	trying bool      // one has been let through since
	last   error
}

const (
	// breakAfter failures in a row the breaker opens.
	breakAfter = 5
	// It stays open for breakFirst, then for twice as long each time, up to breakMost: less a half at random, so that
	// wards which lost a destination together do not come back together.
	breakFirst = time.Second
	breakMost  = 30 * time.Second
)

// enter lets a call through, or refuses it. Each call that is let through is told to leave.
func (b *breaker) enter(now time.Time, service string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed < breakAfter {
		return nil
	}
	if b.trying || now.Before(b.until) {
		return Refuse(CauseUpstreamDown, "%s has failed %d times in a row: %w", service, b.failed, b.last)
	}
	b.trying = true
	return nil
}

// verdict is what a call's end says of its destination.
type verdict uint8

const (
	nothing verdict = iota
	works
	fails
)

// leave says how a call has fared.
func (b *breaker) leave(now time.Time, v verdict, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
	switch v {
	case works:
		b.failed, b.last = 0, nil
	case fails:
		b.failed++
		b.last = err
		if b.failed >= breakAfter {
			d := min(breakFirst<<min(b.failed-breakAfter, 10), breakMost)
			b.until = now.Add(d - rand.N(d/2))
		}
	}
}

// errConnect is in every failure to open a connection.
var errConnect = errors.New("no connection")

// RoundTrip implements RoundTripper: it asks the breaker first.
func (e *pooled) RoundTrip(ctx context.Context, r *wire.Request) (*wire.Response, error) {
	if err := e.breaker.enter(e.now(), e.service.Name); err != nil {
		return nil, err
	}
	v := nothing // should a defect end this
	var reply *wire.Response
	var err error
	defer func() { e.breaker.leave(e.now(), v, err) }()
	reply, err = e.client.RoundTrip(ctx, r)
	v = judge(ctx, err)
	return reply, err
}

// judge tells what a call's end says. That it could not be connected to counts, in whatever time; that it did not reply
// only when it had the time, for a slow service is not a broken one. What the caller did is no fault of it.
func judge(ctx context.Context, err error) verdict {
	switch {
	case err == nil:
		return works
	case errors.Is(ctx.Err(), context.Canceled):
		return nothing
	case errors.Is(err, errConnect), errors.Is(err, wire.ErrNoReply) && ctx.Err() == nil:
		return fails
	}
	return nothing
}
