package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/agent/seal"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// The authority in the agent's process. A host whose authority's disk fails still has patients: where SVIDs were kept, the
// agent starts without its authority, serves them until they end, and tries again and again to open it.

// reopenFirst and reopenLast bound the pause between two attempts to open an authority that could not be.
const reopenFirst, reopenLast = time.Second, 30 * time.Second

// embedded is the authority, or what stands in for it while it cannot be opened: nothing is issued then, and the bundle
// is the one of before. It gives the workload tree what that asks for in words of its own.
type embedded struct {
	open func(ctx context.Context, existing bool) (*authority.Authority, error)
	log  *zap.Logger

	mu     sync.Mutex
	now    *authority.Authority // nil while it cannot be opened
	why    error                // of the latest attempt, then
	since  time.Time            // of the first
	bundle *x509bundle.Bundle   // the kept one, then
	opened chan struct{}        // closed once there is an authority
}

// buildAuthority opens what is kept first: only with it can the agent do without the authority.
func (d *Daemon) buildAuthority(ctx context.Context) error {
	bundle, err := d.buildKeep(ctx)
	if err != nil {
		return err
	}
	e := &embedded{open: d.openCA, log: d.log.Named("authority"), bundle: bundle, opened: make(chan struct{})}
	a, err := e.open(ctx, bundle != nil)
	switch {
	case err == nil:
		e.now = a
		close(e.opened)
	case bundle != nil && outage(err):
		e.why, e.since = err, time.Now()
		e.log.Error("the authority cannot be opened; SVIDs that were kept serve until they end", zap.Error(err))
	default:
		return err
	}
	d.authority = e
	return nil
}

// openCA opens the authority, with its keys as config says that they are kept.
func (d *Daemon) openCA(ctx context.Context, existing bool) (*authority.Authority, error) {
	c := d.config().Authority
	if existing { // before a TPM seals a key of its own into the empty folder under a disk that is not mounted
		if err := authority.Present(c.Dir); err != nil {
			return nil, fmt.Errorf("%w; to begin with a new CA, which every workload and peer must then learn, move %s away", err, d.config().Agent.State)
		}
	}
	o := authority.Options{Dir: c.Dir, Existing: existing, TrustDomain: d.config().TrustDomain, CATTL: c.CATTL, X509TTL: c.X509TTL,
		Events: d.caStep, Logger: d.log.Named("authority")}
	box, err := openBox(ctx, c, c.Dir)
	if err != nil {
		return nil, err
	}
	if box != nil {
		o.Keys = authority.NewSealedKeys(c.Dir, box)
	}
	return authority.Open(ctx, o)
}

// outage reports whether an authority that cannot be opened is away rather than unsafe, foreign or taken.
func outage(err error) bool {
	for _, known := range []error{seal.ErrUnavailable, seal.ErrForeign, seal.ErrTampered, seal.ErrMalformed} {
		if errors.Is(err, known) {
			return true
		}
	}
	return authority.Outage(err)
}

// openAuthority lets the CA be replaced in time, and keeps the bundle.
func (d *Daemon) openAuthority(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	g.Go(func() error { return d.authority.run(ctx, d.authorityBack) })
	if s, ok := d.kept.(*shelf); ok {
		g.Go(func() error {
			d.sweepKept(ctx, s)
			return s.follow(ctx, d.authority)
		})
	}
	return nil, nil
}

// authorityBack records that the authority, which could not be opened at the start, has been.
func (d *Daemon) authorityBack(away time.Duration) {
	d.event(&proxy.Record{Event: "authority opened", Detail: fmt.Sprintf("it could not be for %s", away.Round(time.Millisecond))})
}

// run opens the authority where that is still to be done, and then looks after it until ctx ends.
func (e *embedded) run(ctx context.Context, back func(away time.Duration)) error {
	for pause := reopenFirst; e.authority() == nil; pause = min(2*pause, reopenLast) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		a, err := e.open(ctx, true)
		if err != nil {
			e.mu.Lock()
			e.why = err
			e.mu.Unlock()
			e.log.Warn("the authority still cannot be opened", zap.Error(err))
			continue
		}
		away := e.install(a)
		e.log.Info("the authority is open", zap.Duration("away", away))
		back(away)
	}
	return e.authority().Run(ctx)
}

// install lets an authority that has been opened late issue from now on.
func (e *embedded) install(a *authority.Authority) (away time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now, e.why, e.bundle = a, nil, nil
	close(e.opened)
	return time.Since(e.since)
}

func (e *embedded) authority() *authority.Authority {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

// Close releases the authority's folder.
func (e *embedded) Close() error {
	if a := e.authority(); a != nil {
		return a.Close()
	}
	return nil
}

// IssueX509 implements workload.Issuer.
func (e *embedded) IssueX509(ctx context.Context, r workload.X509Request) ([]*x509.Certificate, error) {
	a, err := e.usable()
	if err != nil {
		return nil, err
	}
	return a.IssueX509(ctx, authority.X509Request(r))
}

// usable is the authority, or why there is none.
func (e *embedded) usable() (*authority.Authority, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == nil {
		return nil, fmt.Errorf("the authority cannot be opened: %w", e.why)
	}
	return e.now, nil
}

// X509Bundle implements workload.Bundles.
func (e *embedded) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == nil {
		return e.bundle, e.opened
	}
	changed := e.now.BundleChanged() // first: a change in between is noticed at the next look
	return e.now.X509Bundle(), changed
}

// caStep records a step in replacing a CA, and one that was not taken.
func (d *Daemon) caStep(e authority.Event) {
	r := &proxy.Record{Event: "ca " + map[authority.Step]string{authority.Prepare: "prepared", authority.Activate: "activated", authority.Retire: "retired"}[e.Step]}
	if e.Generation != 0 {
		r.Detail = fmt.Sprintf("CA %d, key %x, until %s; bundle %d", e.Generation, e.SubjectKeyID, e.NotAfter.UTC().Format(time.RFC3339), e.Sequence)
	}
	if e.Forced {
		r.Detail += "; forced"
	}
	if e.By != "" {
		r.Detail += "; ordered by " + e.By
	}
	if e.Err != nil {
		r.Event, r.Effect = "ca "+string(e.Step)+" refused", proxy.EffectError
		r.Detail += "; " + e.Err.Error()
	}
	d.event(r)
}

// cas is what the operator may do to the CAs of this process.
func (d *Daemon) cas() admin.Certifier {
	if d.authority == nil {
		return admin.NoCertifier{}
	}
	return d
}

// CAs implements admin.Certifier.
func (d *Daemon) CAs(context.Context) (admin.CAs, error) {
	out := admin.CAs{Schema: admin.CAsSchema, TrustDomain: d.config().TrustDomain.Name()}
	a, err := d.authority.usable()
	if err != nil {
		return out, fmt.Errorf("%w: %w", admin.ErrUnavailable, err)
	}
	r := a.Rotation()
	out.Sequence, out.Lead = r.Sequence, r.Lead.String()
	out.Next, out.NextCA, out.NextAt = string(r.Next), r.NextCA, r.NextAt
	for _, g := range r.Generations {
		out.CAs = append(out.CAs, describeCA(g))
	}
	return out, nil
}

func describeCA(g authority.Generation) admin.CA {
	return admin.CA{Generation: int(g.Number), State: string(g.State), Ends: g.NotAfter, Key: fmt.Sprintf("%x", g.SubjectKeyID), Sealed: g.Sealed,
		Published: g.Published, Activated: g.Activated, Replaced: g.Replaced, LastSVID: g.LastSVID}
}

// OrderCA implements admin.Certifier. Who asked for what is on the disk before anything is done: an order that cannot be
// recorded is not carried out.
func (d *Daemon) OrderCA(ctx context.Context, uid uint32, o admin.CAOrder) error {
	a, err := d.authority.usable()
	if err != nil {
		return fmt.Errorf("%w: %w", admin.ErrUnavailable, err)
	}
	r := &proxy.Record{Schema: proxy.RecordSchema, Stage: proxy.StageEvent, Time: time.Now(), Event: "ca " + o.Step + " ordered", Detail: fmt.Sprintf("by uid %d", uid)}
	r.Decision = proxy.NewDecisionID(r.Time)
	if o.Generation != 0 {
		r.Detail += fmt.Sprintf("; CA %d", o.Generation)
	}
	if o.Force {
		r.Detail += "; forced"
	}
	receipt, err := d.recorder.Append(r)
	if err == nil {
		err = receipt.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: the order cannot be recorded, so it is not carried out: %w", admin.ErrUnavailable, err)
	}
	order := authority.Order{By: fmt.Sprintf("uid %d", uid), Generation: o.Generation, Force: o.Force}
	ctx = context.WithoutCancel(ctx) // what was begun is ended, whether or not who asked still listens
	switch authority.Step(o.Step) {
	case authority.Prepare:
		err = a.Prepare(ctx, order)
	case authority.Activate:
		err = a.Activate(ctx, order)
	case authority.Retire:
		err = a.Retire(ctx, order)
	default:
		return fmt.Errorf("%w: there is no step %q", admin.ErrRefused, o.Step)
	}
	if errors.Is(err, authority.ErrTransition) {
		return fmt.Errorf("%w: %w", admin.ErrRefused, err)
	}
	return err
}

// tellAuthority reports on the CAs.
func (d *Daemon) tellAuthority(s *admin.Status) {
	if k, ok := d.kept.(*shelf); ok {
		if why := k.problem.Load(); why != nil {
			s.Problems = append(s.Problems, *why)
		}
	}
	bundle, _ := d.authority.X509Bundle()
	for _, ca := range bundle.X509Authorities() {
		if ca.NotAfter.After(s.Authority.CAEnds) {
			s.Authority.CAEnds = ca.NotAfter
		}
	}
	a, err := d.authority.usable()
	if err != nil {
		d.authority.mu.Lock()
		since := d.authority.since
		d.authority.mu.Unlock()
		s.Authority.Issuance = "none: the authority cannot be opened"
		s.Identity.Renewals = "failing"
		s.Problems = append(s.Problems, fmt.Sprintf("%v; since %s SVIDs that were kept serve, and end without a successor", err, since.UTC().Format(time.RFC3339)))
		s.Expires = append(s.Expires, admin.Expiring{What: "the CA certificate", Ends: s.Authority.CAEnds})
		return
	}
	for _, g := range a.Rotation().Generations {
		ca := describeCA(g)
		s.Authority.CAs = append(s.Authority.CAs, ca)
		if g.State == authority.Old {
			continue // nothing ends with it: it goes when the last of its SVIDs has
		}
		what := "the CA certificate"
		if g.State == authority.Prepared {
			what = fmt.Sprintf("the certificate of CA %d, which is to sign next,", g.Number)
		}
		s.Expires = append(s.Expires, admin.Expiring{What: what, Ends: g.NotAfter})
		if d.sealing() && !g.Sealed {
			s.Problems = append(s.Problems, fmt.Sprintf("the key of CA %d is not sealed, though authority.keys.seal is %s: it was made before; replace it: ward ca rotate",
				g.Number, d.config().Authority.Keys.Seal))
		}
	}
	if left := time.Until(s.Authority.CAEnds); left < min(expiresSoon, d.config().Authority.CATTL/6) {
		s.Problems = append(s.Problems, fmt.Sprintf("the CA certificate ends in %s", left.Round(time.Minute)))
	}
}
