package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// Egress passes a request's body on while it comes, unless it is known to be short.
func TestRequestBodyIsStreamed(t *testing.T) {
	w := newWorld(t, setup{})
	first := make(chan string, 1)
	plain := listen(t)
	w.service.Addresses = []string{plain.Addr().String()}
	server := &wire.Server{TLS: proxy.ServerTLS(w.self, time.Now),
		Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return nil, nil },
		Refuse: func(any, string, int) *wire.Response { return &wire.Response{Status: 400} },
		Handle: func(x *wire.Exchange) {
			b := make([]byte, 5)
			_, _ = io.ReadFull(x.Request.Body, b)
			first <- string(b)
			rest, _ := io.ReadAll(x.Request.Body)
			_, _ = x.Commit(&wire.Response{Status: 200, Header: wire.Header{{Name: "Ward-Decision", Value: someDecision}},
				Body: io.NopCloser(strings.NewReader(string(rest))), Length: int64(len(rest))})
		}}
	w.serve(server, plain)
	for name, parts := range map[string][2]string{
		"length": {"Content-Length: 10005\r\n\r\nfirst", strings.Repeat("later", 2000)},
		"chunks": {"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", "5\r\nlater\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.dialEgress(w.portal)
			if _, err := io.WriteString(c, "POST /fhir/Observation HTTP/1.1\r\nHost: "+serviceName+"\r\n"+parts[0]); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-first:
				if got != "first" {
					t.Errorf("%q", got)
				}
			case <-time.After(patience):
				t.Fatal("the body waits for its end")
			}
			if a := send(t, c, parts[1]); a.status != 200 || !strings.HasPrefix(a.body, "later") {
				t.Errorf("%d %q", a.status, a.body)
			}
		})
	}
}

// A short body that does not come to its end takes no connection between wards: that one could not be used again.
func TestShortBodyIsWaitedFor(t *testing.T) {
	w := newWorld(t, setup{})
	plain := &countedListener{Listener: listen(t)}
	w.service.Addresses = []string{plain.Addr().String()}
	bodies := make(chan string, 1)
	w.serve(&wire.Server{TLS: proxy.ServerTLS(w.self, time.Now),
		Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return nil, nil },
		Refuse: func(any, string, int) *wire.Response { return &wire.Response{Status: 400} },
		Handle: func(x *wire.Exchange) {
			b, _ := io.ReadAll(x.Request.Body)
			bodies <- string(b)
			_, _ = x.Commit(&wire.Response{Status: 200, Header: wire.Header{{Name: "Ward-Decision", Value: someDecision}}})
		}}, plain)
	head := "POST /fhir/Observation HTTP/1.1\r\nHost: " + serviceName + "\r\nContent-Length: 10\r\n\r\n"
	c := w.dialEgress(w.portal)
	if _, err := io.WriteString(c, head+"first"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress })[0]
	if r.Stage != proxy.StageRefusal {
		t.Errorf("%s", toJSON(r))
	}
	if n := plain.accepted.Load(); n > 0 {
		t.Errorf("%d connections were made for half a body", n)
	}
	c = w.dialEgress(w.portal)
	if _, err := io.WriteString(c, head+"first"); err != nil {
		t.Fatal(err)
	}
	if a := send(t, c, "later"); a.status != 200 {
		t.Fatalf("%d %q", a.status, a.body)
	}
	if got := <-bodies; got != "firstlater" {
		t.Errorf("%q", got)
	}
}

// countedListener counts the connections that it accepts.
type countedListener struct {
	net.Listener
	accepted atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

// A caller that goes away takes its call with it, on both hops and at the FHIR server.
func testCallerGoesAway(t *testing.T) {
	gone := func(t *testing.T, u *upstream) {
		t.Helper()
		select {
		case <-u.closed:
		case <-time.After(patience):
			t.Error("the connection to the FHIR server is still open")
		}
	}
	for _, h := range hops {
		t.Run("before the reply/"+string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			arrived := make(chan struct{})
			w.upstream.script(func(c net.Conn, _ *received) bool {
				close(arrived)
				_, _ = c.Read(make([]byte, 1))
				w.upstream.ended()
				return false
			})
			c := h.dial(w, w.portal)
			_, _ = io.WriteString(c, plainRead(w))
			<-arrived
			_ = c.Close()
			gone(t, w.upstream)
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopIngress && r.Stage == proxy.StageOutcome })[0]
			if r.Cause != proxy.CauseTimeout || r.Complete {
				t.Errorf("%s", toJSON(r))
			}
		})
		t.Run("amid the reply/"+string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			w.upstream.script(func(c net.Conn, _ *received) bool {
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				for err == nil {
					_, err = io.WriteString(c, "1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n")
				}
				w.upstream.ended()
				return false
			})
			s := w.streamOn(h.dial(w, w.portal), plainRead(w))
			s.want("xxxx")
			_ = s.conn.Close()
			gone(t, w.upstream)
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopIngress && r.Stage == proxy.StageOutcome })[0]
			if r.Complete || r.Status != 200 {
				t.Errorf("%s", toJSON(r))
			}
		})
		t.Run("amid the request/"+string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			c := h.dial(w, w.ehr)
			half := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json", "Content-Length: 10000")
			_, _ = io.WriteString(c, half+`{"resourceType":`)
			_ = c.Close()
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopIngress && r.Stage == proxy.StageRefusal })[0]
			if r.Cause != proxy.CauseTimeout || r.Detail != "the caller went away" {
				t.Errorf("%s", toJSON(r))
			}
			if h.name == proxy.HopEgress {
				r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress })[0]
				if r.Stage != proxy.StageRefusal || r.Cause != proxy.CauseTimeout {
					t.Errorf("%s", toJSON(r))
				}
			}
			w.upstream.untouched(t)
		})
	}
}

// 9: Expect: 100-continue is honoured, and only for a body that is wanted.
func testExpectContinue(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			head := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json",
				"Expect: 100-continue", "Content-Length: "+itoa(len(newObservation)))
			c := h.dial(w, w.ehr)
			_, _ = io.WriteString(c, head)
			in := newReader(c)
			line, _ := in.ReadString('\n')
			_, _ = in.ReadString('\n')
			if line != "HTTP/1.1 100 Continue\r\n" {
				t.Fatalf("%q", line)
			}
			_, _ = io.WriteString(c, newObservation)
			if a := read(t, in, head); a.status != 201 {
				t.Errorf("%d %s", a.status, a.body)
			}
			if r := w.upstream.only(t); len(r.field("Expect")) > 0 || r.body != newObservation {
				t.Errorf("%q", r.raw)
			}
			w.service.Callers = nil
			if a := send(t, h.dial(w, w.ehr), head); a.status != 403 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// 19: a body that does not come holds nothing for longer than max_exchange, and a refusal does not wait for it.
func testBodyThatDoesNotCome(t *testing.T) {
	for _, h := range hops {
		half := func(w *world) string {
			return request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json", "Content-Length: 100") + "{"
		}
		t.Run("wanted/"+string(h.name), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, setup{service: endsSoon})
			c := h.dial(w, w.ehr)
			a := send(t, c, half(w))
			w.checkRefusal(t, a, h.name, proxy.CauseTimeout)
			if !a.close {
				t.Error("the connection is said to go on")
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection goes on: %v", err)
			}
			w.upstream.untouched(t)
		})
		t.Run("refused/"+string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			w.service.Callers = nil
			w.checkRefusal(t, send(t, h.dial(w, w.ehr), half(w)), h.name, proxy.CauseNotACaller)
		})
	}
}

// A body that is too large is refused while it still comes, through both hops.
func testEarlyRefusalDuringUpload(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{ingress: func(o *proxy.IngressOptions) { o.MaxBody = 1 << 10 }})
			c := h.dial(w, w.ehr)
			head := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json")
			sent := make(chan error, 1)
			go func() { // for ever, in one body, until the connection ends
				_, err := io.WriteString(c, strings.TrimSuffix(head, "\r\n")+"Transfer-Encoding: chunked\r\n\r\n")
				for err == nil {
					_, err = io.WriteString(c, "1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n")
				}
				sent <- err
			}()
			a := read(t, newReader(c), head)
			w.checkRefusal(t, a, proxy.HopIngress, proxy.CauseTooLarge)
			_ = c.Close()
			<-sent
			w.upstream.untouched(t)
		})
	}
	t.Run("announced", func(t *testing.T) {
		w := newWorld(t, setup{})
		raw := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json", "Content-Length: 9999999999")
		w.checkRefusal(t, send(t, w.dialIngress(w.ehr.svid.Load()), raw), proxy.HopIngress, proxy.CauseTooLarge)
	})
}
