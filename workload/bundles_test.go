package workload

import (
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// A CA whose key is known to others leaves the bundle at once. No time passes in a bubble while anything is to do: what
// is seen below is seen at the moment of the change.
func TestSVIDsOfACAThatLeavesAreReplaced(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st, h := b.watch(portalProcess(), X509SVIDs), b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		first := st.want(1)
		lentFirst, err := h.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		changed, start := h.Changed(), time.Now()
		b.authority.rotate()
		bundle, _ := b.authority.X509Bundle()
		updates, err := st.got()
		if err != nil {
			t.Fatal(err)
		}
		last := updates[len(updates)-1]
		if last.SVIDs[0].SVID == first.SVIDs[0].SVID || !last.Bundle.Equal(bundle) {
			t.Fatalf("%d updates, and the last one holds the SVID of the CA that has left", len(updates))
		}
		for _, u := range updates[1:] {
			if !u.Bundle.Equal(bundle) {
				t.Error("an update after the change with the bundle of before")
			}
		}
		select {
		case <-changed:
		default:
			t.Error("the holding did not change")
		}
		lentNow, err := h.GetX509SVID()
		if err != nil || lentNow == lentFirst {
			t.Errorf("the holding has the lent SVID of before, %v", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("replaced after %s", took)
		}
	}, lent(portal()))
}

// A bundle with one more CA takes nothing from anybody.
func TestSVIDsThatVerifyStay(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		first := st.want(1)
		b.authority.announce()
		if second := st.want(2); second.SVIDs[0].SVID != first.SVIDs[0].SVID || b.authority.count() != 1 {
			t.Error("an SVID that still verifies was issued anew")
		}
	}, portal())
}

// What is being signed by a CA while that CA leaves is never handed out.
func TestSVIDSignedWhileItsCALeaves(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		verified := make(chan struct{})
		b.s.cache.bundles = &turning{authority: b.authority, turn: func() { b.authority.rotate(); close(verified) }}
		st := b.watch(portalProcess(), X509SVIDs)
		<-verified
		u := st.want(1)
		if err := VerifyX509(u.SVIDs[0].Certificates, u.SVIDs[0].ID, u.SVIDs[0].PrivateKey.Public(), u.Bundle, time.Now()); err != nil {
			t.Error(err)
		}
		if b.authority.count() != 2 {
			t.Errorf("issued %d times", b.authority.count())
		}
	}, portal())
}

// turning changes the bundle once, right after it was read to verify what was issued.
type turning struct {
	*authority
	turn func()
	once sync.Once
}

func (r *turning) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	bundle, changed := r.authority.X509Bundle()
	if r.count() == 1 {
		r.once.Do(r.turn)
	}
	return bundle, changed
}

// An issuer that fails is asked again as soon as there is another bundle: it may be back.
func TestFailingIssuerIsAskedAgainWithANewBundle(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		kept := newShelf()
		one := b.again(kept)
		before := one.watch(portalProcess(), X509SVIDs).want(1)
		one.s.Close()
		b.authority.set(func(a *authority) { a.fail = errAway })
		two := b.again(kept)
		defer two.s.Close()
		st := two.watch(portalProcess(), X509SVIDs)
		st.want(1)
		b.authority.set(func(a *authority) { a.fail = nil })
		b.authority.announce()
		updates, err := st.got()
		if err != nil || updates[len(updates)-1].SVIDs[0].SVID == before.SVIDs[0].SVID {
			t.Errorf("%d updates, error %v: the kept SVID still serves", len(updates), err)
		}
	}, portal())
}

// Whom to trust no more does not wait for the next SVID; and nobody is given an SVID that is worth nothing.
func TestBundleDoesNotWaitForTheIssuer(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		first := st.want(1)
		issue := make(chan struct{})
		b.authority.set(func(a *authority) { a.hang = issue })
		b.authority.rotate()
		bundle, _ := b.authority.X509Bundle()
		if second := st.want(2); !second.Bundle.Equal(bundle) || second.SVIDs[0].SVID != first.SVIDs[0].SVID {
			t.Error("the bundle waits for the issuer")
		}
		newcomer := b.watch(portalProcess(), X509SVIDs)
		if u, err := newcomer.got(); len(u) != 0 || err != nil {
			t.Errorf("a newcomer has %d updates, error %v", len(u), err)
		}
		close(issue)
		if third := st.want(3); third.SVIDs[0].SVID == first.SVIDs[0].SVID {
			t.Error("not replaced")
		}
		newcomer.want(1)
	}, portal())
}
