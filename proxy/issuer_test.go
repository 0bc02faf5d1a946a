package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy/token"
)

const (
	issuerURL = "https://op.clinic.test"
	audience  = "https://fhir.clinic.test/fhir"
)

// claims are what a token says; nil takes a claim away.
type claims map[string]any

// issuer is an authorization server, as far as a ward sees it: a key set in a file.
type issuer struct {
	key  *ecdsa.PrivateKey
	kid  string
	file string
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{key: newKey(t), kid: "k1", file: filepath.Join(t.TempDir(), "jwks.json")}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(i.file, set, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// verifier is the real one, over this issuer's keys.
func (i *issuer) verifier(t testing.TB, now func() time.Time) *token.Verifier {
	t.Helper()
	v, err := token.New(token.Options{
		Issuers: []token.Issuer{{Issuer: issuerURL, Audience: []string{audience}, JWKSFile: i.file,
			Claims: token.Claims{Roles: "roles", Purpose: "purpose"}}},
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(), Clock: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return v
}

// token is a physician's access token for the client, with changes to it.
func (i *issuer) token(t testing.TB, client string, changes ...claims) string {
	t.Helper()
	now := time.Now()
	body := claims{"iss": issuerURL, "aud": audience, "sub": "dr.lee", "client_id": client, "jti": "t-1",
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "scope": "user/*.cruds", "roles": []string{"physician"}}
	for _, c := range changes {
		for name, v := range c {
			if body[name] = v; v == nil {
				delete(body, name)
			}
		}
	}
	input := segment(t, claims{"alg": "ES256", "kid": i.kid, "typ": "at+jwt"}) + "." + segment(t, body)
	return input + "." + base64.RawURLEncoding.EncodeToString(i.sign(t, input))
}

// sign is ES256 (RFC 7518 §3.4).
func (i *issuer) sign(t testing.TB, input string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// ofPatient are the claims of a token that is confined to one patient.
func ofPatient(id string) claims {
	return claims{"scope": "patient/*.cruds", "patient": id, "sub": "pat." + id, "roles": nil}
}

func segment(t testing.TB, c claims) string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}
