package token

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

func FuzzVerify(f *testing.F) {
	now := time.Now()
	v := stopped(f, Options{Clock: func() time.Time { return now }}, localIssuer(f, keyOf("es256"), keyOf("rs256")))
	good := map[string]bool{}
	for _, name := range []string{"es256", "rs256", "ps256"} {
		raw := keyOf(name).token(local, now)
		good[raw] = true
		f.Add(raw)
	}
	f.Add(keyOf("es256").sign(`{"alg":"none"}`, `{}`))
	f.Add(keyOf("es256").sign(`{"alg":"ES256","kid":"es256","typ":"at+jwt"}`, `{"iss":"`+local+`","aud":["`+audience+`"],"exp":1e9}`))
	f.Add("e30.e30.e30")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		tok, err := v.Verify(t.Context(), raw)
		if err == nil {
			if !good[raw] || tok == nil {
				t.Errorf("accepted a token that nobody signed: %q", raw)
			}
			return
		}
		if tok != nil {
			t.Error("a token beside an error")
		}
		if r := refusal(t, err); r.Cause == proxy.CauseInternal {
			t.Error(r)
		}
	})
}

// What the parsers make of signed bytes, which FuzzVerify cannot reach without a key.
func FuzzClaims(f *testing.F) {
	is := localIssuer(f, keyOf("es256"))
	is.Types = []string{"at+jwt", "jwt", "absent"}
	v := stopped(f, Options{}, is)
	now := time.Now()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(keyOf("es256").token(local, now), ".")[1])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(raw), true)
	f.Add(`{"iss":"`+local+`","aud":["`+audience+`"],"exp":9e9,"sub":"a","azp":"b","realm_access":{"roles":["x"]},"patient":"Patient/1"}`, false)
	f.Fuzz(func(t *testing.T, payload string, typed bool) {
		c, err := parseClaims([]byte(payload))
		if err != nil {
			refusal(t, err)
			return
		}
		h := header{typ: TypeJWT}
		if typed {
			h.typ = TypeAccessToken
		}
		e, err := v.issuers[local].accept(h, c, now)
		if err != nil {
			if r := refusal(t, err); r.Cause == proxy.CauseInternal {
				t.Error(r)
			}
			return
		}
		tok := e.token
		if tok.Client.ID == "" || tok.Client.Issuer != local || !tok.Expires.After(now.Add(-time.Minute)) {
			t.Errorf("accepted as %+v", tok)
		}
		if u := tok.User; u != nil {
			if u.Subject == "" || u.Patient != "" && !fhir.IsID(u.Patient) {
				t.Errorf("a user like %+v", u)
			}
		}
	})
}
