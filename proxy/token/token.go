// Package token verifies the access tokens that users' applications send along with their calls.
//
// # What
//
// A Verifier knows the issuers that the operator trusts, keeps their public keys fresh, and turns the bytes of
// a token into a proxy.Token, or into a proxy.Refusal that says why not. It accepts signed JWTs in compact
// form: access tokens by RFC 9068 and, where config says so, plain JWT access tokens of issuers that do not
// follow it. The rules are those of RFC 7515, 7519, 8725 (best practice for JWTs) and 9068; the section stands
// beside each check.
//
// # Threats, and what stops them
//
//   - Forgery by the token's own choice of algorithm or key: the algorithms are listed per issuer, `none` and
//     the symmetric ones cannot be listed, a key serves only the algorithms of its own type, and header
//     parameters that bring a key along (jwk, jku, x5u, x5c) refuse the token.
//   - A token for somebody else, or of another kind (an ID Token, a logout token, a refresh token): iss and
//     aud are exact, typ is checked, and a plain JWT must not look like anything but an access token.
//   - Two readings of one token: duplicate names, bad UTF-8 and every base64url spelling but the canonical one
//     are refused, and the bytes whose signature was verified are the bytes that were read.
//   - A flood of tokens with unknown key ids, to stall calls or to make Ward flood the issuer: see keyring.
//   - A token bound to a key (a cnf claim): whoever carries it would have to prove possession, which nothing
//     here checks yet, so it is refused rather than taken for a bearer token (RFC 9449 §7.1, RFC 8705 §3).
//
// A verified token is remembered by the SHA-256 of its bytes. Each use checks again that it has not expired,
// that its issuer and audience are ours, and that its key is still among the issuer's: a key that the issuer
// takes away ends its tokens within Issuer.Refresh.
//
// # What it does not do
//
// It does not ask issuers whether a token has been revoked: until exp a token is good, so issuers should make
// them short. Opaque tokens are refused. Who may carry a token is the matter of package bind.
//
// No part of a token ever gets into an error or a log, only the names of claims.
package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/wardmesh/ward/proxy"
)

// DefaultCacheSize is how many verified tokens are remembered when Options does not say; each takes about 2 KiB.
const DefaultCacheSize = 8192

// Options configures a Verifier. Logger and Registerer are required.
type Options struct {
	Issuers    []Issuer // none: every token is refused
	Logger     *zap.Logger
	Registerer prometheus.Registerer
	// Clock tells the time by which tokens are judged; nil is time.Now.
	Clock func() time.Time
	// CacheSize is how many verified tokens are remembered; 0 is DefaultCacheSize.
	CacheSize int
	// Before is the Verifier that this one is to replace, or nil: an issuer whose keys come from the same place begins
	// with those that Before has, so that no token is refused until they have been read again.
	Before *Verifier

	// dial replaces the network in tests that run on a fake clock.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Verifier verifies access tokens. It is safe for concurrent use.
type Verifier struct {
	issuers map[string]*issuer
	clock   func() time.Time
	cache   *otter.Cache[[sha256.Size]byte, *verified]
	flights singleflight.Group
	metrics *metrics
	log     *zap.Logger

	closing   chan struct{}
	closeOnce sync.Once
	running   sync.WaitGroup
}

var (
	_ proxy.Authenticator = (*Verifier)(nil)
)

// New makes a Verifier. It reports every fault of the options at once. It reads key files, but asks no issuer
// for anything: Run does. Close frees what New took.
func New(o Options) (*Verifier, error) {
	if o.Logger == nil || o.Registerer == nil {
		return nil, errors.New("token: a logger and a metrics registerer are needed")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.CacheSize < 0 {
		return nil, errors.New("token: the cache size is negative")
	}
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	v := &Verifier{
		issuers: make(map[string]*issuer, len(o.Issuers)),
		clock:   o.Clock,
		log:     o.Logger,
		closing: make(chan struct{}),
	}
	var errs []error
	for _, c := range o.Issuers {
		is, err := newIssuer(c, o)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("token: issuer %q: %w", c.Issuer, err))
		case v.issuers[c.Issuer] != nil:
			errs = append(errs, fmt.Errorf("token: issuer %q is configured twice", c.Issuer))
		default:
			if o.Before != nil {
				is.inherit(o.Before.issuers[c.Issuer])
			}
			v.issuers[c.Issuer] = is
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var err error
	if v.metrics, err = newMetrics(o.Registerer, v.issuers); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	v.cache, err = otter.New(&otter.Options[[sha256.Size]byte, *verified]{
		MaximumSize: o.CacheSize,
		// Only so that expired tokens do not fill the memory; whether one is still good is checked at each use.
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[[sha256.Size]byte, *verified]) time.Duration {
			return max(e.Value.token.Expires.Sub(v.clock())+e.Value.issuer.Leeway, time.Second)
		}),
	})
	if err != nil {
		v.metrics.close()
		return nil, fmt.Errorf("token: %w", err)
	}
	for _, is := range v.issuers {
		is.keys.gone = func() { v.forget(is) }
	}
	return v, nil
}

// forget drops the remembered tokens that were signed with keys which the issuer no longer publishes. Each use checks
// that too; this is so that what can never be used again is not kept.
func (v *Verifier) forget(is *issuer) {
	for sum, e := range v.cache.All() {
		if e.issuer == is && !is.keys.holds(e.key) {
			v.cache.Invalidate(sum)
		}
	}
}

// Run keeps the issuers' keys fresh until ctx or the Verifier ends. An issuer that cannot be reached is asked
// again and again in the background, and delays nothing.
func (v *Verifier) Run(ctx context.Context) error {
	v.running.Add(1)
	defer v.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	for _, is := range v.issuers {
		g.Go(func() error {
			is.keys.run(ctx)
			return nil
		})
	}
	select {
	case <-ctx.Done():
	case <-v.closing:
		cancel()
	}
	return g.Wait()
}

// Close ends Run and forgets all tokens. The Verifier must not be used afterwards.
func (v *Verifier) Close() error {
	v.closeOnce.Do(func() {
		close(v.closing)
		v.running.Wait()
		v.cache.InvalidateAll()
		v.cache.StopAllGoroutines()
		v.metrics.close()
	})
	return nil
}

// IssuerStatus is how things stand with one issuer's keys, for operators.
type IssuerStatus struct {
	Issuer string
	Keys   int       // how many can verify tokens now
	Read   time.Time // when they were read, zero when never
	Err    error     // why the last attempt to read them failed, nil when it did not
}

// Status tells how things stand with each issuer, sorted by issuer.
func (v *Verifier) Status() []IssuerStatus {
	out := make([]IssuerStatus, 0, len(v.issuers))
	for _, is := range sorted(v.issuers) {
		out = append(out, is.keys.status(is.Issuer.Issuer))
	}
	return out
}
