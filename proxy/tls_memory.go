package proxy

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// remembered is how many chains are remembered at most.
const remembered = 1024

// memory knows chains that verify has accepted. Their signatures are half of what a caller's certificates cost, and one
// that comes again brings the same: it is what makes many connections of one caller dear, and all of them at once a
// way to keep others waiting.
//
// What a chain says never changes, so an accepted one stays good for as long as all of it is valid and the authority that
// it led to is one of the bundle's: both are asked each time. Only accepted chains are kept, so that nobody without an
// SVID fills it. The zero memory is ready.
type memory struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]known
}

// known is a chain that was accepted.
type known struct {
	id          spiffeid.ID
	root        *x509.Certificate // an authority when it was
	from, until time.Time         // when all of it, the authority's certificate included, is valid
}

// verify is verify, and need not look at the signatures of a chain that it remembers.
func (m *memory) verify(chain []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, error) {
	name := digest(chain)
	m.mu.Lock()
	k, ok := m.known[name]
	m.mu.Unlock()
	if ok && k.stands(bundles, now) {
		return k.id, nil
	}
	id, verified, err := verifyChain(chain, bundles, now)
	if err != nil {
		return spiffeid.ID{}, err
	}
	k = known{id: id, root: verified[len(verified)-1], from: verified[0].NotBefore, until: verified[0].NotAfter}
	for _, c := range verified[1:] {
		if c.NotBefore.After(k.from) {
			k.from = c.NotBefore
		}
		if c.NotAfter.Before(k.until) {
			k.until = c.NotAfter
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[[sha256.Size]byte]known{}
	}
	for other := range m.known { // any: those that are still in use come back
		if len(m.known) < remembered {
			break
		}
		delete(m.known, other)
	}
	m.known[name] = k
	return id, nil
}

// stands reports whether the chain would be accepted now.
func (k *known) stands(bundles x509bundle.Source, now time.Time) bool {
	if now.Before(k.from) || now.After(k.until) { // RFC 5280 §6.1.3(a)(2)
		return false
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(k.id.TrustDomain())
	return err == nil && bundle.HasX509Authority(k.root)
}

// digest names a chain by all of its bytes. DER says how long each certificate is, so no two chains run into the same.
func digest(chain []*x509.Certificate) (name [sha256.Size]byte) {
	h := sha256.New()
	for _, c := range chain {
		_, _ = h.Write(c.Raw)
	}
	h.Sum(name[:0])
	return name
}
