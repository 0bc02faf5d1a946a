package workload

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
)

// Kept is what outlives the process: SVIDs that were issued before a restart, for the time in which the issuer is not to
// be had. What it gives is believed no more than what the issuer returns: it must be valid and verify with the bundle
// that goes out with it, and its identity must not be denied. Implemented by agent/seal through agent/daemon; NoKept is
// the explicit absence. Its methods are called from many goroutines.
type Kept interface {
	// Find gives the SVID that was kept for an entry, or nil.
	Find(e *Entry, lent bool) *x509svid.SVID
	// Save keeps an SVID that is in use already. What fails is the implementation's to report.
	Save(s *SVID, lent bool)
}

// NoKept keeps nothing.
type NoKept struct{}

// Find gives nothing.
func (NoKept) Find(*Entry, bool) *x509svid.SVID { return nil }

// Save does nothing.
func (NoKept) Save(*SVID, bool) {}

// minted is an SVID, and the channel that is closed once the bundle that it was verified with is another.
type minted struct {
	svid    *SVID
	changed <-chan struct{}
}

// complete gives an SVID the forms in which it is sent.
func complete(e *Entry, svid *x509svid.SVID) (*SVID, error) {
	chain, key, err := svid.MarshalRaw()
	if err != nil {
		return nil, err
	}
	return &SVID{Entry: e, SVID: svid, ChainDER: chain, KeyDER: key}, nil
}

// lacks reports whether a slot is without an SVID.
func (c *cache) lacks(s *slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.svid == nil
}

// keptFor is the kept SVID of an entry whose SVID cannot be issued now, or nothing.
func (c *cache) keptFor(e *Entry, key slotKey) minted {
	if c.ctx.Err() != nil || c.denials.Denied(key.id) {
		return minted{}
	}
	found := c.kept.Find(e, key.lent)
	if found == nil || found.ID != key.id || found.PrivateKey == nil {
		return minted{}
	}
	bundle, changed := c.bundles.X509Bundle()
	if err := VerifyX509(found.Certificates, key.id, found.PrivateKey.Public(), bundle, time.Now()); err != nil {
		c.log.Warn("a kept SVID does not verify", zap.String("entry", key.name), zap.Stringer("id", key.id), zap.Bool("lent", key.lent), zap.Error(err))
		return minted{}
	}
	svid, err := complete(e, found)
	if err != nil {
		return minted{}
	}
	return minted{svid, changed}
}

// save puts an SVID away, unless another one has taken its place meanwhile: what is kept must not go back in time.
func (c *cache) save(s *slot, svid *SVID) {
	s.saving.Lock()
	defer s.saving.Unlock()
	c.mu.Lock()
	current := s.svid == svid
	c.mu.Unlock()
	if current {
		c.kept.Save(svid, s.key.lent)
	}
}
