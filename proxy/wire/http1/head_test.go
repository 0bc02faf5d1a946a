package http1

import (
	"errors"
	"strings"
	"testing"
)

// reading is what was read of a stream of requests.
type reading struct {
	heads  int
	status int // of the error; 0: none
	why    string
	used   int
	open   bool // a message is unfinished
	bodies []string
}

// readRequests reads requests out of a stream whose bytes come in pieces.
func readRequests(in string, size int, l *Limits) (out reading) {
	var head RequestHead
	var body Body
	var buf []byte
	inBody := false
	fail := func(err error) reading {
		var e *Error
		if !errors.As(err, &e) {
			panic(err)
		}
		out.status, out.why = e.Status, e.Why
		return out
	}
	for {
		for progress := true; progress; {
			progress = false
			if !inBody {
				if len(buf) == 0 {
					break
				}
				n, err := head.Parse(buf, l)
				if err != nil {
					return fail(err)
				}
				if n > 0 {
					out.heads++
					out.used += n
					buf = buf[n:]
					body.Start(head.Length, l)
					out.bodies = append(out.bodies, "")
					inBody, progress = true, true
				}
				continue
			}
			data, n, err := body.Next(buf)
			out.bodies[len(out.bodies)-1] += string(data)
			out.used += n
			buf = buf[n:]
			if err != nil {
				return fail(err)
			}
			progress = n > 0
			if body.Done() {
				inBody, progress = false, true
			}
		}
		if in == "" {
			out.open = inBody || len(buf) > 0
			return out
		}
		piece := in[:min(size, len(in))]
		buf = append(buf, piece...)
		in = in[len(piece):]
	}
}

const (
	getLine  = "GET /Patient/a HTTP/1.1\r\n"
	hostLine = "Host: a\r\n"
	endLine  = "\r\n"
	postHead = "POST /Patient HTTP/1.1\r\n" + hostLine
	chunked  = postHead + "Transfer-Encoding: chunked\r\n\r\n"
)

func many(n int) string { return strings.Repeat("X: x\r\n", n) }

// What is a request and what is not, and with which status it is refused. The names begin with PROXY.md's number and the section.
func TestRequests(t *testing.T) {
	for _, c := range []struct {
		name, in string
		heads    int
		status   int
	}{
		{"one", getLine + hostLine + endLine, 1, 0},
		{"HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n", 1, 0},
		{"8 two in a row", getLine + hostLine + endLine + getLine + hostLine + endLine, 2, 0},
		{"8 a body, and another", postHead + "Content-Length: 5\r\n\r\nGET /" + getLine + hostLine + endLine, 2, 0},
		{"8 a body that looks like a bad head", postHead + "Content-Length: 12\r\n\r\n\n\n\x00 : \nabc\r\n" + getLine + hostLine + endLine, 2, 0},
		{"8 chunks, and another", chunked + "1\r\nx\r\nA;a=b\r\n\n\n\n\n\n\n\n\n\n\n\r\n0\r\nX: y\r\n\r\n" + getLine + hostLine + endLine, 2, 0},
		{"4 RFC 9112 7.1 a size with 0x", chunked + "0x1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"6 RFC 9112 2.2 a bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", 0, 400},
		{"1 RFC 9112 6.1 both", postHead + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n" + endLine, 0, 400},
		{"3 RFC 9112 6.1 padded", postHead + "Transfer-Encoding: chunked \r\n" + endLine, 0, 501},
		{"20 RFC 6585 5 101 fields", getLine + hostLine + many(100) + endLine, 0, 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 7} {
				got := readRequests(c.in, size, &Limits{})
				if got.heads != c.heads || got.status != c.status {
					t.Errorf("in pieces of %d: %d heads, %d (%s), want %d and %d", size, got.heads, got.status, got.why, c.heads, c.status)
				}
				if (got.used == len(c.in)) != (c.status == 0) {
					t.Errorf("in pieces of %d: %d of %d bytes were used", size, got.used, len(c.in))
				}
			}
		})
	}
}
