package bind

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
)

const issuer = "https://login.clinic.example"

func id(s string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://clinic.example" + s) }

func token(issuer, client string) *proxy.Token {
	return &proxy.Token{Client: proxy.Client{Issuer: issuer, ID: client}}
}

func TestBind(t *testing.T) {
	m, err := New([]ClientMap{
		{issuer, "portal", []spiffeid.ID{id("/app/portal")}},
		{issuer, "ehr", []spiffeid.ID{id("/app/ehr-b"), id("/app/ehr-a"), id("/app/ehr-b")}},
		{issuer, "farm", []spiffeid.ID{id("/w/1"), id("/w/2"), id("/w/3"), id("/w/4"), id("/w/5"), id("/w/6")}},
		{"https://other.example", "portal", []spiffeid.ID{id("/app/other")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		caller spiffeid.ID
		token  *proxy.Token
		cause  proxy.Cause
		detail string
	}{
		{"the client's workload", id("/app/portal"), token(issuer, "portal"), "", ""},
		{"either of two", id("/app/ehr-a"), token(issuer, "ehr"), "", ""},
		{"a stolen token", id("/app/scraper"), token(issuer, "portal"), proxy.CauseTokenBinding,
			"token belongs to /app/portal, carried by /app/scraper"},
		{"stolen from one of two", id("/app/scraper"), token(issuer, "ehr"), proxy.CauseTokenBinding,
			"token belongs to /app/ehr-a or /app/ehr-b, carried by /app/scraper"},
		{"stolen from one of many", id("/app/scraper"), token(issuer, "farm"), proxy.CauseTokenBinding,
			"token belongs to /w/1 or /w/2 or /w/3 or /w/4 or 2 more, carried by /app/scraper"},
		{"the same client id at another issuer", id("/app/portal"), token("https://other.example", "portal"), proxy.CauseTokenBinding,
			"token belongs to /app/other, carried by /app/portal"},
		{"the same path in another trust domain", spiffeid.RequireFromString("spiffe://evil.example/app/portal"), token(issuer, "portal"),
			proxy.CauseTokenBinding, "token belongs to spiffe://clinic.example/app/portal, carried by spiffe://evil.example/app/portal"},
		{"the trust domain itself", spiffeid.RequireFromString("spiffe://clinic.example"), token(issuer, "portal"),
			proxy.CauseTokenBinding, "token belongs to /app/portal, carried by spiffe://clinic.example"},
		{"an unknown client", id("/app/portal"), token(issuer, "game"), proxy.CauseTokenBinding,
			"client game of issuer https://login.clinic.example is bound to no workload"},
		{"an unknown issuer", id("/app/portal"), token("https://evil.example", "portal"), proxy.CauseTokenBinding,
			"client portal of issuer https://evil.example is bound to no workload"},
		{"an issuer with a slash more", id("/app/portal"), token(issuer+"/", "portal"), proxy.CauseTokenBinding,
			"client portal of issuer https://login.clinic.example/ is bound to no workload"},
		{"no client", id("/app/portal"), &proxy.Token{}, proxy.CauseTokenBinding, "client  of issuer  is bound to no workload"},
		{"no caller", spiffeid.ID{}, token(issuer, "portal"), proxy.CauseInternal, ""},
		{"no token", id("/app/portal"), nil, proxy.CauseInternal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := m.Bind(tt.caller, tt.token)
			if tt.cause == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var r *proxy.Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %v, want a refusal", err)
			}
			if r.Cause != tt.cause || tt.detail != "" && r.Detail != tt.detail {
				t.Errorf("got %s: %s\nwant %s: %s", r.Cause, r.Detail, tt.cause, tt.detail)
			}
		})
	}
}

func TestZeroMapRefuses(t *testing.T) {
	var m Map
	if err := m.Bind(id("/app/portal"), token(issuer, "portal")); err == nil {
		t.Error("accepted")
	}
}

// What a caller of New does to its slice afterwards must not change who may carry a token.
func TestMapKeepsItsOwnCopy(t *testing.T) {
	ids := []spiffeid.ID{id("/app/portal")}
	m, err := New([]ClientMap{{issuer, "portal", ids}})
	if err != nil {
		t.Fatal(err)
	}
	ids[0] = id("/app/scraper")
	if m.Bind(id("/app/scraper"), token(issuer, "portal")) == nil {
		t.Error("the map followed its caller's slice")
	}
}

func TestNewReportsEveryFault(t *testing.T) {
	ok := []spiffeid.ID{id("/app/portal")}
	_, err := New([]ClientMap{
		{"", "a", ok},
		{issuer, "", ok},
		{issuer, "b", nil},
		{issuer, "c", []spiffeid.ID{{}}},
		{issuer, "d", ok},
		{issuer, "d", ok},
	})
	want := strings.Join([]string{
		"binding 0: no issuer",
		"binding 1: no client id",
		"binding 2: client b of issuer https://login.clinic.example has no workload",
		"binding 3: client c of issuer https://login.clinic.example has a workload without a SPIFFE ID",
		"binding 5: client d of issuer https://login.clinic.example is bound twice; name all its workloads in one binding",
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

func BenchmarkBind(b *testing.B) {
	m, err := New([]ClientMap{{issuer, "portal", []spiffeid.ID{id("/app/portal"), id("/app/portal-2")}}})
	if err != nil {
		b.Fatal(err)
	}
	caller, tok := id("/app/portal"), token(issuer, "portal")
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Bind(caller, tok); err != nil {
			b.Fatal(err)
		}
	}
}
