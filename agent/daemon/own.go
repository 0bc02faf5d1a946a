package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// self is one identity of this process's own: an ingress ward's.
type self interface {
	proxy.Identity
	// Changed is closed when SVID or bundle have changed since the call, Ended when there will be none any more.
	Changed() <-chan struct{}
	Ended() <-chan struct{}
	Close() error
}

// identities is where this process gets the identities of its own from.
type identities interface {
	// hold gives the identity of the ward of s. With wait it waits until there is an SVID; without, handshakes fail until
	// one comes.
	hold(ctx context.Context, s *proxy.Service, wait bool) (self, error)
	// run follows changes until ctx ends.
	run(ctx context.Context) error
}

// newOwn gives the agent in the same process, or the one behind the Workload API.
func (d *Daemon) newOwn() identities {
	if d.selves != nil {
		return inProcess{d.selves}
	}
	socket := d.config().Agent.Socket
	return &overSocket{address: "unix://" + socket, verify: agentServes(socket), log: d.log.Named("identity"), changed: make(chan struct{}), over: make(chan struct{})}
}

// inProcess asks the agent that this process is, too.
type inProcess struct{ selves *workload.Service }

func (p inProcess) hold(ctx context.Context, s *proxy.Service, _ bool) (self, error) {
	return p.selves.Hold(ctx, itself{s.Name, s.ID}, workload.X509SVIDs)
}

func (inProcess) run(context.Context) error { return nil }

// overSocket asks the agent of this host by the SPIFFE Workload API, as any workload does; it may be any agent that
// speaks it. While the agent is away, what it gave before is good until it ends.
type overSocket struct {
	address string
	verify  func(net.Conn) error // nil for a connection behind which the agent is
	log     *zap.Logger

	mu      sync.Mutex
	now     *workloadapi.X509Context
	changed chan struct{}
	over    chan struct{} // closed when run has ended
}

func (o *overSocket) run(ctx context.Context) error {
	defer close(o.over)
	err := workloadapi.WatchX509Context(ctx, o, workloadapi.WithAddr(o.address), workloadapi.WithBackoffStrategy(prompt{}),
		workloadapi.WithDialOptions(grpc.WithContextDialer(o.dial), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstAsk, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastAsk},
			MinConnectTimeout: 2 * time.Second,
		})))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("workload api at %s: %w", o.address, err)
}

// dial connects to the agent, and to nobody else in its place: whoever gives this ward its bundle decides whose calls
// it takes.
func (o *overSocket) dial(ctx context.Context, _ string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(o.address, "unix://"))
	if err != nil {
		return nil, err
	}
	if err := o.verify(c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// How long the agent is left alone after it did not answer, at first and at most. It is a local socket, which costs next
// to nothing to dial, and a short SVID may end before the pause of seconds that the library makes.
const firstAsk, lastAsk = 30 * time.Millisecond, time.Second

// prompt is how an agent that is away is asked again.
type prompt struct{}

// NewBackoff implements workloadapi.BackoffStrategy.
func (prompt) NewBackoff() workloadapi.Backoff { return &pauses{} }

// pauses double from firstAsk up to lastAsk.
type pauses struct{ n int }

// Next implements workloadapi.Backoff.
func (p *pauses) Next() time.Duration {
	d := min(firstAsk<<min(p.n, 10), lastAsk)
	p.n++
	return d
}

// Reset implements workloadapi.Backoff.
func (p *pauses) Reset() { p.n = 0 }

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (o *overSocket) OnX509ContextUpdate(c *workloadapi.X509Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now = c
	close(o.changed)
	o.changed = make(chan struct{})
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (o *overSocket) OnX509ContextWatchError(err error) {
	o.log.Warn("the agent gives no identity at the moment; what it gave before is used until it ends",
		zap.String("agent", o.address), zap.Error(err))
}

func (o *overSocket) get() (*workloadapi.X509Context, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now, o.changed
}

// waiting is how often a ward that waits for its identity says so.
const waiting = 10 * time.Second

func (o *overSocket) hold(ctx context.Context, s *proxy.Service, wait bool) (self, error) {
	id := own{overSocket: o, id: s.ID}
	for {
		_, changed := o.get()
		_, err := id.GetX509SVID()
		if err == nil || !wait {
			return id, nil
		}
		select {
		case <-changed:
		case <-o.over:
			return nil, err
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(waiting):
			o.log.Warn("waiting for the identity of a service's ward; is the agent up, and does it know this process? (ward entries)",
				zap.String("service", s.Name), zap.Stringer("id", s.ID), zap.Error(err))
		}
	}
}

// own is one of the identities that the agent gives this process.
type own struct {
	*overSocket
	id spiffeid.ID
}

// GetX509SVID implements x509svid.Source.
func (o own) GetX509SVID() (*x509svid.SVID, error) {
	c, _ := o.get()
	if c == nil {
		return nil, errors.New("the agent has not answered yet")
	}
	for _, svid := range c.SVIDs {
		if svid.ID == o.id {
			if !time.Now().Before(svid.Certificates[0].NotAfter) {
				return nil, fmt.Errorf("the SVID of %s has expired", o.id)
			}
			return svid, nil
		}
	}
	return nil, fmt.Errorf("the agent gives this process no SVID for %s", o.id)
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (o own) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	c, _ := o.get()
	if c == nil {
		return nil, errors.New("the agent has not answered yet")
	}
	return c.Bundles.GetX509BundleForTrustDomain(td)
}

func (o own) Changed() <-chan struct{} {
	_, changed := o.get()
	return changed
}

func (o own) Ended() <-chan struct{} { return o.over }

func (own) Close() error { return nil }
