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

// refreshHint is how often others should fetch the bundle again (SPIFFE Trust Domain and Bundle §4.1.2), unless the CA's
// life is so short that it must be more often.
const refreshHint = 5 * time.Minute

// X509Bundle is the bundle of the trust domain: what X.509-SVIDs are verified with. The caller owns it.
func (a *Authority) X509Bundle() *x509bundle.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle()
}

// bundle holds every CA, also the one that is to sign next (SPIFFE Federation §4) and those whose SVIDs may be valid
// still. The caller holds mu.
func (a *Authority) bundle() *x509bundle.Bundle {
	roots := make([]*x509.Certificate, len(a.cas))
	for i, g := range a.cas {
		roots[i] = g.cert
	}
	return x509bundle.FromX509Authorities(a.domain, roots)
}

// GetX509BundleForTrustDomain makes the authority an x509bundle.Source of its own trust domain.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return a.X509Bundle().GetX509BundleForTrustDomain(td)
}

// Bundle is the trust domain's SPIFFE bundle, with its sequence number and refresh hint. The caller owns it.
func (a *Authority) Bundle() *spiffebundle.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := spiffebundle.FromX509Bundle(a.bundle())
	b.SetSequenceNumber(a.sequence)
	b.SetRefreshHint(a.hint())
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
// then, this channel first. A bundle with the next CA is there before anything is signed by that CA.
func (a *Authority) BundleChanged() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func sequenceIs(n uint64) Condition {
	return Condition(sequenceNow(n))
}

func sequenceNow(n uint64) Record {
	return Record{BucketMeta, []byte("bundle_sequence"), strconv.AppendUint(nil, n, 10)}
}
