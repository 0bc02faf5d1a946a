package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/attest"
)

// Options is what a Service is made of. Every field but the last two is required; NoDenials, NoObserver and
// zap.NewNop stand for absence.
type Options struct {
	Registry  *Registry
	Attestors []attest.Attestor
	Issuer    Issuer
	Bundles   Bundles
	Denials   Denials
	Observer  Observer
	Log       *zap.Logger

	Recheck time.Duration  // how often a watched process is checked for an exec; 0 stands for 10 s
	Random  func() float64 // spreads renewals, in [0,1); nil stands for math/rand/v2's
}

// Service answers who a process is. Its methods may be called from many goroutines.
type Service struct {
	o     Options
	cache *cache
	done  chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool
	visits sync.WaitGroup
}

// NewService refuses options that lack something.
func NewService(o Options) (*Service, error) {
	if o.Registry == nil || len(o.Attestors) == 0 || o.Issuer == nil || o.Bundles == nil || o.Denials == nil || o.Observer == nil || o.Log == nil {
		return nil, errors.New("workload: a registry, attestors, issuer, bundles, denials, observer and log are all needed")
	}
	if o.Recheck < 0 {
		return nil, errors.New("workload: the recheck interval is negative")
	}
	if o.Recheck == 0 {
		o.Recheck = 10 * time.Second
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	o.Attestors = slices.Clone(o.Attestors)
	return &Service{o: o, cache: newCache(o), done: make(chan struct{})}, nil
}

// Watch answers p now and again after each change, until ctx ends, send fails, or p is entitled to nothing
// more. Each Update is complete, and differs from the one before. The error is ctx's, or send's, or a
// *Refusal; it is never nil. Send must not keep its argument's slices for writing.
func (s *Service) Watch(ctx context.Context, p Process, want Want, send func(Update) error) error {
	return s.follow(ctx, &visit{s: s, p: p, want: want}, send)
}

// follow is the journey.
func (s *Service) follow(ctx context.Context, v *visit, send func(Update) error) error {
	if err := v.arrive(); err != nil {
		return err
	}
	defer v.leave()
	for {
		// The order is the argument: facts are bound to the process by the liveness check that ends the
		// attestation; entries see only such facts; SVIDs are read only for such entries; and what changed
		// while all that was going on is not lost, because each step puts its channel into the set that
		// wait looks at before it reads.
		if err := v.attest(ctx); err != nil {
			return v.refused(ctx, err)
		}
		if err := v.match(); err != nil {
			return v.refused(ctx, err)
		}
		if err := v.collect(ctx); err != nil {
			return v.refused(ctx, err)
		}
		if err := v.deliver(send); err != nil {
			return err
		}
		if err := v.wait(ctx); err != nil {
			return v.refused(ctx, err)
		}
	}
}

// Status tells of every SVID in use, by entry.
func (s *Service) Status() []Status { return s.cache.status() }

// Close ends every Watch and Holding with ErrClosed, waits for them, and forgets every key.
func (s *Service) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.visits.Wait()
	s.cache.close()
}

// visit is the state of one Watch.
type visit struct {
	s       *Service
	p       Process
	want    Want
	sole    bool        // stay with the ID that was the default at first, and ask for no other
	id      spiffeid.ID // that ID, once known
	report  Visit
	held    map[slotKey]*slot
	changed memdb.WatchSet // closed channels mean: look again
	next    Update
	last    Update
	waited  bool // time passed between the attestation and next
}

func (v *visit) arrive() error {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.s.closed {
		return &Refusal{Reference: newReference(), Err: ErrClosed}
	}
	v.s.visits.Add(1)
	v.report = Visit{PID: v.p.PID(), UID: v.p.UID(), Want: v.want}
	v.held = make(map[slotKey]*slot)
	return nil
}

func (v *visit) leave() {
	for _, slot := range v.held {
		v.s.cache.release(slot)
	}
	v.s.visits.Done()
}

// attest reads the facts; attest.Run re-checks liveness last.
func (v *visit) attest(ctx context.Context) error {
	start := time.Now()
	v.report.Attestation, v.report.Entries = attest.Attestation{}, nil
	select {
	case <-v.p.Done(): // the event is enough, whatever a racing look at the process says
		return ended(v.p)
	default:
	}
	att, err := attest.Run(ctx, v.p, v.s.o.Attestors)
	v.report.Attestation, v.report.Took = att, time.Since(start)
	v.next, v.waited = Update{Attestation: att}, false
	return err
}

// match finds what the process is granted: one entry for each identity, the default first.
func (v *visit) match() error {
	start := time.Now()
	denied := v.s.o.Denials.Changed()
	entries, changed := v.s.o.Registry.Match(v.next.Attestation)
	changed.Add(denied)
	v.changed = changed
	var granted []*Entry
	for _, e := range entries {
		switch {
		case v.want == LentSVIDs && !e.Proxy:
		case v.sole && !v.id.IsZero() && e.ID != v.id:
		case v.sole && len(granted) == 1:
		case v.s.o.Denials.Denied(e.ID):
		// WAPI §5.2.1: one X509SVID for each identity. Where two entries give the same, the first has it.
		case slices.ContainsFunc(granted, func(g *Entry) bool { return g.ID == e.ID }):
		default:
			granted = append(granted, e)
		}
	}
	v.report.Entries = granted
	v.report.Took += time.Since(start)
	if len(granted) == 0 {
		return ErrNoIdentity
	}
	v.id = granted[0].ID
	v.s.o.Observer.Attested(v.report)
	return nil
}

// collect gathers the bundle and a valid SVID for each entry, waiting for those that are being issued for
// the first time. An identity that cannot be had now is left out, unless it is the default one: a process
// must not find itself acting as another identity because the issuer failed.
func (v *visit) collect(ctx context.Context) error {
	if err := v.bundle(); err != nil {
		return err
	}
	if v.want == X509Bundles {
		return nil
	}
	wanted := make(map[slotKey]bool, len(v.report.Entries))
	for _, e := range v.report.Entries { // all are demanded before one is waited for
		key := keyOf(e, v.want == LentSVIDs)
		wanted[key] = true
		if v.held[key] == nil {
			v.held[key] = v.s.cache.hold(e, v.want == LentSVIDs)
		}
	}
	for key, slot := range v.held {
		if !wanted[key] {
			v.s.cache.release(slot)
			delete(v.held, key)
		}
	}
	for i, e := range v.report.Entries {
		svid, err := v.svid(ctx, v.held[keyOf(e, v.want == LentSVIDs)])
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && i == 0:
			return fmt.Errorf("%w: entry %q: %w", ErrUnavailable, e.Name, err)
		case err == nil:
			v.next.SVIDs = append(v.next.SVIDs, &SVID{Entry: e, SVID: svid.SVID, ChainDER: svid.ChainDER, KeyDER: svid.KeyDER})
		}
	}
	if v.waited { // the bundle may have moved on with the SVIDs
		return v.bundle()
	}
	return nil
}

func (v *visit) bundle() error {
	bundle, changed := v.s.o.Bundles.X509Bundle()
	v.changed.Add(changed)
	if bundle == nil || bundle.Empty() {
		return fmt.Errorf("%w: there is no bundle yet", ErrUnavailable)
	}
	v.next.Bundle = bundle
	return nil
}

// svid waits until the slot has an SVID or a reason why not.
func (v *visit) svid(ctx context.Context, s *slot) (*SVID, error) {
	for {
		svid, err, changed := v.s.cache.read(s)
		if svid != nil || err != nil {
			v.changed.Add(changed)
			return svid, err
		}
		v.waited = true
		select {
		case <-changed:
		case <-v.p.Done():
			return nil, ended(v.p)
		case <-v.s.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// deliver sends what differs from what was sent before, to a process that is still the one attested.
func (v *visit) deliver(send func(Update) error) error {
	if v.next.same(v.last) {
		return nil
	}
	if v.waited {
		if err := v.p.Alive(); err != nil {
			return v.refused(context.Background(), err)
		}
	}
	v.last = v.next
	return send(v.next)
}

// wait returns nil when it is time to look again.
func (v *visit) wait(ctx context.Context) error {
	v.changed.Add(v.p.Done())
	v.changed.Add(v.s.done)
	for {
		tick, cancel := context.WithTimeout(ctx, v.s.o.Recheck)
		err := v.changed.WatchCtx(tick)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-v.s.done:
			return ErrClosed
		default:
		}
		if err == nil {
			return nil
		}
		if err := v.p.Alive(); err != nil { // nothing tells of an exec but looking
			return err
		}
	}
}

// refused turns err into what Watch returns, and reports it unless the caller itself went away, or the
// process came to its end after it was served.
func (v *visit) refused(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	r = &Refusal{Reference: newReference(), Attestation: v.report.Attestation, Err: err}
	if v.last.Bundle == nil || !errors.Is(err, attest.ErrExited) {
		v.s.o.Observer.Refused(v.report, r)
	}
	return r
}

// ended says why a process whose Done is closed has ended.
func ended(p Process) error {
	if err := p.Alive(); err != nil {
		return err
	}
	return attest.ErrExited
}
