package wire_test

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// The engine has an answer of its own to OPTIONS *, and that is no answer of Ward's.
func TestAsteriskFormReachesTheHandler(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		_, _ = x.Commit(&wire.Response{Status: 400, Body: text(x.Request.Target), Length: 1, Close: true})
	}})
	out := raw(t, addr, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
	if !strings.HasPrefix(out, "HTTP/1.1 400 ") || !strings.Contains(out, "\r\nConnection: close\r\n") || !strings.HasSuffix(out, "\r\n\r\n*") {
		t.Errorf("answer: %q", out)
	}
}

// A body that does not come ends with the exchange, after which there is still time for an answer.
func TestUntilEndsTheReadingOfABody(t *testing.T) {
	failed := make(chan error, 1)
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		x.Until(time.Now().Add(-time.Second)) // reads go on for a second
		_, err := io.ReadAll(x.Request.Body)
		failed <- err
		_, _ = x.Commit(&wire.Response{Status: 408, Body: text("late"), Length: 4, Close: true})
	}})
	out := raw(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
	if err := <-failed; err == nil || !strings.HasPrefix(out, "HTTP/1.1 408 ") || !strings.HasSuffix(out, "late") {
		t.Errorf("read: %v, answer: %q", err, out)
	}
}

// An exchange's bounds are not those of the next one on its connection.
func TestBoundsEndWithTheirExchange(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		if x.Request.Target == "/bounded" {
			x.Until(time.Now())
		}
		body, err := io.ReadAll(x.Request.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text(string(body)), Length: int64(len(body))})
	}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	answer := func(want string) {
		t.Helper()
		got := make([]byte, 0, 512)
		for b := make([]byte, 512); !strings.HasSuffix(string(got), "\r\n\r\n"+want); {
			n, err := c.Read(b)
			if got = append(got, b[:n]...); err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
	_, _ = io.WriteString(c, "POST /bounded HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na")
	answer("a")
	_, _ = io.WriteString(c, "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nb")
	timer := time.NewTimer(1200 * time.Millisecond) // longer than the first exchange's bound
	defer timer.Stop()
	<-timer.C
	_, _ = io.WriteString(c, "c")
	answer("bc")
}

// The head of an answer whose length is not known goes out before its first byte is there.
func TestHeadDoesNotWaitForTheBody(t *testing.T) {
	r, w := io.Pipe()
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		_, _ = x.Commit(&wire.Response{Status: 200, Body: r, Length: -1})
	}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	b := make([]byte, 15)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 200 OK" {
		t.Errorf("%q %v", b, err)
	}
	_ = w.Close()
}

// A reply whose fields have names that are none could be framed in two ways.
func TestRepliesWithImpossibleFieldsAreRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, field := range []string{"Content-Length : 2", "X Y: 1", "X(y): 1", "Content-Length\t: 2"} {
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+field+"\r\nContent-Length: 2\r\n\r\nok")
		}()
		if res, err := client(l.Addr().String()).RoundTrip(t.Context(), &wire.Request{Method: "GET", Target: "/", Host: "a"}); err == nil {
			t.Errorf("%q: %+v", field, res)
		}
	}
}
