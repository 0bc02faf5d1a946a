package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// maxInterim bounds the interim replies (1xx) before one reply. They are dropped.
const maxInterim = 8

// keptOut bounds the memory that a flight keeps for the next request's head.
const keptOut = 32 << 10

// flight is what an exchange needs while it runs.
type flight struct {
	head http1.ReplyHead
	body http1.Body
	out  []byte
	in   []byte // from r to w: read and not yet used; behind the head that is payload alone
	r, w int
	own  [8 << 10]byte
}

var flights = sync.Pool{New: func() any { return new(flight) }}

// free gives f back, without what only an uncommonly large message needed.
func (f *flight) free() {
	f.head.Reset()
	f.in, f.r, f.w = nil, 0, 0
	if cap(f.out) > keptOut {
		f.out = nil
	}
	flights.Put(f)
}

// reply is a Response, with all that its body needs to be read, in one piece.
type reply struct {
	Response
	ctx    context.Context
	conn   *conn
	f      *flight // nil when the reply has ended
	up     *upload
	hook   Hook        // on which conn hangs
	unhook func() bool // where the context is none
	end    time.Time   // of the exchange; zero: it has none
	err    error       // of every further Read
	broken error       // of the framing, behind the payload that has come
	read   int64       // payload so far
	plain  int64       // of a body whose length is known: what is left of it
	began  bool        // a byte of it has come
	keep   bool        // as far as is known, the connection goes on
	whole  bool        // the reply has come to its end
	open   atomic.Int32
	fields [12]Field
}

// exchange sends the request that has been composed, and reads the reply's head. When it fails, the connection is closed.
func (x *reply) exchange(r *Request, left int64) error {
	k := x.conn
	x.end, _ = x.ctx.Deadline()
	k.deadline(x.end)
	x.hang()
	x.open.Store(1)
	x.f.head.Reset()
	x.f.r, x.f.w = 0, 0
	if _, err := k.Write(x.f.out); err != nil {
		if left != 0 {
			err = fmt.Errorf("%w: %w", ErrUnfinished, err)
		}
		return x.fail(fmt.Errorf("%w: %w", ErrNoReply, err))
	}
	if left != 0 {
		x.open.Store(2)
		x.up = &upload{conn: k, body: r.Body, left: left, done: make(chan struct{})}
		go x.up.run(x.sent)
	} else {
		x.headBy()
	}
	if err := x.head(r.Method); err != nil {
		return x.fail(fmt.Errorf("%w: %w", ErrNoReply, err))
	}
	return nil
}

// hang lets the context's end cut the connection.
func (x *reply) hang() {
	if h, ok := x.ctx.(Hook); ok && h.Hang(x.conn) {
		x.hook = h
	} else if x.ctx.Done() != nil {
		x.unhook = context.AfterFunc(x.ctx, x.conn.cut)
	}
}

// drop takes the connection off the context. False: it is being cut.
func (x *reply) drop() bool {
	switch {
	case x.hook != nil:
		return x.hook.Drop(x.conn)
	case x.unhook != nil:
		return x.unhook()
	}
	return true
}

// sent is the upload's end.
func (x *reply) sent() {
	x.up.mu.Lock()
	if !x.up.headed {
		x.headBy()
	}
	x.up.mu.Unlock()
	x.leave()
}

// headBy bounds the wait for the reply's head, now that the request is sent.
func (x *reply) headBy() {
	if d := x.conn.client.HeadTimeout; d > 0 {
		if t := time.Now().Add(d); x.end.IsZero() || t.Before(x.end) {
			_ = x.conn.SetReadDeadline(t)
		}
	}
}

// head reads up to the final reply's head's end, and makes the Response of it.
func (x *reply) head(method string) error {
	f, k := x.f, x.conn
	for interim, spent := 0, 0; ; interim++ {
		n, err := f.head.Parse(f.in[f.r:f.w], method, &k.client.limits)
		for n == 0 && err == nil {
			if err = x.more(); err == nil {
				n, err = f.head.Parse(f.in[f.r:f.w], method, &k.client.limits)
			}
		}
		if err != nil {
			return err
		}
		f.r += n
		if f.head.Status >= 200 {
			break
		}
		if spent += n; interim == maxInterim || int64(spent) > k.client.HeadBytes { // RFC 9110 §15.2 knows no bound
			return errInterim
		}
	}
	if f.head.Length == -2 && k.secure { // RFC 9112 §9.8: TLS cannot tell its end from having been cut
		return errOpenEnd
	}
	if x.up != nil {
		x.up.mu.Lock()
		x.up.headed = true
		x.up.mu.Unlock()
	}
	if k.client.HeadTimeout > 0 {
		k.timed = true
		_ = k.SetReadDeadline(x.end)
	}
	x.keep = !f.head.Close
	if x.up != nil && x.up.unfinished() { // RFC 9112 §9.5
		x.keep = false
		x.up.stop()
	}
	x.response(method)
	f.body.Start(f.head.Length, &k.client.limits)
	x.plain = max(f.head.Length, 0)
	x.Body = x
	f.w = f.r + x.unframe(f.in[f.r:f.w])
	if x.ended() {
		x.finish()
	}
	return nil
}

// more reads more of the head.
func (x *reply) more() error {
	f := x.f
	if f.w == len(f.in) {
		if f.r > 0 {
			f.w, f.r = copy(f.in, f.in[f.r:f.w]), 0
		} else {
			f.in = append(f.in, make([]byte, len(f.in))...) // Parse refuses a head that reaches the limit
		}
	}
	n, err := x.conn.Read(f.in[f.w:])
	f.w += n
	switch {
	case n > 0:
		x.began = true
		return nil
	case errors.Is(err, io.EOF) && x.began:
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF):
		return errGone
	}
	return err
}

// response cuts the Response out of one copy of the head.
func (x *reply) response(method string) {
	h := &x.f.head
	text := string(h.Bytes())
	cut := func(s http1.Span) string { return text[s.Start:s.End] }
	x.Status, x.Header = h.Status, x.fields[:0]
	if h.Len() > len(x.fields) {
		x.Header = make(Header, 0, h.Len())
	}
	options := false
	for i := range h.Len() {
		name, _ := h.Field(i)
		options = options || strings.EqualFold(cut(name), "Connection")
	}
	for i := range h.Len() {
		name, value := h.Field(i)
		f := Field{cut(name), cut(value)}
		if HopByHop(f.Name) || options && x.names(f.Name) {
			continue
		}
		x.Header = append(x.Header, f)
	}
	switch {
	case method == "HEAD":
		x.Length = h.Declared
	default:
		x.Length = max(h.Length, -1)
	}
}

// names reports whether Connection names this field (RFC 9110 §7.6.1).
func (x *reply) names(name string) bool {
	h := &x.f.head
	for i := range h.Len() {
		if !strings.EqualFold(string(h.Name(i)), "Connection") {
			continue
		}
		for option := range strings.SplitSeq(string(h.Value(i)), ",") {
			if strings.EqualFold(strings.TrimSpace(option), name) {
				return true
			}
		}
	}
	return false
}
