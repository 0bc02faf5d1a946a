package token

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func TestParseKeySet(t *testing.T) {
	with := func(name string, changes members) members {
		m := keyOf(name).jwk()
		for k, v := range changes {
			if v == nil {
				delete(m, k)
			} else {
				m[k] = v
			}
		}
		return m
	}
	set := func(keys ...any) string { return toJSON(members{"keys": keys}) }
	es, rs := keyOf("es256").jwk(), keyOf("rs256").jwk()
	even := base64.RawURLEncoding.EncodeToString([]byte{4})
	tests := []struct {
		name, set string
		kids      []string // of those that can be used
		note      string   // part of what the operator is told; "" for nothing
	}{
		{"several", set(es, rs, keyOf("eddsa").jwk()), []string{"es256", "rs256", "eddsa"}, ""},
		{"none", `{"keys":[]}`, nil, ""},
		{"RFC 7517 4.2 use missing", set(with("es256", members{"use": nil})), []string{"es256"}, ""},
		{"RFC 7517 4.2 use enc", set(with("rs256", members{"use": "enc"}), es), []string{"es256"}, ""},
		{"RFC 7517 4.2 use not a string", set(with("rs256", members{"use": 1}), es), []string{"es256"}, ""},
		{"RFC 7517 4.3 key_ops verify", set(with("es256", members{"key_ops": []string{"verify"}})), []string{"es256"}, ""},
		{"RFC 7517 4.3 key_ops others", set(with("es256", members{"key_ops": []string{"deriveKey"}})), nil, ""},
		{"RFC 7517 4.4 alg that fits", set(with("es256", members{"alg": "ES256"})), []string{"es256"}, ""},
		{"RFC 7517 4.4 alg of another type", set(with("rs256", members{"alg": "ES256"})), nil, ""},
		{"RFC 7517 4.4 alg not of this issuer", set(with("rs256", members{"alg": "RS512"})), nil, ""},
		{"RFC 7517 4.4 alg for encryption", set(with("rs256", members{"alg": "RSA-OAEP", "use": nil})), nil, ""},
		{"RFC 7517 4.4 alg none", set(with("es256", members{"alg": "none"})), nil, ""},
		{"RFC 7517 4.4 alg HS256 on an RSA key", set(with("rs256", members{"alg": "HS256"})), nil, ""},
		{"RFC 7517 4.5 kid missing", set(with("es256", members{"kid": nil})), []string{""}, ""},
		{"RFC 7517 4.5 kid not a string", set(with("es256", members{"kid": 1})), nil, "kid is not a usable string"},
		{"RFC 7517 4.5 one kid, two types", set(es, with("rs256", members{"kid": "es256"})), []string{"es256", "es256"}, ""},
		{"RFC 7517 4.5 one kid, one type", set(es, with("es256b", members{"kid": "es256"}), rs), []string{"rs256"}, "2 keys share a kid"},
		{"the same key twice", set(es, es), []string{"es256"}, ""},
		{"RFC 7517 5 unknown type", set(members{"kty": "XYZ"}, es), []string{"es256"}, ""},
		{"RFC 7517 5 unknown curve", set(members{"kty": "OKP", "crv": "Ed448", "x": "AA"}, es), []string{"es256"}, ""},
		{"type missing", set(with("es256", members{"kty": nil}), rs), []string{"rs256"}, "key 1 is not used"},
		{"RFC 7518 3.3 RSA of 1024 bits", set(keyOf("weak").jwk(), es), []string{"es256"}, "1024 bits"},
		{"RSA of 16384 bits", set(with("rs256", members{"n": strings.Repeat("q", 2731)}), es), []string{"es256"}, "key 1 is not used"},
		{"RSA with exponent 1", set(with("rs256", members{"e": "AQ"}), es), []string{"es256"}, "key 1 is not used"},
		{"RSA with an even exponent", set(with("rs256", members{"e": even}), es), []string{"es256"}, "exponent"},
		{"RFC 7518 3.4 curve without its algorithm", set(keyOf("es384").jwk(), es), []string{"es256"}, ""},
		{"point not on the curve", set(with("es256", members{"x": keyOf("es256b").jwk()["x"]}), rs), []string{"rs256"}, "key 1 is not used"},
		{"RFC 7518 6.4 symmetric", set(members{"kty": "oct", "k": "AAECAwQFBgcICQoLDA0ODw", "alg": "HS256"}, es), []string{"es256"}, "private part is public"},
		{"RFC 7518 6.2.2 private EC key", set(with("es256", members{"d": "AAAA"}), rs), []string{"rs256"}, "private part is public"},
		{"RFC 7518 6.3.2 private RSA key", set(with("rs256", members{"p": "AAAA"}), es), []string{"es256"}, "private part is public"},
		{"key not an object", set("x", es), []string{"es256"}, "key 1 is not used"},
		{"RFC 7517 4.7 x5c of another key", set(with("es256", members{"x5c": []string{"AAAA"}}), rs), []string{"rs256"}, "key 1 is not used"},
	}
	algs := []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, notes, err := parseKeySet([]byte(tt.set), algs)
			if err != nil {
				t.Fatal(err)
			}
			var kids []string
			for _, k := range got.keys {
				kids = append(kids, k.kid)
			}
			if !slices.Equal(kids, tt.kids) {
				t.Errorf("got %q, want %q", kids, tt.kids)
			}
			said := strings.Join(notes, "; ")
			if tt.note == "" && said != "" || !strings.Contains(said, tt.note) {
				t.Errorf("the operator is told %q, want %q", said, tt.note)
			}
		})
	}
}

func TestParseKeySetRefuses(t *testing.T) {
	key := toJSON(keyOf("es256").jwk())
	for name, s := range map[string]string{
		"empty":                    "",
		"array":                    "[" + key + "]",
		"keys an object":           `{"keys":{}}`,
		"keys null":                `{"keys":null}`,
		"RFC 7517 5 no keys":       key,
		"RFC 7517 4 twice keys":    `{"keys":[],"keys":[` + key + `]}`,
		"RFC 7517 4 twice in key":  `{"keys":[{"kty":"EC","kty":"RSA"}]}`,
		"trailing data":            `{"keys":[]}{}`,
		"too many keys":            `{"keys":[` + strings.Repeat(key+",", maxKeys) + key + `]}`,
		"broken UTF-8":             "{\"keys\":[],\"x\":\"\xff\"}",
		"nested beyond all bounds": strings.Repeat("[", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			if got, _, err := parseKeySet([]byte(s), algorithms[:]); err == nil {
				t.Errorf("accepted with %d keys", len(got.keys))
			}
		})
	}
}

func FuzzKeySet(f *testing.F) {
	for _, s := range []string{keySetOf(keyOf("es256"), keyOf("rs256"), keyOf("eddsa")), `{"keys":[{"kty":"oct","k":"AA"}]}`, `{"keys":[{}]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, _, err := parseKeySet([]byte(s), algorithms[:])
		if err != nil {
			return
		}
		for i, k := range set.keys {
			fit, err := fitting(k.public)
			if err != nil || len(k.algs) == 0 {
				t.Errorf("key %d can verify nothing", i)
			}
			for _, a := range k.algs {
				if !slices.Contains(fit, a) {
					t.Errorf("key %d is for %s", i, a)
				}
				if got, err := set.find(header{alg: a, kid: k.kid}); k.kid != "" && (err != nil || got.id != k.id) {
					t.Errorf("key %d is not found by its own name: %v", i, err)
				}
			}
		}
	})
}
