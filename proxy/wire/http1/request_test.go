package http1

import (
	"fmt"
	"strings"
	"testing"
)

const (
	getLine  = "GET /Patient/a HTTP/1.1\r\n"
	hostLine = "Host: a\r\n"
	endLine  = "\r\n"
	get      = getLine + hostLine
	postHead = "POST /Patient HTTP/1.1\r\n" + hostLine
	chunked  = postHead + "Transfer-Encoding: chunked\r\n\r\n"
)

func many(n int) string { return strings.Repeat("X: x\r\n", n) }

// row is a stream of requests, how many heads are good in it, and the status of what is not.
type row struct {
	name, in string
	heads    int
	status   int
}

// requestRows are what is a request and what is not. Names begin with the number of the attack that they belong to.
func requestRows() []row {
	rows := []row{
		{"one", get + endLine, 1, 0},
		{"HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n", 1, 0},
		{"HTTP/1.0 with a Host and a body", "POST / HTTP/1.0\r\n" + hostLine + "Content-Length: 1\r\n\r\nx", 1, 0},
		{"a value without white space before it", getLine + "Host:a\r\n" + endLine, 1, 0},
		{"a value with much of it around", getLine + "Host:\t a \t\r\n" + endLine, 1, 0},
		{"an empty value", get + "X:\r\nY: \r\n" + endLine, 1, 0},
		{"every byte of a token", get + "!#$%&'*+-.^_`|~09azAZ: x\r\n" + endLine, 1, 0},
		{"bytes above 0x7f in a value", get + "X: \xff\t\xfe\r\n" + endLine, 1, 0},
		{"a value that is no multiple of eight long", get + "X: abcdefghijklm\tnop\r\n" + endLine, 1, 0},
		{"100 fields", get + many(99) + endLine, 1, 0},

		{"1 RFC 9112 6.1 both", postHead + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n" + endLine, 0, 400},
		{"1 RFC 9112 6.1 both, the other way round", postHead + "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 1\r\n" + endLine, 0, 400},
		{"1 RFC 9112 6.1 both, the length being 0", postHead + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n" + endLine, 0, 400},
		{"1 RFC 9112 6.1 both, the length being none", postHead + "Transfer-Encoding: chunked\r\nContent-Length: x\r\n" + endLine, 0, 400},

		{"2 RFC 9112 6.3 two equal lengths", postHead + "Content-Length: 1\r\nContent-Length: 1\r\n" + endLine, 0, 400},
		{"2 RFC 9112 6.3 two lengths", postHead + "Content-Length: 1\r\ncontent-length: 2\r\n" + endLine, 0, 400},
		{"2 RFC 9112 6.3 a list of lengths", postHead + "Content-Length: 5, 5\r\n" + endLine, 0, 400},
		{"2 RFC 9112 6.3 a list without a space", postHead + "Content-Length: 1,1\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a signed length", postHead + "Content-Length: +5\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a negative length", postHead + "Content-Length: -5\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 no length", postHead + "Content-Length: \r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a hexadecimal length", postHead + "Content-Length: 0x5\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a length with a space", postHead + "Content-Length: 1 0\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a length of 18 digits", postHead + "Content-Length: 000000000000000001\r\n\r\nx" + get + endLine, 2, 0},
		{"2 RFC 9110 8.6 a length of 19 digits", postHead + "Content-Length: 1000000000000000000\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 a length that overflows", postHead + "Content-Length: 18446744073709551617\r\n" + endLine, 0, 400},
		{"2 RFC 9110 8.6 other digits", postHead + "Content-Length: \xd9\xa1\r\n" + endLine, 0, 400},

		{"3 RFC 9112 6.1 another coding", postHead + "Transfer-Encoding: gzip, chunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 chunked not last", postHead + "Transfer-Encoding: chunked, gzip\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 identity", postHead + "Transfer-Encoding: identity\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 in capitals", postHead + "Transfer-Encoding: Chunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 twice", postHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 twice in one", postHead + "Transfer-Encoding: chunked, chunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 padded behind", postHead + "Transfer-Encoding: chunked \r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 padded before", postHead + "Transfer-Encoding:  chunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 padded with a tab", postHead + "Transfer-Encoding:\tchunked\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 empty", postHead + "Transfer-Encoding:\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 quoted", postHead + "Transfer-Encoding: \"chunked\"\r\n" + endLine, 0, 501},
		{"3 RFC 9112 6.1 without a space", postHead + "Transfer-Encoding:chunked\r\n\r\n0\r\n\r\n", 1, 0},
		{"3 RFC 9112 6.1 chunks in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" + endLine, 0, 400},

		{"6 RFC 9112 2.2 a bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", 0, 400},
		{"6 RFC 9112 2.2 a bare LF behind a field", getLine + "Host: a\nX: x\r\n\r\n", 0, 400},
		{"6 RFC 9112 2.2 a bare LF ends the head", get + "\n", 0, 400},
		{"6 RFC 9112 2.2 a bare CR ends the head", get + "\rX: x\r\n\r\n", 0, 400},
		{"6 RFC 9112 2.2 a bare CR", get + "X: a\rb\r\n" + endLine, 0, 400},
		{"6 RFC 9112 2.2 a bare CR in the request line", "GET / HTTP/1.1\rHost: a\r\n\r\n", 0, 400},
		{"6 RFC 9112 2.2 two CRs", getLine + "Host: a\r\r\n" + endLine, 0, 400},
		{"6 RFC 9112 2.2 an empty line first", endLine + get + endLine, 0, 400},
		{"6 RFC 9112 2.2 an LF first", "\n" + get + endLine, 0, 400},
		{"6 RFC 9112 2.2 an empty line after a body", postHead + "Content-Length: 1\r\n\r\nx\r\n" + get + endLine, 1, 400},
		{"6 RFC 9112 2.2 a space before the first field", getLine + " X: a\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 2.3 HTTP/0.9", "GET /\r\n", 0, 400},
		{"6 RFC 9112 2.3 HTTP/1.2", "GET / HTTP/1.2\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 2.3 HTTP/1.10", "GET / HTTP/1.10\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 2.3 HTTP/01.1", "GET / HTTP/01.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 2.3 HTTP/2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 400},
		{"6 RFC 9112 2.3 http/1.1", "GET / http/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 2.3 another protocol", "GET / ICAP/1.0\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 no version", "GET / \r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 two spaces behind the method", "GET  / HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 two spaces behind the target", "GET /  HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 a space before it", " GET / HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 a space after it", "GET / HTTP/1.1 \r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 a tab behind the method", "GET\t/ HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 RFC 9112 3 a tab behind the target", "GET /\tHTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"6 TLS where there should be none", "\x16\x03\x01\x02\x00\x01", 0, 400},
		{"6 RFC 9112 5 a line without a colon", get + "X\r\n" + endLine, 0, 400},
		{"6 RFC 9112 5 an empty name", get + ": x\r\n" + endLine, 0, 400},
		{"6 RFC 9112 5.1 a space before the colon", getLine + "Host : a\r\n" + endLine, 0, 400},
		{"6 RFC 9112 5.1 a tab before the colon", getLine + "Host\t: a\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.1 a name with a byte above 0x7f", get + "X\xe9: a\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.1 a name with a bracket", get + "X(: a\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.1 a name with NUL", get + "X\x00: a\r\n" + endLine, 0, 400},
		{"6 RFC 9112 5.2 a folded field", get + "X: a\r\n b\r\n" + endLine, 0, 400},
		{"6 RFC 9112 5.2 a field folded with a tab", get + "X: a\r\n\tb\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.5 NUL in a value", get + "X: \x00\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.5 DEL in a value", get + "X: aaaaaaaaa\x7faaaaaaaa\r\n" + endLine, 0, 400},
		{"6 RFC 9110 5.5 ESC in a long value", get + "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x1baaaaaaaaa\r\n" + endLine, 0, 400},

		{"9 RFC 9110 10.1.1 an expectation", postHead + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx", 1, 0},
		{"9 RFC 9110 10.1.1 another expectation", postHead + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\nx", 0, 417},
		{"9 RFC 9110 10.1.1 two expectations", postHead + "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", 0, 417},

		{"13 RFC 9112 3.2 no Host", getLine + endLine, 0, 400},
		{"13 RFC 9112 3.2 two Hosts", get + "hOST: a\r\n" + endLine, 0, 400},
		{"13 RFC 9112 3.2 two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\n" + hostLine + hostLine + endLine, 0, 400},
		{"13 RFC 9112 3.2 an empty Host", getLine + "Host:\r\n" + endLine, 1, 0}, // which Host is served is judged above

		{"14 RFC 9112 3.1 a method that is no token", "G@T / HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.1 no method", " / HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3 a method of 32 letters", strings.Repeat("A", 32) + " / HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3 a method of 33 letters", strings.Repeat("A", 33) + " / HTTP/1.1\r\n" + hostLine + endLine, 0, 501},
		{"14 a lower-case method", "get / HTTP/1.1\r\n" + hostLine + endLine, 1, 0}, // which are served is judged above
		{"14 RFC 9112 3.2.1 a URL in the query", "GET /x?y=http://b/ HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3.2.2 an absolute target", "GET http://A:80/x HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3.2.2 an absolute target without a path", "GET http://a?x HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3.2.2 an absolute target in HTTP/1.0", "GET http://a/x HTTP/1.0\r\n\r\n", 1, 0},
		{"14 RFC 9112 3.2.2 another Host than the target's", "GET http://b/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.2 another port than the target's", "GET http://a:8080/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.2 port 80 is not that of https", "GET https://a:80/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.2 a letter that only Unicode folds", "GET http://k/x HTTP/1.1\r\nHost: \xe2\x84\xaa\r\n" + endLine, 0, 400},
		{"14 RFC 9110 4.2.1 no authority", "GET http:///x HTTP/1.1\r\nHost:\r\n" + endLine, 0, 400},
		{"14 RFC 9110 4.2.4 a user in the target", "GET http://a@b/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9110 4.2.4 a user in both", "GET http://a@b/x HTTP/1.1\r\nHost: a@b\r\n" + endLine, 0, 400},
		{"14 RFC 3986 3.1 no scheme", "GET ://a/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 3986 3.1 a scheme that is none", "GET 1http://a/x HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.3 authority-form", "GET a:80 HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.3 authority-form of CONNECT", "CONNECT a:80 HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3.2.3 authority-form with the port left out", "CONNECT a:80 HTTP/1.1\r\nHost: A\r\n" + endLine, 1, 0},
		{"14 RFC 9112 3.2.3 another Host than CONNECT's", "CONNECT b:80 HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.3 CONNECT to a path", "CONNECT /a HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.3 CONNECT with a user", "CONNECT b@a HTTP/1.1\r\nHost: b@a\r\n" + endLine, 0, 400},
		{"14 RFC 3986 3.2.2 an escape in the authority", "GET http://%c3%a9/ HTTP/1.1\r\nHost: %c3%a9\r\n" + endLine, 0, 400},
		{"14 RFC 3986 3.2.2 a backslash in the authority", "GET http://a\\b/ HTTP/1.1\r\nHost: a\\b\r\n" + endLine, 0, 400},
		{"14 RFC 9112 3.2.4 asterisk-form", "GET * HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"14 RFC 9112 3.2.4 asterisk-form of OPTIONS", "OPTIONS * HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"14 RFC 9112 3.2 no form", "GET Patient/a HTTP/1.1\r\n" + hostLine + endLine, 0, 400},

		{"16 RFC 9112 3.2 a space in the target", "GET /a b HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"16 RFC 9112 3.2 a fragment", "GET /a#b HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"16 RFC 3986 2.1 an escape that is none", "GET /a%zz HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"16 RFC 3986 2.1 half an escape", "GET /a%2 HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"16 RFC 3986 2.1 a lone %", "GET /a?b=% HTTP/1.1\r\n" + hostLine + endLine, 0, 400},
		{"16 RFC 3986 2.1 an escape in the last place", "GET /a%2e HTTP/1.1\r\n" + hostLine + endLine, 1, 0},

		{"20 RFC 6585 5 101 fields", get + many(100) + endLine, 0, 431},
		{"20 RFC 6585 5 500 fields", get + many(500) + endLine, 0, 431},
		{"20 RFC 6585 5 a head of 64 KB", get + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 0, 431},
		{"20 RFC 6585 5 many of them", get + strings.Repeat("X: "+strings.Repeat("x", 1<<10)+"\r\n", 70), 0, 431},
		{"20 RFC 9112 3 a target just short enough", "GET /" + strings.Repeat("x", 16<<10-2) + " HTTP/1.1\r\n" + hostLine + endLine, 1, 0},
		{"20 RFC 9112 3 a target of 16 KB", "GET /" + strings.Repeat("x", 16<<10-1) + " HTTP/1.1\r\n" + hostLine + endLine, 0, 431},
	}
	// 16: which paths are served is judged above, and on the bytes that came.
	for _, trick := range []string{"..", ".", "%2e%2e", "%252e", "%2f", "%5c", `\`, ";", "%3b", "a//", "%00", "a|b", "\"<>^`{}"} {
		rows = append(rows, row{"16 " + trick, "GET /Patient/" + trick + " HTTP/1.1\r\n" + hostLine + endLine, 1, 0})
	}
	for c := range 256 {
		if c <= ' ' && c != ' ' || c >= 0x7f {
			rows = append(rows, row{fmt.Sprintf("16 RFC 9112 3.2 0x%02x in the target", c), "GET /a" + string([]byte{byte(c)}) + " HTTP/1.1\r\n" + hostLine + endLine, 0, 400})
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			rows = append(rows, row{fmt.Sprintf("6 RFC 9110 5.5 0x%02x in a value", c), get + "X: abcdefgh" + string([]byte{byte(c)}) + "b\r\n" + endLine, 0, 400})
		}
	}
	return rows
}

func TestRequests(t *testing.T) { testRows(t, requestRows()) }

// testRows reads each row in pieces of several sizes, which make no difference.
func testRows(t *testing.T, rows []row) {
	t.Helper()
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 7} {
				got := readRequests(c.in, size, &Limits{})
				if len(got.messages) != c.heads || got.status != c.status {
					t.Errorf("in pieces of %d: %d heads, %d (%s), want %d and %d", size, len(got.messages), got.status, got.why, c.heads, c.status)
				}
				if (got.used == len(c.in)) != (c.status == 0) {
					t.Errorf("in pieces of %d: %d of %d bytes were used", size, got.used, len(c.in))
				}
			}
		})
	}
}

// What a head that is good is read as.
func TestRequestHead(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"a body", "PUT /Patient/a?b=c|d HTTP/1.1\r\nHOST: a:80 \r\nX-A:b\r\ncontent-length: 007\r\n\r\n",
			`PUT "/Patient/a?b=c|d" 1.1 host "a:80" length 7 [HOST="a:80" X-A="b" content-length="007"]`},
		{"chunks and an expectation", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n",
			`POST "/" 1.1 host "a" length -1 continue [Host="a" Transfer-Encoding="chunked" Expect="100-Continue"]`},
		{"RFC 9112 9.3 close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close ,y\r\n\r\n",
			`GET "/" 1.1 host "a" length 0 close [Host="a" Connection="x, Close ,y"]`},
		{"RFC 9112 9.3 close in one of two", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
			`GET "/" 1.1 host "a" length 0 close [Host="a" Connection="close" Connection="keep-alive"]`},
		{"RFC 9112 9.3 not close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: closed, not-close\r\n\r\n",
			`GET "/" 1.1 host "a" length 0 [Host="a" Connection="closed, not-close"]`},
		{"RFC 9112 9.3 HTTP/1.0 does not go on", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
			`GET "/" 1.0 length 0 close [Connection="keep-alive"]`},
		{"RFC 9110 10.1.1 no expectation in HTTP/1.0", "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
			`POST "/" 1.0 length 1 close [Expect="100-continue" Content-Length="1"]`},
		{"RFC 9110 10.1.1 no expectation without a body", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
			`POST "/" 1.1 host "a" length 0 [Host="a" Expect="100-continue" Content-Length="0"]`},
		{"RFC 9112 3.2.2 the target's authority", "GET HTTP://A:80/x HTTP/1.1\r\nHost: a\r\n\r\n",
			`GET "HTTP://A:80/x" 1.1 host "A:80" length 0 [Host="a"]`},
		{"RFC 9112 3.2.2 the target's authority alone", "GET http://a/x HTTP/1.0\r\n\r\n",
			`GET "http://a/x" 1.0 host "a" length 0 close []`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := readRequests(c.in, 3, &Limits{})
			if len(got.messages) != 1 || got.messages[0].head != c.want {
				t.Errorf("%+v\nwant %s", got, c.want)
			}
		})
	}
}

// A RequestHead that has been reset remembers nothing, whatever it was in the midst of; an error stands until then.
func TestReset(t *testing.T) {
	var r RequestHead
	for _, first := range []string{"GE", "GET / HTTP/1.1\r\nHost: b\r\nContent-Le", "G@", "POST http://x/ HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"} {
		_, err := r.Parse([]byte(first), &Limits{})
		if _, again := r.Parse([]byte(get+endLine), &Limits{}); err != nil && again != err {
			t.Errorf("%q: the error was forgotten: %v", first, again)
		}
		r.Reset()
		if n, err := r.Parse([]byte(get+endLine), &Limits{}); n != len(get+endLine) || err != nil {
			t.Fatalf("%q: %d, %v", first, n, err)
		}
		if got, want := describe(&r), `GET "/Patient/a" 1.1 host "a" length 0 [Host="a"]`; got != want {
			t.Errorf("%q: %s\nwant %s", first, got, want)
		}
	}
}

// A bad byte is refused when it is there, not when the head is.
func TestRefusedEarly(t *testing.T) {
	for _, in := range []string{"\r", "G@", "GET  ", "GET /a#", "GET /\x80", "GET / X", "GET / HTTP/2", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\n ",
		get + "X ", get + "X: \x00", get + "X: x\r\n\t", get + "Content-Length: x\r\n", get + hostLine, get + "Transfer-Encoding: x\r\n", get + many(99) + "X"} {
		var r RequestHead
		if _, err := r.Parse([]byte(in[:len(in)-1]), &Limits{}); err != nil {
			t.Errorf("%q: refused a byte too early: %v", in, err)
		}
		if _, err := r.Parse([]byte(in), &Limits{}); err == nil {
			t.Errorf("%q: not refused", in)
		}
	}
}
