package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/attest"
)

// Options is what a Service is made of. Every field but the last two is required; NoDenials, NoKept, NoObserver and
// zap.NewNop stand for absence.
type Options struct {
	Registry  *Registry
	Attestors []attest.Attestor
	Issuer    Issuer
	Bundles   Bundles
	Denials   Denials
	Kept      Kept
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
	if o.Registry == nil || len(o.Attestors) == 0 || o.Issuer == nil || o.Bundles == nil || o.Denials == nil || o.Kept == nil || o.Observer == nil || o.Log == nil {
		return nil, errors.New("workload: a registry, attestors, issuer, bundles, denials, kept SVIDs, observer and log are all needed")
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
	return s.follow(ctx, Visit{Want: want}, p, nil, send)
}

// Lend is Watch on behalf of p, which b refers to: want is LentSVIDs or LentBundles.
func (s *Service) Lend(ctx context.Context, b *Broker, p Process, want Want, send func(Update) error) error {
	if !want.lent() || b == nil {
		return fmt.Errorf("workload: a broker is needed, and it borrows no %s", want)
	}
	return s.follow(ctx, Visit{Want: want, Broker: b}, p, nil, send)
}

// Refuse reports that v gets nothing, for err, where that is known before there is a process to attest.
func (s *Service) Refuse(v Visit, err error) *Refusal {
	r := &Refusal{Reference: newReference(), Attestation: v.Attestation, Err: err}
	s.o.Observer.Refused(v, r)
	return r
}

// follow is the journey. With sole, it is about that identity alone, or about the first default one where that is
// zero, and ends with it.
func (s *Service) follow(ctx context.Context, report Visit, p Process, sole *spiffeid.ID, send func(Update) error) error {
	v, err := s.arrive(report, p, sole)
	if err != nil {
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
	sole    bool
	resumed bool        // it has had that identity before, and is to have it again
	id      spiffeid.ID // that ID, once known
	report  Visit
	held    []*slot // one for each granted entry
	changed changes // one that is closed means: look again
	next    Update
	last    Update
	waited  bool // time passed between the attestation and next
}

// arrive counts the visit in. It lies on the heap: every open stream rests on a stack that the runtime gives
// back half of only while little of it is in use.
func (s *Service) arrive(report Visit, p Process, sole *spiffeid.ID) (*visit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &Refusal{Reference: newReference(), Err: ErrClosed}
	}
	s.visits.Add(1)
	report.PID, report.UID = p.PID(), p.UID()
	v := &visit{s: s, p: p, want: report.Want, report: report}
	if sole != nil {
		v.sole, v.id, v.resumed = true, *sole, !sole.IsZero()
	}
	return v, nil
}

func (v *visit) leave() {
	v.release()
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
	v.changed = append(v.changed[:0], changed...)
	if denied != nil {
		v.changed = append(v.changed, denied)
	}
	var granted []*Entry
	refusal := ErrNoIdentity
	for _, e := range entries {
		switch {
		case v.want.lent() && !e.Proxy:
		case v.sole && !v.id.IsZero() && e.ID != v.id:
		case v.sole && len(granted) == 1:
		case v.s.o.Denials.Denied(e.ID):
			refusal = errDenied
		// WAPI §5.2.1: one X509SVID for each identity. Where two entries give the same, the first has it.
		case slices.ContainsFunc(granted, func(g *Entry) bool { return g.ID == e.ID }):
		default:
			granted = append(granted, e)
		}
	}
	v.report.Entries = granted
	v.report.Took += time.Since(start)
	if len(granted) == 0 {
		return refusal
	}
	v.id = granted[0].ID
	v.s.o.Observer.Attested(v.report)
	return nil
}

// collect gathers the bundle and a valid SVID for each entry. What is gathered fits together, but for an SVID that the
// process has already: where the bundle changes meanwhile, it is gathered anew.
func (v *visit) collect(ctx context.Context) error {
	n := len(v.changed)
	for {
		bundle, changed := v.s.cache.look()
		v.changed, v.next.SVIDs = append(v.changed[:n], changed), nil
		if err := v.identities(ctx); err != nil {
			return err
		}
		if bundle == nil || bundle.Empty() {
			return fmt.Errorf("%w: there is no bundle yet", ErrUnavailable)
		}
		select {
		case <-changed:
			continue
		default:
		}
		v.next.Bundle = bundle
		return nil
	}
}

// identities gathers the SVIDs, waiting for those that are being issued for the first time. An identity that cannot be
// had now is left out, unless it is the default one: a process must not find itself acting as another identity because
// the issuer failed.
func (v *visit) identities(ctx context.Context) error {
	if !v.want.issues() {
		return nil
	}
	v.demand()
	for i, slot := range v.held {
		svid, why, err := v.svid(ctx, slot)
		switch e := v.report.Entries[i]; {
		case err != nil:
			return err
		case svid != nil:
			v.next.SVIDs = append(v.next.SVIDs, svid.under(e))
		case i == 0:
			return fmt.Errorf("%w: entry %q: %w", ErrUnavailable, e.Name, why)
		}
	}
	return nil
}

// demand makes the visit hold the slots of its entries, in their order, and no others. All are demanded
// before one is waited for.
func (v *visit) demand() {
	held := make([]*slot, len(v.report.Entries))
	for i, e := range v.report.Entries {
		held[i] = v.s.cache.hold(e, v.want == LentSVIDs)
	}
	v.release()
	v.held = held
}

func (v *visit) release() {
	for _, slot := range v.held {
		v.s.cache.release(slot)
	}
	v.held = nil
}

// svid waits until the slot has an SVID or a reason why not. An error ends the visit.
func (v *visit) svid(ctx context.Context, s *slot) (svid *SVID, why, err error) {
	for {
		svid, changed, why := v.s.cache.read(s)
		if svid != nil || why != nil {
			v.changed = append(v.changed, changed)
			return svid, why, nil
		}
		// Whoever has an SVID of a CA that has left the bundle learns of the bundle before the next SVID is there: it
		// says whom to trust no more.
		if svid = v.had(s); svid != nil {
			v.changed = append(v.changed, changed)
			return svid, nil, nil
		}
		v.waited = true
		select {
		case <-changed:
		case <-v.p.Done():
			return nil, nil, ended(v.p)
		case <-v.s.done:
			return nil, nil, ErrClosed
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// had is the SVID of the slot that the process was sent last, unless it has ended.
func (v *visit) had(s *slot) *SVID {
	for _, svid := range v.last.SVIDs {
		if keyOf(svid.Entry, v.want.lent()) == s.key && time.Now().Before(svid.Certificates[0].NotAfter) {
			return svid
		}
	}
	return nil
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
	v.changed = append(v.changed, v.p.Done(), v.s.done)
	for {
		err := v.changed.wait(ctx, v.rest())
		if err != nil && err != errTick {
			return err
		}
		select {
		case <-v.s.done:
			return ErrClosed
		default:
		}
		if err == nil || v.rest() <= 0 {
			return nil
		}
		if err := v.p.Alive(); err != nil { // nothing tells of an exec but looking
			return err
		}
	}
}

// rest is how long the visit may wait before it looks at the process: a recheck's time, or less where the attestation
// will have grown too old by then for one of the granted entries. Ages are told by the wall clock, since a host that
// was suspended has aged too.
func (v *visit) rest() time.Duration {
	rest := v.s.o.Recheck
	age := time.Since(v.next.Attestation.Time.Round(0))
	for _, e := range v.report.Entries {
		switch {
		case e.MaxAge == 0:
		case age < 0: // the clock was set back: nobody knows how old it is
			return 0
		default:
			rest = min(rest, e.MaxAge-age)
		}
	}
	return rest
}

// refused turns err into what Watch returns, and reports it unless the caller itself went away, or the
// process came to its end after it was served, or it still lacks what it was already reported to lack.
func (v *visit) refused(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	r = &Refusal{Reference: newReference(), Attestation: v.report.Attestation, Err: err}
	served, lacking := v.last.Bundle != nil || v.resumed, v.resumed && v.last.Bundle == nil
	if !(served && errors.Is(err, attest.ErrExited)) && !(lacking && errors.Is(err, ErrUnavailable)) {
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
