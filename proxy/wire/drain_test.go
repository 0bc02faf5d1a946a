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
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// answering is a server that answers everything.
func answering() *wire.Server {
	return &wire.Server{Handle: func(x *wire.Exchange) {
		_, _ = x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(strings.NewReader("ok")), Length: 2})
	}}
}

// caller is one connection of somebody who keeps it.
type caller struct {
	net.Conn
	r *bufio.Reader
}

func newCaller(c net.Conn) *caller { return &caller{c, bufio.NewReader(c)} }

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

// shutDown begins to drain.
func shutDown(t *testing.T, s *wire.Server) <-chan error {
	t.Helper()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	return down
}

func end(t *testing.T, what string, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", what)
	}
}

// Who keeps a connection and calls while the server drains is answered, and told that it was the last time.
func TestDrainAnswersIdleConnections(t *testing.T) {
	s := answering()
	inTime(t, s, func(t *testing.T, dial func() net.Conn) {
		c, silent := newCaller(dial()), newCaller(dial())
		for _, c := range []*caller{c, silent} {
			if last, err := c.call(); last || err != nil {
				t.Fatal(last, err)
			}
		}
		down := shutDown(t, s)
		synctest.Wait()
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
	})
}

// A connection that was accepted, but not admitted yet, is nobody else's any more: it is served.
func TestDrainServesWhoIsBeingAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		admit := make(chan struct{})
		s := answering()
		s.Accept = func(context.Context, net.Conn, *tls.ConnectionState) (any, error) {
			<-admit
			return nil, nil
		}
		s.Refuse = func(any, string, int) *wire.Response { return &wire.Response{Status: 400} }
		l := &piped{make(chan net.Conn), make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), l) }()
		near, far := net.Pipe()
		l.conns <- far
		c := newCaller(near)
		synctest.Wait()
		down := shutDown(t, s)
		synctest.Wait()
		close(admit)
		if last, err := c.call(); !last || err != nil {
			t.Errorf("the call ends the connection: %v, %v", last, err)
		}
		end(t, "Shutdown", down)
		end(t, "Serve", served)
	})
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
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	<-accepted
	end(t, "Shutdown", shutDown(t, s))
	end(t, "Serve", served)
}

// With nobody connected there is nothing to wait for.
func TestDrainOfNobody(t *testing.T) {
	s := answering()
	inTime(t, s, func(t *testing.T, _ func() net.Conn) {
		began := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("it waits for %s", waited)
		}
	})
}
