package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server receives exchanges on listeners. Accept, Handle and Refuse must be set.
type Server struct {
	// TLS makes the server side of each connection; nil serves plain text.
	TLS *tls.Config
	// Accept judges a connection before a byte of HTTP is read from it. tls is nil on plain connections. What it
	// returns becomes Exchange.Conn; an error closes the connection unanswered.
	Accept func(ctx context.Context, c net.Conn, tls *tls.ConnectionState) (any, error)
	// Balancer says which peers are balancers that hand on others' connections: theirs must begin with a header of the
	// PROXY protocol, and have the address that it gives from then on. Nil: nobody is.
	Balancer func(netip.Addr) bool
	// Failed learns of connections that ended before Accept: ErrPreface, or TLS handshakes that did not succeed. May be
	// nil.
	Failed func(remote net.Addr, err error)
	// Closed learns that a connection which Accept admitted has ended. May be nil.
	Closed func(conn any)
	// Handle answers one exchange. Returning without Commit is an Abort.
	Handle func(*Exchange)
	// Refuse gives the answer for bytes that are not acceptable HTTP; status is the engine's verdict.
	Refuse func(conn any, remote string, status int) *Response
	// Defect learns that Handle has panicked. The value is not passed on: it could hold request data.
	Defect func(stack []byte)

	// HandshakeTimeout bounds TLS and Accept together; 0 stands for 10 s.
	HandshakeTimeout time.Duration
	// HeadTimeout bounds the reading of a request's head; 0 stands for 10 s.
	HeadTimeout time.Duration
	// IdleTimeout bounds the wait between requests; 0 stands for 2 min.
	IdleTimeout time.Duration
	// HeadBytes bounds a request's head; 0 stands for 64 KiB.
	HeadBytes int
	// MaxPending bounds connections that are being admitted at a time; 0 stands for 1024. One more cuts off the oldest
	// of the source that has the most.
	MaxPending int

	once sync.Once
	http *http.Server
	drain
	h2 multiplexed
}

type connKey struct{}

func (s *Server) setup() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&s.HandshakeTimeout, 10*time.Second)
	def(&s.HeadTimeout, 10*time.Second)
	def(&s.IdleTimeout, 2*time.Minute)
	if s.HeadBytes == 0 {
		s.HeadBytes = 64 << 10
	}
	if s.MaxPending == 0 {
		s.MaxPending = 1024
	}
	s.h2.leaving, s.h2.leave = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: s.HeadTimeout,
		IdleTimeout:       s.IdleTimeout,
		MaxHeaderBytes:    s.HeadBytes,
		// Otherwise the engine would answer OPTIONS * by itself.
		DisableGeneralOptionsHandler: true,
		// An empty map keeps HTTP/2 off whatever the peer offers.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// The engine's own lines quote what peers send; refusals are recorded through Refuse instead.
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.(*admitted))
		},
		ConnState: func(c net.Conn, st http.ConnState) {
			a := c.(*admitted)
			switch st {
			case http.StateIdle:
				a.handling.Store(false)
				_ = a.SetWriteDeadline(time.Time{}) // the engine resets only that for reading
			case http.StateClosed:
				if s.Closed != nil {
					s.Closed(a.value)
				}
				s.leave()
			}
		},
	}
}

// Serve accepts connections until Shutdown or until l fails. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.once.Do(s.setup)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := s.http.Serve(s.admit(ctx, l))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	a := r.Context().Value(connKey{}).(*admitted)
	a.handling.Store(true)
	if a.handled++; a.handled > a.heads.passed.Load() {
		panic(http.ErrAbortHandler) // a request whose head nobody has judged
	}
	body := &arriving{ReadCloser: r.Body}
	body.ended.Store(r.ContentLength == 0)
	var end time.Time // of the exchange; zero when it has none
	x := NewExchange(r.Context(), received(r, body), a.value, r.RemoteAddr, func(resp *Response) (int64, error) {
		resp.Close = resp.Close || s.draining()
		if !body.ended.Load() {
			// The engine reads on for a while, so that the peer gets to see the answer. A peer that sends nothing
			// must not keep it waiting.
			_ = a.SetReadDeadline(time.Now().Add(readGrace))
		}
		if now := time.Now(); !end.IsZero() {
			if now.After(end) {
				end = now
			}
			_ = a.SetWriteDeadline(end.Add(writeGrace))
		}
		return commit(w, r, resp)
	})
	x.until = func(t time.Time) {
		end = t
		_ = a.SetReadDeadline(t.Add(readGrace))
	}
	func() {
		defer func() {
			if v := recover(); v != nil {
				x.Abort()
				if s.Defect != nil {
					s.Defect(stack())
				}
			}
		}()
		s.Handle(x)
	}()
	if x.abort || !x.done {
		panic(http.ErrAbortHandler)
	}
}

// arriving is a request's body; it knows whether there is more to come.
type arriving struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *arriving) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.ended.Store(true)
	}
	return n, err
}

// How long after an exchange's end its reads fail, and its writes: time to notice the end otherwise, and to say so.
const (
	readGrace  = time.Second
	writeGrace = 5 * time.Second
)

// received gives the request as it stood on the wire, as far as the engine kept it: the order of fields with
// different names is not kept, the order of fields with one name is.
func received(r *http.Request, body io.Reader) Request {
	h := make(Header, 0, len(r.Header))
	for name, values := range r.Header {
		for _, v := range values {
			h = append(h, Field{name, v})
		}
	}
	return Request{Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: h, Body: body, Length: r.ContentLength}
}

func commit(w http.ResponseWriter, r *http.Request, resp *Response) (int64, error) {
	out := w.Header()
	for _, f := range resp.Header {
		out.Add(f.Name, f.Value)
	}
	// The engine would guess a type from the content; a reply without one stays without.
	if _, ok := out["Content-Type"]; !ok {
		out["Content-Type"] = nil
	}
	if resp.Length >= 0 && resp.Status != http.StatusNoContent && resp.Status != http.StatusNotModified {
		out.Set("Content-Length", itoa(resp.Length))
	}
	if resp.Close {
		out.Set("Connection", "close")
	}
	w.WriteHeader(resp.Status)
	if resp.Body == nil || r.Method == http.MethodHead {
		return 0, nil
	}
	rc := http.NewResponseController(w)
	if resp.Length < 0 {
		// The first piece may be long in coming, and the head tells that the answer has begun.
		if err := rc.Flush(); err != nil {
			return 0, err
		}
	}
	return stream(w, rc, resp.Body)
}

// stream copies src to dst and flushes whenever src has given less than a full buffer, so that events reach the
// peer as they come while bulk data still goes out in large pieces.
func stream(dst io.Writer, rc *http.ResponseController, src io.Reader) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var n int64
	for {
		m, err := src.Read(*buf)
		if m > 0 {
			if _, werr := dst.Write((*buf)[:m]); werr != nil {
				return n, werr
			}
			n += int64(m)
			if m < len(*buf) && err == nil {
				if ferr := rc.Flush(); ferr != nil {
					return n, ferr
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// admitted is a connection that Accept has let in.
type admitted struct {
	net.Conn
	value    any
	server   *Server
	handling atomic.Bool // between the start of a handler and the engine's return to idle
	refused  bool
	h2       bool // ALPN has chosen it

	heads   heads
	handled int64  // requests that the engine has handed over
	rest    string // what the engine is still to read in place of a head that was not acceptable
}

// Read passes on what the peer sends, as long as it is acceptable. The engine has one reader at a time.
func (a *admitted) Read(p []byte) (int, error) {
	if !a.heads.failed {
		n, err := a.Conn.Read(p)
		good := a.heads.scan(p[:n])
		if good == n {
			return n, err
		}
		clear(p[good:n])
		a.rest = poison
		if good > 0 {
			return good, nil
		}
	}
	n := copy(p, a.rest)
	if a.rest = a.rest[n:]; n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write passes an exchange's bytes on. Bytes that the engine writes outside any exchange are its own verdict on
// input that is not HTTP: they are replaced, once, by the refusal that Ward gives and records.
func (a *admitted) Write(p []byte) (int, error) {
	if a.handling.Load() {
		return a.Conn.Write(p)
	}
	if a.refused {
		return len(p), nil
	}
	a.refused = true
	status := statusOf(p)
	if v := int(a.heads.verdict.Load()); v != 0 {
		status = v
	}
	if _, err := a.Conn.Write(rawResponse(a.server.Refuse(a.value, a.RemoteAddr().String(), status))); err != nil {
		return 0, err
	}
	return len(p), nil
}
