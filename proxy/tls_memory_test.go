package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/proxy"
)

// A caller that has been accepted before is accepted only for as long as it would be if nobody knew it.
func TestAKnownCallerStandsNoLongerThanItsChain(t *testing.T) {
	ca, next := newAuthority(t, "a.example"), newAuthority(t, "a.example")
	server, caller := ca.issue(t, "/server"), ca.issue(t, "/caller", issuedAgo(time.Minute), endingIn(time.Hour))
	newer := next.issue(t, "/caller")
	both := x509bundle.FromX509Authorities(ca.domain, []*x509.Certificate{ca.cert, next.cert})
	forged := newAuthority(t, "a.example").issue(t, "/caller") // the same names, another key

	begin := time.Now()
	var ahead atomic.Int64
	self := newIdentity(server, ca.bundle())
	config := proxy.ServerTLS(self, func() time.Time { return begin.Add(time.Duration(ahead.Load())) })
	for _, step := range []struct {
		name   string
		svid   *x509svid.SVID
		bundle *x509bundle.Bundle
		ahead  time.Duration
		want   bool
	}{
		{"first", caller, ca.bundle(), 0, true},
		{"again", caller, ca.bundle(), 0, true},
		{"before it begins", caller, ca.bundle(), -2 * time.Minute, false},
		{"after it ends", caller, ca.bundle(), 61 * time.Minute, false},
		{"again, in its time", caller, ca.bundle(), time.Minute, true},
		{"without its authority", caller, next.bundle(), 0, false},
		{"with it and another", caller, both, 0, true},
		{"of the other", newer, both, 0, true},
		{"of the other, which is gone", newer, ca.bundle(), 0, false},
		{"forged", forged, both, 0, false},
		{"the first, still", caller, both, 0, true},
	} {
		self.Set.Add(step.bundle)
		ahead.Store(int64(step.ahead))
		if err := handshake(t, config, step.svid); (err == nil) != step.want {
			t.Errorf("%s: accepted %v, want %v (%v)", step.name, err == nil, step.want, err)
		}
	}
}

// handshake makes one as svid, and says what the server made of it.
func handshake(t *testing.T, server *tls.Config, svid *x509svid.SVID) error {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	chain := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		chain.Certificate = append(chain.Certificate, c.Raw)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{chain}, MinVersion: tls.VersionTLS13}) //nolint:gosec // it is the server's judgement that counts
		_, _ = client.Read(make([]byte, 1))
	}()
	err := tls.Server(far, server).HandshakeContext(t.Context())
	_ = far.Close()
	<-over
	return err
}
