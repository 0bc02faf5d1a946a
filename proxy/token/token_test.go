package token

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Issuer)
		want   string
	}{
		{"no issuer", func(i *Issuer) { i.Issuer = "" }, "issuer:"},
		{"no audience", func(i *Issuer) { i.Audience = nil }, "audience:"},
		{"empty audience", func(i *Issuer) { i.Audience = []string{""} }, "audience:"},
		{"RFC 8725 3.2 none", func(i *Issuer) { i.Algorithms = []string{"none"} }, `"none" is not accepted`},
		{"RFC 8725 3.2 HS256", func(i *Issuer) { i.Algorithms = []string{"ES256", "HS256"} }, `"HS256" is not accepted`},
		{"type of an ID Token", func(i *Issuer) { i.Types = []string{"logout+jwt"} }, "types:"},
		{"leeway over a minute", func(i *Issuer) { i.Leeway = 2 * time.Minute }, "leeway:"},
		{"leeway negative", func(i *Issuer) { i.Leeway = -1 }, "leeway:"},
		{"refresh too often", func(i *Issuer) { i.Refresh = time.Millisecond }, "refresh:"},
		{"cool-down negative", func(i *Issuer) { i.CoolDown = -time.Second }, "cool-down:"},
		{"keys that age faster than they are read", func(i *Issuer) { i.Refresh, i.MaxKeyAge = time.Hour, time.Minute }, "max key age:"},
		{"lifetime negative", func(i *Issuer) { i.MaxLifetime = -time.Hour }, "max lifetime:"},
		{"issuer over http", func(i *Issuer) { i.Issuer = "http://login.clinic.example" }, "plain http is accepted only on this machine"},
		{"issuer with a query", func(i *Issuer) { i.Issuer += "?x" }, "not a URL without query"},
		{"issuer with a fragment", func(i *Issuer) { i.Issuer += "#x" }, "not a URL without query"},
		{"issuer no URL", func(i *Issuer) { i.Issuer = "clinic" }, "not a URL without query"},
		{"issuer of another scheme", func(i *Issuer) { i.Issuer = "ftp://login.clinic.example" }, "scheme must be https"},
		{"JWKS over http", func(i *Issuer) { i.JWKSURI = "http://login.clinic.example/jwks" }, "plain http"},
		{"JWKS with a password", func(i *Issuer) { i.JWKSURI = "https://a:b@login.clinic.example/jwks" }, "keys:"},
		{"two places for keys", func(i *Issuer) { i.JWKSURI, i.JWKSFile = "https://x/jwks", "/jwks" }, "either"},
		{"keys given and discovered", func(i *Issuer) { i.JWKSURI, i.Discovery = "https://x/jwks", DiscoverOpenID }, "not both"},
		{"keys neither given nor discovered", func(i *Issuer) { i.Discovery = DiscoverNone }, "either"},
		{"unknown discovery", func(i *Issuer) { i.Discovery = "webfinger" }, "discovery:"},
		{"FHIR base relative", func(i *Issuer) { i.FHIRBases = []string{"/fhir"} }, "FHIR base"},
		{"claim path", func(i *Issuer) { i.Claims.Roles = "a..b" }, "claims: roles:"},
		{"claim path with an index", func(i *Issuer) { i.Claims.Roles = "a[0].b" }, "claims: roles:"},
		{"claim path too long", func(i *Issuer) { i.Claims.Roles = strings.Repeat("a.", 8) + "a" }, "claims: roles:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			is := Issuer{Issuer: local, Audience: []string{audience}}
			tt.change(&is)
			v, err := New(Options{Issuers: []Issuer{is}, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
			if err == nil {
				v.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("every fault at once", func(t *testing.T) {
		_, err := New(Options{Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(), Issuers: []Issuer{
			{Issuer: local, Audience: []string{audience}}, {Issuer: local, Audience: []string{audience}},
			{Issuer: "https://x.example", Algorithms: []string{"none"}},
		}})
		for _, want := range []string{"configured twice", "audience:", "algorithms:"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v lacks %q", err, want)
			}
		}
	})
	t.Run("no logger, no registerer", func(t *testing.T) {
		if _, err := New(Options{Registerer: prometheus.NewRegistry()}); err == nil {
			t.Error("accepted without a logger")
		}
		if _, err := New(Options{Logger: zap.NewNop()}); err == nil {
			t.Error("accepted without a registerer")
		}
	})
}

func TestMetadataURL(t *testing.T) {
	for _, tt := range []struct{ name, issuer, how, want string }{
		{"OIDC Discovery 4.1", "https://a.example", DiscoverOpenID, "https://a.example/.well-known/openid-configuration"},
		{"OIDC Discovery 4.1 slash", "https://a.example/", DiscoverOpenID, "https://a.example/.well-known/openid-configuration"},
		{"OIDC Discovery 4.1 path", "https://a.example/realms/x", DiscoverOpenID, "https://a.example/realms/x/.well-known/openid-configuration"},
		{"RFC 8414 3.1", "https://a.example", DiscoverOAuth, "https://a.example/.well-known/oauth-authorization-server"},
		{"RFC 8414 3.1 path", "https://a.example/issuer1", DiscoverOAuth, "https://a.example/.well-known/oauth-authorization-server/issuer1"},
		{"RFC 8414 3.1 path and slash", "https://a.example/issuer1/", DiscoverOAuth, "https://a.example/.well-known/oauth-authorization-server/issuer1"},
	} {
		if got, err := metadataURL(tt.issuer, tt.how); err != nil || got != tt.want {
			t.Errorf("%s: got %s, %v", tt.name, got, err)
		}
	}
}

// A Verifier that has been closed leaves its place in the metrics to the next one.
func TestCloseUnregisters(t *testing.T) {
	r := prometheus.NewRegistry()
	for range 2 {
		v, err := New(Options{Issuers: []Issuer{localIssuer(t, keyOf("es256"))}, Logger: zap.NewNop(), Registerer: r})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.Gather(); err != nil || len(got) == 0 {
			t.Errorf("got %d metrics, %v", len(got), err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}
