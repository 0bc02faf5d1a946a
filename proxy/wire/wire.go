// Package wire is the seam between Ward's journeys and bytes on a connection.
//
// A journey sees an [Exchange]: one request as it stood on the wire (the raw target, the raw Host, each header
// occurrence in order, a body that can be read once) and one chance to answer, by [Exchange.Commit] or
// [Exchange.Abort]. It sends requests of the same shape through a [Client]. No journey and no check above this
// package takes a type of net/http, so that the engine underneath can be replaced without touching them.
//
// The engine for HTTP/1.1 is Ward's own, on the strict codec of package http1:
//
//   - nothing is read from a caller before TLS and [Server.Accept] have had their say;
//   - one goroutine serves a connection, request after request. It holds a buffer from a request's first byte to its
//     answer's last, and none while it waits; one that has waited for a second has no goroutine either. So a peer that
//     idles costs little, and one that sends half a head not much;
//   - bytes that are not acceptable get [Server.Refuse]'s answer, so that no refusal goes out without a decision id and a
//     record, and the connection ends so that the peer sees it;
//   - each phase has its deadline, and bodies and answers a least rate. Requests of one caller that have come in part, beyond
//     those it has places for, wait for their turn unread (see [Server.Whose]): thousands of connections on which next to
//     nothing happens cost next to nothing;
//   - HTTP/2 is there where ALPN chooses it, and stands under the same rules: see serveH2. A client never speaks it;
//   - upgrades, redirects, cookies, compression and proxies do not exist here;
//   - bytes that a server sends beyond its reply end the connection, and never answer the next request on it.
//
// Threats met here: request smuggling (by reading heads and bodies in one way only, and by writing each message anew, so
// that no framing of a peer's ever reaches the next hop), slow heads, bodies and readers, idle connections, oversized
// heads, and connections that outlive the identities they were made with ([Bounded]). The grammar is RFC 9112's:
// https://www.rfc-editor.org/rfc/rfc9112.
package wire

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"
)

// Field is one header field occurrence as it stood on the wire.
type Field struct{ Name, Value string }

// Header is a sequence of header fields, in order, repeated names kept apart.
type Header []Field

// Values gives the value of every occurrence of name, in order. Names compare without case.
func (h Header) Values(name string) []string {
	var out []string
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			out = append(out, f.Value)
		}
	}
	return out
}

// Get gives the first value of name, or "".
func (h Header) Get(name string) string {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Has reports whether name occurs.
func (h Header) Has(name string) bool {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return true
		}
	}
	return false
}

// Request is one request. A received one holds raw, unjudged values; a sent one is written as it is.
type Request struct {
	Method string
	Target string // raw request-target: origin-form, or absolute-form as proxies receive it
	Host   string // raw Host, or the authority of an absolute-form target
	Header Header // without Host, Content-Length and Transfer-Encoding, which the engine owns
	Body   io.Reader
	Length int64 // of the body in bytes; -1 when it is not known ahead
	H2     bool  // received: by HTTP/2
}

// Response is one final response; interim ones (1xx) do not reach this seam.
type Response struct {
	Status int
	Header Header // without Content-Length, Transfer-Encoding, Connection and what Connection names
	Body   io.ReadCloser
	Length int64 // of the body in bytes; -1 when it is not known ahead
	Close  bool  // sent: the connection ends with this response
}

// ErrAborted is returned by Commit when the exchange was already over.
var ErrAborted = errors.New("the exchange is over")

// Exchange is one request and the one chance to answer it. It belongs to the goroutine that handles it.
type Exchange struct {
	Request Request
	// Conn is what Server.Accept returned for the connection.
	Conn any
	// Remote is the peer's address, for records.
	Remote string

	ctx   context.Context
	by    engine
	until func(time.Time)
	done  bool
	abort bool
}

// engine is the side of an exchange that is on the wire.
type engine interface {
	answer(r *Response) (int64, error)
	bound(end time.Time)
}

// NewExchange makes an exchange that is answered by commit. Engines and tests call it.
func NewExchange(ctx context.Context, r Request, conn any, remote string, commit func(*Response) (int64, error)) *Exchange {
	x := &Exchange{Request: r, Conn: conn, Remote: remote, ctx: ctx}
	x.by = &committing{x, commit}
	return x
}

// committing is an engine that is a function.
type committing struct {
	x      *Exchange
	commit func(*Response) (int64, error)
}

func (c *committing) answer(r *Response) (int64, error) { return c.commit(r) }

func (c *committing) bound(end time.Time) {
	if c.x.until != nil {
		c.x.until(end)
	}
}

// Context ends when the peer has gone away or the server is being closed.
func (x *Exchange) Context() context.Context { return x.ctx }

// Until bounds the exchange: shortly after t the reading of a request body that still has not come fails, and then the
// writing of an answer that the peer does not take. Whoever handles the exchange is to have given up by t.
func (x *Exchange) Until(t time.Time) {
	if !x.done {
		x.by.bound(t)
	}
}

// Commit answers with r, streaming its body and closing it. It returns the body bytes sent, and an error when
// the body did not go out whole: then the connection ends without the final chunk, so that the peer notices.
func (x *Exchange) Commit(r *Response) (int64, error) {
	if r.Body != nil {
		defer func() { _ = r.Body.Close() }()
	}
	if x.done {
		return 0, ErrAborted
	}
	x.done = true
	n, err := x.by.answer(r)
	if err != nil {
		x.abort = true
	}
	return n, err
}

// Abort ends the exchange by closing the connection without an answer.
func (x *Exchange) Abort() { x.done, x.abort = true, true }
