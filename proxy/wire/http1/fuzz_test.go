package http1

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// tight are limits that a short input meets.
func tight() *Limits { return &Limits{Head: 120, Target: 12, Fields: 4, Extension: 6} }

// samePieces: bytes that come in pieces are read as those that come at once, under whatever limits.
func samePieces(t rapid.TB, in string, size int, read func(size int, l *Limits) reading) reading {
	t.Helper()
	size = 1 + max(size, -size-1)%64
	see := cmp.AllowUnexported(reading{}, message{}, requestSeen{}, replySeen{})
	for _, l := range []*Limits{tight(), {}} {
		whole, pieces := read(len(in)+1, l), read(size, l)
		if !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("%q in pieces of %d: -whole +pieces\n%s", in, size, cmp.Diff(whole, pieces, see))
		}
	}
	return read(len(in)+1, &Limits{})
}

func FuzzRequestHead(f *testing.F) {
	for _, r := range slices.Concat(requestRows(), bodyRows()) {
		if len(r.in) < 2048 {
			f.Add(r.in, 3)
		}
	}
	p := newPlain()
	f.Fuzz(func(t *testing.T, in string, size int) {
		got := samePieces(t, in, size, func(size int, l *Limits) reading { return readRequests(in, size, l) })
		p.agree(t, in, got, p.readRequest)
		agreeOnRequests(t, in, got)
	})
}

func FuzzReplyHead(f *testing.F) {
	methods := []string{"GET", "HEAD", "POST", "CONNECT"}
	for _, r := range replyRows() {
		if len(r.in) < 2048 {
			f.Add(r.in, slices.Index(methods, r.method), 3)
		}
	}
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 x\r\nContent-Length: 1\r\n\r\nab", 2, 1)
	p := newPlain()
	f.Fuzz(func(t *testing.T, in string, method, size int) {
		m := methods[max(method, -method-1)%len(methods)]
		got := samePieces(t, in, size, func(size int, l *Limits) reading { return readReplies(in, m, size, l) })
		p.agree(t, in, got, func(s string) (int, int64, bool) { return p.readReply(s, m) })
		agreeOnReplies(t, in, m, got)
	})
}

// Chunks, mostly: what begins behind a head that is always good.
func FuzzBody(f *testing.F) {
	for _, r := range bodyRows() {
		if body, ok := strings.CutPrefix(r.in, chunked); ok && len(body) < 2048 {
			f.Add(body, int64(-1), 3)
		}
	}
	f.Add("hello, world", int64(5), 2)
	f.Add("hello, world", int64(-2), 2)
	p := newPlain()
	f.Fuzz(func(t *testing.T, in string, length int64, size int) {
		length = max(length, -2)
		if length == -1 {
			stream := chunked + in
			got := samePieces(t, stream, size, func(size int, l *Limits) reading { return readRequests(stream, size, l) })
			p.agree(t, stream, got, p.readRequest)
			agreeOnRequests(t, stream, got)
			return
		}
		var b Body
		b.Start(length, &Limits{})
		payload, n, ok := p.readBody(in, length)
		data, used, err := b.Next([]byte(in)[:len(in):len(in)])
		if err != nil || ok && (string(data) != payload || used != n) || !ok && (string(data) != in || used != len(in)) {
			t.Fatalf("%d bytes of %q: %q, %d, %v; plainly %q, %d, %v", length, in, data, used, err, payload, n, ok)
		}
		if (b.EOF() == nil) != ok || b.Done() != ok {
			t.Fatalf("%d bytes of %q: done: %v; plainly: %v", length, in, b.Done(), ok)
		}
	})
}
