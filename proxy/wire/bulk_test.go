package wire_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// overTLS makes a client and a server that speak TLS with each other, and counts the connections.
func overTLS(t *testing.T, handle func(*wire.Exchange)) (*wire.Client, *atomic.Int32) {
	t.Helper()
	addr := serve(t, &wire.Server{TLS: secure(t), Handle: handle})
	conns := new(atomic.Int32)
	c := wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		conns.Add(1)
		raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return tls.Client(wire.NewBulk(raw), &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}), nil //nolint:gosec // whom it calls is not the point
	}})
	t.Cleanup(c.CloseIdle)
	return c, conns
}

// some gives n bytes of which no two stretches are alike.
func some(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8*7 ^ i>>16*13)
	}
	return p
}

// only hides all that a reader offers beside Read.
type only struct{ io.Reader }

// Bodies come through TLS byte for byte around each size at which they are read, written or gathered otherwise, and leave
// the connection good for the next.
func TestLongBodiesOverTLS(t *testing.T) {
	c, conns := overTLS(t, func(x *wire.Exchange) {
		body, err := io.ReadAll(x.Request.Body)
		if err != nil {
			t.Error(err)
		}
		length := int64(len(body))
		if x.Request.Length < 0 {
			length = -1
		}
		_, _ = x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(only{bytes.NewReader(body)}), Length: length})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, edge := range []int{8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 129 << 10, 192 << 10, 256 << 10, 1 << 20} {
		for _, size := range []int{edge - 40, edge - 1, edge, edge + 1, edge + 40} {
			for _, chunked := range []bool{false, true} {
				sent, length := some(size), int64(size)
				if chunked {
					length = -1
				}
				r, err := c.RoundTrip(ctx, &wire.Request{Method: "POST", Target: "/", Host: "a", Body: only{bytes.NewReader(sent)}, Length: length})
				if err != nil {
					t.Fatalf("%d bytes, chunked %t: %v", size, chunked, err)
				}
				got, err := io.ReadAll(r.Body)
				_ = r.Body.Close()
				if err != nil || !bytes.Equal(got, sent) {
					t.Fatalf("%d bytes, chunked %t: %d came back, %v", size, chunked, len(got), err)
				}
			}
		}
	}
	// The last piece of an upload and the reply's end may cross, so a connection can now and then be missed.
	if n := conns.Load(); n > 45 {
		t.Errorf("%d connections for 90 calls one after the other", n)
	}
}

// What a source has given is with the other end before it gives more, however long the body is already.
func TestNothingIsHeldBackOverTLS(t *testing.T) {
	steps := []int{3, 70000, 1, 131072, 20000, 132096, 5, 300000, 2}
	total := 0
	for _, n := range steps {
		total += n
	}
	// pour writes step after step, each when the one before has arrived.
	pour := func(w *io.PipeWriter, arrived <-chan int) error {
		for i, n := range steps {
			if _, err := w.Write(some(n)); err != nil {
				return err
			}
			select {
			case <-arrived:
			case <-time.After(time.Minute):
				return fmt.Errorf("step %d, of %d bytes, is held back", i, n)
			}
		}
		return w.Close()
	}
	drink := func(r io.Reader, arrived chan<- int) error {
		for i, n := range steps {
			got := make([]byte, n)
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, some(n)) {
				return fmt.Errorf("step %d: %w", i, err)
			}
			arrived <- i
		}
		if n, err := io.Copy(io.Discard, r); n != 0 || err != nil {
			return fmt.Errorf("%d bytes more, %w", n, err)
		}
		return nil
	}
	for name, length := range map[string]int64{"of a length": int64(total), "in chunks": -1} {
		t.Run("reply "+name, func(t *testing.T) {
			r, w := io.Pipe()
			c, _ := overTLS(t, func(x *wire.Exchange) { _, _ = x.Commit(&wire.Response{Status: 200, Body: r, Length: length}) })
			arrived, poured := make(chan int, len(steps)), make(chan error, 1)
			go func() { poured <- pour(w, arrived) }()
			reply, err := c.RoundTrip(t.Context(), &wire.Request{Method: "GET", Target: "/", Host: "a"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = reply.Body.Close() }()
			if err := drink(reply.Body, arrived); err != nil {
				t.Error(err)
			}
			if err := <-poured; err != nil {
				t.Error(err)
			}
		})
		t.Run("request "+name, func(t *testing.T) {
			r, w := io.Pipe()
			arrived, poured := make(chan int, len(steps)), make(chan error, 1)
			c, _ := overTLS(t, func(x *wire.Exchange) {
				if err := drink(x.Request.Body, arrived); err != nil {
					t.Error(err)
				}
				_, _ = x.Commit(&wire.Response{Status: 200})
			})
			go func() { poured <- pour(w, arrived) }()
			reply, err := c.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Body: r, Length: length})
			if err != nil {
				t.Fatal(err)
			}
			_ = reply.Body.Close()
			if err := <-poured; err != nil {
				t.Error(err)
			}
		})
	}
}

// Chunks of a reply that came together go on together.
func TestChunksGoOnTogether(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, c := range map[string]struct{ raw, want string }{
		"whole":      {head + "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n", "\r\n\r\nb\r\nonetwothree\r\n0\r\n\r\n"},
		"broken off": {head + "3\r\none\r\n3\r\ntwo\r\nx\r\n", "\r\n\r\n6\r\nonetwo\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			next := script(t, says(c.raw, false)).client(t, wire.ClientOptions{})
			addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
				r, err := next.RoundTrip(x.Context(), &wire.Request{Method: "GET", Target: "/", Host: "a"})
				if err != nil {
					t.Error(err)
					return
				}
				_, err = x.Commit(r)
				if (err != nil) != (name == "broken off") {
					t.Error(err)
				}
			}})
			out := raw(t, addr, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if !strings.HasSuffix(out, c.want) {
				t.Errorf("%q does not end in %q", out, c.want)
			}
		})
	}
}
