package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// plain is a server that answers everything, and admits a connection once admit lets it.
func plain(t *testing.T, admit func()) (*wire.Server, net.Listener, <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &wire.Server{
		Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) {
			admit()
			return nil, nil
		},
		Handle: func(x *wire.Exchange) {
			_, _ = x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(strings.NewReader("ok")), Length: 2})
		},
		Refuse: func(any, string, int) *wire.Response { return &wire.Response{Status: 400} },
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), l) }()
	return s, l, served
}

// caller is one connection of somebody who keeps it.
type caller struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, l net.Listener) *caller {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &caller{c, bufio.NewReader(c)}
}

// call makes one call, and says whether the connection ends with it.
func (c *caller) call() (last bool, err error) {
	if _, err := fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Close, err
}

// shutDown begins to drain, and returns when no more connection is accepted.
func shutDown(t *testing.T, s *wire.Server, l net.Listener) <-chan error {
	t.Helper()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	for {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return down
		}
		_ = c.Close()
	}
}

func end(t *testing.T, what string, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// Who keeps a connection and calls while the server drains is answered, and told that it was the last time.
func TestDrainAnswersIdleConnections(t *testing.T) {
	s, l, served := plain(t, func() {})
	c, silent := dial(t, l), dial(t, l)
	for _, c := range []*caller{c, silent} {
		if last, err := c.call(); last || err != nil {
			t.Fatal(last, err)
		}
	}
	down := shutDown(t, s, l)
	if last, err := c.call(); !last || err != nil {
		t.Errorf("the call ends the connection: %v, %v", last, err)
	}
	if _, err := c.r.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
	if _, err := silent.r.ReadByte(); err != io.EOF {
		t.Errorf("the silent connection goes on: %v", err)
	}
	end(t, "Shutdown", down)
	end(t, "Serve", served)
}

// A connection that was accepted, but not admitted yet, is nobody else's any more: it is served.
func TestDrainServesWhoIsBeingAdmitted(t *testing.T) {
	accepted, admit := make(chan struct{}, 100), make(chan struct{})
	s, l, served := plain(t, func() {
		accepted <- struct{}{}
		<-admit
	})
	c := dial(t, l)
	<-accepted
	down := shutDown(t, s, l)
	close(admit)
	if last, err := c.call(); !last || err != nil {
		t.Errorf("the call ends the connection: %v, %v", last, err)
	}
	end(t, "Shutdown", down)
	end(t, "Serve", served)
}

// Who takes long to be admitted is not waited for: it may be as long as a handshake may take.
func TestDrainLeavesWhoIsNotAdmitted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	s := &wire.Server{
		HandshakeTimeout: time.Hour,
		Accept: func(ctx context.Context, _ net.Conn, _ *tls.ConnectionState) (any, error) {
			close(accepted)
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Handle: func(*wire.Exchange) {},
		Refuse: func(any, string, int) *wire.Response { return nil },
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), l) }()
	dial(t, l)
	<-accepted
	end(t, "Shutdown", shutDown(t, s, l))
	end(t, "Serve", served)
}

// With nobody connected there is nothing to wait for.
func TestDrainOfNobody(t *testing.T) {
	s, _, served := plain(t, func() {})
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	end(t, "Serve", served)
}
