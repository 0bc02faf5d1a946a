package token

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

const local = "https://login.clinic.example"

// localIssuer is an issuer whose keys lie in a file, which is all that checking tokens needs.
func localIssuer(t testing.TB, keys ...signer) Issuer {
	name := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(name, []byte(keySetOf(keys...)), 0o600); err != nil {
		t.Fatal(err)
	}
	return Issuer{
		Issuer: local, Audience: []string{audience, "other"}, JWKSFile: name,
		FHIRBases: []string{audience}, Leeway: 30 * time.Second,
		Claims: Claims{Roles: "realm_access.roles", Purpose: "purpose_of_use"},
	}
}

// The zero leeway is the strictest, and says so: a token ends when it ends.
func TestVerifyWithoutLeeway(t *testing.T) {
	is := localIssuer(t, keyOf("es256"))
	is.Leeway = 0
	v := stopped(t, Options{}, is)
	now := time.Now().Truncate(time.Second)
	for _, tt := range []struct {
		name  string
		age   time.Duration // of a token that is valid for five minutes
		cause proxy.Cause
	}{
		{"issued this second", 0, ""},
		{"just before its end", 5*time.Minute - 2*time.Second, ""},
		{"at its end", 5 * time.Minute, proxy.CauseTokenExpired},
		{"a second after", 5*time.Minute + time.Second, proxy.CauseTokenExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), keyOf("es256").token(local, now.Add(-tt.age)))
			if tt.cause != "" {
				wantRefusal(t, err, tt.cause)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	is := localIssuer(t, keyOf("es256"), keyOf("rs256"), keyOf("eddsa"), keyOf("es384"))
	v := stopped(t, Options{}, is)
	now := time.Now().Truncate(time.Second)
	want := &proxy.Token{
		Client:   proxy.Client{Issuer: local, ID: "portal"},
		User:     &proxy.User{Issuer: local, Subject: "dr.lee"},
		ID:       "t-1",
		IssuedAt: now,
		Expires:  now.Add(5 * time.Minute),
	}
	for _, name := range []string{"es256", "rs256", "ps256", "eddsa"} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), keyOf(name).token(local, now))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, cmpopts.IgnoreTypes(fhir.Scopes{})); d != "" {
				t.Error(d)
			}
			if g, verdict := got.Scopes.Permit(fhir.Interaction{Kind: fhir.Read, Type: "Patient", ID: "1"}); verdict != fhir.Granted || g.Level != fhir.UserLevel {
				t.Errorf("the scopes give %+v, %d", g, verdict)
			}
		})
	}
}

func TestAuthenticate(t *testing.T) {
	v := stopped(t, Options{}, localIssuer(t, keyOf("es256")))
	raw := keyOf("es256").token(local, time.Now())
	if _, err := v.Authenticate(t.Context(), []string{"Bearer " + raw}); err != nil {
		t.Error(err)
	}
	_, err := v.Authenticate(t.Context(), nil)
	wantRefusal(t, err, proxy.CauseTokenMissing)
	_, err = v.Authenticate(t.Context(), []string{"Bearer " + raw, "Bearer " + raw})
	wantRefusal(t, err, proxy.CauseTokenMalformed)
}

// Every case changes one thing of a good token.
func TestVerifyClaims(t *testing.T) {
	const ok = proxy.Cause("")
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	tests := []struct {
		name   string
		change members
		cause  proxy.Cause
		detail string // part of it
	}{
		{"RFC 9068 2.1 typ in any case", members{"header typ": "AT+JWT"}, ok, ""},
		{"RFC 9068 2.1 typ as a media type", members{"header typ": "application/at+jwt"}, ok, ""},
		{"RFC 9068 4 typ JWT", members{"header typ": "JWT"}, proxy.CauseTokenMalformed, "typ"},
		{"RFC 9068 4 typ missing", members{"header typ": nil}, proxy.CauseTokenMalformed, "typ"},
		{"RFC 9068 4 typ absent by name", members{"header typ": "absent"}, proxy.CauseTokenMalformed, "typ"},
		{"RFC 9068 4 typ of another token", members{"header typ": "logout+jwt"}, proxy.CauseTokenMalformed, "typ"},
		{"RFC 9068 4 typ not a string", members{"header typ": 1}, proxy.CauseTokenMalformed, "typ"},
		{"RFC 9068 2.2 iss missing", members{"iss": nil}, proxy.CauseTokenClaims, "iss"},
		{"RFC 9068 2.2 exp missing", members{"exp": nil}, proxy.CauseTokenClaims, "exp is missing"},
		{"RFC 9068 2.2 aud missing", members{"aud": nil}, proxy.CauseTokenClaims, "aud is missing"},
		{"RFC 9068 2.2 sub missing", members{"sub": nil}, proxy.CauseTokenClaims, "sub is missing"},
		{"RFC 9068 2.2 sub empty", members{"sub": ""}, proxy.CauseTokenClaims, "sub"},
		{"RFC 9068 2.2 client_id missing", members{"client_id": nil}, proxy.CauseTokenClaims, "client_id is missing"},
		{"RFC 9068 2.2 client_id missing, azp there", members{"client_id": nil, "azp": "portal"}, proxy.CauseTokenClaims, "client_id is missing"},
		{"RFC 9068 2.2 iat missing", members{"iat": nil}, proxy.CauseTokenClaims, "iat is missing"},
		{"RFC 9068 2.2 jti missing", members{"jti": nil}, proxy.CauseTokenClaims, "jti is missing"},
		{"RFC 9068 2.2 client_id not a string", members{"client_id": 7}, proxy.CauseTokenClaims, "client_id"},
		{"RFC 9068 2.2 client_id with a line break", members{"client_id": "a\nb"}, proxy.CauseTokenClaims, "client_id"},
		{"RFC 9068 2.2 sub beyond ASCII", members{"sub": "dr.lée"}, proxy.CauseTokenClaims, "sub"},
		{"OIDC Core 2 sub of 256 characters", members{"sub": strings.Repeat("a", 256)}, proxy.CauseTokenClaims, "sub"},
		{"azp equal", members{"azp": "portal"}, ok, ""},
		{"azp different", members{"azp": "game"}, proxy.CauseTokenClaims, "contradict"},
		{"RFC 9068 4 iss of another", members{"iss": "https://evil.example"}, proxy.CauseTokenIssuer, "not configured"},
		{"RFC 9068 4 iss with a slash more", members{"iss": local + "/"}, proxy.CauseTokenIssuer, "not configured"},
		{"RFC 9068 4 iss in capitals", members{"iss": strings.ToUpper(local)}, proxy.CauseTokenIssuer, "not configured"},
		{"RFC 9068 4 iss an array", members{"iss": []string{local}}, proxy.CauseTokenClaims, "iss"},
		{"RFC 9068 4 aud an array with ours", members{"aud": []string{"x", audience}}, ok, ""},
		{"RFC 9068 4 aud another of ours", members{"aud": "other"}, ok, ""},
		{"RFC 9068 4 aud of another", members{"aud": "https://fhir.other.example"}, proxy.CauseTokenAudience, "audience is not ours"},
		{"RFC 9068 4 aud a prefix", members{"aud": audience + "/"}, proxy.CauseTokenAudience, "audience is not ours"},
		{"RFC 9068 4 aud an array of others", members{"aud": []string{"x", "y"}}, proxy.CauseTokenAudience, "audience is not ours"},
		{"RFC 7519 4.1.3 aud an empty array", members{"aud": []string{}}, proxy.CauseTokenClaims, "aud"},
		{"RFC 7519 4.1.3 aud a mixed array", members{"aud": []any{audience, 1}}, proxy.CauseTokenClaims, "aud"},
		{"RFC 7519 4.1.3 aud an object", members{"aud": members{"a": audience}}, proxy.CauseTokenClaims, "aud"},
		{"RFC 7519 4.1.4 expired", members{"exp": at(-192 * time.Second), "iat": at(-time.Hour)}, proxy.CauseTokenExpired, "expired 3m12s ago"},
		{"RFC 7519 4.1.4 on exp and the leeway", members{"exp": at(-30 * time.Second), "iat": at(-time.Hour)}, proxy.CauseTokenExpired, "expired 30s ago"},
		{"RFC 7519 4.1.4 within the leeway", members{"exp": at(-29 * time.Second), "iat": at(-time.Hour)}, ok, ""},
		{"RFC 7519 4.1.4 exp a string", members{"exp": "4102444800"}, proxy.CauseTokenClaims, "exp is not a date"},
		{"RFC 7519 4.1.4 exp null", members{"exp": jsonNull{}}, proxy.CauseTokenClaims, "exp is not a date"},
		{"RFC 7519 4.1.4 exp beyond all dates", members{"exp": 1e300}, proxy.CauseTokenClaims, "exp is not a date"},
		{"RFC 7519 4.1.4 exp negative", members{"exp": -1}, proxy.CauseTokenClaims, "exp is not a date"},
		{"RFC 7519 2 exp with a fraction", members{"exp": float64(at(time.Minute)) + 0.5}, ok, ""},
		{"RFC 7519 4.1.5 nbf passed", members{"nbf": at(-time.Minute)}, ok, ""},
		{"RFC 7519 4.1.5 nbf within the leeway", members{"nbf": at(20 * time.Second)}, ok, ""},
		{"RFC 7519 4.1.5 nbf ahead", members{"nbf": at(2 * time.Minute)}, proxy.CauseTokenExpired, "not valid for another"},
		{"RFC 7519 4.1.5 nbf after exp", members{"nbf": at(20 * time.Second), "exp": at(10 * time.Second)}, proxy.CauseTokenClaims, "exp is not after"},
		{"RFC 7519 4.1.5 nbf a string", members{"nbf": "0"}, proxy.CauseTokenClaims, "nbf is not a date"},
		{"RFC 7519 4.1.6 iat ahead", members{"iat": at(2 * time.Minute)}, proxy.CauseTokenClaims, "iat is"},
		{"RFC 7519 4.1.6 iat after exp", members{"iat": at(20 * time.Second), "exp": at(10 * time.Second)}, proxy.CauseTokenClaims, "exp is not after"},
		{"issued for too long", members{"exp": at(25 * time.Hour)}, proxy.CauseTokenClaims, "24h0m0s is the most"},
		{"RFC 9068 2.2.3 scope missing", members{"scope": nil}, ok, ""},
		{"RFC 9068 2.2.3 scope an array", members{"scope": []string{"user/*.rs"}}, proxy.CauseTokenClaims, "scope is not a string"},
		{"RFC 6749 3.3 scope malformed", members{"scope": "a  b"}, proxy.CauseTokenClaims, "scope"},
		{"RFC 9449 7.1, RFC 8705 3 bound to a key", members{"cnf": members{"jkt": "x"}}, proxy.CauseTokenClaims, "cnf"},
		{"RFC 9068 says what it is, nonce or not", members{"nonce": "n"}, ok, ""},
		{"unknown claims are passed over", members{"x": members{"y": []int{1}}}, ok, ""},
		{"RFC 7515 4.1.11 crit", members{"header crit": []string{"exp"}}, proxy.CauseTokenMalformed, "crit"},
		{"RFC 7797 3 b64", members{"header b64": false}, proxy.CauseTokenMalformed, "b64"},
		{"RFC 8725 3.10 jwk", members{"header jwk": keyOf("es256b").jwk()}, proxy.CauseTokenMalformed, "jwk"},
		{"RFC 8725 3.10 jku", members{"header jku": "https://evil.example/jwks"}, proxy.CauseTokenMalformed, "jku"},
		{"RFC 8725 3.10 x5u", members{"header x5u": "https://evil.example/x"}, proxy.CauseTokenMalformed, "x5u"},
		{"RFC 8725 3.10 x5c", members{"header x5c": []string{"x"}}, proxy.CauseTokenMalformed, "x5c"},
		{"RFC 7516 zip", members{"header zip": "DEF"}, proxy.CauseTokenMalformed, "zip"},
		{"RFC 7515 4.1.4 kid unknown", members{"header kid": "other"}, proxy.CauseTokenSignature, "no key with that kid"},
		{"RFC 8725 3.10 kid as a path", members{"header kid": "../../dev/null"}, proxy.CauseTokenSignature, "no key with that kid"},
		{"RFC 7515 4.1.4 kid not a string", members{"header kid": 1}, proxy.CauseTokenMalformed, "kid"},
		{"RFC 7515 4.1.4 kid empty", members{"header kid": ""}, proxy.CauseTokenMalformed, "kid"},
		{"RFC 7515 4.1.4 kid missing, several keys fit", members{"header kid": nil}, proxy.CauseTokenSignature, "several would fit"},
		{"RFC 8725 3.1 alg of another key", members{"header alg": "RS256"}, proxy.CauseTokenSignature, ""},
		{"RFC 8725 3.1 alg not of this issuer", members{"header alg": "ES384"}, proxy.CauseTokenSignature, "algorithm"},
		{"RFC 8725 3.2 alg none", members{"header alg": "none"}, proxy.CauseTokenSignature, "algorithm"},
		{"RFC 8725 3.2 alg None", members{"header alg": "None"}, proxy.CauseTokenSignature, "algorithm"},
		{"RFC 8725 3.2 alg HS256", members{"header alg": "HS256"}, proxy.CauseTokenSignature, "algorithm"},
		{"RFC 7515 4.1.1 alg missing", members{"header alg": nil}, proxy.CauseTokenMalformed, "algorithm"},
		{"RFC 7515 4.1.1 alg not a string", members{"header alg": 1}, proxy.CauseTokenMalformed, "algorithm"},
	}
	v := start(t, Options{Clock: func() time.Time { return now.Truncate(time.Second) }}, localIssuer(t, keyOf("es256"), keyOf("es256b"), keyOf("rs256")))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := keyOf("es256").token(local, now, tt.change)
			_, err := v.Verify(t.Context(), raw)
			if tt.cause == ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			r := wantRefusal(t, err, tt.cause)
			if !strings.Contains(r.Detail, tt.detail) {
				t.Errorf("detail %q lacks %q", r.Detail, tt.detail)
			}
			discloses(t, r, raw)
		})
	}
}

type jsonNull struct{}

func (jsonNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// discloses fails when a refusal repeats something out of the token.
func discloses(t *testing.T, r *proxy.Refusal, raw string) {
	t.Helper()
	for _, secret := range []string{"dr.lee", "portal", "t-1", "user/", "evil.example", "game", raw[:20]} {
		if strings.Contains(r.Error(), secret) {
			t.Errorf("%q repeats %q from the token", r.Error(), secret)
		}
	}
}

// Plain JWTs are accepted only where config says so, and only when they cannot be anything but access tokens.
func TestVerifyPlainJWT(t *testing.T) {
	const ok = proxy.Cause("")
	tests := []struct {
		name   string
		change members
		cause  proxy.Cause
	}{
		{"typ JWT", members{"header typ": "JWT"}, ok},
		{"no typ", members{"header typ": nil}, ok},
		{"typ not listed", members{"header typ": "at+jwt"}, proxy.CauseTokenMalformed},
		{"typ absent by name", members{"header typ": "absent"}, proxy.CauseTokenMalformed},
		{"azp alone", members{"client_id": nil, "azp": "portal"}, ok},
		{"neither client_id nor azp", members{"client_id": nil}, proxy.CauseTokenClaims},
		{"azp different", members{"azp": "game"}, proxy.CauseTokenClaims},
		{"no iat, no jti", members{"iat": nil, "jti": nil}, ok},
		{"no iat, too long", members{"iat": nil, "exp": time.Now().Add(25 * time.Hour).Unix()}, proxy.CauseTokenClaims},
		{"claim typ Bearer", members{"typ": "Bearer"}, ok},
		{"claim typ ID", members{"typ": "ID"}, proxy.CauseTokenClaims},
		{"claim typ Refresh", members{"typ": "Refresh"}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 ID Token by nonce", members{"nonce": "n"}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 ID Token by at_hash", members{"at_hash": "h"}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 ID Token by c_hash", members{"c_hash": "h"}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 ID Token by audience", members{"aud": []string{audience, "portal"}}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 ID Token without scope", members{"scope": nil}, proxy.CauseTokenClaims},
		{"RFC 8725 3.12 logout token", members{"events": members{"http://schemas.openid.net/event/backchannel-logout": members{}}}, proxy.CauseTokenClaims},
	}
	is := localIssuer(t, keyOf("es256"))
	is.Types = []string{"JWT", "absent"}
	v := stopped(t, Options{}, is)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), keyOf("es256").token(local, time.Now(), members{"header typ": "JWT"}, tt.change))
			if tt.cause == ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, tt.cause)
		})
	}
}

func TestVerifyForm(t *testing.T) {
	now := time.Now()
	good := keyOf("es256").token(local, now)
	seg := strings.Split(good, ".")
	rsaPublic := keyOf("rs256").jwk()["n"].(string)
	hs := func(key string) string {
		input := encode(`{"alg":"HS256","kid":"rs256","typ":"at+jwt"}`) + "." + seg[1]
		m := hmac.New(sha256.New, []byte(key))
		m.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	body := func(s string) string {
		return `{"iss":"` + local + `",` + s + `}`
	}
	es := keyOf("es256")
	const head = `{"alg":"ES256","kid":"es256","typ":"at+jwt"}`
	// In the last character of a 64-byte signature four bits are unused; another character with the same two
	// upper bits spells the same signature.
	last := good[len(good)-1]
	respelled := good[:len(good)-1] + string(sibling(last))
	tests := []struct {
		name, raw string
		cause     proxy.Cause
	}{
		{"RFC 7515 3.1 empty", "", proxy.CauseTokenMalformed},
		{"RFC 7515 3.1 two parts", seg[0] + "." + seg[1], proxy.CauseTokenMalformed},
		{"RFC 7515 3.1 four parts", good + ".x", proxy.CauseTokenMalformed},
		{"RFC 7516 3.1 five parts, encrypted", "eyJ.a.b.c.d", proxy.CauseTokenMalformed},
		{"RFC 7515 7.2 JSON serialization", `{"payload":"` + seg[1] + `","protected":"` + seg[0] + `","signature":"` + seg[2] + `"}`, proxy.CauseTokenMalformed},
		{"RFC 7515 F detached", seg[0] + ".." + seg[2], proxy.CauseTokenMalformed},
		{"RFC 7519 6.1 unsecured", encode(`{"alg":"none","typ":"at+jwt"}`) + "." + seg[1] + ".", proxy.CauseTokenMalformed},
		{"RFC 7515 2 padding", good + "==", proxy.CauseTokenMalformed},
		{"RFC 7515 2 line break", good[:10] + "\n" + good[10:], proxy.CauseTokenMalformed},
		{"RFC 7515 2 white space around", " " + good, proxy.CauseTokenMalformed},
		{"RFC 4648 3.5 unused bits set", respelled, proxy.CauseTokenMalformed},
		{"opaque", "2YotnFZFEjr1zCsicMWpAA", proxy.CauseTokenMalformed},
		{"too long", strings.Repeat("a", MaxSize+1), proxy.CauseTokenMalformed},
		{"RFC 7515 4 duplicate header names", es.sign(`{"alg":"ES256","kid":"es256","typ":"at+jwt","alg":"none"}`, body(`"x":1`)), proxy.CauseTokenMalformed},
		{"header not an object", es.sign(`["ES256"]`, body(`"x":1`)), proxy.CauseTokenMalformed},
		{"header null", es.sign(`null`, body(`"x":1`)), proxy.CauseTokenMalformed},
		{"header with a BOM", es.sign("\ufeff"+head, body(`"x":1`)), proxy.CauseTokenMalformed},
		{"RFC 7519 4 duplicate claims", es.sign(head, body(`"sub":"a","sub":"b"`)), proxy.CauseTokenMalformed},
		{"RFC 7519 4 duplicate claims by escapes", es.sign(head, body(`"sub":"a","\u0073ub":"b"`)), proxy.CauseTokenMalformed},
		{"duplicate names further down", es.sign(head, body(`"x":{"a":1,"a":2}`)), proxy.CauseTokenMalformed},
		{"RFC 8725 3.7 not UTF-8", es.sign(head, body("\"sub\":\"\xff\"")), proxy.CauseTokenMalformed},
		{"claims not an object", es.sign(head, `"x"`), proxy.CauseTokenMalformed},
		{"RFC 7519 5.2 nested", es.sign(head, good), proxy.CauseTokenMalformed},
		{"claims with trailing data", es.sign(head, body(`"x":1`)+"{}"), proxy.CauseTokenMalformed},
		{"RFC 7519 5.3 claims in the header alone", es.sign(`{"alg":"ES256","kid":"es256","typ":"at+jwt","iss":"`+local+`"}`, `{}`), proxy.CauseTokenClaims},
		{"RFC 8725 2.1 HS256 with the RSA key", hs(rsaPublic), proxy.CauseTokenSignature},
		{"signature of another key", keyOf("es256b").sign(head, body(`"x":1`)), proxy.CauseTokenSignature},
		{"signature of other claims", seg[0] + "." + encode(body(`"sub":"root"`)) + "." + seg[2], proxy.CauseTokenSignature},
		{"signature cut", seg[0] + "." + seg[1] + "." + encode(strings.Repeat("x", 60)), proxy.CauseTokenSignature},
		{"CVE-2022-21449 r = s = 0", seg[0] + "." + seg[1] + "." + encode(strings.Repeat("\x00", 64)), proxy.CauseTokenSignature},
	}
	v := stopped(t, Options{}, localIssuer(t, keyOf("es256"), keyOf("rs256")))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tt.raw)
			wantRefusal(t, err, tt.cause)
		})
	}
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Errorf("the token that the cases were made of: %v", err)
	}
}

// sibling is another base64url character with the same upper two bits.
func sibling(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// A token without kid is accepted when only one key can be meant.
func TestVerifyWithoutKid(t *testing.T) {
	v := start(t, Options{}, localIssuer(t, keyOf("es256"), keyOf("rs256")))
	for _, name := range []string{"es256", "rs256"} {
		if _, err := v.Verify(t.Context(), keyOf(name).token(local, time.Now(), members{"header kid": nil})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := v.Verify(t.Context(), keyOf("eddsa").token(local, time.Now(), members{"header kid": nil}))
	if r := wantRefusal(t, err, proxy.CauseTokenSignature); r.Detail != "no key for its algorithm" {
		t.Error(r.Detail)
	}
}

// RFC 8725 §3.8, §3.9: one issuer's keys must not serve for another's tokens.
func TestVerifyKeysBelongToTheirIssuer(t *testing.T) {
	a, b := localIssuer(t, keyOf("es256")), localIssuer(t, keyOf("es256b"))
	b.Issuer = "https://login.other.example"
	v := start(t, Options{}, a, b)
	other := keyOf("es256b")
	_, err := v.Verify(t.Context(), other.token(a.Issuer, time.Now()))
	wantRefusal(t, err, proxy.CauseTokenSignature)
	other.kid = "es256"
	_, err = v.Verify(t.Context(), other.token(a.Issuer, time.Now()))
	wantRefusal(t, err, proxy.CauseTokenSignature)
	if _, err := v.Verify(t.Context(), keyOf("es256b").token(b.Issuer, time.Now())); err != nil {
		t.Error(err)
	}
}

func TestVerifyRemembersAndForgets(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	registry := prometheus.NewRegistry()
	v := stopped(t, Options{Clock: clock, Registerer: registry}, localIssuer(t, keyOf("es256")))
	raw := keyOf("es256").token(local, now)

	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := v.Verify(context.Background(), raw); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first, err := v.Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := v.Verify(t.Context(), raw)
	if err != nil || first != again {
		t.Errorf("it was verified anew: %v", err)
	}
	if n := testutil.ToFloat64(v.metrics.accepted.WithLabelValues(local, "cache")); n < 2 {
		t.Errorf("%v tokens came from the cache", n)
	}
	mu.Lock()
	now = now.Add(6 * time.Minute)
	mu.Unlock()
	for range 2 {
		_, err = v.Verify(t.Context(), raw)
		if r := wantRefusal(t, err, proxy.CauseTokenExpired); r.Detail != "expired 1m0s ago" {
			t.Error(r.Detail)
		}
	}
	if n := testutil.ToFloat64(v.metrics.refused.WithLabelValues(local, "token-expired")); n != 2 {
		t.Errorf("%v refusals counted", n)
	}
}

// A gone caller must not fail those that wait for the same token.
func TestVerifyOutlivesItsCaller(t *testing.T) {
	v := stopped(t, Options{}, localIssuer(t, keyOf("es256")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, keyOf("es256").token(local, time.Now())); err != nil {
		t.Error(err)
	}
}
