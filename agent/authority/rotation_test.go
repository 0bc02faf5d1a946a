package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/authority"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// timed is options with a clock that stands at begin.
func timed(dir string) (authority.Options, *clock) {
	c := new(clock)
	c.set(begin)
	o := options(dir)
	o.Clock = c.get
	return o, c
}

// memory is a folder in memory where there is one, for tests of many steps that ask nothing of the disk.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ward-authority-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (c *clock) forward(d time.Duration) { c.set(c.get().Add(d)) }

func issue(t testing.TB, a *authority.Authority) *x509.Certificate {
	t.Helper()
	chain, err := a.IssueX509(context.Background(), request(t, "/app/portal"))
	if err != nil {
		t.Fatal(err)
	}
	return chain[0]
}

// verifies reports whether the authority's bundle of this moment vouches for a certificate.
func verifies(a *authority.Authority, cert *x509.Certificate, at time.Time) bool {
	roots := x509.NewCertPool()
	for _, c := range a.X509Bundle().X509Authorities() {
		roots.AddCert(c)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// states lists the CAs as `1 active`.
func states(a *authority.Authority) []string {
	var out []string
	for _, g := range a.Rotation().Generations {
		out = append(out, string('0'+rune(g.Number))+" "+string(g.State))
	}
	return out
}

func wantStates(t *testing.T, a *authority.Authority, sequence uint64, want ...string) {
	t.Helper()
	if got := states(a); !slices.Equal(got, want) || a.Rotation().Sequence != sequence {
		t.Fatalf("the CAs are %v at sequence %d, want %v at %d", got, a.Rotation().Sequence, want, sequence)
	}
	b := a.Bundle()
	if n, ok := b.SequenceNumber(); !ok || n != sequence || len(b.X509Authorities()) != len(want) {
		t.Fatalf("the bundle has %d CAs at sequence %d", len(b.X509Authorities()), n)
	}
}

func done(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func refusedTransition(t *testing.T, err error, want string, possible time.Time) {
	t.Helper()
	var r *authority.TransitionError
	if !errors.As(err, &r) || !errors.Is(err, authority.ErrTransition) {
		t.Fatalf("%v, want a TransitionError", err)
	}
	if !strings.Contains(err.Error(), want) || !r.Possible.Equal(possible) {
		t.Errorf("%v (possible %v), want %q, %v", err, r.Possible, want, possible)
	}
}

// TestRotation goes through a rotation by hand, with every refusal on the way.
func TestRotation(t *testing.T) {
	ctx := context.Background()
	o, now := timed(filepath.Join(t.TempDir(), "ca"))
	var events []authority.Event
	o.Events = func(e authority.Event) { events = append(events, e) }
	a := open(t, o)
	wantStates(t, a, 1, "1 active")
	refusedTransition(t, a.Activate(ctx, authority.Order{}), "no CA is prepared", time.Time{})
	refusedTransition(t, a.Retire(ctx, authority.Order{}), "no CA has been replaced", time.Time{})
	refusedTransition(t, a.Retire(ctx, authority.Order{Generation: 1, Force: true}), "CA 1 signs", time.Time{})
	refusedTransition(t, a.Retire(ctx, authority.Order{Generation: 7}), "no CA 7", time.Time{})

	// Prepared: in the bundle, and signing nothing.
	now.forward(time.Hour)
	changed := a.BundleChanged()
	if err := a.Prepare(ctx, authority.Order{By: "uid 0"}); err != nil {
		t.Fatal(err)
	}
	if !done(changed) || done(a.BundleChanged()) {
		t.Error("a new CA in the bundle is no change")
	}
	wantStates(t, a, 2, "1 active", "2 prepared")
	refusedTransition(t, a.Prepare(ctx, authority.Order{}), "CA 2 is prepared already", time.Time{})
	refusedTransition(t, a.Activate(ctx, authority.Order{}), "peers may not have it", now.get().Add(24*time.Hour))
	refusedTransition(t, a.Activate(ctx, authority.Order{Lead: time.Minute}), "peers may not have it", now.get().Add(time.Minute))
	cas := a.X509Bundle().X509Authorities()
	old := issue(t, a)
	if old.CheckSignatureFrom(cas[0]) != nil {
		t.Error("a prepared CA signs")
	}

	// Active: it signs, and the other's SVIDs hold.
	now.forward(24 * time.Hour)
	old = issue(t, a)
	changed = a.BundleChanged()
	if err := a.Activate(ctx, authority.Order{By: "uid 0"}); err != nil {
		t.Fatal(err)
	}
	if done(changed) {
		t.Error("the bundle has changed with the signer")
	}
	wantStates(t, a, 2, "1 old", "2 active")
	fresh := issue(t, a)
	if fresh.CheckSignatureFrom(cas[1]) != nil || !verifies(a, fresh, now.get()) || !verifies(a, old, now.get()) {
		t.Error("after activation not both CAs' SVIDs hold, or the wrong one signs")
	}
	if _, err := os.Lstat(filepath.Join(o.Dir, "x509-ca-1.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of a CA that signs no more is there: %v", err)
	}
	for _, ca := range cas {
		if _, err := a.IssueX509(ctx, authority.X509Request{ID: request(t, "/app/portal").ID, PublicKey: ca.PublicKey}); !errors.Is(err, authority.ErrRefused) {
			t.Errorf("a CA's key was certified: %v", err)
		}
	}
	refusedTransition(t, a.Retire(ctx, authority.Order{}), "an SVID of CA 1 is valid", old.NotAfter)

	// A restart forgets none of it.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	wantStates(t, a, 2, "1 old", "2 active")
	refusedTransition(t, a.Retire(ctx, authority.Order{}), "an SVID of CA 1 is valid", old.NotAfter)
	g := a.Rotation().Generations
	if !g[0].LastSVID.Equal(old.NotAfter) || !g[0].Replaced.Equal(begin.Add(25*time.Hour)) || !g[1].Published.Equal(begin.Add(time.Hour)) || !g[1].Activated.Equal(g[0].Replaced) {
		t.Errorf("the dates are %+v", g)
	}

	now.set(old.NotAfter)
	changed = a.BundleChanged()
	if err := a.Retire(ctx, authority.Order{}); err != nil {
		t.Fatal(err)
	}
	if !done(changed) {
		t.Error("a CA less in the bundle is no change")
	}
	wantStates(t, a, 3, "2 active")
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "x509-ca-1*")); len(left) > 0 {
		t.Errorf("of a retired CA is left %v", left)
	}

	var steps []string
	for _, e := range events {
		if e.Err == nil {
			steps = append(steps, string(e.Step)+" "+e.By)
		}
	}
	if want := []string{"prepare uid 0", "activate uid 0", "retire "}; !slices.Equal(steps, want) {
		t.Errorf("events %v, want %v", steps, want)
	}
	if e := events[len(events)-1]; e.Generation != 1 || e.Sequence != 3 || !e.At.Equal(old.NotAfter) || len(e.SubjectKeyID) != 20 {
		t.Errorf("the last event is %+v", e)
	}
}

// TestCompromise: by force, a CA whose key is known to others is out of the bundle at once, and so is what it signed.
func TestCompromise(t *testing.T) {
	ctx := context.Background()
	o, now := timed(filepath.Join(memory(t), "ca"))
	a := open(t, o)
	stolen := issue(t, a)
	for _, step := range []func(context.Context, authority.Order) error{a.Prepare, a.Activate, a.Retire} {
		if err := step(ctx, authority.Order{Force: true, By: "uid 0"}); err != nil {
			t.Fatal(err)
		}
	}
	wantStates(t, a, 3, "2 active")
	if verifies(a, stolen, now.get()) || !verifies(a, issue(t, a), now.get()) {
		t.Error("a CA that was retired by force vouches, or the new one does not")
	}
	// The number of a CA that is gone never comes again, also when it was the highest.
	if err := errors.Join(a.Prepare(ctx, authority.Order{}), a.Retire(ctx, authority.Order{Generation: 3}), a.Close()); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	if err := a.Prepare(ctx, authority.Order{}); err != nil {
		t.Fatal(err)
	}
	wantStates(t, a, 6, "2 active", "4 prepared")
}

// TestBundleIsBounded: forced rotation cannot make the bundle grow without end.
func TestBundleIsBounded(t *testing.T) {
	ctx := context.Background()
	a := open(t, options(filepath.Join(memory(t), "ca")))
	issue(t, a)
	for {
		err := a.Prepare(ctx, authority.Order{Force: true})
		if err != nil {
			refusedTransition(t, err, "10 CAs are in the bundle", time.Time{})
			break
		}
		if err := a.Activate(ctx, authority.Order{Force: true}); err != nil {
			t.Fatal(err)
		}
		issue(t, a)
	}
	if n := len(a.X509Bundle().X509Authorities()); n != 10 {
		t.Errorf("%d CAs", n)
	}
}

// TestRefreshHint: a bundle is fetched often enough to be had before its newest CA signs.
func TestRefreshHint(t *testing.T) {
	for _, life := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, 365 * 24 * time.Hour} {
		o, _ := timed(filepath.Join(memory(t), "ca"))
		o.CATTL = life
		a := open(t, o)
		hint, ok := a.Bundle().RefreshHint()
		if lead := a.Rotation().Lead; !ok || hint < time.Second || lead < 3*hint || lead > life/6 { // SPIFFE Federation §4
			t.Errorf("a CA of %s: hint %s, lead %s", life, hint, lead)
		}
	}
}

// TestRun: on its own the authority issues for six lives of a CA, and every SVID is good from its making to its end.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct{ ca, svid, every time.Duration }{
		"a minute": {time.Minute, 5 * time.Second, 2 * time.Second},
		"a week":   {7 * 24 * time.Hour, 24 * time.Hour, 6 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(memory(t), "ca")
			synctest.Test(t, func(t *testing.T) {
				var events []authority.Event
				o := authority.Options{Dir: dir, TrustDomain: domain, Logger: zap.NewNop(), CATTL: c.ca, X509TTL: c.svid, Events: func(e authority.Event) { events = append(events, e) }}
				a, err := authority.Open(context.Background(), o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				ended := make(chan error)
				go func() { ended <- a.Run(ctx) }()
				var alive []*x509.Certificate
				key := newKey(t)
				start := time.Now()
				for time.Since(start) < 6*c.ca {
					chain, err := a.IssueX509(ctx, authority.X509Request{ID: request(t, "/app/portal").ID, PublicKey: key.Public()})
					if err != nil {
						t.Fatal(err)
					}
					if life := time.Until(chain[0].NotAfter); life < c.svid-time.Second {
						t.Fatalf("an SVID of %s only", life)
					}
					alive = slices.DeleteFunc(append(alive, chain[0]), func(s *x509.Certificate) bool { return !time.Now().Before(s.NotAfter) })
					for _, s := range alive {
						if !verifies(a, s, time.Now()) {
							t.Fatalf("a valid SVID is not vouched for at %s: %v", time.Since(start), states(a))
						}
					}
					if n := len(a.X509Bundle().X509Authorities()); n > 3 {
						t.Fatalf("%d CAs in the bundle", n)
					}
					time.Sleep(c.every)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				published := make(map[uint32]time.Time)
				steps := make(map[authority.Step]int)
				for _, e := range events {
					if e.Err != nil {
						t.Errorf("%+v", e)
					}
					steps[e.Step]++
					switch hint := min(5*time.Minute, c.ca/30); e.Step {
					case authority.Prepare:
						published[e.Generation] = e.At
					case authority.Activate:
						if ahead := e.At.Sub(published[e.Generation]); ahead < 4*hint {
							t.Errorf("CA %d signs %s after it was published", e.Generation, ahead)
						}
					}
				}
				if steps[authority.Activate] < 6 || steps[authority.Retire] < steps[authority.Activate]-1 {
					t.Errorf("steps taken: %v", steps)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if err := a.Run(context.Background()); err != nil {
					t.Errorf("Run after Close = %v", err)
				}
			})
		})
	}
}

// TestRotationUnderLoad: while CAs come and go as fast as they can, every SVID is vouched for as soon as it is there and
// until it ends, and nothing is refused.
func TestRotationUnderLoad(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	a := open(t, options(filepath.Join(memory(t), "ca")))
	var tasks sync.WaitGroup
	for range 4 {
		tasks.Go(func() {
			key := newKey(t)
			for ctx.Err() == nil {
				chain, err := a.IssueX509(context.Background(), authority.X509Request{ID: request(t, "/app/portal").ID, PublicKey: key.Public(), TTL: time.Second})
				if err != nil {
					t.Error(err)
					return
				}
				// Of one that ends meanwhile nothing is promised.
				if now := time.Now(); now.Before(chain[0].NotAfter) && !verifies(a, chain[0], now) && time.Now().Before(chain[0].NotAfter) {
					t.Errorf("an SVID that was just issued is not vouched for: %v", states(a))
				}
				a.Bundle()
				a.Status()
			}
		})
	}
	turns := 0
	for range 3 {
		for _, step := range []func(context.Context, authority.Order) error{a.Prepare, a.Activate, a.Retire} {
			for {
				err := step(ctx, authority.Order{Lead: time.Millisecond})
				if err == nil {
					turns++
					break
				}
				var refused *authority.TransitionError
				if !errors.As(err, &refused) || refused.Possible.IsZero() {
					t.Fatal(err)
				}
				<-time.After(time.Until(refused.Possible))
			}
		}
	}
	cancel()
	tasks.Wait()
	if turns != 9 {
		t.Errorf("%d steps", turns)
	}
}

// TestAway: an authority that was away for any time mends its CAs at the next start.
func TestAway(t *testing.T) {
	dir := filepath.Join(memory(t), "ca")
	synctest.Test(t, func(t *testing.T) {
		o := authority.Options{Dir: dir, TrustDomain: domain, Logger: zap.NewNop(), CATTL: time.Hour, X509TTL: time.Minute}
		for _, away := range []time.Duration{0, 45 * time.Minute, 59 * time.Minute, time.Hour, 5 * time.Hour, 45 * time.Minute} {
			time.Sleep(away)
			a, err := authority.Open(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- a.Run(ctx) }()
			synctest.Wait()
			issue(t, a)
			cancel()
			if err := errors.Join(<-ended, a.Close()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRunAgain: a step that fails is tried again, and the observer learns of it.
func TestRunAgain(t *testing.T) {
	dir := filepath.Join(memory(t), "ca")
	synctest.Test(t, func(t *testing.T) {
		failed := 0
		o := authority.Options{Dir: dir, TrustDomain: domain, Logger: zap.NewNop(), CATTL: time.Hour, X509TTL: time.Minute}
		o.Events = func(e authority.Event) {
			if e.Err != nil {
				failed++
			}
		}
		a, err := authority.Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		blocked := filepath.Join(dir, "x509-ca-2.crt", "in the way") // a folder where the certificate belongs
		if err := os.MkdirAll(blocked, 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		time.Sleep(42 * time.Minute)
		synctest.Wait()
		if failed < 2 || failed > 20 {
			t.Errorf("%d failures seen in two minutes", failed)
		}
		if err := os.RemoveAll(filepath.Dir(blocked)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		wantActive := a.Rotation().Generations
		if wantActive[len(wantActive)-1].Number != 2 || wantActive[len(wantActive)-1].State != authority.Active {
			t.Errorf("the CAs are %v", states(a))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
