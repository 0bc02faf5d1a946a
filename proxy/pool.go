package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/proxy/wire"
)

// Pool keeps mTLS connections between wards. A connection belongs to one source SVID and one destination: its key
// holds the SVID's serial, so a rotated SVID starts anew while calls on the old connections end in peace, and no
// workload ever rides on another's connection. No call begins on a connection that one of its two SVIDs would end
// before the call's own time is over.
type Pool struct {
	PoolOptions

	mu       sync.Mutex
	clients  map[poolKey]*pooled
	breakers map[breakerKey]*breaker
}

// PoolOptions configures a Pool. Dial and Now must be set.
type PoolOptions struct {
	Dial func(ctx context.Context, address string) (net.Conn, error)
	Now  func() time.Time
	// MaxAge bounds for how long after it was made a connection is given new calls, less a tenth at random; 0 stands
	// for 1 h. The SVIDs may end that sooner.
	MaxAge time.Duration
	// MaxIdle bounds the connections that are kept for one caller and one service; 0 stands for 64.
	MaxIdle int
	// MaxConns bounds those that are open for them; a call beyond them waits. 0 stands for 1024.
	MaxConns int
}

type poolKey struct {
	source      spiffeid.ID
	serial      string
	destination spiffeid.ID
	service     string
}

// breakerKey leaves the serial out: a renewed SVID does not mend a destination.
type breakerKey struct {
	source, destination spiffeid.ID
	service             string
}

type pooled struct {
	client          *wire.Client
	breaker         *breaker
	now             func() time.Time
	service         *Service // as it was when the first connection was made
	issued, expires time.Time
	// until is when the first of its connections comes within max_exchange of an SVID's end, in Unix nanoseconds.
	until atomic.Int64
	// bundle is the newest that a caller of this identity has brought along.
	bundle atomic.Pointer[x509bundle.Bundle]
	conns  connections
}

// trust makes bundle the one that counts, and cuts connections to wards that it does not vouch for.
func (e *pooled) trust(bundle *x509bundle.Bundle) {
	if old := e.bundle.Swap(bundle); old != nil && old != bundle && !old.Equal(bundle) {
		e.conns.recheck()
	}
}

// NewPool makes a pool.
func NewPool(o PoolOptions) *Pool {
	return &Pool{PoolOptions: o, clients: map[poolKey]*pooled{}, breakers: map[breakerKey]*breaker{}}
}

// Client gives the client that speaks to s as caller, with caller's SVID of this moment.
func (p *Pool) Client(caller Caller, s *Service) (RoundTripper, error) {
	svid, err := caller.GetX509SVID()
	if err != nil {
		return nil, Refuse(CausePeerChanged, "the caller's SVID is gone: %w", err)
	}
	bundle, err := caller.GetX509BundleForTrustDomain(s.ID.TrustDomain())
	if err != nil {
		return nil, Refuse(CauseUpstream, "no bundle for %s: %w", s.ID.TrustDomain(), err)
	}
	leaf := svid.Certificates[0]
	key := poolKey{svid.ID, leaf.SerialNumber.String(), s.ID, s.Name}
	now := p.Now()
	// Pooled or new, a connection must not be cut under a call that keeps to its time.
	if now.Add(s.MaxExchange).After(leaf.NotAfter) {
		return nil, Refuse(CauseIdentityEnding, "the SVID of %s ends at %s, within the max_exchange of %s", svid.ID,
			leaf.NotAfter.UTC().Format(time.RFC3339), s.Name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.clients[key]
	if ok && (e.service != s || now.UnixNano() >= e.until.Load()) {
		e.client.CloseIdle()
		ok = false
	}
	if !ok {
		e = &pooled{now: p.Now, service: s, issued: leaf.NotBefore, expires: leaf.NotAfter}
		e.until.Store(early(now, leaf.NotAfter.Add(-s.MaxExchange)).UnixNano())
		e.client = wire.NewClient(wire.ClientOptions{
			// The connection outlives the caller's own, so it holds on to the SVID and not to the caller.
			Dial:    func(ctx context.Context) (net.Conn, error) { return p.connect(ctx, e, svid, s) },
			MaxIdle: p.MaxIdle, MaxConns: p.MaxConns, MaxAge: p.MaxAge,
		})
		e.breaker = p.breaker(breakerKey{svid.ID, s.ID, s.Name})
		p.retire(key, e.issued)
		p.clients[key] = e
	}
	e.trust(bundle)
	return e, nil
}

// early takes up to a tenth off the time from now to end, so that what was issued together is not renewed together.
func early(now, end time.Time) time.Time {
	if d := end.Sub(now) / 10; d > 0 {
		return end.Add(-rand.N(d))
	}
	return end
}

// breaker gives the breaker of a caller and a destination. Those of clients that are gone go with the next that is made.
func (p *Pool) breaker(key breakerKey) *breaker {
	b := p.breakers[key]
	if b != nil {
		return b
	}
	used := map[*breaker]bool{}
	for _, e := range p.clients {
		used[e.breaker] = true
	}
	maps.DeleteFunc(p.breakers, func(_ breakerKey, b *breaker) bool { return !used[b] })
	b = &breaker{}
	p.breakers[key] = b
	return b
}

// Trust makes bundle the one by which the wards at the other end of source's connections are judged from now on.
// Connections to a ward for which no CA in it vouches are cut, with the calls on them.
func (p *Pool) Trust(source spiffeid.ID, bundle *x509bundle.Bundle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.clients {
		if k.source == source && k.destination.TrustDomain() == bundle.TrustDomain() {
			e.trust(bundle)
		}
	}
}

// retire drops the clients that an SVID of the same source, issued later, replaces, and those whose SVID has ended.
// Calls that run on them go on; their connections close when they have idled.
func (p *Pool) retire(by poolKey, issued time.Time) {
	now := p.Now()
	for k, e := range p.clients {
		if k.source == by.source && k.service == by.service && e.issued.Before(issued) || !now.Before(e.expires) {
			e.client.CloseIdle()
			delete(p.clients, k)
		}
	}
}

// Drop closes the connections that were opened by source with the certificate of that serial: its holder is no more. Those
// on which a call runs close once it has ended. What other holders of the same identity have is left alone.
func (p *Pool) Drop(source spiffeid.ID, serial string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.clients {
		if k.source == source && k.serial == serial {
			e.client.CloseIdle()
			delete(p.clients, k)
		}
	}
}

// Retain closes the connections to services that are not in services any more, or not as they were. Those on which a call
// runs close once it has ended.
func (p *Pool) Retain(services Services) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.clients {
		if services.Service(k.service) != e.service {
			e.client.CloseIdle()
			delete(p.clients, k)
		}
	}
}

// Close closes every connection that no call is using.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.clients {
		e.client.CloseIdle()
		delete(p.clients, k)
	}
}

// connect opens one connection: to the first address that answers, authenticated both ways, and only while both
// SVIDs outlive the longest exchange that may start on it. It is cut when the first of them ends.
func (p *Pool) connect(ctx context.Context, e *pooled, svid *x509svid.SVID, s *Service) (net.Conn, error) {
	last, begun := errConnect, time.Now()
	for _, address := range s.Addresses {
		conn, err := p.connectTo(ctx, address, e, svid, s)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil && time.Since(begun) < connectTime {
			return nil, Refuse(CauseUpstreamTimeout, "%s: there was no time left to connect: %w", s.Name, err)
		}
		last = fmt.Errorf("%w: %w", errConnect, err)
	}
	return nil, Refuse(CauseUpstream, "no address of %s can be used: %w", s.Name, last)
}

func (p *Pool) connectTo(ctx context.Context, address string, e *pooled, svid *x509svid.SVID, s *Service) (net.Conn, error) {
	raw, err := p.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	under := wire.NewBulk(raw)
	conn := tls.Client(under, ClientTLS(svid, e.bundle.Load(), s.ID, p.Now))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("%s at %s: %w", s.ID, address, err)
	}
	chain := conn.ConnectionState().PeerCertificates
	now, end := p.Now(), chain[0].NotAfter
	if now.Add(s.MaxExchange).After(end) {
		_ = conn.Close()
		return nil, fmt.Errorf("%s at %s: its SVID ends within max_exchange", s.ID, address)
	}
	if end.After(e.expires) {
		end = e.expires
	}
	e.sooner(early(now, end.Add(-s.MaxExchange)))
	return e.watched(wire.Bounded(conn, time.Now().Add(end.Sub(now))), under, chain, p.Now)
}

// sooner moves until to t if that is earlier.
func (e *pooled) sooner(t time.Time) {
	for n := t.UnixNano(); ; {
		old := e.until.Load()
		if n >= old || e.until.CompareAndSwap(old, n) {
			return
		}
	}
}

// watched keeps conn among those that are cut when no CA vouches for the other end any more.
func (e *pooled) watched(conn, raw net.Conn, chain []*x509.Certificate, now func() time.Time) (net.Conn, error) {
	c := &watched{Conn: conn, raw: raw, of: &e.conns}
	check := func() error {
		_, err := verify(chain, e.bundle.Load(), now())
		return err
	}
	e.conns.add(c, check)
	if err := check(); err != nil { // the bundle has changed since the handshake
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

type watched struct {
	net.Conn
	raw net.Conn // below TLS
	of  *connections
}

// NetConn is what is below TLS, as of a tls.Conn.
func (c *watched) NetConn() net.Conn { return c.raw }

// Close implements net.Conn.
func (c *watched) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}
