package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
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
	dial func(ctx context.Context, address string) (net.Conn, error)
	now  func() time.Time

	mu      sync.Mutex
	clients map[poolKey]*pooled
}

type poolKey struct {
	source      spiffeid.ID
	serial      string
	destination spiffeid.ID
	service     string
}

type pooled struct {
	client          *wire.Client
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

// NewPool makes a pool that opens connections with dial.
func NewPool(dial func(ctx context.Context, address string) (net.Conn, error), now func() time.Time) *Pool {
	return &Pool{dial: dial, now: now, clients: map[poolKey]*pooled{}}
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
	now := p.now()
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
		e = &pooled{service: s, issued: leaf.NotBefore, expires: leaf.NotAfter}
		e.until.Store(leaf.NotAfter.Add(-s.MaxExchange).UnixNano())
		e.client = wire.NewClient(wire.ClientOptions{
			// The connection outlives the caller's own, so it holds on to the SVID and not to the caller.
			Dial: func(ctx context.Context) (net.Conn, error) { return p.connect(ctx, e, svid, s) },
		})
		p.retire(key, e.issued)
		p.clients[key] = e
	}
	e.trust(bundle)
	return e.client, nil
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
	now := p.now()
	for k, e := range p.clients {
		if k.source == by.source && k.service == by.service && e.issued.Before(issued) || !now.Before(e.expires) {
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
	var last error
	for _, address := range s.Addresses {
		raw, err := p.dial(ctx, address)
		if err != nil {
			last = err
			continue
		}
		conn := tls.Client(raw, ClientTLS(svid, e.bundle.Load(), s.ID, p.now))
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			last = fmt.Errorf("%s at %s: %w", s.ID, address, err)
			continue
		}
		now, end := p.now(), conn.ConnectionState().PeerCertificates[0].NotAfter
		if now.Add(s.MaxExchange).After(end) {
			_ = conn.Close()
			last = fmt.Errorf("%s at %s: its SVID ends within max_exchange", s.ID, address)
			continue
		}
		if end.After(e.expires) {
			end = e.expires
		}
		e.sooner(end.Add(-s.MaxExchange))
		return e.watched(wire.Bounded(conn, time.Now().Add(end.Sub(now))), raw, conn.ConnectionState().PeerCertificates, p.now)
	}
	return nil, Refuse(CauseUpstream, "no address of %s can be used: %w", s.Name, last)
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
