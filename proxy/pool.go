package proxy

import (
	"context"
	"crypto/tls"
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
// workload ever rides on another's connection.
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
	issued, expires time.Time
	// bundle is the newest that a caller of this identity has brought along.
	bundle atomic.Pointer[x509bundle.Bundle]
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
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.clients[key]
	if !ok {
		e = &pooled{issued: leaf.NotBefore, expires: leaf.NotAfter}
		e.client = wire.NewClient(wire.ClientOptions{
			// The connection outlives the caller's own, so it holds on to the SVID and not to the caller.
			Dial: func(ctx context.Context) (net.Conn, error) { return p.connect(ctx, e.bundle.Load(), svid, s) },
		})
		p.retire(key, e.issued)
		p.clients[key] = e
	}
	e.bundle.Store(bundle)
	return e.client, nil
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
func (p *Pool) connect(ctx context.Context, bundle *x509bundle.Bundle, svid *x509svid.SVID, s *Service) (net.Conn, error) {
	end := svid.Certificates[0].NotAfter
	if p.now().Add(s.MaxExchange).After(end) {
		return nil, Refuse(CausePeerChanged, "the caller's SVID ends within the service's max_exchange")
	}
	var last error
	for _, address := range s.Addresses {
		raw, err := p.dial(ctx, address)
		if err != nil {
			last = err
			continue
		}
		conn := tls.Client(raw, ClientTLS(svid, bundle, s.ID, p.now))
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			last = fmt.Errorf("%s at %s: %w", s.ID, address, err)
			continue
		}
		peer := conn.ConnectionState().PeerCertificates[0].NotAfter
		if p.now().Add(s.MaxExchange).After(peer) {
			_ = conn.Close()
			last = fmt.Errorf("%s at %s: its SVID ends within max_exchange", s.ID, address)
			continue
		}
		if peer.Before(end) {
			end = peer
		}
		return wire.Bounded(conn, end), nil
	}
	return nil, Refuse(CauseUpstream, "no address of %s can be used: %w", s.Name, last)
}
