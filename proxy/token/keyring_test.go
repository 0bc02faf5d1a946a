package token

import (
	"context"
	"errors"
	"net"
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

// pipeIssuer is an issuer on a network of pipes, so that the clock can be a fake one.
type pipeIssuer struct {
	Issuer
	down    atomic.Bool
	hang    atomic.Bool
	keys    atomic.Pointer[string]
	fetches atomic.Int64
	slow    atomic.Int64           // how long an answer takes after it has been made
	control atomic.Pointer[string] // Cache-Control

	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

const pipeURL = "http://127.0.0.1:7777"

func newPipeIssuer(keys ...signer) *pipeIssuer {
	p := &pipeIssuer{conns: make(chan net.Conn), done: make(chan struct{})}
	p.Issuer = Issuer{Issuer: pipeURL, Audience: []string{audience}}
	p.publish(keys...)
	return p
}

func (p *pipeIssuer) publish(keys ...signer) {
	s := keySetOf(keys...)
	p.keys.Store(&s)
}

func (p *pipeIssuer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if p.down.Load() {
		p.fetches.Add(1)
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipeIssuer) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipeIssuer) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipeIssuer) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipeIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/.well-known/openid-configuration" {
		p.fetches.Add(1)
		if p.hang.Load() {
			<-r.Context().Done()
			return
		}
		w.Write([]byte(toJSON(members{"issuer": pipeURL, "jwks_uri": pipeURL + "/jwks"})))
		return
	}
	keys := *p.keys.Load()
	if c := p.control.Load(); c != nil {
		w.Header().Set("Cache-Control", *c)
	}
	time.Sleep(time.Duration(p.slow.Load()))
	w.Write([]byte(keys))
}

// inBubble runs f with a running Verifier of p, on a fake clock.
func inBubble(t *testing.T, p func() *pipeIssuer, f func(t *testing.T, v *Verifier, p *pipeIssuer)) {
	keysOnce() // outside: it is slow, and its randomness is none of the bubble's
	synctest.Test(t, func(t *testing.T) {
		p := p()
		srv := &http.Server{Handler: p}
		served := make(chan struct{})
		go func() {
			srv.Serve(p)
			close(served)
		}()
		v, err := New(Options{Issuers: []Issuer{p.Issuer}, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(), dial: p.dial})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error)
		go func() { ran <- v.Run(t.Context()) }()
		f(t, v, p)
		v.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		srv.Close()
		<-served
		synctest.Wait()
	})
}

// after lets d pass and everything that is due happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestKeysFirstTokenWaitsForTheFirstReading(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		if _, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now())); err != nil {
			t.Error(err)
		}
	})
}

func TestKeysRollOver(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		old := keyOf("es256").token(pipeURL, time.Now(), members{"exp": time.Now().Add(time.Hour).Unix()})
		if _, err := v.Verify(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		p.publish(keyOf("es256b"))
		// A token by the new key is accepted at once: it makes its issuer be asked.
		if _, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now())); err != nil {
			t.Error(err)
		}
		// The old key is gone, and with it its tokens, remembered or not.
		_, err := v.Verify(t.Context(), old)
		wantRefusal(t, err, proxy.CauseTokenSignature)
	})
}

func TestKeysRemovedEndTheirTokensWithinRefresh(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256"), keyOf("es256b")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		raw := keyOf("es256").token(pipeURL, time.Now(), members{"exp": time.Now().Add(time.Hour).Unix()})
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		p.publish(keyOf("es256b"))
		after(DefaultRefresh)
		_, err := v.Verify(t.Context(), raw)
		wantRefusal(t, err, proxy.CauseTokenSignature)
		// A set without any key takes effect just so.
		p.publish()
		after(DefaultRefresh)
		_, err = v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now()))
		wantRefusal(t, err, proxy.CauseTokenSignature)
	})
}

func TestKeysUnknownDoNotFloodTheIssuer(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Second)
		before, began := p.fetches.Load(), time.Now()
		certain := 0
		// 100 seconds of 50 unknown keys a second, each in a token of its own
		for i := 0; time.Since(began) < 100*time.Second; i++ {
			for j := range 50 {
				_, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now(), members{"header kid": toJSON([]int{i, j})}))
				if cause(err) == proxy.CauseTokenSignature {
					certain++ // it was worth a reading
				} else {
					wantRefusal(t, err, proxy.CauseIssuerDown)
				}
			}
			before := time.Now()
			if _, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now())); err != nil || time.Since(before) != 0 {
				t.Errorf("a known key, after %s: %v", time.Since(before), err)
			}
			after(time.Second)
		}
		n := int(p.fetches.Load() - before)
		if n < 10 || n > demandBurst+10 {
			t.Errorf("%d readings in 100 s with a cool-down of 10 s", n)
		}
		if certain != n {
			t.Errorf("%d tokens were refused for good after %d readings", certain, n)
		}
	})
}

// Hundreds of calls at one moment cause one reading, and all of them get its result.
func TestKeysUnknownAtOnce(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		p.publish(keyOf("es256"), keyOf("es256b"))
		before := p.fetches.Load()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if _, err := v.Verify(t.Context(), keyOf("es256b").token(pipeURL, time.Now(), members{"jti": toJSON(i)})); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := p.fetches.Load() - before; n != 1 {
			t.Errorf("%d readings", n)
		}
	})
}

func TestKeysHangingIssuerStallsNobody(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Minute)
		p.hang.Store(true)
		began := time.Now()
		unknown := keyOf("es256b")
		_, err := v.Verify(t.Context(), unknown.token(pipeURL, time.Now()))
		wantRefusal(t, err, proxy.CauseIssuerDown)
		if d := time.Since(began); d != demandWait {
			t.Errorf("the first unknown key waited for %s", d)
		}
		began = time.Now()
		for range 10 {
			_, err = v.Verify(t.Context(), unknown.token(pipeURL, time.Now()))
			wantRefusal(t, err, proxy.CauseIssuerDown)
			if _, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now())); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("later calls waited for %s", d)
		}
		// The caller's own patience counts.
		after(30 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		any, none := func(*key) error { return nil }, func() error { return nil }
		if _, err := v.issuers[pipeURL].keys.find(ctx, header{alg: "ES256", kid: "x"}, any, none); err == nil {
			t.Error("found a key that is not there")
		}
	})
}

func TestKeysIssuerDownAtStart(t *testing.T) {
	down := func() *pipeIssuer {
		p := newPipeIssuer(keyOf("es256"))
		p.down.Store(true)
		return p
	}
	inBubble(t, down, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		began := time.Now()
		_, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now()))
		wantRefusal(t, err, proxy.CauseIssuerDown)
		if d := time.Since(began); d > demandWait {
			t.Errorf("the call waited for %s", d)
		}
		if s := v.Status(); len(s) != 1 || s[0].Err == nil || s[0].Keys != 0 || !s[0].Read.IsZero() {
			t.Errorf("status %+v", s)
		}
		after(10 * time.Minute)
		// 1, 2, 4 … 60 s, each up to a quarter shorter
		if n := p.fetches.Load(); n < 10 || n > 25 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		p.down.Store(false)
		after(time.Minute)
		if _, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now())); err != nil {
			t.Error(err)
		}
		if s := v.Status(); s[0].Err != nil || s[0].Keys != 1 || s[0].Read.IsZero() {
			t.Errorf("status %+v", s)
		}
	})
}

func TestKeysServeOnUntilTheyAreTooOld(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Second)
		p.down.Store(true)
		after(DefaultKeyAge - 10*time.Minute)
		raw := keyOf("es256").token(pipeURL, time.Now(), members{"exp": time.Now().Add(time.Hour).Unix()})
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		after(11 * time.Minute)
		_, err := v.Verify(t.Context(), raw) // remembered, and yet
		wantRefusal(t, err, proxy.CauseIssuerDown)
		p.down.Store(false)
		after(time.Minute)
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Error(err)
		}
	})
}

func TestKeysUnreadableSetKeepsTheLast(t *testing.T) {
	inBubble(t, func() *pipeIssuer { return newPipeIssuer(keyOf("es256")) }, func(t *testing.T, v *Verifier, p *pipeIssuer) {
		after(time.Second)
		broken := `{"keys":[],"keys":[]}`
		p.keys.Store(&broken)
		after(20 * time.Minute)
		if _, err := v.Verify(t.Context(), keyOf("es256").token(pipeURL, time.Now())); err != nil {
			t.Error(err)
		}
		if s := v.Status(); s[0].Err == nil {
			t.Error("the status does not tell of the failure")
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	p := newProvider(t, keyOf("es256"))
	v := stopped(t, Options{}, Issuer{Issuer: p.URL, Audience: []string{audience}, RootCAs: p.roots()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- v.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
