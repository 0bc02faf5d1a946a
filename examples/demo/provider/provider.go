// Package provider is a small OpenID Provider for demonstrations: discovery, keys, and a token endpoint whose access
// tokens are RFC 9068 JWTs with SMART scopes.
//
// It signs in users by name and a password that everybody knows, which is all that a demonstration on one machine
// can honestly do; it listens on loopback, holds its key in memory, and never outlives its process. A real site
// names its own provider under tokens: in Ward's config.
package provider

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Password is every demonstration user's.
const Password = "demonstration"

// User is somebody who can sign in.
type User struct {
	Name     string // what is typed at sign-in, and the token's sub
	Display  string
	Roles    []string
	FHIRUser string // relative reference
	Patient  string // launch patient, "" for staff
}

// Client is an application that may ask for tokens.
type Client struct {
	ID, Secret string
	Scopes     []string // what it may be given
}

// Provider is an OpenID Provider. It is an http.Handler.
type Provider struct {
	issuer   string
	audience string
	users    []User
	clients  []Client
	key      jose.JSONWebKey
	signer   jose.Signer
	mux      *http.ServeMux
	now      func() time.Time
}

// New makes a provider whose issuer is issuer and whose tokens are for audience unless the client asks otherwise.
func New(issuer, audience string, users []User, clients []Client, now func() time.Time) (*Provider, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key := jose.JSONWebKey{Key: private, KeyID: rand.Text()[:8], Algorithm: string(jose.ES256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		return nil, err
	}
	p := &Provider{issuer: issuer, audience: audience, users: users, clients: clients, key: key, signer: signer, mux: http.NewServeMux(), now: now}
	p.mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	p.mux.HandleFunc("GET /jwks", p.jwks)
	p.mux.HandleFunc("POST /token", p.token)
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"issuer": p.issuer, "jwks_uri": p.issuer + "/jwks", "token_endpoint": p.issuer + "/token",
		"response_types_supported": []string{"token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"}})
}

func (p *Provider) jwks(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{p.key.Public()}})
}

// token serves the grants password (RFC 6749 §4.3) and client_credentials (§4.4), with RFC 8707's resource for the
// audience. `lifetime` is this demonstration's own: a negative one gives a token that has expired.
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	c := slices.IndexFunc(p.clients, func(c Client) bool { return c.ID == id && c.Secret == secret })
	if c < 0 {
		refuse(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	now := p.now()
	life := 5 * time.Minute
	if d, err := time.ParseDuration(r.PostFormValue("lifetime")); err == nil {
		life = d
	}
	claims := map[string]any{"iss": p.issuer, "aud": p.audience, "client_id": id, "sub": id, "jti": rand.Text(),
		"iat": now.Add(min(0, life-time.Minute)).Unix(), "exp": now.Add(life).Unix()}
	if res := r.PostFormValue("resource"); res != "" {
		claims["aud"] = res
	}
	switch r.PostFormValue("grant_type") {
	case "client_credentials":
	case "password":
		u := slices.IndexFunc(p.users, func(u User) bool { return u.Name == r.PostFormValue("username") })
		if u < 0 || r.PostFormValue("password") != Password {
			refuse(w, http.StatusBadRequest, "invalid_grant")
			return
		}
		p.users[u].claim(claims)
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	scope, ok := granted(p.clients[c].Scopes, r.PostFormValue("scope"))
	if !ok {
		refuse(w, http.StatusBadRequest, "invalid_scope")
		return
	}
	claims["scope"] = scope
	token, err := jwt.Signed(p.signer).Claims(claims).Serialize()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "server_error")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	answer(w, http.StatusOK, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(life.Seconds()), "scope": scope})
}

func (u User) claim(claims map[string]any) {
	claims["sub"], claims["name"], claims["roles"] = u.Name, u.Display, u.Roles
	if u.FHIRUser != "" {
		claims["fhirUser"] = u.FHIRUser
	}
	if u.Patient != "" {
		claims["patient"] = u.Patient
	}
}

// granted gives the scopes asked for when the client may have all of them, or all that it may have when none are.
func granted(may []string, asked string) (string, bool) {
	if asked == "" {
		return strings.Join(may, " "), true
	}
	for s := range strings.FieldsSeq(asked) {
		if !slices.Contains(may, s) {
			return "", false
		}
	}
	return asked, true
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, map[string]any{"error": code, "error_description": fmt.Sprintf("The request was refused: %s.", code)})
}
