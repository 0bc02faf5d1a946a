package wire

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// What is good, and what passes behind it.
func TestHeads(t *testing.T) {
	const get, host, end = "GET /Patient/a HTTP/1.1\r\n", "Host: a\r\n", "\r\n"
	const post = "POST /Patient HTTP/1.1\r\n" + host
	many := func(n int) string { return strings.Repeat("X: x\r\n", n) }
	for _, c := range []struct {
		name, in string
		passed   int64 // heads
		verdict  int32
	}{
		{"one", get + host + end, 1, 0},
		{"HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n", 1, 0},
		{"two in a row", get + host + end + get + host + end, 2, 0},
		{"a body, and another", post + "Content-Length: 5\r\n\r\nGET /" + get + host + end, 2, 0},
		{"a body that looks like a bad head", post + "Content-Length: 12\r\n\r\n\n\n\x00 : \nabc\r\n" + get + host + end, 2, 0},
		{"chunks, and another", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nA;a=b\r\n\n\n\n\n\n\n\n\n\n\n\r\n0\r\nX: y\r\n\r\n" + get + host + end, 2, 0},
		{"RFC 9112 7.1 a size with 0x", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 a signed size", post + "Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 a padded size", post + "Transfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 no size", post + "Transfer-Encoding: chunked\r\n\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 a size of 16 digits", post + "Transfer-Encoding: chunked\r\n\r\n0000000000000001\r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 a size with a bare LF", post + "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1 no line's end behind the data", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1.1 a bare CR in an extension", post + "Transfer-Encoding: chunked\r\n\r\n1;a=\rb\r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1.1 a long extension", post + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("a", 257) + "\r\nx\r\n0\r\n\r\n", 1, 400},
		{"RFC 9112 7.1.2 a trailer that is none", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", 1, 400},
		{"RFC 9112 7.1.2 101 fields in the trailer", post + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + many(101) + "\r\n", 1, 400},
		{"an absolute target", "GET http://A:80/x HTTP/1.1\r\n" + host + end, 1, 0},
		{"an absolute target without a path", "GET http://a?x HTTP/1.1\r\n" + host + end, 1, 0},
		{"a URL in the query", "GET /x?y=http://b/ HTTP/1.1\r\n" + host + end, 1, 0},
		{"100 fields", get + host + many(99) + end, 1, 0},
		{"bytes above 0x7f in a value", get + host + "X: \xff\t\xfe\r\n" + end, 1, 0},

		{"RFC 9112 2.2 a bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", 0, 400},
		{"RFC 9112 2.2 a bare LF ends the head", get + host + "\n", 0, 400},
		{"RFC 9112 2.2 a bare CR", get + host + "X: a\rb\r\n" + end, 0, 400},
		{"RFC 9112 2.2 two CRs", get + "Host: a\r\r\n" + end, 0, 400},
		{"RFC 9112 2.2 an empty line first", end + get + host + end, 0, 400},
		{"RFC 9112 2.2 an empty line after a body", post + "Content-Length: 1\r\n\r\nx\r\n" + get + host + end, 1, 400},
		{"RFC 9112 2.2 a space before the first field", get + " X: a\r\n" + host + end, 0, 400},
		{"RFC 9112 2.3 HTTP/1.2", "GET / HTTP/1.2\r\n" + host + end, 0, 400},
		{"RFC 9112 2.3 HTTP/2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 400},
		{"RFC 9112 2.3 http/1.1", "GET / http/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3 no version", "GET /\r\n" + host + end, 0, 400},
		{"RFC 9112 3 two spaces", "GET  / HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3 a space after it", "GET / HTTP/1.1 \r\n" + host + end, 0, 400},
		{"RFC 9112 3 a space in the target", "GET /a b HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3 a tab", "GET\t/ HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3 NUL in the target", "GET /\x00 HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3 a method that is no token", "G@T / HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3.2 no Host", get + end, 0, 400},
		{"RFC 9112 3.2 two Hosts", get + host + "hOST: a\r\n" + end, 0, 400},
		{"RFC 9112 3.2.2 another Host than the target's", "GET http://b/x HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 3.2.2 a user in the target", "GET http://a@b/x HTTP/1.1\r\n" + host + end, 0, 400},
		{"RFC 9112 5 a line without a colon", get + host + "X\r\n" + end, 0, 400},
		{"RFC 9112 5 an empty name", get + host + ": x\r\n" + end, 0, 400},
		{"RFC 9112 5.1 a space before the colon", get + "Host : a\r\n" + end, 0, 400},
		{"RFC 9112 5.2 a folded field", get + host + "X: a\r\n b\r\n" + end, 0, 400},
		{"RFC 9110 5.5 NUL in a value", get + host + "X: \x00\r\n" + end, 0, 400},
		{"RFC 9112 6.1 both", post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n" + end, 0, 400},
		{"RFC 9112 6.1 both, the other way round", post + "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 1\r\n" + end, 0, 400},
		{"RFC 9112 6.1 chunks in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" + end, 0, 400},
		{"RFC 9112 6.1 another coding", post + "Transfer-Encoding: gzip, chunked\r\n" + end, 0, 501},
		{"RFC 9112 6.1 twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + end, 0, 501},
		{"RFC 9112 6.1 padded", post + "Transfer-Encoding: chunked \r\n" + end, 0, 501},
		{"RFC 9112 6.3 two lengths", post + "Content-Length: 1\r\nContent-Length: 1\r\n" + end, 0, 400},
		{"RFC 9112 6.3 a list of lengths", post + "Content-Length: 1,1\r\n" + end, 0, 400},
		{"RFC 9110 8.6 a signed length", post + "Content-Length: +1\r\n" + end, 0, 400},
		{"RFC 9110 8.6 no length", post + "Content-Length: \r\n" + end, 0, 400},
		{"RFC 9110 8.6 a length of 19 digits", post + "Content-Length: 1000000000000000000\r\n" + end, 0, 400},
		{"RFC 6585 5 101 fields", get + host + many(100) + end, 0, 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 7} {
				h := &heads{}
				good := feed(h, c.in, size)
				if h.passed.Load() != c.passed || h.verdict.Load() != c.verdict {
					t.Errorf("in pieces of %d: %d passed, verdict %d, want %d and %d", size, h.passed.Load(), h.verdict.Load(), c.passed, c.verdict)
				}
				if (good == len(c.in)) != (c.verdict == 0) {
					t.Errorf("in pieces of %d: %d of %d bytes went on", size, good, len(c.in))
				}
			}
		})
	}
}

// feed gives h the bytes in pieces, and says how many may go on.
func feed(h *heads, in string, size int) (good int) {
	for len(in) > 0 {
		p := []byte(in[:min(size, len(in))])
		n := h.scan(p)
		if good += n; n < len(p) {
			return good
		}
		in = in[len(p):]
	}
	return good
}

// However the bytes are cut, the verdict is one; the engine reads a head that passes as it was read here, with the same
// body behind it; and where one does not pass, what the engine is given instead is no request.
func FuzzHeads(f *testing.F) {
	for _, s := range []string{
		"GET /Patient/a HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /Patient HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /Patient HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
		"GET http://a:80/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.2\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
		"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
	} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, in string, size int) {
		whole, pieces := &heads{}, &heads{}
		good := feed(whole, in, len(in)+1)
		cut := feed(pieces, in, max(1, size%64))
		if whole.passed.Load() != pieces.passed.Load() || whole.verdict.Load() != pieces.verdict.Load() {
			t.Fatalf("whole: %d passed, %d; in pieces: %d passed, %d", whole.passed.Load(), whole.verdict.Load(), pieces.passed.Load(), pieces.verdict.Load())
		}
		if cut < good {
			t.Fatalf("in pieces %d bytes went on, whole %d", cut, good)
		}
		for _, good := range []int{good, cut} {
			given := in[:good]
			if whole.verdict.Load() != 0 {
				given += poison
			}
			engine := bufio.NewReader(strings.NewReader(given))
			var n int64
			for ; ; n++ {
				r, err := http.ReadRequest(engine)
				if err != nil {
					break
				}
				if n == whole.passed.Load() {
					t.Fatalf("the engine reads request %d, of which the head has not passed: %q", n+1, given)
				}
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					break
				}
			}
		}
	})
}

func BenchmarkHeads(b *testing.B) {
	head := []byte("GET /fhir/Observation?patient=Patient/example&code=8867-4 HTTP/1.1\r\nHost: fhir.ehr.mesh.internal\r\nAccept: application/fhir+json\r\n" +
		"Accept-Encoding: gzip\r\nUser-Agent: fhir-kit-client/2.0.3\r\nX-Request-Id: 01M84FWY84HSTF3DSP12AGBSS6\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
		"Authorization: Bearer " + strings.Repeat("a", 900) + "\r\n\r\n")
	b.SetBytes(int64(len(head)))
	b.ReportAllocs()
	h := &heads{}
	for b.Loop() {
		if h.scan(head) != len(head) {
			b.Fatal("refused")
		}
	}
	if bytes.Contains(h.line, []byte("G")) {
		b.Fatal("it keeps bytes")
	}
}
