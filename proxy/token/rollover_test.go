package token

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// An issuer that begins to use a key at any moment between two readings, and just after one, has no call refused.
func TestRollOverAtAnyMomentRefusesNothing(t *testing.T) {
	for _, since := range []time.Duration{0, time.Millisecond, floor / 2, floor, 5 * time.Second, DefaultCoolDown, time.Minute} {
		t.Run(since.String(), func(t *testing.T) {
			inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
				synctest.Wait()
				after(since) // after the first reading
				p.publish(keyOf("es256"), keyOf("es256b"))
				began := time.Now()
				for _, k := range []string{"es256b", "es256"} {
					if _, err := v.Verify(t.Context(), keyOf(k).token(pipeURL, time.Now())); err != nil {
						t.Errorf("%s: %v", k, err)
					}
				}
				if d := time.Since(began); d > floor {
					t.Errorf("it took %s", d)
				}
			})
		})
	}
}

// A reading that was under way before the issuer began to use its key tells nothing of that key.
func TestRollOverDuringAReading(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		p.slow.Store(int64(300 * time.Millisecond))
		unknown := keyOf("eddsa").token(pipeURL, time.Now())
		go v.Verify(t.Context(), unknown) //nolint:errcheck // it only causes a reading
		after(100 * time.Millisecond)     // the issuer has made its answer, and it is on its way
		p.publish(keyOf("es256"), keyOf("es256b"))
		if _, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now())); err != nil {
			t.Error(err)
		}
	})
}

// Many calls a second, by tokens of whichever key the issuer signs with, while it rolls over three times.
func TestRollOverUnderLoad(t *testing.T) {
	for _, c := range []struct {
		name    string
		overlap bool
	}{{"the old key stays published for a while", true}, {"the old key is gone at once", false}} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
				after(time.Minute)
				var signing atomic.Pointer[signer]
				use := func(name string) { k := keyOf(name); signing.Store(&k) }
				use("es256")
				var good, unready, bad atomic.Int64
				var wg sync.WaitGroup
				end := time.Now().Add(80 * time.Second)
				for worker := range 8 {
					wg.Go(func() {
						time.Sleep(time.Duration(worker) * 7 * time.Millisecond)
						for n := 0; time.Now().Before(end); n++ {
							raw := signing.Load().token(pipeURL, time.Now(), members{"jti": toJSON([]int{worker, n})})
							switch _, err := v.Verify(t.Context(), raw); {
							case err == nil:
								good.Add(1)
							case cause(err) == proxy.CauseIssuerDown:
								unready.Add(1)
							default:
								bad.Add(1)
								t.Log(err)
							}
							time.Sleep(100 * time.Millisecond)
						}
					})
				}
				old := "es256"
				for _, next := range []string{"es256b", "eddsa", "es256"} {
					time.Sleep(20*time.Second + 3*time.Millisecond) // not at the very moment of a call
					if c.overlap {
						p.publish(keyOf(old), keyOf(next))
						use(next)
						time.Sleep(5 * time.Second)
					}
					p.publish(keyOf(next))
					use(next)
					old = next
				}
				wg.Wait()
				t.Logf("%d served, %d could not be checked, %d refused", good.Load(), unready.Load(), bad.Load())
				if bad.Load() > 0 || unready.Load() > 0 || good.Load() < 5_000 {
					t.Error("an honest call was refused")
				}
			})
		})
	}
}

// The remembered tokens of a key go with it, and those of the other keys stay.
func TestRollOverForgetsTheTokensOfAVanishedKey(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256"), keyOf("es256b")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		long := members{"exp": time.Now().Add(time.Hour).Unix()}
		for _, k := range []string{"es256", "es256b"} {
			for i := range 10 {
				if _, err := v.Verify(t.Context(), keyOf(k).token(pipeURL, time.Now(), long, members{"jti": toJSON(i)})); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.publish(keyOf("es256b"))
		after(DefaultRefresh)
		kept := 0
		for _, e := range v.cache.All() {
			kept++
			if !e.issuer.keys.holds(e.key) {
				t.Error("a token of the vanished key is remembered")
			}
		}
		if kept != 10 {
			t.Errorf("%d tokens are remembered, not 10", kept)
		}
	})
}

// A flood that has spent the budget costs a new key's tokens a 503 and ten seconds at the most, and is then over.
func TestRollOverDuringAFlood(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		flood := func() {
			for i := range 20 {
				_, err := v.Verify(t.Context(), keyOf("eddsa").token(pipeURL, time.Now(), members{"header kid": toJSON(i)}))
				if err == nil {
					t.Fatal("an unknown key was accepted")
				}
			}
		}
		flood()
		p.publish(keyOf("es256"), keyOf("es256b"))
		published := time.Now()
		for {
			_, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now()))
			if err == nil {
				break
			}
			wantRefusal(t, err, proxy.CauseIssuerDown)
			if time.Since(published) > DefaultCoolDown+demandWait {
				t.Fatalf("still refused after %s: %v", time.Since(published), err)
			}
			after(100 * time.Millisecond)
			flood()
		}
	})
}

// A token that would be refused anyway spends nothing of the budget, and is told nothing of its claims.
func TestRollOverBudgetIsForTokensThatCouldBeAccepted(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		before := p.fetches.Load()
		for _, m := range []members{{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}, {"aud": "someone else"}, {"sub": nil}} {
			_, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now(), m))
			wantRefusal(t, err, proxy.CauseTokenSignature)
		}
		if n := p.fetches.Load() - before; n != 0 {
			t.Errorf("%d readings", n)
		}
	})
}

// RFC 9068 does not ask for a kid: then no key tells by its name that it is not the one.
func TestRollOverOfKeysWithoutNames(t *testing.T) {
	nameless := func(name string) signer { k := keyOf(name); k.kid = ""; return k }
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(nameless("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		none := members{"header kid": nil}
		if _, err := v.Verify(t.Context(), nameless("es256").token(pipeURL, time.Now(), none)); err != nil {
			t.Fatal(err)
		}
		p.publish(nameless("es256b"))
		if _, err := v.Verify(t.Context(), nameless("es256b").token(pipeURL, time.Now(), none)); err != nil {
			t.Error(err)
		}
		_, err := v.Verify(t.Context(), nameless("es256").token(pipeURL, time.Now(), none, members{"jti": "another"}))
		wantRefusal(t, err, proxy.CauseTokenSignature)
	})
}

// RFC 9111: an issuer that calls its keys fresh for less than Refresh is asked before that has passed.
func TestRollOverAheadOfMaxAge(t *testing.T) {
	for _, c := range []struct {
		control, age string
		least, most  time.Duration
	}{
		{"max-age=120", "", 108 * time.Second, 2 * time.Minute},
		{"public, MAX-AGE=120, must-revalidate", "", 108 * time.Second, 2 * time.Minute},
		{`max-age="120"`, "", 108 * time.Second, 2 * time.Minute},
		{"max-age=180", "60", 108 * time.Second, 2 * time.Minute},
		{"max-age=0", "", 54 * time.Second, leastFresh},
		{"max-age=5", "9", 54 * time.Second, leastFresh},
		{"max-age=86400", "", 270 * time.Second, DefaultRefresh},
		{"no-store", "", 270 * time.Second, DefaultRefresh},
		{"max-age=-1", "", 270 * time.Second, DefaultRefresh},
		{"max-age=99999999999999999999", "", 270 * time.Second, DefaultRefresh},
		{"", "", 270 * time.Second, DefaultRefresh},
	} {
		t.Run(c.control+" "+c.age, func(t *testing.T) {
			h := http.Header{}
			if c.control != "" {
				h.Set("Cache-Control", c.control)
			}
			if c.age != "" {
				h.Set("Age", c.age)
			}
			fresh := freshness(h)
			k := &keyring{issuer: &issuer{Issuer: Issuer{Refresh: DefaultRefresh}}}
			for range 100 {
				if d := k.until(fresh); d < c.least || d > c.most {
					t.Fatalf("read again after %s", d)
				}
			}
		})
	}
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		control := "max-age=60"
		p.control.Store(&control)
		after(DefaultRefresh + time.Second) // the reading that tells it
		before := p.fetches.Load()
		after(10 * time.Minute)
		if n := p.fetches.Load() - before; n < 9 || n > 12 {
			t.Errorf("%d readings in ten minutes of a minute's freshness", n)
		}
	})
}

// A Verifier that takes over another's keys has not asked for them itself: what they lack is asked for.
func TestRollOverAfterAReplacement(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(2 * DefaultRefresh) // it has read them more than once
		p.publish(keyOf("es256"), keyOf("es256b"))
		next, err := New(Options{Issuers: []Issuer{p.Issuer}, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(), Before: v, dial: p.dial})
		if err != nil {
			t.Fatal(err)
		}
		verified := make(chan error)
		go func() {
			_, err := next.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now()))
			verified <- err
		}()
		synctest.Wait()
		ran := make(chan error)
		go func() { ran <- next.Run(t.Context()) }()
		if err := <-verified; err != nil {
			t.Error(err)
		}
		next.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
