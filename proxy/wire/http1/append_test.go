package http1

import (
	"strings"
	"testing"
)

// What the appenders write is what the readers read; what they refuse is what would be read as something else.
func TestAppend(t *testing.T) {
	line, err := AppendRequestLine([]byte("x"), "GET", "/Patient?a=b|c%20d")
	if string(line) != "xGET /Patient?a=b|c%20d HTTP/1.1\r\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	for _, c := range []struct{ name, method, target string }{
		{"RFC 9112 3.1 no method", "", "/"}, {"RFC 9112 3.1 a space", "GET /x HTTP/1.1\r\nX:", "/"}, {"RFC 9112 3.1 a long one", strings.Repeat("A", 33), "/"},
		{"RFC 9112 3.2 no target", "GET", ""}, {"RFC 9112 3.2 a space", "GET", "/ HTTP/1.1"}, {"RFC 9112 3.2 CR and LF", "GET", "/\r\nX: y"},
		{"RFC 9112 3.2 a raw byte", "GET", "/\xe9"}, {"RFC 9112 3.2 a fragment", "GET", "/#a"}, {"RFC 9112 3.2.1 no path", "GET", "http://a/"},
		{"RFC 3986 2.1 half an escape", "GET", "/%2"},
	} {
		if got, err := AppendRequestLine([]byte("x"), c.method, c.target); err == nil || string(got) != "x" {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	for name, want := range map[string]string{"X-A": "X-A: b\tc \xff\r\n", "x": "x: b\tc \xff\r\n"} {
		if got, err := AppendField(nil, name, "b\tc \xff"); string(got) != want || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	if got, err := AppendField(nil, "X", ""); string(got) != "X: \r\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, c := range []struct{ name, field, value string }{
		{"RFC 9110 5.1 no name", "", "x"}, {"RFC 9110 5.1 a colon", "X:", "x"}, {"RFC 9110 5.1 a space", "X ", "x"}, {"RFC 9110 5.1 CR and LF", "X: y\r\nZ", "x"},
		{"RFC 9110 5.1 above 0x7f", "\xc3\xa9", "x"}, {"RFC 9110 5.5 CR and LF", "X", "a\r\nb: c"}, {"RFC 9110 5.5 CR", "X", "a\rb"}, {"RFC 9110 5.5 LF", "X", "a\nb"},
		{"RFC 9110 5.5 NUL", "X", "\x00"}, {"RFC 9110 5.5 DEL", "X", "a\x7f"}, {"RFC 9110 5.5 a space before", "X", " a"}, {"RFC 9110 5.5 a tab behind", "X", "a\t"}, {"RFC 9110 5.5 white space", "X", " "},
	} {
		if got, err := AppendField([]byte("x"), c.field, c.value); err == nil || string(got) != "x" {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	for status, want := range map[int]string{200: "HTTP/1.1 200 OK\r\n", 299: "HTTP/1.1 299 \r\n", 99: "HTTP/1.1 500 Internal Server Error\r\n", 600: "HTTP/1.1 500 Internal Server Error\r\n", -1: "HTTP/1.1 500 Internal Server Error\r\n"} {
		if got := AppendStatusLine(nil, status); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := AppendLength(nil, 1<<40); string(got) != "Content-Length: 1099511627776\r\n" {
		t.Errorf("%q", got)
	}
	if got := AppendChunk(AppendChunk(nil, 0xabc), 0); string(got) != "abc\r\n0\r\n" {
		t.Errorf("%q", got)
	}
}

// Whatever is appended is read as what it was meant to be, or is not appended.
func FuzzAppend(f *testing.F) {
	f.Add("GET", "/Patient", "X", "y")
	f.Add("GET", "/ HTTP/1.1\r\nX: y", "X: y\r\nZ", "y\r\n\r\nGET /")
	f.Add("G@T", "/%2", "Content-Length", "5")
	f.Add("POST", "/a#b", "Transfer-Encoding", " chunked ")
	f.Fuzz(func(t *testing.T, method, target, name, value string) {
		b, err := AppendRequestLine(nil, method, target)
		if err != nil {
			return
		}
		if b, err = AppendField(b, "Host", "a"); err != nil {
			t.Fatal(err)
		}
		if b, err = AppendField(b, "X-"+name, value); err != nil {
			return
		}
		b = append(b, "\r\n"...)
		var r RequestHead
		n, err := r.Parse(b, &Limits{Head: 1 << 30, Target: 1 << 30})
		if err != nil || n != len(b) {
			t.Fatalf("%q: %d, %v", b, n, err)
		}
		if string(r.Method.Of(b)) != method || string(r.Target.Of(b)) != target || r.Len() != 2 || string(r.Name(1)) != "X-"+name || string(r.Value(1)) != value {
			t.Fatalf("%q was read as %s", b, describe(&r))
		}
	})
}
