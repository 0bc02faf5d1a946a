package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ClientOptions configures a Client. Dial must be set.
type ClientOptions struct {
	// Dial opens a connection to the one destination that this client has, TLS included.
	Dial func(ctx context.Context) (net.Conn, error)
	// MaxIdle bounds the connections kept for reuse; 0 stands for 64.
	MaxIdle int
	// IdleTimeout bounds how long one is kept; 0 stands for 90 s.
	IdleTimeout time.Duration
	// HeadTimeout bounds the wait for a reply's head once the request is sent; 0 stands for no bound but the
	// context's.
	HeadTimeout time.Duration
	// HeadBytes bounds a reply's head; 0 stands for 64 KiB.
	HeadBytes int64
}

// Client sends requests to one destination over pooled connections. It follows no redirect, keeps no cookie,
// knows no proxy and decodes nothing. A request is retried only when a kept connection turned out to be dead
// before a byte of the reply, and only when it is a GET or HEAD without a body.
type Client struct{ transport *http.Transport }

// NewClient makes a client.
func NewClient(o ClientOptions) *Client {
	if o.MaxIdle == 0 {
		o.MaxIdle = 64
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 90 * time.Second
	}
	if o.HeadBytes == 0 {
		o.HeadBytes = 64 << 10
	}
	return &Client{&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := o.Dial(ctx)
			if err != nil {
				return nil, err
			}
			return newSolicited(conn), nil
		},
		DisableCompression:     true,
		MaxIdleConns:           o.MaxIdle,
		MaxIdleConnsPerHost:    o.MaxIdle,
		IdleConnTimeout:        o.IdleTimeout,
		ResponseHeaderTimeout:  o.HeadTimeout,
		MaxResponseHeaderBytes: o.HeadBytes,
		ExpectContinueTimeout:  time.Second,
	}}
}

// hopByHop are the fields that belong to one connection (RFC 9110 §7.6.1), and those that the engine owns.
var hopByHop = map[string]bool{"connection": true, "proxy-connection": true, "keep-alive": true, "te": true, "trailer": true,
	"transfer-encoding": true, "upgrade": true, "content-length": true, "host": true, "proxy-authorization": true,
	"proxy-authenticate": true, "expect": true}

// HopByHop reports whether a field of this name must not be passed on.
func HopByHop(name string) bool { return hopByHop[strings.ToLower(name)] }

// RoundTrip sends r and returns the reply's head; the caller reads and closes the body. r.Target must be in
// origin-form and goes out byte for byte.
func (c *Client) RoundTrip(ctx context.Context, r *Request) (*Response, error) {
	path, query, hasQuery := strings.Cut(r.Target, "?")
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return nil, errors.New("wire: the target is not in origin-form")
	}
	h := make(http.Header, len(r.Header)+1)
	for _, f := range r.Header {
		if !HopByHop(f.Name) {
			h.Add(f.Name, f.Value)
		}
	}
	if !r.Header.Has("User-Agent") {
		h["User-Agent"] = nil // the engine would name itself
	}
	req := (&http.Request{
		Method: r.Method,
		// Opaque makes the engine send these very bytes; a Path would be escaped anew.
		URL:           &url.URL{Scheme: "http", Host: "destination", Opaque: path, RawQuery: query, ForceQuery: hasQuery},
		Host:          r.Host,
		Header:        h,
		Body:          body(r),
		ContentLength: r.Length,
		Proto:         "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(claiming(ctx))
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		_ = resp.Body.Close()
		return nil, errors.New("wire: the peer switched protocols unasked")
	}
	out := make(Header, 0, len(resp.Header))
	named := connectionOptions(resp.Header)
	for name, values := range resp.Header {
		if !isToken(name) { // RFC 9112 §5.1: `Content-Length : 5` is another length to another reader
			_ = resp.Body.Close()
			return nil, errors.New("wire: the reply has a field whose name is none")
		}
		if HopByHop(name) || named[strings.ToLower(name)] {
			continue
		}
		for _, v := range values {
			out = append(out, Field{name, v})
		}
	}
	return &Response{Status: resp.StatusCode, Header: out, Body: resp.Body, Length: resp.ContentLength}, nil
}

// isToken reports whether s is a token (RFC 9110 §5.6.2).
func isToken[T string | []byte](s T) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return len(s) > 0
}

// CloseIdle closes the connections that no exchange is using.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

func connectionOptions(h http.Header) map[string]bool {
	var named map[string]bool
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if named == nil {
				named = map[string]bool{}
			}
			named[strings.ToLower(strings.TrimSpace(name))] = true
		}
	}
	return named
}

// body gives the engine a body only where there is one: an unknown reader would force chunked framing on a GET.
func body(r *Request) io.ReadCloser {
	if r.Body == nil || r.Length == 0 {
		return http.NoBody
	}
	if rc, ok := r.Body.(io.ReadCloser); ok {
		return rc
	}
	return io.NopCloser(r.Body)
}
