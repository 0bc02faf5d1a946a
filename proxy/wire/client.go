package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// ClientOptions configures a Client. Dial must be set.
type ClientOptions struct {
	// Dial opens a connection to the one destination that this client has, TLS included. Where TLS stands on a *Bulk,
	// long bodies cost less.
	Dial func(ctx context.Context) (net.Conn, error)
	// MaxIdle bounds the connections kept for reuse; 0 stands for 64.
	MaxIdle int
	// MaxConns bounds the connections that are open, in use or kept; 0 stands for 1024. A request beyond them waits.
	MaxConns int
	// MaxDials bounds those that are being opened at a time; 0 stands for 16. A request beyond them waits, and takes one
	// that is free by then: many that begin at once neither load the other end with a handshake for each, nor take more
	// than their share of those that it has under way.
	MaxDials int
	// IdleTimeout bounds how long one is kept; 0 stands for 90 s.
	IdleTimeout time.Duration
	// MaxAge bounds for how long after it was made one is given a new request, less a tenth at random so that what was
	// opened together does not end together; 0 stands for 1 h.
	MaxAge time.Duration
	// HeadTimeout bounds the wait for a reply's head once the request is sent; 0 stands for no bound but the
	// context's.
	HeadTimeout time.Duration
	// HeadBytes bounds a reply's head, and all the interim ones before it; 0 stands for 64 KiB.
	HeadBytes int64
}

// Client sends requests to one destination over pooled connections. It follows no redirect, keeps no cookie,
// knows no proxy and decodes nothing. A request is retried only when a kept connection turned out to be dead
// before a byte of the reply, and only when it is a GET or HEAD without a body.
//
// The goroutine that calls RoundTrip writes the request and reads the reply. Only a body that is not all here already
// gets a goroutine of its own, so that a reply which comes before the body's end does not lie unread.
type Client struct {
	ClientOptions
	limits http1.Limits

	mu      sync.Mutex
	idle    []*conn // the one used last is at the end, and is the next to be used
	open    int
	opening int // of those, how many are not open yet
	waiting []chan *conn
	epoch   int // how often CloseIdle was called
	sweeper *time.Timer
	sweeps  time.Time // when the sweeper comes
}

// NewClient makes a client.
func NewClient(o ClientOptions) *Client {
	if o.MaxIdle == 0 {
		o.MaxIdle = 64
	}
	if o.MaxConns == 0 {
		o.MaxConns = 1024
	}
	if o.MaxDials == 0 {
		o.MaxDials = 16
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 90 * time.Second
	}
	if o.MaxAge == 0 {
		o.MaxAge = time.Hour
	}
	if o.HeadBytes == 0 {
		o.HeadBytes = 64 << 10
	}
	return &Client{ClientOptions: o, limits: http1.Limits{Head: int(o.HeadBytes)}}
}

// HopByHop reports whether a field of this name must not be passed on: those that belong to one connection
// (RFC 9110 §7.6.1), and those that the engine owns.
func HopByHop(name string) bool {
	var own string
	switch len(name) {
	case 2:
		own = "te"
	case 4:
		own = "host"
	case 6:
		own = "expect"
	case 7:
		return strings.EqualFold(name, "trailer") || strings.EqualFold(name, "upgrade")
	case 10:
		return strings.EqualFold(name, "connection") || strings.EqualFold(name, "keep-alive")
	case 14:
		own = "content-length"
	case 16:
		own = "proxy-connection"
	case 17:
		own = "transfer-encoding"
	case 18:
		own = "proxy-authenticate"
	case 19:
		own = "proxy-authorization"
	default:
		return false
	}
	return strings.EqualFold(name, own)
}

// ErrNoReply: the other end has given no acceptable reply.
var ErrNoReply = errors.New("wire: no acceptable reply")

// ErrUnfinished: the other end has ended the connection without a reply, and it had not been sent the whole request.
var ErrUnfinished = errors.New("wire: no reply to a request that was not sent whole")

// ErrRequest: the request cannot be written as HTTP/1.1, and nothing was sent.
var ErrRequest = errors.New("wire: the request cannot be written")

// ErrRequestBody: the request's body could not be read to its end. What the other end got of it does not look whole.
var ErrRequestBody = errors.New("wire: the request's body did not come whole")

var (
	errTarget  = fmt.Errorf("%w: the target is not in origin-form", ErrRequest)
	errGone    = errors.New("wire: the peer ended the connection before its reply")
	errInterim = errors.New("wire: the peer sends interim replies without end")
	errOpenEnd = errors.New("wire: the reply's end is that of a connection which cannot tell being ended from being cut")
	errClosed  = errors.New("wire: the reply has been closed")
	errStopped = errors.New("wire: the rest of the request is not wanted")
)

// RoundTrip sends r and returns the reply's head; the caller reads and closes the body. r.Target must be in
// origin-form and goes out byte for byte.
//
// A body that is an io.Closer is closed when it is not wanted any more, which must end a Read that is in progress, or be
// errors.ErrUnsupported; nobody reads it after RoundTrip has failed, or has returned a reply that came before the body's
// end. Any other body may still be read once, until that Read returns.
func (c *Client) RoundTrip(ctx context.Context, r *Request) (*Response, error) {
	// RFC 9112 §3.2.1: no scheme and no authority, nor what could be taken for one.
	if !strings.HasPrefix(r.Target, "/") || strings.HasPrefix(r.Target, "//") {
		return nil, errTarget
	}
	f := flights.Get().(*flight)
	f.in = f.own[:]
	left, err := f.compose(r)
	if err != nil {
		f.free()
		return nil, err
	}
	again := repeatable(r)
	for fresh := false; ; fresh = true {
		k, err := c.take(ctx, fresh)
		if err != nil {
			f.free()
			rethrow(err)
			return nil, err
		}
		x := &reply{ctx: ctx, conn: k, f: f}
		if err = x.exchange(r, left); err == nil {
			return &x.Response, nil
		}
		// RFC 9110 §9.2.2: a method that is not idempotent is not repeated; RFC 9112 §9.3.1: nor is any when the reply
		// has begun. That a kept connection has died says nothing about the next one.
		if fresh || !k.used || !again || x.began || !died(err) || ctx.Err() != nil {
			f.free()
			rethrow(err)
			return nil, err
		}
	}
}

func repeatable(r *Request) bool {
	return (r.Method == "GET" || r.Method == "HEAD") && (r.Body == nil || r.Length == 0)
}

// died reports whether err is what a connection gives that the other end has left.
func died(err error) bool {
	return errors.Is(err, errGone) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
