package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// piped is a listener whose connections are piped, so that all waiting is in the test's own time.
type piped struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *piped) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *piped) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *piped) Addr() net.Addr { return &net.TCPAddr{} }

// inTime runs f against s in a time of its own.
func inTime(t *testing.T, s *wire.Server, f func(t *testing.T, dial func() net.Conn)) {
	inTimeOn(t, s, func(l net.Listener) net.Listener { return l }, f)
}

// inTimeOn is inTime, with another listener over the one whose connections are piped.
func inTimeOn(t *testing.T, s *wire.Server, over func(net.Listener) net.Listener, f func(t *testing.T, dial func() net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		if s.Accept == nil {
			s.Accept = func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return "peer", nil }
		}
		s.Refuse = func(_ any, _ string, status int) *wire.Response {
			return &wire.Response{Status: status, Body: text("refused"), Length: 7}
		}
		l := &piped{make(chan net.Conn), make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- s.Serve(t.Context(), over(l)) }()
		f(t, func() net.Conn {
			near, far := net.Pipe()
			l.conns <- far
			return near
		})
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func echo(x *wire.Exchange) {
	body, err := io.ReadAll(x.Request.Body)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		_, _ = x.Commit(&wire.Response{Status: 408, Close: true})
	case err != nil:
		_, _ = x.Commit(&wire.Response{Status: 400, Close: true})
	default:
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text(string(body)), Length: int64(len(body))})
	}
}

// trickle sends s in pieces, one every interval, until it cannot.
func trickle(c net.Conn, s string, piece int, interval time.Duration) {
	for len(s) > 0 {
		n := min(piece, len(s))
		if _, err := io.WriteString(c, s[:n]); err != nil {
			return
		}
		s = s[n:]
		time.Sleep(interval) // of the bubble
	}
}

// 19: each phase ends, however slowly a peer goes about it, and what came is answered.
func TestSlowPeers(t *testing.T) {
	long := "GET /" + strings.Repeat("x", 200) + " HTTP/1.1\r\nHost: a\r\n\r\n"
	post := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
	for name, c := range map[string]struct {
		in       string
		piece    int
		interval time.Duration
		want     string // the answer's status line
		after    time.Duration
	}{
		"19 nothing comes":                        {"", 1, 0, "", 10 * time.Second},
		"19 a head of a byte a second":            {long, 1, time.Second, "HTTP/1.1 408 Request Timeout", 10 * time.Second},
		"19 half a head, then nothing":            {long[:20], 20, 0, "HTTP/1.1 408 Request Timeout", 10 * time.Second},
		"19 a body of 100 bytes a second":         {post + strings.Repeat("x", 1000000), 100, time.Second, "HTTP/1.1 408 Request Timeout", 13 * time.Second},
		"19 no body":                              {post, len(post), 0, "HTTP/1.1 408 Request Timeout", 10 * time.Second},
		"19 a chunked body of a byte a second":    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 1000), 6, time.Second, "HTTP/1.1 408 Request Timeout", 30 * time.Second},
		"19 a body that keeps to the rate passes": {"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), 2000, time.Second, "HTTP/1.1 200 OK", 60 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, &wire.Server{Handle: echo}, func(t *testing.T, dial func() net.Conn) {
				conn := dial()
				var sending sync.WaitGroup
				defer sending.Wait()
				defer func() { _ = conn.Close() }()
				begun := time.Now()
				sending.Go(func() { trickle(conn, c.in, c.piece, c.interval) })
				out, _ := io.ReadAll(conn)
				if line, _, _ := strings.Cut(string(out), "\r\n"); line != c.want {
					t.Errorf("answered %q, want %q", line, c.want)
				}
				// The answer is followed by a while in which the peer may still read it.
				if took := time.Since(begun); took > c.after+3*time.Second {
					t.Errorf("it lasted for %s", took)
				}
			})
		})
	}
}

// 19: who has had an answer may stay, for a while.
func TestIdleConnectionsEnd(t *testing.T) {
	inTime(t, &wire.Server{Handle: echo, IdleTimeout: time.Minute}, func(t *testing.T, dial func() net.Conn) {
		conn := dial()
		defer func() { _ = conn.Close() }()
		in := bufio.NewReader(conn)
		for range 2 {
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if _, err := http.ReadResponse(in, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(40 * time.Second)
		}
		begun := time.Now()
		if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
			t.Errorf("at the end came %q, %v", rest, err)
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("it stayed for another %s", took)
		}
	})
}

// 19: a peer that does not read its answer is given up, and one that reads slowly is not.
func TestSlowReaders(t *testing.T) {
	const size = 200_000
	for name, c := range map[string]struct {
		piece int
		whole bool
	}{
		"19 not at all":            {0, false},
		"19 20 bytes a second":     {20, false},
		"19 5,000 bytes a second":  {5000, true},
		"19 30 KB, then not again": {-1, false},
	} {
		t.Run(name, func(t *testing.T) {
			var ended chan error // of the bubble
			inTime(t, &wire.Server{Handle: func(x *wire.Exchange) {
				_, err := x.Commit(&wire.Response{Status: 200, Body: text(strings.Repeat("x", size)), Length: size, Close: true})
				ended <- err
			}}, func(t *testing.T, dial func() net.Conn) {
				ended = make(chan error, 1)
				conn := dial()
				var reading sync.WaitGroup
				defer reading.Wait()
				defer func() { _ = conn.Close() }()
				begun := time.Now()
				reading.Go(func() {
					_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					if c.piece < 0 {
						_, _ = io.CopyN(io.Discard, conn, 30_000)
						return
					}
					for b := make([]byte, c.piece); c.piece > 0; time.Sleep(time.Second) {
						if _, err := io.ReadFull(conn, b); err != nil {
							return
						}
					}
				})
				if err := <-ended; (err == nil) != c.whole {
					t.Errorf("Commit: %v", err)
				}
				if took := time.Since(begun); !c.whole && took > 80*time.Second {
					t.Errorf("it was given up after %s", took)
				}
			})
		})
	}
}

// A peer may be within the rate and still be cut: the exchange has an end.
func TestUntilEndsTheWritingOfAnAnswer(t *testing.T) {
	var ended chan error // of the bubble
	inTime(t, &wire.Server{Handle: func(x *wire.Exchange) {
		x.Until(time.Now().Add(time.Second))
		_, err := x.Commit(&wire.Response{Status: 200, Body: text("x"), Length: 1})
		ended <- err
	}}, func(t *testing.T, dial func() net.Conn) {
		ended = make(chan error, 1)
		conn := dial()
		defer func() { _ = conn.Close() }()
		begun := time.Now()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > 7*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// deaf is a connection whose reader is never given anything before it is closed.
type deaf struct {
	net.Conn
	ended chan struct{}
	once  sync.Once
}

func (d *deaf) Read([]byte) (int, error) {
	<-d.ended
	return 0, net.ErrClosed
}

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.ended) })
	return d.Conn.Close()
}

// Handshakes take turns, and no peer keeps the turn while it is waited for: neither one whose hello does not come to its
// end, nor one that does not take the server's answer.
func TestStalledHandshakesDelayNobody(t *testing.T) {
	cfg := secure(t)
	inTime(t, &wire.Server{TLS: cfg, Handle: echo}, func(t *testing.T, dial func() net.Conn) {
		const many = 8                                  // more than there are turns
		client := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // whom it calls is not the point
		var stalled sync.WaitGroup
		defer stalled.Wait()
		for range many {
			half := dial()
			defer func() { _ = half.Close() }()
			if _, err := half.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}); err != nil {
				t.Error(err)
			}
			still := &deaf{Conn: dial(), ended: make(chan struct{})}
			defer func() { _ = still.Close() }()
			stalled.Go(func() { _ = tls.Client(still, client).HandshakeContext(t.Context()) })
		}
		synctest.Wait()
		defer func(start time.Time) {
			if d := time.Since(start); d > 0 {
				t.Errorf("it took %v", d)
			}
		}(time.Now())
		c := tls.Client(dial(), client)
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = c.NetConn().Close()
	})
}
