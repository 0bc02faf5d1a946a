package workload

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/attest"
)

// bench is a service with everything around it under the test's control, in a bubble with its own clock.
type bench struct {
	t         *testing.T
	db        *memdb.MemDB
	authority *authority
	teller    *teller
	denials   *denials
	seen      *observer
	s         *Service
}

// run calls f in a bubble whose renewals come exactly at half-life, and closes the service.
func run(t *testing.T, f func(t *testing.T, b *bench), entries ...*Entry) {
	runAt(t, 0.5, f, entries...)
}

func runAt(t *testing.T, random float64, f func(t *testing.T, b *bench), entries ...*Entry) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, db: directory(t, entries...), authority: newAuthority(t), teller: &teller{}, seen: &observer{},
			denials: &denials{denied: map[spiffeid.ID]bool{}, changed: make(chan struct{})}}
		var err error
		b.s, err = NewService(Options{
			Registry: NewRegistry(b.db), Attestors: []attest.Attestor{b.teller}, Issuer: b.authority, Bundles: b.authority,
			Denials: b.denials, Kept: NoKept{}, Observer: b.seen, Log: zap.NewNop(), Random: func() float64 { return random },
		})
		if err != nil {
			t.Fatal(err)
		}
		f(t, b)
		b.s.Close()
	})
}

// stream is a Watch under way.
type stream struct {
	b      *bench
	cancel context.CancelFunc

	mu      sync.Mutex
	updates []Update
	err     error
}

func (b *bench) watch(p Process, want Want) *stream {
	ctx, cancel := context.WithCancel(b.t.Context())
	st := &stream{b: b, cancel: cancel}
	go func() {
		defer cancel()
		err := b.s.Watch(ctx, p, want, func(u Update) error {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.updates = append(st.updates, u)
			return nil
		})
		st.mu.Lock()
		defer st.mu.Unlock()
		st.err = err
	}()
	synctest.Wait()
	return st
}

// got returns the updates so far, once nothing moves any more, and the error if it has ended.
func (st *stream) got() ([]Update, error) {
	synctest.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Clone(st.updates), st.err
}

// want checks how many updates there are and returns the last.
func (st *stream) want(n int) Update {
	st.b.t.Helper()
	u, err := st.got()
	if err != nil || len(u) != n {
		st.b.t.Fatalf("%d updates and error %v; want %d updates", len(u), err, n)
	}
	return u[n-1]
}

// ended checks with what the watch ended after n updates.
func (st *stream) ended(n int, want error) *Refusal {
	st.b.t.Helper()
	u, err := st.got()
	var r *Refusal
	if len(u) != n || !errors.Is(err, want) || !errors.As(err, &r) {
		st.b.t.Fatalf("%d updates and error %v; want %d and %v", len(u), err, n, want)
	}
	return r
}

type denials struct {
	mu      sync.Mutex
	denied  map[spiffeid.ID]bool
	changed chan struct{}
}

func (d *denials) Denied(id spiffeid.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.denied[id]
}

func (d *denials) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *denials) deny(id spiffeid.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.denied[id] = true
	close(d.changed)
	d.changed = make(chan struct{})
}

type observer struct {
	mu      sync.Mutex
	visits  []Visit
	issued  []Issuance
	refused []*Refusal
}

func (o *observer) Attested(v Visit)            { o.note(func() { o.visits = append(o.visits, v) }) }
func (o *observer) Issued(i Issuance)           { o.note(func() { o.issued = append(o.issued, i) }) }
func (o *observer) Refused(_ Visit, r *Refusal) { o.note(func() { o.refused = append(o.refused, r) }) }
func (o *observer) note(f func())               { o.mu.Lock(); defer o.mu.Unlock(); f() }
func (o *observer) read(f func(*observer))      { o.mu.Lock(); defer o.mu.Unlock(); f(o) }
func portal() *Entry                            { return entry("portal", "unix.uid", "1000") }
func portalExe() *Entry {
	return entry("portal-exe", "unix.uid", "1000", "exe.path", "/usr/bin/portal")
}
func portalProcess() *process                     { return newProcess("unix.uid", "1000", "exe.path", "/usr/bin/portal") }
func with(e *Entry, change func(e *Entry)) *Entry { change(e); return e }

func TestWatchSendsTheFullStateAtOnce(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		start := time.Now()
		u := b.watch(portalProcess(), X509SVIDs).want(1)
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
		if len(u.SVIDs) != 2 || u.SVIDs[0].Entry.Name != "portal-exe" || u.SVIDs[1].Entry.Name != "portal" {
			t.Fatalf("%v", u.SVIDs)
		}
		for _, s := range u.SVIDs {
			if err := VerifyX509(s.Certificates, s.Entry.ID, s.PrivateKey.Public(), u.Bundle, time.Now()); err != nil {
				t.Error(err)
			}
		}
		if u.Attestation.Strength != attest.Strong || !u.Attestation.Selectors.Contains(sel("unix.uid", "1000")) {
			t.Errorf("attestation %v", u.Attestation)
		}
	}, portal(), portalExe())
}

func TestProcessesOfAnEntryShareItsSVID(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		hang := make(chan struct{})
		b.authority.set(func(a *authority) { a.hang = hang })
		one, two := b.watch(portalProcess(), X509SVIDs), b.watch(portalProcess(), X509SVIDs)
		if u, err := one.got(); len(u) != 0 || err != nil {
			t.Fatal("sent before anything was issued")
		}
		close(hang)
		if one.want(1).SVIDs[0].SVID != two.want(1).SVIDs[0].SVID || b.authority.count() != 1 {
			t.Errorf("%d SVIDs were issued", b.authority.count())
		}
		if st := b.s.Status(); len(st) != 1 || st[0].Holders != 2 || st[0].Entry != "portal" || st[0].Serial == "" {
			t.Errorf("status %+v", st)
		}
	}, portal())
}

func TestRenewalAtHalfLife(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 27 * time.Minute, 0.5: 30 * time.Minute, 1: 33 * time.Minute} {
		runAt(t, random, func(t *testing.T, b *bench) {
			st := b.watch(portalProcess(), X509SVIDs)
			first := st.want(1)
			time.Sleep(want - time.Second)
			st.want(1)
			time.Sleep(time.Second)
			second := st.want(2)
			if first.SVIDs[0].SVID == second.SVIDs[0].SVID || first.SVIDs[0].PrivateKey == second.SVIDs[0].PrivateKey {
				t.Error("the renewed SVID is the old one, or has its key")
			}
		}, portal())
	}
}

// A host that was suspended, or whose clock was set, finds its SVIDs past their end by the wall clock while its
// monotonic clock has hardly moved.
func TestRenewalGoesByTheWallClock(t *testing.T) {
	// Not in a bubble: there is no monotonic clock in one.
	a := newAuthority(t)
	s, err := NewService(Options{Registry: NewRegistry(directory(t, portal())), Attestors: []attest.Attestor{&teller{}}, Issuer: a, Bundles: a,
		Denials: NoDenials{}, Kept: NoKept{}, Observer: NoObserver{}, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h, err := s.Hold(t.Context(), portalProcess(), X509SVIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if at := s.Status()[0].Renewal; at.IsZero() || at != at.Round(0) {
		t.Errorf("renewal is planned by the monotonic clock: %s", at)
	}
}

func TestSVIDThatIsNotYetValidIsRenewed(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		leaf := st.want(1).SVIDs[0].Certificates[0]
		b.s.cache.mu.Lock()
		leaf.NotBefore = time.Now().Add(10 * time.Minute) // the clock was set back so far
		b.s.cache.mu.Unlock()
		time.Sleep(maxSleep)
		st.want(2)
	}, portal())
}

func TestFailingIssuerIsRetriedWhileTheOldSVIDLasts(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(40 * time.Minute)
		st.want(1)
		// 1+2+4+8+16+32 s, then every minute, from minute 30 on.
		if n := b.authority.count() - 1; n < 12 || n > 17 {
			t.Errorf("%d retries in ten minutes", n)
		}
		if s := b.s.Status()[0]; s.LastErr == nil || s.Failures == 0 || s.NotAfter.IsZero() || s.Renewal.IsZero() {
			t.Errorf("status %+v", s)
		}
		b.authority.set(func(a *authority) { a.fail = nil })
		time.Sleep(time.Minute)
		st.want(2)
		if s := b.s.Status()[0]; s.LastErr != nil || s.Failures != 0 {
			t.Errorf("status %+v", s)
		}
	}, portal())
}

func TestExpiredSVIDIsWithdrawn(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		time.Sleep(time.Hour - time.Second)
		st.want(1)
		time.Sleep(time.Second)
		st.ended(1, ErrUnavailable)
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrUnavailable)
	}, portal())
}

func TestIssuerIsSparedByDemandsWhileItFails(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.authority.set(func(a *authority) { a.fail = errors.New("away") })
		for range 100 {
			b.watch(portalProcess(), X509SVIDs).ended(0, ErrUnavailable)
		}
		if n := b.authority.count(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		b.authority.set(func(a *authority) { a.fail = nil })
		time.Sleep(2 * time.Second)
		b.watch(portalProcess(), X509SVIDs).want(1)
	}, portal())
}

func TestSVIDThatNobodyHoldsIsForgotten(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		for range 3 {
			st := b.watch(portalProcess(), X509SVIDs)
			st.want(1)
			st.cancel()
			synctest.Wait()
		}
		if n := b.authority.count(); n != 1 {
			t.Errorf("%d SVIDs for processes that come and go", n)
		}
		time.Sleep(31 * time.Minute)
		if n := b.authority.count(); n != 1 || len(b.s.Status()) != 0 {
			t.Errorf("%d SVIDs issued, %d kept", n, len(b.s.Status()))
		}
	}, portal())
}

func TestRemovedEntry(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		idle := b.watch(newProcess("unix.uid", "7"), X509SVIDs)
		idle.cancel()
		st.want(1)
		load(t, b.db, portal())
		st.want(2)
		load(t, b.db)
		r := st.ended(2, ErrNoIdentity)
		if r.Reference == "" || !r.Attestation.Selectors.Contains(sel("unix.uid", "1000")) {
			t.Errorf("%+v", r)
		}
		kept := func() int {
			b.s.cache.mu.Lock()
			defer b.s.cache.mu.Unlock()
			return len(b.s.cache.slots)
		}
		if n := kept(); n != 1 {
			t.Errorf("%d keys are kept, of which one for the next to come", n)
		}
		time.Sleep(maxSleep)
		synctest.Wait()
		if n := kept(); n != 0 {
			t.Errorf("%d keys are still kept", n)
		}
	}, portal(), portalExe(), entry("seven", "unix.uid", "7"))
}

func TestEditedEntry(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		first := st.want(1)
		load(t, b.db, with(portal(), func(e *Entry) { e.Hint = "internal" }))
		second := st.want(2)
		if second.SVIDs[0].SVID != first.SVIDs[0].SVID || second.SVIDs[0].Entry.Hint != "internal" {
			t.Error("a new hint is another SVID, or was not sent")
		}
		load(t, b.db, with(portal(), func(e *Entry) { e.Hint = "internal"; e.DNSNames = []string{"portal.clinic.test"} }))
		third := st.want(3)
		if got := third.SVIDs[0].Certificates[0].DNSNames; !slices.Equal(got, []string{"portal.clinic.test"}) {
			t.Errorf("DNS names %v", got)
		}
		if n := len(b.s.Status()); n != 1 {
			t.Errorf("%d SVIDs kept", n)
		}
		load(t, b.db, with(portal(), func(e *Entry) {
			e.Hint = "internal"
			e.DNSNames = []string{"portal.clinic.test"}
			e.Selectors = sel("unix.uid", "2")
		}))
		st.ended(3, ErrNoIdentity)
	}, portal())
}

func TestNothingIsSentForNothing(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		load(t, b.db, portal(), entry("other", "unix.uid", "8"))
		load(t, b.db, portal(), entry("other", "unix.uid", "9"), entry("more", "systemd.unit", "x.service"))
		b.denials.deny(spiffeid.RequireFromPath(clinic, "/other"))
		b.authority.set(func(a *authority) { a.publish(a.root) }) // the same bundle anew
		st.want(1)
		b.authority.announce()
		if n := len(st.want(2).Bundle.X509Authorities()); n != 2 {
			t.Errorf("%d authorities", n)
		}
	}, portal())
}

func TestEndOfTheProcess(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		exits := portalProcess()
		st := b.watch(exits, X509SVIDs)
		st.want(1)
		exits.exit()
		st.ended(1, attest.ErrExited)
		b.watch(exits, X509SVIDs).ended(0, attest.ErrExited)

		silent := portalProcess() // its exit is seen before its state is
		st = b.watch(silent, X509SVIDs)
		close(silent.done)
		st.ended(1, attest.ErrExited)

		execs := portalProcess()
		st = b.watch(execs, X509SVIDs)
		time.Sleep(time.Minute)
		st.want(1)
		execs.become(attest.ErrReplaced)
		time.Sleep(10 * time.Second)
		st.ended(1, attest.ErrReplaced)
	}, portal())
}

func TestProcessThatEndsWhileItsSVIDIsIssuedGetsNothing(t *testing.T) {
	for name, end := range map[string]func(*process){
		"exit": (*process).exit,
		"exec": func(p *process) { p.become(attest.ErrExited) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, b *bench) {
				hang := make(chan struct{})
				b.authority.set(func(a *authority) { a.hang = hang })
				p := portalProcess()
				st := b.watch(p, X509SVIDs)
				end(p)
				synctest.Wait()
				close(hang)
				st.ended(0, attest.ErrExited)
			}, portal())
		})
	}
}

func TestDenied(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		st.want(1)
		b.denials.deny(portalExe().ID)
		if u := st.want(2); len(u.SVIDs) != 1 || u.SVIDs[0].ID != portal().ID {
			t.Errorf("left with %v", u.SVIDs)
		}
		b.denials.deny(portal().ID)
		st.ended(2, ErrNoIdentity)
		n := b.authority.count()
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrNoIdentity)
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrDenied) // as the operator is told
		if b.authority.count() != n {
			t.Error("a denied ID was issued")
		}
	}, portal(), portalExe())
}

func TestDefaultIdentityIsNeverSilentlyAnother(t *testing.T) {
	refuse := func(b *bench, id spiffeid.ID) {
		b.authority.set(func(a *authority) {
			a.twist = func(leaf *x509.Certificate) {
				if leaf.URIs[0].String() == id.String() {
					leaf.KeyUsage = 0 // is no SVID, and not believed to be one
				}
			}
		})
	}
	run(t, func(t *testing.T, b *bench) {
		refuse(b, portalExe().ID)
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrUnavailable)
	}, portal(), portalExe())
	run(t, func(t *testing.T, b *bench) {
		refuse(b, portal().ID)
		st := b.watch(portalProcess(), X509SVIDs)
		if u := st.want(1); len(u.SVIDs) != 1 || u.SVIDs[0].ID != portalExe().ID {
			t.Errorf("%v", u.SVIDs)
		}
		b.authority.set(func(a *authority) { a.twist = nil })
		time.Sleep(2 * time.Second)
		if u := st.want(2); len(u.SVIDs) != 2 {
			t.Errorf("%v", u.SVIDs)
		}
	}, portal(), portalExe())
}

func TestTwoEntriesForOneIdentity(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		u := b.watch(portalProcess(), X509SVIDs).want(1)
		if len(u.SVIDs) != 1 || u.SVIDs[0].Entry.Name != "portal-exe" {
			t.Errorf("%v", u.SVIDs)
		}
	}, portal(), with(portalExe(), func(e *Entry) { e.ID = portal().ID }))
}

func TestBundlesAlone(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509Bundles)
		if u := st.want(1); len(u.SVIDs) != 0 || u.Bundle.Empty() {
			t.Errorf("%+v", u)
		}
		b.authority.announce()
		st.want(2)
		if b.authority.count() != 0 {
			t.Error("something was issued")
		}
		load(t, b.db)
		st.ended(2, ErrNoIdentity)
	}, portal())
}

func TestNotReady(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.authority.set(func(a *authority) { a.bundle = nil })
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrUnavailable)
		b.authority.set(func(a *authority) { a.bundle = x509bundle.New(clinic) })
		b.watch(portalProcess(), X509Bundles).ended(0, ErrUnavailable)
	}, portal())
}

func TestFailingAttestorRefuses(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.teller.fail = errors.New("cannot read")
		r := b.watch(portalProcess(), X509SVIDs).ended(0, b.teller.fail)
		if len(r.Attestation.Selectors) != 0 {
			t.Errorf("%+v", r)
		}
	}, portal())
}

func TestIssuerIsNotBelieved(t *testing.T) {
	for name, twist := range map[string]func(leaf *x509.Certificate){
		"lives too long": func(leaf *x509.Certificate) { leaf.NotAfter = time.Now().Add(3 * time.Hour) },
		"another ID":     func(leaf *x509.Certificate) { leaf.URIs[0].Path = "/admin" },
		"expired":        func(leaf *x509.Certificate) { leaf.NotAfter = time.Now().Add(-time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, b *bench) {
				b.authority.set(func(a *authority) { a.twist = twist })
				b.watch(portalProcess(), X509SVIDs).ended(0, ErrUnavailable)
			}, with(portal(), func(e *Entry) { e.X509TTL = 2 * time.Hour }))
		})
	}
}

func TestHangingIssuerIsGivenUp(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		hang := make(chan struct{})
		b.authority.set(func(a *authority) { a.hang = hang })
		st := b.watch(portalProcess(), X509SVIDs)
		time.Sleep(issueTimeout)
		st.ended(0, ErrUnavailable)
	}, portal())
}

func TestClose(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		hang := make(chan struct{})
		st := b.watch(portalProcess(), X509SVIDs)
		b.authority.set(func(a *authority) { a.hang = hang })
		waiting := b.watch(newProcess("unix.uid", "7"), X509SVIDs)
		b.s.Close()
		st.ended(1, ErrClosed)
		waiting.ended(0, ErrClosed)
		b.watch(portalProcess(), X509SVIDs).ended(0, ErrClosed)
		if n := len(b.s.cache.slots); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	}, portal(), entry("seven", "unix.uid", "7"))
}

func TestObserver(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.watch(portalProcess(), X509SVIDs).want(1)
		r := b.watch(newProcess("unix.uid", "7"), X509SVIDs).ended(0, ErrNoIdentity)
		b.seen.read(func(o *observer) {
			if len(o.visits) != 1 || o.visits[0].PID != 4711 || len(o.visits[0].Entries) != 1 || o.visits[0].Want != X509SVIDs {
				t.Errorf("visits %+v", o.visits)
			}
			if len(o.issued) != 1 || o.issued[0].Err != nil || o.issued[0].Serial == "" || o.issued[0].ID != portal().ID {
				t.Errorf("issued %+v", o.issued)
			}
			if len(o.refused) != 1 || o.refused[0] != r {
				t.Errorf("refused %+v", o.refused)
			}
		})
	}, portal())
}
