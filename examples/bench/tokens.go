package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const issuer = "https://idp.bench.internal"

// sign makes the keys of an authorization server, for Ward's jwks_file, and two of its access tokens: one of a
// physician, who reads whatever policy permits, and one of a patient, whose replies are checked.
func (b *bench) sign() error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key := jose.JSONWebKey{Key: private, KeyID: rand.Text()[:8], Algorithm: string(jose.ES256), Use: "sig"}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	if err != nil {
		return err
	}
	if err := b.write("ward/jwks.json", set, 0o644, 0); err != nil {
		return err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("at+jwt")) // RFC 9068 §2.1
	if err != nil {
		return err
	}
	now := time.Now()
	token := func(more map[string]any) (string, error) {
		claims := map[string]any{"iss": issuer, "aud": "http://" + mesh, "client_id": "smart-portal", "jti": rand.Text(),
			"iat": now.Unix(), "exp": now.Add(12 * time.Hour).Unix()}
		for name, value := range more {
			claims[name] = value
		}
		return jwt.Signed(signer).Claims(claims).Serialize()
	}
	if b.staff, err = token(map[string]any{"sub": "dr.lee", "roles": []string{"physician"}, "fhirUser": "Practitioner/example", "scope": "user/*.rs"}); err != nil {
		return err
	}
	b.patient, err = token(map[string]any{"sub": "anna", "fhirUser": "Patient/example", "patient": "example", "scope": "patient/*.rs"})
	return err
}

// request is a call as an application makes it. The peers are sent the same bytes.
func request(target, token string) []byte {
	return []byte("GET " + target + " HTTP/1.1\r\nHost: " + mesh + "\r\nAccept: application/fhir+json\r\nAuthorization: Bearer " + token + "\r\n\r\n")
}
