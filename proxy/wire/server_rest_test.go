package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy/wire"
)

// telling is a listener whose connections tell when they rest.
type telling struct {
	net.Listener
	rests chan struct{}
	last  atomic.Pointer[told] // that was accepted
}

func (l *telling) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	one := &told{c.(*net.TCPConn), l.rests}
	l.last.Store(one)
	return one, nil
}

type told struct {
	*net.TCPConn
	rests chan<- struct{}
}

func (c *told) EpollCtl(epoll, op int, event *unix.EpollEvent) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.EpollCtl(epoll, op, int(fd), event) }); err != nil {
		return err
	}
	if op == unix.EPOLL_CTL_ADD {
		select {
		case c.rests <- struct{}{}:
		default:
		}
	}
	return inner
}

func (c *told) Closed() bool {
	raw, err := c.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// A connection that rests is served as one that does not, and ends when one that does not would.
func TestConnectionsRest(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			closed := make(chan struct{}, 8)
			serving := func(s *wire.Server) (string, *telling) {
				s.Handle, s.Closed = echo, func(any) { closed <- struct{}{} }
				if secure {
					s.TLS = serverTLS(t)
				}
				l := &telling{rests: make(chan struct{}, 1)}
				return serveOver(t, s, func(inner net.Listener) net.Listener {
					l.Listener = inner
					return l
				}), l
			}
			dial := func(addr string) net.Conn {
				t.Helper()
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				if secure {
					over := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // whom it calls is not the point
					if err := over.Handshake(); err != nil {
						t.Fatal(err)
					}
					return over
				}
				return c
			}
			call := func(c net.Conn) {
				t.Helper()
				if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
					t.Fatal(err)
				}
				r, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || r.StatusCode != 200 {
					t.Fatal(r, err)
				}
				if b, err := io.ReadAll(r.Body); err != nil || string(b) != "hi" {
					t.Fatalf("%q, %v", b, err)
				}
			}
			ends := func(c net.Conn, least time.Duration, since time.Time) {
				t.Helper()
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("it went on")
				}
				<-closed
				if took := time.Since(since); took < least-least/8 {
					t.Errorf("it ended after %v, want %v", took, least)
				}
			}

			addr, l := serving(&wire.Server{HeadTimeout: 3 * time.Second})
			start := time.Now()
			c := dial(addr) // nothing is ever asked on it
			<-l.rests
			ends(c, 3*time.Second, start)

			addr, l = serving(&wire.Server{HeadTimeout: time.Minute, IdleTimeout: 3 * time.Second})
			c, start = dial(addr), time.Now()
			call(c)
			<-l.rests
			ends(c, 3*time.Second, start)

			s := &wire.Server{HeadTimeout: time.Minute}
			addr, l = serving(s)
			c = dial(addr)
			for range 2 {
				<-l.rests
				call(c)
			}
			<-l.rests
			_ = c.Close()
			<-closed

			c = dial(addr)
			call(c)
			<-l.rests
			_ = l.last.Load().Close() // as whoever let it in does when it may not stay
			ends(c, 0, start)

			c = dial(addr)
			call(c)
			<-l.rests
			if err := s.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			ends(c, 0, start)
		})
	}
}

// Thousands that rest take no goroutine each, and what comes of all of them at once is answered.
func TestRestTakesNoGoroutine(t *testing.T) {
	const conns = 200
	rests := make(chan struct{}, conns)
	closed := make(chan struct{}, conns)
	before := runtime.NumGoroutine()
	s := &wire.Server{Handle: echo, Closed: func(any) { closed <- struct{}{} }, HeadTimeout: 2 * time.Minute}
	addr := serveOver(t, s, func(l net.Listener) net.Listener { return &telling{Listener: l, rests: rests} })
	open := make([]net.Conn, conns)
	for i := range open {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		open[i] = c
	}
	for round := range 2 {
		for range open {
			<-rests
		}
		for start := time.Now(); runtime.NumGoroutine()-before > conns/2; { // the last have said that they rest, and are about to
			if time.Since(start) > time.Minute {
				t.Fatalf("%d goroutines more than before while %d connections rest", runtime.NumGoroutine()-before, conns)
			}
			runtime.Gosched()
		}
		for _, c := range open {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range open {
			if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
				t.Fatalf("round %d: %v, %v", round, r, err)
			}
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	for range open {
		<-closed
	}
}

// A connection that no set can tell of is waited for all the same.
func TestWhatCannotRest(t *testing.T) {
	s := &wire.Server{Handle: echo, IdleTimeout: time.Minute}
	inTime(t, s, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		for range 2 {
			go func() { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") }()
			if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
				t.Fatal(r, err)
			}
			time.Sleep(50 * time.Second) // of the bubble
		}
		start := time.Now()
		_, err := c.Read(make([]byte, 1))
		if took := time.Since(start); !errors.Is(err, io.EOF) || took > 10*time.Second || took < 2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}
