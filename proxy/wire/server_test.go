package wire_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy/wire"
)

// An answer has the form that its request and its status ask for.
func TestAnswersAreFramed(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		r := &wire.Response{Status: 200, Body: text("ok"), Length: 2, Header: wire.Header{{Name: "Date", Value: "then"},
			{Name: "Content-Length", Value: "99"}, {Name: "Transfer-Encoding", Value: "gzip"}, {Name: "Connection", Value: "x"}}}
		switch x.Request.Target {
		case "/204":
			r.Status = 204
		case "/304":
			r.Status = 304
		case "/none":
			r.Body, r.Length = nil, 0
		case "/chunks":
			r.Length = -1
		case "/short":
			r.Length = 3
		case "/split":
			r.Header = append(r.Header, wire.Field{Name: "X", Value: "a\r\nY: b"})
		case "/100":
			r.Status = 100
		}
		_, _ = x.Commit(r)
	}})
	const last = " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	const dated, end = "Date: then\r\n", "Connection: close\r\n\r\n"
	for name, c := range map[string]struct{ in, want string }{
		"RFC 9112 6.3 a length":                 {"GET /" + last, "HTTP/1.1 200 OK\r\n" + dated + "Content-Length: 2\r\n" + end + "ok"},
		"RFC 9110 9.3.2 HEAD":                   {"HEAD /" + last, "HTTP/1.1 200 OK\r\n" + dated + "Content-Length: 2\r\n" + end},
		"RFC 9110 9.3.2 HEAD of chunks":         {"HEAD /chunks" + last, "HTTP/1.1 200 OK\r\n" + dated + end},
		"RFC 9110 15.3.5 204":                   {"GET /204" + last, "HTTP/1.1 204 No Content\r\n" + dated + end},
		"RFC 9110 15.4.5 304":                   {"GET /304" + last, "HTTP/1.1 304 Not Modified\r\n" + dated + end},
		"RFC 9112 6.3 no body":                  {"GET /none" + last, "HTTP/1.1 200 OK\r\n" + dated + "Content-Length: 0\r\n" + end},
		"RFC 9112 7.1 chunks":                   {"GET /chunks" + last, "HTTP/1.1 200 OK\r\n" + dated + "Transfer-Encoding: chunked\r\n" + end + "2\r\nok\r\n0\r\n\r\n"},
		"RFC 9112 6.1 no chunks in HTTP/1.0":    {"GET /chunks HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n" + dated + end + "ok"},
		"RFC 9112 9.3 HTTP/1.0 is not kept":     {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\n" + dated + "Content-Length: 2\r\n" + end + "ok"},
		"RFC 9110 5.5 no field can hold a line": {"GET /split" + last, ""},
		"RFC 9110 15.2 not a final answer":      {"GET /100" + last, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if out := raw(t, addr, c.in); out != c.want {
				t.Errorf("%q, want %q", out, c.want)
			}
		})
	}
	t.Run("RFC 9112 8 a body that is shorter than announced ends the connection", func(t *testing.T) {
		if out := raw(t, addr, "GET /short HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"); strings.Count(out, "HTTP/1.1") > 1 {
			t.Errorf("%q", out)
		}
	})
}

// What a connection carries on after an answer, and what it does not.
func TestConnectionsGoOnWhereTheyCan(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		body := "unread"
		if x.Request.Target == "/read" {
			b, err := io.ReadAll(x.Request.Body)
			if body = string(b); err != nil {
				_, _ = x.Commit(&wire.Response{Status: 400, Close: true})
				return
			}
		}
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text(body), Length: int64(len(body))})
	}})
	const last = "GET /read HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	post := func(target string, lines ...string) string {
		return "POST " + target + " HTTP/1.1\r\nHost: a\r\n" + strings.Join(lines, "\r\n")
	}
	long := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct {
		in      string
		answers int
		last    string // the end of what comes back
	}{
		"8 three in a row":                             {post("/read", "Content-Length: 3", "", "abc") + post("/read", "Transfer-Encoding: chunked", "", "3", "def", "0", "", "") + last, 3, "\r\n\r\n"},
		"8 behind an unread body":                      {post("/", "Content-Length: 3", "", "abc") + last, 2, "\r\n\r\n"},
		"8 behind unread chunks":                       {post("/", "Transfer-Encoding: chunked", "", "3", "abc", "0", "", "") + last, 2, "\r\n\r\n"},
		"8 behind a long unread body":                  {post("/", "Content-Length: 100000", "", long) + last, 2, "\r\n\r\n"},
		"8 behind a long body of chunks":               {post("/read", "Transfer-Encoding: chunked", "", "186a0", long, "0", "", "") + last, 2, "\r\n\r\n"},
		"8 not behind an unread body that is longer":   {post("/", "Content-Length: 300000", "", long) + last, 1, "unread"},
		"4 not behind chunks that are none":            {post("/", "Transfer-Encoding: chunked", "", "0x3", "abc", "0", "", "") + last, 1, "unread"},
		"4 nor where they are read":                    {post("/read", "Transfer-Encoding: chunked", "", "3", "abcd", "0", "", "") + last, 1, "Content-Length: 0\r\nConnection: close\r\n\r\n"},
		"5 trailers are dropped":                       {post("/read", "Transfer-Encoding: chunked", "", "3", "abc", "0", "Host: b", "", "") + last, 2, "\r\n\r\n"},
		"9 not behind a body that was not asked for":   {post("/", "Expect: 100-continue", "Content-Length: 3", "", ""), 1, "unread"},
		"9 a body that is there need not be asked for": {post("/read", "Expect: 100-continue", "Content-Length: 3", "", "abc") + last, 2, "\r\n\r\n"},
		"20 a head of 40 KB":                           {"GET /read HTTP/1.1\r\nHost: a\r\nX: " + long[:40_000] + "\r\n\r\n" + last, 2, "\r\n\r\n"},
		"20 a target of 16 KB":                         {"GET /" + long[:16<<10] + " HTTP/1.1\r\nHost: a\r\n\r\n" + last, 1, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			out := raw(t, addr, c.in)
			if n := strings.Count(out, "HTTP/1.1 "); n != c.answers || !strings.HasSuffix(out, c.last) {
				t.Errorf("%d answers, want %d: %q", n, c.answers, out)
			}
		})
	}
}

// What a handler keeps of an exchange has no power over the next one on its connection.
func TestExchangesEndWithTheirHandlers(t *testing.T) {
	var before *wire.Exchange
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		if before != nil {
			if _, err := before.Commit(&wire.Response{Status: 500}); !errors.Is(err, wire.ErrAborted) {
				t.Errorf("Commit of an exchange that is over: %v", err)
			}
			before.Abort()
			if n, err := before.Request.Body.Read(make([]byte, 10)); n > 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("its body gave %d bytes, %v", n, err)
			}
		}
		before = x
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text("ok"), Length: 2})
	}})
	post := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
	if out := raw(t, addr, post+"\r\nabc"+post+"Connection: close\r\n\r\ndef"); strings.Count(out, "HTTP/1.1 200 OK") != 2 {
		t.Errorf("%q", out)
	}
}

// A peer that goes away ends its exchange's context, whether it is waited for by a read or not.
func TestGoneIsNoticed(t *testing.T) {
	for name, in := range map[string]string{
		"9 without a body": "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"9 amid the body":  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			arrived, gone := make(chan struct{}), make(chan struct{})
			addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
				close(arrived)
				_, _ = io.ReadAll(x.Request.Body)
				<-x.Context().Done()
				close(gone)
			}})
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, in)
			<-arrived
			_ = c.Close()
			<-gone
		})
	}
}
