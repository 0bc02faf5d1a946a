package workload

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/attest"
)

// shelf is a Kept in memory.
type shelf struct {
	mu    sync.Mutex
	svids map[slotKey]*x509svid.SVID
	saved int
}

func newShelf() *shelf { return &shelf{svids: map[slotKey]*x509svid.SVID{}} }

func (s *shelf) Find(e *Entry, lent bool) *x509svid.SVID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.svids[keyOf(e, lent)]
}

func (s *shelf) Save(svid *SVID, lent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svids[keyOf(svid.Entry, lent)], s.saved = svid.SVID, s.saved+1
}

// again is the same service after a restart, with what it kept.
func (b *bench) again(k Kept) *bench {
	next := *b
	var err error
	next.s, err = NewService(Options{Registry: NewRegistry(b.db), Attestors: []attest.Attestor{b.teller}, Issuer: b.authority, Bundles: b.authority,
		Denials: b.denials, Kept: k, Observer: b.seen, Log: zap.NewNop(), Random: func() float64 { return 0.5 }})
	if err != nil {
		b.t.Fatal(err)
	}
	return &next
}

var errAway = errors.New("the issuer is away")

func TestKeptSVIDServesWhileNoneCanBeIssued(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		kept := newShelf()
		one := b.again(kept)
		before := one.watch(portalProcess(), X509SVIDs).want(1)
		one.s.Close()
		if kept.saved != 1 {
			t.Fatalf("saved %d times", kept.saved)
		}

		b.authority.set(func(a *authority) { a.fail = errAway })
		two := b.again(kept)
		defer two.s.Close()
		st := two.watch(portalProcess(), X509SVIDs)
		if got := st.want(1); got.SVIDs[0].SVID != before.SVIDs[0].SVID || len(got.SVIDs[0].KeyDER) == 0 || len(got.SVIDs[0].ChainDER) == 0 {
			t.Error("another SVID than the kept one")
		}
		if s := two.s.Status(); len(s) != 1 || !errors.Is(s[0].LastErr, errAway) || s[0].NotAfter.IsZero() {
			t.Errorf("status %+v: it must show both the SVID and the failure", s)
		}

		b.authority.set(func(a *authority) { a.fail = nil })
		time.Sleep(2 * time.Second) // the first retry
		if got := st.want(2); got.SVIDs[0].SVID == before.SVIDs[0].SVID {
			t.Error("not renewed")
		}
		if s := two.s.Status(); s[0].LastErr != nil {
			t.Errorf("status %+v", s)
		}
		if kept.saved != 2 {
			t.Errorf("saved %d times", kept.saved)
		}
	}, portal())
}

// What was kept is believed no more than what is issued.
func TestKeptSVIDThatMayNotServe(t *testing.T) {
	for name, spoil := range map[string]func(*bench, *shelf){
		"denied":        func(b *bench, _ *shelf) { b.denials.deny(portal().ID) },
		"expired":       func(*bench, *shelf) { time.Sleep(2 * time.Hour) },
		"CA has left":   func(b *bench, _ *shelf) { b.authority.rotate() },
		"of another ID": func(b *bench, s *shelf) { s.each(func(x *x509svid.SVID) { x.ID = entry("other").ID }) },
		"of another key": func(b *bench, s *shelf) {
			s.each(func(x *x509svid.SVID) { x.PrivateKey = newKey(b.t) })
		},
		"without key": func(b *bench, s *shelf) { s.each(func(x *x509svid.SVID) { x.PrivateKey = nil }) },
		"empty":       func(b *bench, s *shelf) { s.each(func(x *x509svid.SVID) { x.Certificates = nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, b *bench) {
				kept := newShelf()
				one := b.again(kept)
				one.watch(portalProcess(), X509SVIDs).want(1)
				one.s.Close()
				spoil(b, kept)
				b.authority.set(func(a *authority) { a.fail = errAway })
				two := b.again(kept)
				defer two.s.Close()
				if u, err := two.watch(portalProcess(), X509SVIDs).got(); len(u) != 0 || err == nil {
					t.Errorf("%d updates, error %v", len(u), err)
				}
			}, portal())
		})
	}
}

func (s *shelf) each(change func(*x509svid.SVID)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, svid := range s.svids {
		other := *svid
		change(&other)
		s.svids[key] = &other
	}
}

// A kept SVID ends as any other: it is withdrawn.
func TestKeptSVIDIsWithdrawnAtItsEnd(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		kept := newShelf()
		one := b.again(kept)
		one.watch(portalProcess(), X509SVIDs).want(1)
		one.s.Close()
		b.authority.set(func(a *authority) { a.fail = errAway })
		two := b.again(kept)
		defer two.s.Close()
		st := two.watch(portalProcess(), X509SVIDs)
		st.want(1)
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		st.ended(1, ErrUnavailable)
	}, portal())
}
