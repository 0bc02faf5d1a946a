package http1

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// word is what stands at a place of a message: mostly something good, and now and then what attacks are made of.
// Mutating bytes seldom gets from one of these to another; drawing them does.
type word struct{ good, odd []string }

type words struct{ method, target, version, status, name, value, space, end, framing word }

func vocabulary() words {
	return words{
		method: word{[]string{"GET", "POST", "HEAD", "OPTIONS", "M-SEARCH"}, []string{"CONNECT", "PRI", "get", "", "G T", "TRACE"}},
		target: word{[]string{"/", "/a?b=c", "//a", "/%2e/..", "/a|b;c\\"},
			[]string{"*", "a:80", "a", "http://a", "http://a:80/", "HTTP://A/x", "https://a:80/", "http://b/", "http://a@b/", "http://a:/", "/%", "/a b", "/#", "/\xff", "?", "x://a?b", "mailto:a", "[::1]:80"}},
		version: word{[]string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"}, []string{"HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "HTTP/11", ""}},
		status:  word{[]string{"200 OK", "201 ", "204 x", "304 x", "100 Continue", "103 x", "500 \xff\t"}, []string{"200", "101 x", "099 x", "600 x", "2000 x"}},
		name: word{[]string{"X", "Connection", "Pragma", "Cache-Control", "Trailer", "Content_Length", "x-a", "Upgrade"},
			[]string{"Host", "host", "Expect", "Content-Length", "content-length", "Transfer-Encoding", "TRANSFER-ENCODING", "Host ", "", " X", "X\x00", "Content-Length\t"}},
		value: word{[]string{"a", "5", "close", "keep-alive", "x, close", "no-cache", "", "\xc3\xa9", "a\tb", "Content-Length", "100-continue"},
			[]string{"a:80", "b", "+1", "5, 5", "18446744073709551617", "chunked", "Chunked", "chunked ", "\tchunked", "gzip, chunked", "a\x00b", "a\rb", "a\x7f"}},
		space: word{[]string{" ", " ", "", "\t", "  "}, []string{"\x0b", "\r", "\x00"}},
		end:   word{[]string{"\r\n"}, []string{"\n", "\r", "\r\r\n", "\r\n ", "\r\n\t", "\n\r"}},
		// fields, the empty line, and a body, which may be one with another end than its fields say
		framing: word{[]string{"\r\n", "Content-Length: 0\r\n\r\n", "Content-Length: 5\r\n\r\nabcde", "content-length:0005 \r\n\r\n\r\n\r\n\n", "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n000a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\nX: y\r\n\r\n", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0;a\r\n\r\n", "Trailer: X\r\nTransfer-Encoding:chunked\r\n\r\n00\r\nX:\r\nHost: b\r\n\r\n"},
			[]string{"\r\nabcde", "Content-Length: 5\r\n\r\nabc", "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
				"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1;\na\r\n0\r\n\r\n",
				"Transfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\n", "Transfer-Encoding: chunked\r\n\r\n1 ;a\r\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\na", "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}},
	}
}

// composer writes streams of messages, most of them nearly right.
type composer struct {
	words
	t   *rapid.T
	odd int // how many odd words are still to come
}

func newComposer(t *rapid.T) *composer {
	return &composer{vocabulary(), t, rapid.IntRange(0, 2).Draw(t, "odd")}
}

func (c *composer) draw(w word) string {
	if c.odd > 0 && rapid.IntRange(0, 7).Draw(c.t, "here") == 0 {
		c.odd--
		return rapid.SampledFrom(w.odd).Draw(c.t, "odd word")
	}
	return rapid.SampledFrom(w.good).Draw(c.t, "word")
}

func (c *composer) messages(first func() string) string {
	var s strings.Builder
	for range rapid.IntRange(1, 3).Draw(c.t, "messages") {
		s.WriteString(first() + c.draw(c.end))
		for range rapid.IntRange(0, 3).Draw(c.t, "fields") {
			s.WriteString(c.draw(c.name) + ":" + c.draw(c.space) + c.draw(c.value) + c.draw(c.end))
		}
		s.WriteString(c.draw(c.framing))
	}
	return s.String()
}

func (c *composer) requests() string {
	return c.messages(func() string {
		return c.draw(c.method) + " " + c.draw(c.target) + " " + c.draw(c.version) + c.draw(word{[]string{"\r\nHost: a"}, []string{"", "\r\nHost: b", "\r\nHost:", "\r\nhost : a"}})
	})
}

func (c *composer) replies() string {
	return c.messages(func() string { return c.draw(c.version) + " " + c.draw(c.status) })
}

func TestComposedRequests(t *testing.T) {
	p := newPlain()
	rapid.Check(t, func(t *rapid.T) {
		in := newComposer(t).requests()
		got := samePieces(t, in, rapid.IntRange(0, 63).Draw(t, "size"), func(size int, l *Limits) reading { return readRequests(in, size, l) })
		p.agree(t, in, got, p.readRequest)
		agreeOnRequests(t, in, got)
	})
}

func TestComposedReplies(t *testing.T) {
	p := newPlain()
	rapid.Check(t, func(t *rapid.T) {
		in := newComposer(t).replies()
		m := rapid.SampledFrom([]string{"GET", "HEAD", "POST", "CONNECT"}).Draw(t, "to")
		got := samePieces(t, in, rapid.IntRange(0, 63).Draw(t, "size"), func(size int, l *Limits) reading { return readReplies(in, m, size, l) })
		p.agree(t, in, got, func(s string) (int, int64, bool) { return p.readReply(s, m) })
		agreeOnReplies(t, in, m, got)
	})
}
