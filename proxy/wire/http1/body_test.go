package http1

import (
	"strings"
	"testing"
)

// bodyRows are chunked bodies; a request behind one shows where it ends.
func bodyRows() []row {
	const next = get + endLine
	return []row{
		{"RFC 9112 7.1 sizes in either case", chunked + "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n" + next, 2, 0},
		{"RFC 9112 7.1 zeros before a size", chunked + "001\r\nx\r\n000\r\n\r\n" + next, 2, 0},
		{"RFC 9112 7.1 an empty body", chunked + "0\r\n\r\n" + next, 2, 0},
		{"4 RFC 9112 7.1 a size with 0x", chunked + "0x1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a signed size", chunked + "+1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a negative size", chunked + "-1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size padded behind", chunked + "1 \r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size padded before", chunked + " 1\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a tab behind a size", chunked + "1\t\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size with an underscore", chunked + "1_0\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 no size", chunked + "\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 no size but an extension", chunked + ";a\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size of 15 digits", chunked + "000000000000001\r\nx\r\n0\r\n\r\n" + next, 2, 0},
		{"4 RFC 9112 7.1 a size of 16 digits", chunked + "0000000000000001\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size that overflows", chunked + "10000000000000001\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size with a bare LF", chunked + "1\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a size with a bare CR", chunked + "1\rx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a bare LF behind the data", chunked + "1\r\nx\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 a bare CR behind the data", chunked + "1\r\nx\r0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 no line's end behind the data", chunked + "1\r\nxy\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 two bytes for the line's end", chunked + "1\r\nxyz0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 the last chunk with a bare LF", chunked + "0\n\r\n", 1, 400},
		{"4 RFC 9112 7.1 the end with a bare LF", chunked + "0\r\n\n", 1, 400},
		{"4 RFC 9112 7.1 the end with a bare CR", chunked + "0\r\n\rG", 1, 400},
		{"4 RFC 9112 7.1.1 an extension", chunked + "1;a=\"b;c\"\r\nx\r\n0;z\r\n\r\n" + next, 2, 0},
		{"4 RFC 9112 7.1.1 a bare CR in an extension", chunked + "1;a=\rb\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 a bare LF in an extension", chunked + "1;a=\nb\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 a bare LF in a quoted extension", chunked + "1;a=\"\n\"\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 NUL in an extension", chunked + "1;\x00\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 extensions of 256 bytes", chunked + "1;" + strings.Repeat("a", 255) + "\r\nx\r\n0\r\n\r\n", 1, 0},
		{"4 RFC 9112 7.1.1 a long extension", chunked + "1;" + strings.Repeat("a", 257) + "\r\nx\r\n0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 many short extensions", chunked + strings.Repeat("1;a\r\nx\r\n", 129) + "0\r\n\r\n", 1, 400},
		{"4 RFC 9112 7.1.1 many empty extensions", chunked + strings.Repeat("1;\r\nx\r\n", 257) + "0\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 a trailer", chunked + "0\r\nContent-Length: 5\r\nHost: b\r\nTransfer-Encoding: x\r\n\r\n" + next, 2, 0},
		{"5 RFC 9112 7.1.2 a space before the colon", chunked + "0\r\nX : y\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 an empty name", chunked + "0\r\n: y\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 no colon", chunked + "0\r\nX\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 a folded field", chunked + "0\r\nX: y\r\n z\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 a bare LF", chunked + "0\r\nX: y\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 a bare CR", chunked + "0\r\nX: y\rz\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 NUL", chunked + "0\r\nX: \x00\r\n\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 100 fields", chunked + "0\r\n" + many(100) + "\r\n" + next, 2, 0},
		{"5 RFC 9112 7.1.2 101 fields", chunked + "0\r\n" + many(101) + "\r\n", 1, 400},
		{"5 RFC 9112 7.1.2 a long section", chunked + "0\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 1, 400},
		{"8 two in a row", get + endLine + next, 2, 0},
		{"8 a body, and another", postHead + "Content-Length: 5\r\n\r\nGET /" + next, 2, 0},
		{"8 a body that looks like a bad head", postHead + "Content-Length: 12\r\n\r\n\n\n\x00 : \nabc\r\n" + next, 2, 0},
		{"8 chunks, and another", chunked + "1\r\nx\r\nA;a=b\r\n\n\n\n\n\n\n\n\n\n\n\r\n0\r\nX: y\r\n\r\n" + next, 2, 0},
	}
}

func TestBodies(t *testing.T) { testRows(t, bodyRows()) }

// The payload is what was framed, however it came, and it is no copy.
func TestPayload(t *testing.T) {
	const in = chunked + "5\r\nhello\r\n1;x\r\n,\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n"
	for size := 1; size <= len(in); size++ {
		got := readRequests(in, size, &Limits{})
		if len(got.messages) != 1 || got.messages[0].body != "hello, world" || !got.messages[0].whole {
			t.Fatalf("in pieces of %d: %+v", size, got)
		}
	}
	var b Body
	b.Start(-1, &Limits{})
	p := []byte("2\r\nab\r\n0\r\n\r\nGET")
	data, n, err := b.Next(p)
	if string(data) != "ab" || n != len(p)-3 || err != nil || !b.Done() || &data[0] != &p[3] || cap(data) != 2 {
		t.Errorf("%q (room for %d), %d, %v, done: %v", data, cap(data), n, err, b.Done())
	}
	if data, n, err := b.Next(p[n:]); len(data) > 0 || n != 0 || err != nil {
		t.Errorf("behind its end: %q, %d, %v", data, n, err)
	}
}

// Whether a body has ended when its connection does: RFC 9112 §8.
func TestConnectionEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		length int64
		in     string
		ok     bool
	}{
		{"no body", 0, "", true},
		{"a whole length", 2, "ab", true},
		{"a part of a length", 2, "a", false},
		{"until the end", -2, "ab", true},
		{"nothing until the end", -2, "", true},
		{"no chunk", -1, "", false},
		{"a chunk without the last", -1, "1\r\na\r\n", false},
		{"the last chunk without the end", -1, "0\r\n", false},
		{"a trailer without the end", -1, "0\r\nX: y\r\n", false},
		{"all chunks", -1, "1\r\na\r\n0\r\n\r\n", true},
		{"a length that is none", -3, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b Body
			b.Start(c.length, &Limits{})
			_, n, _ := b.Next([]byte(c.in))
			if err := b.EOF(); n != len(c.in) || (err == nil) != c.ok {
				t.Errorf("%d bytes, %v", n, err)
			}
			if b.Done() != c.ok {
				t.Errorf("done: %v", b.Done())
			}
		})
	}
}
