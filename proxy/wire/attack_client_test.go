package wire_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// What a server says beyond its reply must not answer the next request, when that one has been waiting for the connection
// either.
func TestNothingUnaskedAnswersWhoWaits(t *testing.T) {
	const planted = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted"
	body := strings.Repeat("x", 32<<10)
	s := script(t, func(c net.Conn, conn, _ int) bool {
		if conn > 1 {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown")
			return true
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 32768\r\n\r\n")
		_, _ = io.WriteString(c, body+planted)
		return true
	})
	c := s.client(t, wire.ClientOptions{MaxConns: 1})
	first, err := c.RoundTrip(t.Context(), &wire.Request{Method: "GET", Target: "/", Host: "a"})
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		body string
		err  error
	}
	second := make(chan result, 1)
	waits, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	asked := asking{waits, make(chan struct{})}
	go func() {
		r, err := c.RoundTrip(asked, &wire.Request{Method: "GET", Target: "/", Host: "a"})
		if err != nil {
			second <- result{err: err}
			return
		}
		b, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		second <- result{string(b), err}
	}()
	<-asked.waits // it has no connection, and waits for one
	if got, err := io.ReadAll(first.Body); err != nil || len(got) != len(body) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if r := <-second; r.err != nil || r.body != "own" {
		t.Errorf("who has waited got %q, %v", r.body, r.err)
	}
}

// asking tells when somebody first waits for its end.
type asking struct {
	context.Context
	waits chan struct{}
}

func (a asking) Done() <-chan struct{} {
	select {
	case <-a.waits:
	default:
		close(a.waits)
	}
	return a.Context.Done()
}
