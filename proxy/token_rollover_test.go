package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/token"
)

// publisher is an issuer that publishes its keys over HTTP and can roll them over.
type publisher struct {
	issuer
	*httptest.Server
	set atomic.Pointer[[]byte]
}

func newPublisher(t testing.TB) *publisher {
	p := &publisher{issuer: issuer{key: newKey(t), kid: "r0"}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*p.set.Load()) }))
	t.Cleanup(p.Server.Close)
	p.publish(t, p.issuer)
	return p
}

func (p *publisher) publish(t testing.TB, keys ...issuer) {
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.key.Public().(*ecdsa.PublicKey), KeyID: k.kid, Use: "sig", Algorithm: "ES256"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	p.set.Store(&b)
}

func (p *publisher) verifier(t testing.TB) *token.Verifier {
	v, err := token.New(token.Options{Issuers: []token.Issuer{{Issuer: issuerURL, Audience: []string{audience}, JWKSURI: p.URL, Claims: token.Claims{Roles: "roles"}}},
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return v
}

// The issuer rolls its key over under load, through both wards. As long as the old key stays published until its tokens are
// used up, no call fails; where it is taken away at once, the tokens of the new one are served, or told to come again.
func TestTokenKeyRollsOverUnderLoad(t *testing.T) {
	for name, overlap := range map[string]bool{"with overlap": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t)
			w := newWorld(t, setup{ingress: func(o *proxy.IngressOptions) { o.Tokens = p.verifier(t) }})
			w.upstream.always(reply(200, `{"resourceType":"Observation","id":"1","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/a"}}`))
			var signing atomic.Pointer[issuer]
			signing.Store(&p.issuer)
			var served, waiting atomic.Int64
			var wg sync.WaitGroup
			stop := make(chan struct{})
			enough := make(chan struct{}, 1)
			var after atomic.Int64 // calls served since the last change
			for range 4 {
				wg.Go(func() {
					c := w.dialEgress(w.portal)
					in := newReader(c)
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						by := signing.Load()
						raw := request("GET /fhir/Observation/1", "", bearer(by.token(t, "portal", claims{"jti": itoa(n)})))
						if _, err := c.Write([]byte(raw)); err != nil {
							t.Error(err)
							return
						}
						switch a := read(t, in, raw); {
						case a.status == 200:
							served.Add(1)
							if by == signing.Load() && after.Add(1) == 25 {
								enough <- struct{}{}
							}
						case a.status == 503 && a.header.Get("Retry-After") != "" && !overlap:
							waiting.Add(1)
						case a.status == 401 && !overlap && by != signing.Load():
							// It was signed before its key was taken away, and came after.
						default:
							t.Errorf("%d %s", a.status, a.body)
							return
						}
					}
				})
			}
			await := func() {
				select {
				case <-enough:
				case <-time.After(patience):
					t.Error("calls are not served")
				}
			}
			await()
			for n := range 3 {
				old, next := *signing.Load(), issuer{key: newKey(t), kid: "r" + itoa(n+1)}
				if overlap {
					p.publish(t, old, next)
				} else {
					p.publish(t, next)
				}
				after.Store(0)
				signing.Store(&next)
				await()
			}
			close(stop)
			wg.Wait()
			t.Logf("%d served, %d told to come again", served.Load(), waiting.Load())
		})
	}
}
