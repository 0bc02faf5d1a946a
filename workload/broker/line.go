package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// line is one reference's stream of identities and what it has brought last. Loans of one process share one.
type line struct {
	c       *Client
	process attest.ProcessReference // zero for a connection
	packed  *spiffe.WorkloadReference
	cancel  context.CancelFunc

	// Guarded by the client's mutex.
	users int
	place *list.Element // among the idle
	timer *time.Timer   // until it is dropped; set with place
	asked *question     // the one that the agent is being asked
	next  *question     // the one that it will be asked then

	mu      sync.Mutex
	id      spiffeid.ID
	held    *identity
	last    error         // why there was no answer yet
	err     error         // why it is over
	changed chan struct{} // closed at the next change
	done    chan struct{} // closed with err
	follows bool          // the agent is heard: what changes is told
	word    word          // the agent's last, while it is heard
	expiry  *time.Timer   // wakes those who wait for a change when the SVID ends
}

var (
	// errStale: the process that a line is of has another identity by now.
	errStale = errors.New("the process has another identity by now")
	// errEnough ends a subscription that has brought what it was for.
	errEnough = errors.New("answered")
)

func newLine(c *Client, p attest.ProcessReference, packed *spiffe.WorkloadReference) *line {
	return &line{c: c, process: p, packed: packed, changed: make(chan struct{}), done: make(chan struct{})}
}

// run follows the reference until it is over. What it has brought stays valid meanwhile, whatever becomes of the agent:
// a restarted one is asked anew, and must say the same.
func (l *line) run(ctx context.Context) {
	var again retries
	for {
		err := l.c.subscribe(ctx, l.packed, func(m *spiffe.SubscribeToX509SVIDResponse) error {
			if err := l.take(m); err != nil {
				return err
			}
			again = retries{}
			return nil
		})
		l.unheard()
		var r *workload.Refusal
		switch {
		case ctx.Err() != nil:
			l.finish(&workload.Refusal{Err: workload.ErrClosed})
			return
		case errors.As(err, &r) && final(r):
			l.finish(err)
			return
		}
		l.mu.Lock()
		l.last = err
		l.mu.Unlock()
		again.pause(ctx)
	}
}

// finish ends the line. Keys are forgotten at once: BA §4.9, the client MUST drop all data of the workload.
func (l *line) finish(err error) {
	l.mu.Lock()
	before := l.err
	if before == nil {
		l.err, l.held = err, nil
		if l.expiry != nil {
			l.expiry.Stop()
		}
		close(l.done)
		close(l.changed)
	}
	l.mu.Unlock()
	if before == nil {
		l.c.ended(l)
	}
}

// take reads an answer. One that is not sound is as good as none, and the agent is asked again.
func (l *line) take(m *spiffe.SubscribeToX509SVIDResponse) error {
	got, err := l.c.identities.read(m, l.ID())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.follows = true
	if l.held == got {
		return nil
	}
	l.id, l.held = got.svid.ID, got
	if l.expiry != nil {
		l.expiry.Stop()
	}
	l.expiry = time.AfterFunc(time.Until(got.end()), l.publish)
	l.swap()
	return nil
}

func (l *line) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.swap()
	}
}

func (l *line) swap() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// first waits for the line's first answer.
func (l *line) first(ctx context.Context) error {
	l.mu.Lock()
	changed := l.changed
	held := l.held != nil
	l.mu.Unlock()
	if !held {
		select {
		case <-changed:
		case <-ctx.Done():
			return l.late(ctx)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// late is why a wait for the agent has ended.
func (l *line) late(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	return l.c.lateness(last)
}

func (c *Client) lateness(last error) error {
	r := &workload.Refusal{}
	if last == nil {
		r.Err = fmt.Errorf("%w: the agent did not answer in time", workload.ErrUnavailable)
		c.seen(r)
		return r
	}
	var said *workload.Refusal
	if errors.As(last, &said) {
		r.Reference, last = said.Reference, said.Err
	}
	r.Err = fmt.Errorf("%w: the agent gave no identity in time: %w", workload.ErrUnavailable, last)
	return r
}

// ID is the identity of the line, zero before the first answer.
func (l *line) ID() spiffeid.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// over reports whether the line has ended.
func (l *line) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Err is nil while the identity is held and valid.
func (l *line) Err() error {
	_, err := l.now()
	return err
}

// now returns what the line has brought, while it is valid.
func (l *line) now() (*identity, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return nil, l.err
	case l.held == nil:
		return nil, &workload.Refusal{Err: workload.ErrUnavailable}
	case !l.held.valid():
		return nil, &workload.Refusal{Err: fmt.Errorf("%w: the SVID of %s ended at %s and the agent has given no other",
			workload.ErrUnavailable, l.id, l.held.end().UTC().Format(time.RFC3339))}
	}
	return l.held, nil
}
