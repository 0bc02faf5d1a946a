package workload

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/attest"
)

func lent(e *Entry) *Entry { e.Proxy = true; return e }

func (b *bench) hold(p Process, want Want) *Holding {
	b.t.Helper()
	h, err := b.s.Hold(b.t.Context(), p, want)
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

func TestLentSVIDs(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		own := b.hold(portalProcess(), X509SVIDs)
		defer own.Close()
		h := b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		if h.ID() != portal().ID || own.ID() != portalExe().ID {
			t.Fatalf("lent %s, own %s", h.ID(), own.ID())
		}
		first, err := h.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if life := time.Until(first.Certificates[0].NotAfter); life > 15*time.Minute {
			t.Errorf("lent for %v", life)
		}
		changed := h.Changed()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Fatal("a lent SVID was not renewed at a third of its life")
		}
		if second, err := h.GetX509SVID(); err != nil || second == first {
			t.Errorf("the same SVID, or %v", err)
		}
		if _, err := h.GetX509BundleForTrustDomain(clinic); err != nil {
			t.Error(err)
		}
		if own, err := b.s.Hold(t.Context(), newProcess("unix.uid", "7"), LentSVIDs); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("lent without proxy: %v, %v", own, err)
		}
	}, lent(portal()), portalExe(), entry("seven", "unix.uid", "7"))
}

func TestOwnAndLentKeysDiffer(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		own, borrowed := b.hold(portalProcess(), X509SVIDs), b.hold(portalProcess(), LentSVIDs)
		defer own.Close()
		defer borrowed.Close()
		one, err1 := own.GetX509SVID()
		two, err2 := borrowed.GetX509SVID()
		if err1 != nil || err2 != nil || one.PrivateKey == two.PrivateKey || own.ID() != borrowed.ID() {
			t.Errorf("%v %v", err1, err2)
		}
	}, lent(portal()))
}

func TestHoldingStaysWithItsID(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		h := b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		load(t, b.db, lent(portal()), lent(portalExe())) // a more specific default identity
		synctest.Wait()
		if s, err := h.GetX509SVID(); err != nil || s.ID != portal().ID || h.Err() != nil {
			t.Fatalf("%v %v", s, err)
		}
		changed := h.Changed()
		load(t, b.db, lent(portalExe()))
		synctest.Wait()
		<-changed
		if _, err := h.GetX509SVID(); !errors.Is(err, ErrNoIdentity) || !errors.Is(h.Err(), ErrNoIdentity) {
			t.Errorf("after the loss of its ID: %v, %v", err, h.Err())
		}
		if _, err := h.GetX509BundleForTrustDomain(clinic); err == nil {
			t.Error("still gives a bundle")
		}
	}, lent(portal()))
}

func TestHoldingEndsWithTheProcess(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		p := portalProcess()
		h := b.hold(p, LentSVIDs)
		p.become(attest.ErrReplaced) // no event has told of it
		if !errors.Is(h.Err(), attest.ErrReplaced) {
			t.Errorf("after an exec: %v", h.Err())
		}
		p.exit()
		synctest.Wait()
		if _, err := h.GetX509SVID(); !errors.Is(err, attest.ErrExited) {
			t.Errorf("after the exit: %v", err)
		}
		h.Close()
		h.Close()
	}, lent(portal()))
}

func TestHoldingGivesNoExpiredSVID(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		h := b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(15*time.Minute - time.Second)
		if _, err := h.GetX509SVID(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := h.GetX509SVID(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after expiry: %v", err)
		}
	}, lent(portal()))
}

func TestHoldIsBoundedByItsContext(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		hang := make(chan struct{})
		b.authority.set(func(a *authority) { a.hang = hang })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.s.Hold(ctx, portalProcess(), LentSVIDs); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := b.s.Hold(ctx, portalProcess(), X509Bundles); err == nil {
			t.Error("held a bundle")
		}
	}, lent(portal()))
}

// A ward serves under a Holding for as long as it runs: an issuer that was away for longer than an SVID lasts must not
// end it.
func TestHoldingOutlivesTheIssuersAbsence(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		h := b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(time.Hour)
		if _, err := h.GetX509SVID(); !errors.Is(err, ErrUnavailable) || !errors.Is(h.Err(), ErrUnavailable) {
			t.Errorf("while the issuer is away: %v, %v", err, h.Err())
		}
		b.seen.read(func(o *observer) {
			if len(o.refused) != 1 {
				t.Errorf("%d reports of one loss", len(o.refused))
			}
		})
		changed := h.Changed()
		b.authority.set(func(a *authority) { a.fail = nil })
		time.Sleep(2 * time.Minute)
		<-changed
		s, err := h.GetX509SVID()
		if err != nil || h.Err() != nil || s.ID != portal().ID {
			t.Fatalf("after its return: %v, %v", err, h.Err())
		}
	}, lent(portal()))
}

func TestHoldingThatLacksItsSVIDStaysWithItsID(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		h := b.hold(portalProcess(), LentSVIDs)
		defer h.Close()
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(time.Hour)
		load(t, b.db, lent(portalExe())) // another identity
		b.authority.set(func(a *authority) { a.fail = nil })
		time.Sleep(2 * time.Minute)
		if _, err := h.GetX509SVID(); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("after the loss of its ID: %v", err)
		}
	}, lent(portal()))
}

func TestHoldingThatLacksItsSVIDEndsWithTheProcess(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		p := portalProcess()
		h := b.hold(p, LentSVIDs)
		defer h.Close()
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(time.Hour)
		p.exit()
		synctest.Wait()
		if !errors.Is(h.Err(), attest.ErrExited) {
			t.Errorf("after the exit: %v", h.Err())
		}
	}, lent(portal()))
}
