package proxy_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
)

// A local application calls as itself, by whichever way it names the service.
func TestWaysToNameTheService(t *testing.T) {
	for name, c := range map[string]struct {
		line, host string
		own        bool // on the service's own socket
	}{
		"mesh name":                       {"GET /fhir/Patient/a", serviceName, false},
		"mesh name with a port":           {"GET /fhir/Patient/a", serviceName + ":80", false},
		"mesh name in capitals":           {"GET /fhir/Patient/a", strings.ToUpper(serviceName), false},
		"forward proxy":                   {"GET http://" + serviceName + "/fhir/Patient/a", serviceName, false},
		"forward proxy, with a port":      {"GET http://" + serviceName + ":80/fhir/Patient/a", serviceName, false},
		"forward proxy, in capitals":      {"GET HTTP://" + strings.ToUpper(serviceName) + "/fhir/Patient/a", serviceName, false},
		"own socket, mesh name":           {"GET /fhir/Patient/a", serviceName, true},
		"own socket, localhost":           {"GET /fhir/Patient/a", "localhost", true},
		"own socket, localhost:80":        {"GET /fhir/Patient/a", "localhost:80", true},
		"own socket used as a forward pr": {"GET http://" + serviceName + "/fhir/Patient/a", serviceName, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			service := w.service
			if !c.own {
				service = nil
			}
			a := send(t, w.dial(w.local(w.portal, service)), c.line+" HTTP/1.1\r\nHost: "+c.host+"\r\n"+bearer(w.token())+"\r\n\r\n")
			if a.status != 200 || len(a.decision()) != 26 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			// However it was asked, the FHIR server is asked one way.
			if r := w.upstream.only(t); r.line != "GET /fhir/Patient/a" || !contains(r.head, "\r\nHost: "+serviceName+"\r\n") {
				t.Errorf("%q", r.head)
			}
		})
	}
}

// A caller that comes to ingress by itself, with a SPIFFE library of its own, may name the port to which it connects, and
// no other.
func testHostAtIngress(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.Listen = "0.0.0.0:8443" }})
	for host, status := range map[string]int{serviceName: 200, serviceName + ":8443": 200, serviceName + ":443": 400, serviceName + ":": 400,
		serviceName + ":8443:8443": 400, ":8443": 400, "fhir.other.mesh.internal:8443": 400} {
		a := send(t, w.dialIngress(w.portal.svid.Load()), "GET /fhir/Patient/a HTTP/1.1\r\nHost: "+host+"\r\n"+bearer(w.token())+"\r\n\r\n")
		if a.status != status {
			t.Errorf("%q: %d %s", host, a.status, a.body)
		}
	}
	for _, r := range w.upstream.all() {
		if !contains(r.head, "\r\nHost: "+serviceName+"\r\n") {
			t.Errorf("%q", r.head)
		}
	}
}

// A forward proxy's target without a path is the root, which is no FHIR here.
func TestForwardProxyTargets(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	for target, want := range map[string]string{
		"":                  "/",
		"?x=y":              "/?x=y",
		"/":                 "/",
		"/fhir/%2e%2e//x?;": "/fhir/%2e%2e//x?;",
		"/a?b=http://c/d":   "/a?b=http://c/d",
	} {
		if a := w.call(w.portal, request("GET http://"+serviceName+target, "")); a.status != 200 {
			t.Errorf("%q: %d %s", target, a.status, a.body)
		}
		all := next.all()
		if got := all[len(all)-1].line; got != "GET "+want {
			t.Errorf("%q went out as %q", target, got)
		}
	}
}

// On a service's own socket no other service can be named.
func TestOwnSocketIsForOneService(t *testing.T) {
	w := newWorld(t, setup{})
	address := w.local(w.portal, w.service)
	for _, raw := range []string{
		"GET /fhir/Patient/a HTTP/1.1\r\nHost: fhir.other.mesh.internal\r\n\r\n",
		"GET /fhir/Patient/a HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		request("GET http://fhir.other.mesh.internal/fhir/Patient/a", ""),
	} {
		w.checkRefusal(t, send(t, w.dial(address), raw), proxy.HopEgress, proxy.CauseMalformed)
	}
	w.upstream.untouched(t)
}

// A process that matches no entry is told so at each request, for which it connects anew.
func testProcessWithoutIdentity(t *testing.T) {
	for cause, refused := range map[proxy.Cause]error{
		proxy.CauseNoIdentity: proxy.Refuse(proxy.CauseNoIdentity, "process matches no entry (unix:uid:33)"),
		proxy.CauseDenyList:   proxy.Refuse(proxy.CauseDenyList, "denied"),
	} {
		w := newWorld(t, setup{})
		p := w.process("/app/nobody", func(p *process) { p.refused = refused })
		for range 2 {
			a := send(t, w.dialEgress(p), request("GET /fhir/Patient/a", "", bearer(w.token())))
			w.checkRefusal(t, a, proxy.HopEgress, cause)
			if r := w.trail.of(proxy.HopEgress, a.decision())[0]; r.Caller != "" || r.Remote == "" {
				t.Errorf("%s", toJSON(r))
			}
			if contains(a.body, "uid") {
				t.Errorf("selectors are told: %s", a.body)
			}
			if !a.close {
				t.Error("the connection stays, and with it what was decided when it was made")
			}
		}
		w.upstream.untouched(t)
	}
}

// A process that cannot be attested soundly is not read from, let alone answered; that it tried is recorded.
func testProcessThatCannotBeAttested(t *testing.T) {
	w := newWorld(t, setup{})
	c := w.dialEgress(w.process("/app/portal", func(p *process) { p.unknown = errors.New("the socket has two owners") }))
	_, _ = io.WriteString(c, request("GET /fhir/Patient/a", "", bearer(w.token())))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress })[0]
	if r.Stage != proxy.StageRefusal || r.Cause != proxy.CausePeerChanged || r.Remote == "" || !contains(r.Detail, "two owners") {
		t.Errorf("%s", toJSON(r))
	}
	w.upstream.untouched(t)
}

// A connection is good only for the process that opened it, as long as it is that process.
func testProcessThatEnds(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		cause proxy.Cause
	}{
		"it exited":              {errGone, proxy.CausePeerChanged},
		"it lost its identity":   {proxy.Refuse(proxy.CauseNoIdentity, "the entry was removed"), proxy.CauseNoIdentity},
		"it was put on the list": {proxy.Refuse(proxy.CauseDenyList, "denied"), proxy.CauseDenyList},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			conn := w.dialEgress(w.portal)
			raw := request("GET /fhir/Patient/a", "", bearer(w.token()))
			if a := send(t, conn, raw); a.status != 200 || a.close {
				t.Fatalf("%d %s", a.status, a.body)
			}
			w.portal.ended.Store(&c.err)
			a := send(t, conn, raw)
			w.checkRefusal(t, a, proxy.HopEgress, c.cause)
			if c.cause == proxy.CausePeerChanged {
				if _, err := conn.Read(make([]byte, 1)); !a.close || !errors.Is(err, io.EOF) {
					t.Errorf("the connection goes on: %v", err)
				}
			}
			w.upstream.only(t)
		})
	}
}

// Egress lets go of a process, once, when its connection ends.
func TestCallerIsLetGo(t *testing.T) {
	w := newWorld(t, setup{})
	c := w.dialEgress(w.portal)
	if a := send(t, c, request("GET /fhir/metadata", "")); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if len(w.portal.closed) > 0 {
		t.Error("let go while connected")
	}
	_ = c.Close()
	select {
	case <-w.portal.closed:
	case <-time.After(patience):
		t.Error("never let go")
	}
}

// Every call is counted once on each hop, refused or not.
func TestCallsAreCounted(t *testing.T) {
	w := newWorld(t, setup{})
	for _, raw := range []string{request("GET /fhir/Patient/a", "", bearer(w.token())), request("GET /fhir/Patient/a", ""), "junk\r\n\r\n"} {
		w.call(w.portal, raw)
	}
	// The outcome of the first is recorded once its reply is out; the counts follow it.
	deadline := time.After(patience)
	for {
		w.seen.mu.Lock()
		egress, ingress, more := w.seen.calls[proxy.HopEgress], w.seen.calls[proxy.HopIngress], w.seen.more
		w.seen.mu.Unlock()
		if egress == 3 && ingress == 2 {
			return
		}
		if egress > 3 || ingress > 2 {
			t.Fatalf("%d calls counted at egress, %d at ingress", egress, ingress)
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d calls counted at egress, %d at ingress", egress, ingress)
		}
	}
}
