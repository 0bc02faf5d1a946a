package proxy_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// stream is a reply that is read as it comes.
type stream struct {
	testing.TB
	conn net.Conn
	res  *http.Response
}

// stream sends raw through egress and reads no more than the reply's head.
func (w *world) stream(p *process, raw string) *stream {
	w.Helper()
	return w.streamOn(w.dialEgress(p), raw)
}

func (w *world) streamOn(c net.Conn, raw string) *stream {
	w.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		w.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		w.Fatal(res, err)
	}
	return &stream{w, c, res}
}

// want reads the next bytes, which must be s.
func (s *stream) want(text string) {
	s.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(s.res.Body, b); err != nil || string(b) != text {
		s.Fatalf("read %q, %v, want %q", b, err, text)
	}
}

// end sees that the reply ends here, whole.
func (s *stream) end() {
	s.Helper()
	if rest, err := io.ReadAll(s.res.Body); len(rest) > 0 || err != nil {
		s.Fatalf("after the end came %q, %v", rest, err)
	}
}

// script is a reply of which a test gives the pieces one by one.
type script struct {
	testing.TB
	more chan string
}

// chunks makes the FHIR server answer the next request with what the script gives.
func (u *upstream) chunks(t testing.TB) script {
	s := script{t, make(chan string)}
	u.script(func(c net.Conn, _ *received) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			select {
			case piece, more := <-s.more:
				if !more {
					_, err := io.WriteString(c, "0\r\n\r\n")
					return err == nil
				}
				_, _ = fmt.Fprintf(c, "%x\r\n%s\r\n", len(piece), piece)
			case <-u.stopped:
				return false
			}
		}
	})
	return s
}

// says makes the server write a piece.
func (s script) says(piece string) {
	s.Helper()
	select {
	case s.more <- piece:
	case <-time.After(patience):
		s.Fatal("nobody has called the server")
	}
}

// ends makes the server end its reply.
func (s script) ends() { close(s.more) }

// plainRead is a call whose reply is released as it comes.
func plainRead(w *world) string { return request("GET /fhir/Observation/1", "", bearer(w.token())) }

// Events reach the caller through both hops as they come, not when the reply ends.
func TestEventsAreFlushedThroughBothHops(t *testing.T) {
	w := newWorld(t, setup{})
	server := w.upstream.chunks(t)
	s := w.stream(w.portal, plainRead(w))
	for _, event := range []string{"data: 1\n\n", "data: 2\n\n", "data: 3\n\n"} {
		server.says(event)
		s.want(event)
	}
	server.ends()
	s.end()
}

// A large reply is passed on, whole and unchanged.
func TestLargeReply(t *testing.T) {
	w := newWorld(t, setup{})
	big := strings.Repeat("0123456789abcdef", 1<<20)
	w.upstream.always(reply(200, big))
	a := w.call(w.portal, plainRead(w))
	if a.status != 200 || sha256.Sum256([]byte(a.body)) != sha256.Sum256([]byte(big)) {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

// Egress passes a request's body on while it comes.
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
		"length": {"Content-Length: 10\r\n\r\nfirst", "later"},
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
			if a := send(t, c, parts[1]); a.status != 200 || a.body != "later" {
				t.Errorf("%d %q", a.status, a.body)
			}
		})
	}
}

// A caller that goes away takes its call with it, on both hops and at the FHIR server.
func TestCallerGoesAway(t *testing.T) {
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
				w.upstream.closed <- struct{}{}
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
				w.upstream.closed <- struct{}{}
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
			half := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json", "Content-Length: 100")
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
func TestExpectContinue(t *testing.T) {
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
func TestBodyThatDoesNotCome(t *testing.T) {
	for _, h := range hops {
		half := func(w *world) string {
			return request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json", "Content-Length: 100") + "{"
		}
		t.Run("wanted/"+string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{service: func(s *proxy.Service) { s.MaxExchange = 300 * time.Millisecond }})
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
func TestEarlyRefusalDuringUpload(t *testing.T) {
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

// A ward that stops takes no new calls and lets those that run end.
func TestShutdownLetsCallsEnd(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			server := w.upstream.chunks(t)
			conn := h.dial(w, w.portal)
			s := w.streamOn(conn, plainRead(w))
			server.says("one")
			s.want("one")
			ward := w.ingress
			if h.name == proxy.HopEgress {
				ward = w.servers[conn.RemoteAddr().String()]
			}
			done := make(chan error, 1)
			go func() { done <- ward.Shutdown(context.Background()) }()
			for { // the listener is closed before Shutdown waits
				c, err := net.Dial("tcp", conn.RemoteAddr().String())
				if err != nil {
					break
				}
				_ = c.Close()
			}
			select {
			case err := <-done:
				t.Fatalf("Shutdown returned %v while a call was running", err)
			default:
			}
			server.says("two")
			s.want("two")
			server.ends()
			s.end()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
