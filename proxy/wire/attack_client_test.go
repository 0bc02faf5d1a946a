package wire_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
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

// A defect that shows only where the client works in goroutines of its own comes to who has made the call, and does not
// end the process.
func TestDefectsComeToTheCaller(t *testing.T) {
	call := func(c *wire.Client, body io.Reader) (defect any) {
		defer func() { defect = recover() }()
		_, err := c.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Body: body, Length: -1})
		t.Errorf("no panic; %v", err)
		return nil
	}
	t.Run("in a body", func(t *testing.T) {
		s := script(t, func(c net.Conn, _, _ int) bool { _, _ = io.Copy(io.Discard, c); return false })
		if got := call(s.client(t, wire.ClientOptions{}), breaking{}); got == nil {
			t.Error("nothing came")
		}
	})
	t.Run("in Dial", func(t *testing.T) {
		c := wire.NewClient(wire.ClientOptions{MaxConns: 1, Dial: func(context.Context) (net.Conn, error) { panic("odd certificate") }})
		for range 2 { // the place for a connection is given back
			if got := call(c, strings.NewReader("x")); got == nil {
				t.Error("nothing came")
			}
		}
	})
}

type breaking struct{}

func (breaking) Read([]byte) (int, error) { panic("odd body") }

// So it is while a connection is admitted.
func TestDefectInAcceptEndsOneConnection(t *testing.T) {
	defects := make(chan struct{}, 10)
	odd := true
	addr := serve(t, &wire.Server{
		Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) {
			if odd {
				odd = false
				panic("odd certificate")
			}
			return "peer", nil
		},
		Handle: func(x *wire.Exchange) { _, _ = x.Commit(&wire.Response{Status: 204}) },
		Defect: func([]byte) { defects <- struct{}{} },
	})
	const request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	if got := raw(t, addr, request); got != "" {
		t.Errorf("answered: %q", got)
	}
	<-defects
	if got := raw(t, addr, request); !strings.HasPrefix(got, "HTTP/1.1 204 ") {
		t.Errorf("the next one: %q", got)
	}
}

// And while frames of HTTP/2 are read, which happens in a goroutine of net/http's.
func TestDefectInFramesEndsOneConnection(t *testing.T) {
	defects := make(chan struct{}, 10)
	addr := serve(t, &wire.Server{
		TLS:    secure(t, "h2"),
		Handle: func(x *wire.Exchange) { _, _ = x.Commit(&wire.Response{Status: 204}) },
		Refuse: func(any, string, int) *wire.Response { panic("odd frame") },
		Defect: func([]byte) { defects <- struct{}{} },
	})
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "this is no preface of HTTP/2"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("the connection stays")
		}
	}
	<-defects
}

// HTTP/1.0 knows a body's end by the connection's. One that was cut must not end in the same way.
func TestCutAnswerIsNotWholeInHTTP10(t *testing.T) {
	addr := serve(t, &wire.Server{
		Accept: func(_ context.Context, c net.Conn, _ *tls.ConnectionState) (any, error) { return c, nil },
		Handle: func(x *wire.Exchange) {
			rest := &ending{func() error { return io.EOF }}
			switch x.Request.Target {
			case "/broken":
				rest.end = func() error { return errors.New("upstream gone") }
			case "/cut":
				rest.end = func() error { _ = x.Conn.(net.Conn).Close(); return io.EOF }
			}
			_, _ = x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader("half"), rest)), Length: -1})
		},
	})
	for target, whole := range map[string]bool{"/whole": true, "/broken": false, "/cut": false} {
		t.Run(target, func(t *testing.T) { testCut(t, addr, target, whole) })
	}
}

type ending struct{ end func() error }

func (e *ending) Read([]byte) (int, error) { return 0, e.end() }

func testCut(t *testing.T, addr, target string, whole bool) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET "+target+" HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	got, err := io.ReadAll(c)
	if (err == nil) != whole || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("whole is %t: %q, %v", whole, got, err)
	}
}
