package token

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// Over real sockets and TLS.
func TestIssuerOverTLS(t *testing.T) {
	for _, how := range []string{"", DiscoverOpenID, DiscoverOAuth} {
		p := newProvider(t, keyOf("es256"))
		v := start(t, Options{}, Issuer{Issuer: p.URL, Audience: []string{audience}, RootCAs: p.roots(), Discovery: how})
		if _, err := v.Verify(t.Context(), keyOf("es256").token(p.URL, time.Now())); err != nil {
			t.Errorf("discovery %q: %v", how, err)
		}
	}
	t.Run("fixed JWKS URI", func(t *testing.T) {
		p := newProvider(t, keyOf("rs256"))
		v := start(t, Options{}, Issuer{Issuer: "urn:clinic", Audience: []string{audience}, RootCAs: p.roots(), JWKSURI: p.URL + "/jwks"})
		if _, err := v.Verify(t.Context(), keyOf("rs256").token("urn:clinic", time.Now())); err != nil {
			t.Error(err)
		}
	})
	t.Run("http on this machine", func(t *testing.T) {
		p := newProvider(t, keyOf("rs256"))
		plain := httptest.NewServer(p)
		defer plain.Close()
		port := plain.URL[strings.LastIndex(plain.URL, ":"):]
		v := start(t, Options{}, Issuer{Issuer: "urn:clinic", Audience: []string{audience}, JWKSURI: "http://localhost" + port + "/jwks"})
		if _, err := v.Verify(t.Context(), keyOf("rs256").token("urn:clinic", time.Now())); err != nil {
			t.Error(err)
		}
	})
}

func TestIssuerMisbehaves(t *testing.T) {
	keys := keySetOf(keyOf("es256"))
	tests := []struct {
		name     string
		metadata string // "" for the right ones; URL stands for the issuer's
		handler  http.HandlerFunc
		want     string
	}{
		{name: "OIDC Discovery 4.3 metadata of another issuer", metadata: `{"issuer":"https://evil.example","jwks_uri":"URL/jwks"}`, want: "of another issuer"},
		{name: "OIDC Discovery 4.3 issuer with a slash more", metadata: `{"issuer":"URL/","jwks_uri":"URL/jwks"}`, want: "of another issuer"},
		{name: "RFC 8414 3.3 no issuer", metadata: `{"jwks_uri":"URL/jwks"}`, want: "of another issuer"},
		{name: "no jwks_uri", metadata: `{"issuer":"URL"}`, want: "no jwks_uri"},
		{name: "jwks_uri over http", metadata: `{"issuer":"URL","jwks_uri":"http://127.0.0.1:1/jwks"}`, want: "scheme must be https"},
		{name: "jwks_uri of a file", metadata: `{"issuer":"URL","jwks_uri":"file:///etc/passwd"}`, want: "not an absolute URL"},
		{name: "jwks_uri with a user", metadata: `{"issuer":"URL","jwks_uri":"https://a:b@127.0.0.1/jwks"}`, want: "not an absolute URL"},
		{name: "jwks_uri relative", metadata: `{"issuer":"URL","jwks_uri":"/jwks"}`, want: "not an absolute URL"},
		{name: "duplicate names in the metadata", metadata: `{"issuer":"URL","issuer":"URL","jwks_uri":"URL/jwks"}`, want: "duplicate names"},
		{name: "metadata too long", metadata: `{"issuer":"URL","jwks_uri":"URL/jwks","x":"` + strings.Repeat("x", maxMetadata) + `"}`, want: "longer than"},
		{name: "key set too long", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(keys + strings.Repeat(" ", maxKeySet)))
		}, want: "longer than"},
		{name: "key set without end", handler: func(w http.ResponseWriter, r *http.Request) {
			for b := []byte(strings.Repeat(" ", 64<<10)); r.Context().Err() == nil; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, want: "longer than"},
		{name: "redirect", handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusFound)
		}, want: "redirects are not followed"},
		{name: "error", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, want: "answered 500"},
		{name: "no content", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, want: "answered 204"},
		{name: "connection closed", handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, want: "EOF"},
		{name: "web page", handler: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("<html>")) }, want: "not a JSON Web Key Set"},
		{name: "RFC 7517 5 no keys member", handler: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`{}`)) }, want: "not a JSON Web Key Set"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newProvider(t, keyOf("es256"))
			if tt.metadata != "" {
				m := strings.ReplaceAll(tt.metadata, "URL", p.URL)
				p.metadata.Store(&m)
			}
			if tt.handler != nil {
				p.serve(tt.handler)
			}
			v := stopped(t, Options{}, Issuer{Issuer: p.URL, Audience: []string{audience}, RootCAs: p.roots()})
			_, err := v.issuers[p.URL].keys.load(t.Context(), 1)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			_, err = v.issuers[p.URL].keys.usable()
			wantRefusal(t, err, proxy.CauseIssuerDown)
		})
	}
}

func TestIssuerSlow(t *testing.T) {
	p := newProvider(t, keyOf("es256"))
	p.serve(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"keys":[`))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	v := stopped(t, Options{}, Issuer{Issuer: p.URL, Audience: []string{audience}, RootCAs: p.roots()})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := v.issuers[p.URL].keys.load(ctx, 1); err == nil || ctx.Err() == nil {
		t.Errorf("got %v", err)
	}
}

func TestIssuerWithAnotherCertificate(t *testing.T) {
	p := newProvider(t, keyOf("es256"))
	v := stopped(t, Options{}, Issuer{Issuer: p.URL, Audience: []string{audience}}) // the system's roots
	if _, err := v.issuers[p.URL].keys.load(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

// The name localhost may be made to mean anything; what is dialled over http is this machine or nothing.
func TestPlainHTTPDialsOnlyThisMachine(t *testing.T) {
	c := newClient(true, nil, nil)
	for _, address := range []string{"http://192.0.2.1:80/", "http://[2001:db8::1]:80/"} {
		if _, err := c.Get(address); err == nil || !strings.Contains(err.Error(), "plain http to another machine") {
			t.Errorf("%s: got %v", address, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(l, http.NotFoundHandler())
	defer l.Close()
	resp, err := c.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string, mode os.FileMode) string {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
		return path(name)
	}
	keys := keySetOf(keyOf("es256"))
	if err := syscall.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"good":              {write("good", keys, 0o644), ""},
		"writable by group": {write("group", keys, 0o660), "others can write it"},
		"writable by all":   {write("all", keys, 0o602), "others can write it"},
		"missing":           {path("none"), "no such file"},
		"folder":            {dir, "not a regular file"},
		"FIFO":              {path("fifo"), "not a regular file"},
		"not a key set":     {write("other", "keys: []", 0o600), "not a JSON Web Key Set"},
		"too long":          {write("long", keys+strings.Repeat(" ", maxKeySet), 0o600), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := New(Options{Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(),
				Issuers: []Issuer{{Issuer: local, Audience: []string{audience}, JWKSFile: tt.file}}})
			if err == nil {
				v.Close()
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
