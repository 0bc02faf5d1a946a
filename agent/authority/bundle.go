package authority

import (
	"context"
	"crypto/x509"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// refreshHint is how often others should fetch the bundle again (SPIFFE Federation §4.1).
const refreshHint = 5 * time.Minute

// X509Bundle is the bundle of the trust domain: what X.509-SVIDs are verified with. The caller owns it.
func (a *Authority) X509Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.domain, []*x509.Certificate{a.ca})
}

// GetX509BundleForTrustDomain makes the authority an x509bundle.Source of its own trust domain.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return a.X509Bundle().GetX509BundleForTrustDomain(td)
}

// Bundle is the trust domain's SPIFFE bundle, with its sequence number and refresh hint. The caller owns it.
func (a *Authority) Bundle() *spiffebundle.Bundle {
	b := spiffebundle.FromX509Bundle(a.X509Bundle())
	b.SetSequenceNumber(a.sequence)
	b.SetRefreshHint(refreshHint)
	return b
}

// bundleSequence is the bundle's sequence number, which each change of the bundle raises by one (SPIFFE Trust Domain
// and Bundle §4.1.1).
func bundleSequence(ctx context.Context, o Options, store Store) (uint64, error) {
	v, err := store.Get(ctx, BucketMeta, []byte("bundle_sequence"))
	var n uint64
	if err == nil {
		n, err = strconv.ParseUint(string(v), 10, 64)
	}
	if err != nil {
		return 0, &CorruptError{Path: filepath.Join(o.Dir, journalFile), Problem: "the journal does not say the bundle's sequence number", Advice: restore, Err: err}
	}
	return n, nil
}

// BundleChanged is closed when the bundle is no longer the one that X509Bundle returned before: fetch both anew
// then, this channel first. The embedded authority keeps its first CA for good, so the channel stays open.
func (a *Authority) BundleChanged() <-chan struct{} { return a.changed }
