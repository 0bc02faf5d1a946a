package http1

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// words are what attacks are made of. Mutating bytes seldom gets from one of these to another; drawing them does.
func words() map[string][]string {
	return map[string][]string{
		"method":  {"GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PRI", "get", "M-SEARCH", "", "G T"},
		"target":  {"/", "/a?b=c", "*", "a:80", "http://a", "http://a:80/", "HTTP://A/x", "https://a:80/", "http://b/", "http://a@b/", "//a", "/%2e", "/%", "/a b", "/#", "/\xff", "?", "x://a?b", "mailto:a", "[::1]:80"},
		"version": {"HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "HTTP/11", ""},
		"status":  {"200 OK", "200 ", "200", "204 x", "304 x", "100 Continue", "103 x", "101 x", "099 x", "600 x", "2000 x", "500 \xff\t"},
		"name":    {"Host", "Host", "host", "Content-Length", "content-length", "Transfer-Encoding", "TRANSFER-ENCODING", "Connection", "Expect", "Trailer", "Pragma", "Cache-Control", "X", "Content_Length", "Host ", "", " X", "X\x00", "Upgrade"},
		"value":   {"a", "a:80", "b", "0", "1", "5", "3", "+1", "5, 5", "18446744073709551617", "chunked", "Chunked", "chunked ", "\tchunked", "gzip, chunked", "close", "keep-alive", "x, close", "100-continue", "Content-Length", "no-cache", "", "\xc3\xa9", "a\x00b", "a\rb", "a\x7f"},
		"space":   {" ", " ", " ", "", "\t", "  "},
		"end":     {"\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\r\n ", "\r\n\t"},
		"body":    {"", "", "a", "abcde", "0\r\n\r\n", "1\r\na\r\n0\r\n\r\n", "3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n", "1\r\nab\r\n0\r\n\r\n", "0x1\r\na\r\n0\r\n\r\n", "1\na\r\n0\r\n\r\n", "0\r\nX : y\r\n\r\n", "5\r\nGET /\r\n", "\r\n"},
	}
}

// compose writes a stream of messages, most of them nearly right.
func compose(t *rapid.T, w map[string][]string, first func(draw func(string) string) string) string {
	draw := func(kind string) string { return rapid.SampledFrom(w[kind]).Draw(t, kind) }
	var s strings.Builder
	for range rapid.IntRange(1, 3).Draw(t, "messages") {
		s.WriteString(first(draw) + draw("end"))
		for range rapid.IntRange(0, 4).Draw(t, "fields") {
			s.WriteString(draw("name") + ":" + draw("space") + draw("value") + draw("end"))
		}
		s.WriteString(draw("end") + draw("body"))
	}
	return s.String()
}

func TestComposedRequests(t *testing.T) {
	w, p := words(), newPlain()
	rapid.Check(t, func(rt *rapid.T) {
		in := compose(rt, w, func(draw func(string) string) string {
			line := draw("method") + " " + draw("target") + " " + draw("version")
			if rapid.IntRange(0, 9).Draw(rt, "host") > 0 {
				line += "\r\nHost: a"
			}
			return line
		})
		got := samePieces(rt, in, rapid.IntRange(0, 63).Draw(rt, "size"), func(size int, l *Limits) reading { return readRequests(in, size, l) })
		p.agree(rt, in, got, p.readRequest)
		agreeOnRequests(rt, in, got)
	})
}

func TestComposedReplies(t *testing.T) {
	w, p := words(), newPlain()
	methods := slices.DeleteFunc(w["method"], func(m string) bool { return strings.ContainsAny(m, " ") || m == "" })
	rapid.Check(t, func(rt *rapid.T) {
		in := compose(rt, w, func(draw func(string) string) string { return draw("version") + " " + draw("status") })
		m := rapid.SampledFrom(methods).Draw(rt, "to")
		got := samePieces(rt, in, rapid.IntRange(0, 63).Draw(rt, "size"), func(size int, l *Limits) reading { return readReplies(in, m, size, l) })
		p.agree(rt, in, got, func(s string) (int, int64, bool) { return p.readReply(s, m) })
		agreeOnReplies(rt, in, m, got)
	})
}
