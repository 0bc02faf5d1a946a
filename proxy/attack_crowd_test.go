package proxy_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/proxy"
)

// admitted opens a connection that ingress keeps: it has answered on it. ok is false where it was cut off instead.
func (w *world) admitted(svid *x509svid.SVID) (c net.Conn, ok bool) {
	w.Helper()
	c, err := w.handshake(svid, nil)
	if err != nil {
		return nil, false
	}
	if _, err := io.WriteString(c, request("GET /fhir/metadata", "")); err != nil {
		return nil, false
	}
	b := make([]byte, 12)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, false
	}
	if s := string(b); s != "HTTP/1.1 200" && s != "HTTP/1.1 403" {
		w.Errorf("answered %q", s)
	}
	return c, true
}

func (w *world) wantAdmitted(svid *x509svid.SVID) net.Conn {
	w.Helper()
	c, ok := w.admitted(svid)
	if !ok {
		w.Fatalf("a connection of %s was cut off", svid.ID)
	}
	return c
}

// wantCrowded sees that one more connection is cut off, unanswered, and recorded as the identity's with a detail.
func (w *world) wantCrowded(svid *x509svid.SVID, detail string) {
	w.Helper()
	if _, ok := w.admitted(svid); ok {
		w.Fatalf("one more connection of %s was answered", svid.ID)
	}
	r := w.trail.await(w, 1, func(r *proxy.Record) bool { return r.Cause == proxy.CauseLimit && strings.Contains(r.Detail, detail) })[0]
	if r.Stage != proxy.StageRefusal || r.Hop != proxy.HopIngress || r.Caller != svid.ID.String() || r.Remote == "" || r.Method != "" {
		w.Errorf("record %s", toJSON(r))
	}
}

// 20: one caller opens connections without end. The next is cut off before a byte of HTTP is read, others' are not, and
// what ends makes room again.
func testAttackOneCallerTakesAllConnections(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.MaxConnections = 3 }})
	portal := w.portal.svid.Load()
	first := w.wantAdmitted(portal)
	w.wantAdmitted(portal)
	w.wantAdmitted(portal)
	w.wantCrowded(portal, "spiffe://clinic.test/app/portal: 3 connections are open, and max_connections is 3")
	w.wantAdmitted(w.ehr.svid.Load())

	_ = first.Close()
	for begin := time.Now(); ; {
		if _, ok := w.admitted(portal); ok {
			break
		}
		if time.Since(begin) > patience {
			t.Fatal("a connection that has ended keeps its place")
		}
	}
	w.wantCrowded(portal, "max_connections is 3")
}

// 20: several callers together cannot take more than there is for all.
func testAttackAllCallersTogether(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.MaxConnections, s.MaxConnectionsTotal = 2, 3 }})
	w.wantAdmitted(w.portal.svid.Load())
	w.wantAdmitted(w.portal.svid.Load())
	w.wantAdmitted(w.ehr.svid.Load())
	w.wantCrowded(w.ehr.svid.Load(), serviceName+": 3 connections of all callers are open, and max_connections_total is 3")
}

// 20: identities that may not call the service have one caller's places between them, however many they are.
func testAttackStrangersTakeAllConnections(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.MaxConnections, s.MaxConnectionsTotal = 2, 4 }})
	w.wantAdmitted(w.ca.issue(t, "/app/stranger-1"))
	w.wantAdmitted(w.ca.issue(t, "/app/stranger-2"))
	w.wantCrowded(w.ca.issue(t, "/app/stranger-3"), "those who may not call "+serviceName+": 2 connections")
	w.wantAdmitted(w.portal.svid.Load())
	w.wantAdmitted(w.portal.svid.Load())
}

// New bounds hold for the next connection.
func TestBoundsOfConnectionsAreReplaced(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.MaxConnections = 1 }})
	w.wantAdmitted(w.portal.svid.Load())
	w.wantCrowded(w.portal.svid.Load(), "max_connections is 1")
	o, s := w.rules, *w.service
	s.MaxConnections = 2
	o.Service = &s
	if n := w.live.Replace(proxy.NewIngress(o)); n != 0 {
		t.Errorf("%d connections were cut", n)
	}
	w.wantAdmitted(w.portal.svid.Load())
	w.wantCrowded(w.portal.svid.Load(), "max_connections is 2")
}

// throughBalancer is a call of portal on a connection that a balancer has handed on with header.
func (w *world) throughBalancer(header string) (*answer, error) {
	w.Helper()
	c := w.dial(w.address)
	if _, err := io.WriteString(c, header); err != nil {
		return nil, err
	}
	over := tls.Client(c, proxy.ClientTLS(w.portal.svid.Load(), x509bundle.NewSet(w.ca.bundle()), w.service.ID, time.Now))
	if err := over.Handshake(); err != nil {
		return nil, err
	}
	return send(w, over, plainRead(w)), nil
}

const handedOn = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x05\xdd\xd5\x20\xfb" // for 192.0.2.7:56789

// Behind a balancer the trail names the client, and the client is whoever its certificate says.
func TestBalancerHandsOn(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.Balancers = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }})
	w.upstream.always(reply(200, `{"resourceType":"Observation","id":"1","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/a"}}`))
	a, err := w.throughBalancer(handedOn)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Decision == a.decision() })[0]; r.Caller != w.portal.id.String() {
		t.Errorf("record %s", toJSON(r))
	}
	if a, err := w.throughBalancer(handedOn + "GET / HTTP/1.1\r\n"); err == nil {
		t.Errorf("what is no TLS was answered %d", a.status)
	}
	if r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Cause == proxy.CauseNoIdentity })[0]; r.Remote != "192.0.2.7:56789" || r.Caller != "" {
		t.Errorf("record %s", toJSON(r))
	}
	if _, err := w.throughBalancer("PROXY TCP4 192.0.2.7 10.0.0.5 56789 8443\r\n"); err == nil {
		t.Error("version 1 was taken")
	}
	r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Cause == proxy.CauseMalformed })[0]
	if r.Stage != proxy.StageRefusal || !strings.HasPrefix(r.Remote, "127.0.0.1:") || r.Caller != "" || !strings.HasPrefix(r.Detail, "PROXY protocol: ") {
		t.Errorf("record %s", toJSON(r))
	}

	// What is no balancer's any more is served plainly, and must have no header.
	o, s := w.rules, *w.service
	s.Balancers = nil
	o.Service = &s
	w.live.Replace(proxy.NewIngress(o))
	if _, err := w.throughBalancer(handedOn); err == nil {
		t.Error("a header was taken from somebody who is no balancer")
	}
	w.wantAdmitted(w.portal.svid.Load())
}
