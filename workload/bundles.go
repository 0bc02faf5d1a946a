package workload

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"go.uber.org/zap"
)

// When a CA leaves the bundle, what it signed is refused everywhere. Usually nothing that it signed is valid then; but a
// CA whose key is known to others goes at once, and the SVIDs that processes hold are replaced at once, too.

// follow looks at what is held whenever the bundle changes, until the cache is closed. Changed is closed with the first
// change.
func (c *cache) follow(changed <-chan struct{}) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-changed:
			_, changed = c.look()
		}
	}
}

// look is the current bundle, once nothing is held that does not verify with it. Changed is closed when there is
// another.
func (c *cache) look() (bundle *x509bundle.Bundle, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	bundle, changed = c.bundles.X509Bundle()
	if changed != c.seen && bundle != nil && !bundle.Empty() {
		c.review(bundle)
	}
	c.seen = changed
	return bundle, changed
}

// review withdraws what does not verify with a bundle that has changed, and has it issued anew. What could not be issued
// is tried again at once: the issuer may be back. The caller holds mu.
func (c *cache) review(bundle *x509bundle.Bundle) {
	now := time.Now()
	for _, s := range c.slots {
		if s.svid != nil && now.Before(s.svid.Certificates[0].NotAfter) {
			if err := verified(s.svid, bundle, s.key, now); err != nil {
				c.log.Info("an SVID does not verify with the bundle any more, and is replaced", zap.String("entry", s.key.name),
					zap.Stringer("id", s.key.id), zap.Bool("lent", s.key.lent), zap.Error(err))
				// Who holds it waits for the next one, which is on its way, rather than for an answer of before.
				s.svid, s.err, s.fails = nil, nil, 0
				s.next = time.Time{}
				c.publish(s)
			}
		}
		if s.holders == 0 && s.svid == nil && !s.busy {
			c.drop(s)
			continue
		}
		if !s.busy && (s.svid == nil || s.fails > 0) {
			c.issue(s)
			c.arm(s)
		}
	}
}

// recheck verifies once more what was verified with a bundle that has changed since. The caller holds mu, so a change
// that comes later finds the SVID in its slot.
func (c *cache) recheck(m minted, key slotKey, now time.Time) error {
	select {
	case <-m.changed:
	default:
		return nil
	}
	bundle, _ := c.bundles.X509Bundle()
	return verified(m.svid, bundle, key, now)
}

func verified(s *SVID, bundle *x509bundle.Bundle, key slotKey, now time.Time) error {
	return VerifyX509(s.Certificates, key.id, s.PrivateKey.Public(), bundle, now)
}
