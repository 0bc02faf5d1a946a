package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"github.com/wardmesh/ward/proxy"
)

const audience = "https://fhir.ehr.clinic.example/fhir"

// signer is a key of an issuer.
type signer struct {
	kid, alg string
	private  crypto.Signer
}

// The keys are made once: RSA keys take long.
var keysOnce = sync.OnceValue(func() map[string]signer {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		return must(k, err)
	}
	r := func(bits int) crypto.Signer {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		return must(k, err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	rsa1 := r(2048)
	return map[string]signer{
		"es256":  {"es256", "ES256", ec(elliptic.P256())},
		"es256b": {"es256b", "ES256", ec(elliptic.P256())},
		"es384":  {"es384", "ES384", ec(elliptic.P384())},
		"rs256":  {"rs256", "RS256", rsa1},
		"ps256":  {"rs256", "PS256", rsa1},
		"eddsa":  {"eddsa", "EdDSA", must(ed, err)},
		"weak":   {"weak", "RS256", r(1024)},
	}
})

func keyOf(name string) signer { return keysOnce()[name] }

// jwk is the public half as an issuer publishes it.
func (s signer) jwk() map[string]any {
	b, err := jose.JSONWebKey{Key: s.private.Public(), KeyID: s.kid, Use: "sig"}.MarshalJSON()
	if err != nil {
		panic(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

func keySetOf(keys ...signer) string {
	list := []any{}
	for _, k := range keys {
		list = append(list, k.jwk())
	}
	return toJSON(map[string]any{"keys": list})
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// sign makes a compact JWS of any two texts, well-formed or not.
func (s signer) sign(header, payload string) string {
	input := encode(header) + "." + encode(payload)
	var sig []byte
	var err error
	switch k := s.private.(type) {
	case *ecdsa.PrivateKey:
		n := (k.Curve.Params().BitSize + 7) / 8
		digest := sha256.Sum256([]byte(input))
		d := digest[:]
		if n == 48 {
			long := sha512.Sum384([]byte(input))
			d = long[:]
		}
		r, t, e := ecdsa.Sign(rand.Reader, k, d)
		sig, err = append(r.FillBytes(make([]byte, n)), t.FillBytes(make([]byte, n))...), e
	case *rsa.PrivateKey:
		digest := sha256.Sum256([]byte(input))
		if s.alg == "PS256" {
			sig, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, digest[:])
		}
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	}
	if err != nil {
		panic(err)
	}
	return input + "." + encode(string(sig))
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

type members = map[string]any

// token is an access token by RFC 9068 with changes to it; a nil value takes the member away.
func (s signer) token(issuer string, now time.Time, changes ...members) string {
	head := members{"alg": s.alg, "kid": s.kid, "typ": "at+jwt"}
	body := members{
		"iss": issuer, "aud": audience, "sub": "dr.lee", "client_id": "portal", "jti": "t-1",
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "scope": "openid user/*.rs",
	}
	for _, c := range changes {
		for name, v := range c {
			into := body
			if rest, found := strings.CutPrefix(name, "header "); found {
				into, name = head, rest
			}
			if v == nil {
				delete(into, name)
			} else {
				into[name] = v
			}
		}
	}
	return s.sign(toJSON(head), toJSON(body))
}

// provider is an issuer's web server.
type provider struct {
	*httptest.Server
	handler  atomic.Pointer[http.HandlerFunc] // for the key set; nil serves keys
	keys     atomic.Pointer[string]
	metadata atomic.Pointer[string] // instead of the right ones
	fetches  atomic.Int64           // of the key set
}

func newProvider(t testing.TB, keys ...signer) *provider {
	p := &provider{}
	p.publish(keys...)
	p.Server = httptest.NewUnstartedServer(p)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func (p *provider) publish(keys ...signer) {
	s := keySetOf(keys...)
	p.keys.Store(&s)
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	switch r.URL.Path {
	case "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server":
		if m := p.metadata.Load(); m != nil {
			w.Write([]byte(*m))
			return
		}
		w.Write([]byte(toJSON(members{"issuer": p.URL, "jwks_uri": p.URL + "/jwks", "scopes_supported": []string{"openid"}})))
	case "/jwks":
		p.fetches.Add(1)
		if h := p.handler.Load(); h != nil {
			(*h)(w, r)
			return
		}
		w.Write([]byte(*p.keys.Load()))
	default:
		http.NotFound(w, r)
	}
}

func (p *provider) serve(h http.HandlerFunc) { p.handler.Store(&h) }

func (p *provider) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Certificate())
	return pool
}

// start makes a Verifier of is and runs it until the test ends.
func start(t testing.TB, o Options, issuers ...Issuer) *Verifier {
	t.Helper()
	v := stopped(t, o, issuers...)
	done := make(chan error)
	go func() { done <- v.Run(context.Background()) }()
	t.Cleanup(func() {
		v.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return v
}

// stopped makes a Verifier that does not run.
func stopped(t testing.TB, o Options, issuers ...Issuer) *Verifier {
	t.Helper()
	o.Issuers = issuers
	if o.Logger == nil {
		o.Logger = zaptest.NewLogger(t)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func refusal(t testing.TB, err error) *proxy.Refusal {
	t.Helper()
	var r *proxy.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	return r
}

func wantRefusal(t testing.TB, err error, cause proxy.Cause) *proxy.Refusal {
	t.Helper()
	r := refusal(t, err)
	if r.Cause != cause {
		t.Errorf("got %v, want %s", r, cause)
	}
	return r
}
