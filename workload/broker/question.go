package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// question is whether a line's reference still names a process with its identity. A process that opens many connections
// at once has many who ask the same, and an answer costs the agent a look at the process and all facts about it. So one
// question is on its way at a time, and who comes meanwhile shares the next: nobody is content with an answer to what was
// asked before it came, and the agent answers as often as it can, not as often as it is called.
type question struct {
	ctx    context.Context
	forget context.CancelFunc
	users  int             // who wait for the answer; guarded by the client's mutex
	seen   attest.Standing // of the process before it was asked; zero where those who ask have seen it differently
	done   chan struct{}   // closed with err
	err    error
	last   atomic.Pointer[workload.Refusal] // why there was no answer yet
}

// confirm asks the agent about the reference as it is now: the events that would end the line may be on their way, and
// a process that has just replaced its program must not begin as what it was.
func (l *line) confirm(ctx context.Context, seen attest.Standing) error {
	q, err := l.question(seen)
	if err != nil {
		return err
	}
	defer l.unask(q)
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
	}
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if last := q.last.Load(); last != nil {
		return l.c.lateness(last)
	}
	return l.late(ctx)
}

// question gives one that has not been asked yet, with one more who waits for its answer. It is asked as soon as there
// is an answer to the one before.
func (l *line) question(seen attest.Standing) (*question, error) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if l.c.closed {
		return nil, &workload.Refusal{Err: workload.ErrClosed}
	}
	q := l.next
	if q == nil {
		q = &question{done: make(chan struct{}), seen: seen}
		q.ctx, q.forget = context.WithCancel(l.c.ctx)
		l.next = q
	}
	if q.seen != seen {
		q.seen = attest.Standing{}
	}
	q.users++
	if l.asked == nil {
		l.turn()
	}
	return q, nil
}

// turn asks the next question, if there is one. The caller holds the client's mutex.
func (l *line) turn() {
	q := l.next
	l.asked, l.next = q, nil
	if q == nil {
		return
	}
	l.c.tasks.Go(func() { // the client is not closed, or this is a task of its own
		q.err = l.ask(q)
		q.forget()
		close(q.done)
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		l.turn()
	})
}

// ask brings the agent's answer, however often it takes, as long as somebody waits for it.
func (l *line) ask(q *question) error {
	var again retries
	for {
		var said spiffeid.ID
		var still bool
		asked := time.Now()
		err := l.c.subscribe(q.ctx, l.packed, func(m *spiffe.SubscribeToX509SVIDResponse) error {
			got, err := l.c.identities.read(m, spiffeid.ID{})
			if err != nil {
				return err
			}
			said = got.svid.ID
			still = slices.ContainsFunc(m.GetSvids(), func(s *spiffe.X509SVID) bool { return s.GetSpiffeId() == l.ID().String() })
			return errEnough
		})
		var r *workload.Refusal
		switch {
		case errors.Is(err, errEnough):
			if err := l.first(q.ctx); err != nil {
				return err
			}
			switch id := l.ID(); {
			case id == said:
				l.vouch(q.seen, asked)
				return nil
			case still: // it is another by default now; what began with this one keeps it
				l.c.retire(l)
			default:
				l.finish(&workload.Refusal{Err: fmt.Errorf("%w: it is no longer %s", workload.ErrNoIdentity, id)})
			}
			return errStale
		case errors.As(err, &r) && final(r):
			l.finish(err)
			return err
		case errors.As(err, &r):
			q.last.Store(r)
		}
		switch {
		case l.over():
			return l.Err()
		case l.c.ctx.Err() != nil:
			return &workload.Refusal{Err: workload.ErrClosed}
		case !again.pause(q.ctx) && l.c.ctx.Err() == nil:
			return q.ctx.Err() // nobody waits any more
		}
	}
}

// unask says that one waits no more. What nobody waits for is not asked.
func (l *line) unask(q *question) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if q.users--; q.users == 0 {
		q.forget()
		if l.next == q {
			l.next = nil
		}
	}
}
