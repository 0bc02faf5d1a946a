package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// unfinished is how many unfinished requests one caller has places for.
const unfinished = 32

// crowded is a server that tells callers apart by their addresses, and whose connections tell when they rest.
type crowded struct {
	testing.TB
	addr   string
	rests  chan struct{}
	closed chan struct{}
	secure bool
}

func newCrowded(t testing.TB, s *wire.Server, secure bool) *crowded {
	t.Helper()
	w := &crowded{TB: t, rests: make(chan struct{}, 1024), closed: make(chan struct{}, 1024), secure: secure}
	s.Accept = func(_ context.Context, c net.Conn, _ *tls.ConnectionState) (any, error) {
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		return host, err
	}
	s.Whose = func(conn any) any { return conn }
	s.Closed = func(any) { w.closed <- struct{}{} }
	if secure {
		s.TLS = serverTLS(t)
	}
	w.addr = serveOver(t.(*testing.T), s, func(l net.Listener) net.Listener { return &telling{Listener: l, rests: w.rests} })
	return w
}

// dial connects from a loopback address.
func (w *crowded) dial(from string) net.Conn {
	w.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", w.addr)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if !w.secure {
		return c
	}
	over := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // whom it calls is not the point
	if err := over.Handshake(); err != nil {
		w.Fatal(err)
	}
	return over
}

// sent gives a new connection on which something has been sent.
func (w *crowded) sent(from, what string) net.Conn {
	w.Helper()
	c := w.dial(from)
	w.send(c, what)
	return c
}

func (w *crowded) send(c net.Conn, what string) {
	w.Helper()
	if _, err := io.WriteString(c, what); err != nil {
		w.Fatal(err)
	}
}

// answered wants an answer of this body.
func (w *crowded) answered(c net.Conn, want string) {
	w.Helper()
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || r.StatusCode != 200 {
		w.Fatal(r, err)
	}
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != want {
		w.Fatalf("%q, %v; want %q", b, err, want)
	}
}

// 19: a caller's unfinished requests beyond those it has places for wait, unread, and keep nobody else waiting.
func TestUnfinishedRequestsTakeTurns(t *testing.T) {
	const me, another = "127.0.0.1", "127.0.0.2"
	for name, c := range map[string]struct {
		secure      bool
		begin, rest string
	}{
		"heads":            {false, "POST / HTTP/1.1\r\nHost: a\r\nContent-Le", "ngth: 2\r\n\r\nhi"},
		"bodies":           {false, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh", "i"},
		"heads over TLS":   {true, "POST / HTTP/1.1\r\nHost: a\r\nContent-Le", "ngth: 2\r\n\r\nhi"},
		"bodies over TLS":  {true, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh", "i"},
		"a body not begun": {false, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n", "hi"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newCrowded(t, &wire.Server{Handle: echo, HeadTimeout: time.Minute, RateGrace: time.Minute}, c.secure)
			whole := c.begin + c.rest
			var have []net.Conn
			for range unfinished {
				have = append(have, w.sent(me, c.begin))
			}
			w.reading(me, c.begin, c.rest)
			waits := w.sent(me, c.begin)
			<-w.rests // that one: it waits for its turn
			w.answered(w.sent(me, whole), "hi")
			others := w.sent(another, c.begin)
			w.send(others, c.rest)
			w.answered(others, "hi")

			gone := w.sent(me, c.begin)
			<-w.rests
			_ = gone.Close()
			<-w.closed

			hasAll := w.sent(me, c.begin)
			<-w.rests
			w.send(hasAll, c.rest)
			if half, ok := hasAll.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
				t.Fatal("it cannot end its sending")
			}
			if !c.secure { // TLS's end of sending is none of the socket's
				w.answered(hasAll, "hi")
			}

			w.send(waits, c.rest)
			w.send(have[0], c.rest)
			w.answered(have[0], "hi")
			w.answered(waits, "hi")
			for _, one := range have[1:] {
				w.send(one, c.rest)
				w.answered(one, "hi")
			}
			w.send(waits, whole)
			w.answered(waits, "hi")
		})
	}
}

// reading returns when the server has begun to wait for all requests that were sent so far: one more has to wait.
func (w *crowded) reading(from, begin, rest string) {
	w.Helper()
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		c := w.sent(from, begin)
		select {
		case <-w.rests:
			_ = c.Close()
			<-w.closed
			return
		case <-time.After(50 * time.Millisecond): // it has had the place of one that is on its way
		}
		w.send(c, rest)
		w.answered(c, "hi")
		_ = c.Close()
		<-w.closed
	}
	w.Fatal("nobody ever waits")
}

// 19: whose turn does not come in time is told so, and no request that has come in part is ever handled.
func TestTurnsThatDoNotCome(t *testing.T) {
	const conns = 9 * unfinished
	handled := func(x *wire.Exchange) {
		t.Errorf("%s was handled", x.Request.Target)
		echo(x)
	}
	w := newCrowded(t, &wire.Server{Handle: handled, HeadTimeout: time.Second, IdleTimeout: 6 * time.Second}, false)
	start := time.Now()
	var all sync.WaitGroup
	for range conns {
		c := w.sent("127.0.0.1", "GET / HTTP/1.1\r\nHo")
		all.Go(func() {
			out, err := io.ReadAll(c)
			if line, _, _ := strings.Cut(string(out), "\r\n"); line != "HTTP/1.1 408 Request Timeout" {
				t.Errorf("%q, %v", line, err)
			}
		})
	}
	all.Wait()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// What comes in whatever pieces, on hundreds of connections of one caller, gets its own answer.
func TestTurnsMixNothing(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const conns, calls = 4 * unfinished, 4
			w := newCrowded(t, &wire.Server{Handle: echo}, secure)
			var all sync.WaitGroup
			for i := range conns {
				c := w.dial("127.0.0.1")
				all.Go(func() {
					random := rand.New(rand.NewPCG(uint64(i), 1)) //nolint:gosec // what it cuts is no secret
					answers := bufio.NewReader(c)
					for n := range calls {
						body := strings.Repeat(fmt.Sprintf("%d of %d,", n, i), 1+random.IntN(300))
						request := fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
						for len(request) > 0 {
							m := 1 + random.IntN(len(request))
							if _, err := io.WriteString(c, request[:m]); err != nil {
								t.Error(err)
								return
							}
							request = request[m:]
						}
						r, err := http.ReadResponse(answers, nil)
						if err != nil || r.StatusCode != 200 {
							t.Error(r, err)
							return
						}
						if got, err := io.ReadAll(r.Body); err != nil || string(got) != body {
							t.Errorf("connection %d, call %d: %.40q, %v", i, n, got, err)
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// A drain ends those that wait as it ends all others.
func TestDrainEndsWhoeverWaits(t *testing.T) {
	s := &wire.Server{Handle: echo, HeadTimeout: time.Minute}
	w := newCrowded(t, s, false)
	for range unfinished {
		w.sent("127.0.0.1", "GET / HT")
	}
	w.reading("127.0.0.1", "GET / HT", "TP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
	c := w.sent("127.0.0.1", "GET / HT")
	<-w.rests
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it goes on")
	}
	for range unfinished + 1 {
		<-w.closed
	}
}
