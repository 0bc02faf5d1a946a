package proxy_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
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
				ward = w.egressAt(conn.RemoteAddr().String())
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
