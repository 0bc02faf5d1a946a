package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
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
	// Whose gives the caller whose connection it is, to be compared: one may have 32 requests at a time that have not
	// come whole, and those of more connections wait for their turn, for as long as they might idle. May be nil: then
	// nobody waits.
	Whose func(conn any) any
	// Handle answers one exchange. Returning without Commit is an Abort.
	Handle func(*Exchange)
	// Refuse gives the answer for bytes that are not acceptable HTTP; status is the engine's verdict.
	Refuse func(conn any, remote string, status int) *Response
	// Defect learns that Handle, or whatever else serves a connection, has panicked; the connection ends. The value is
	// not passed on: it could hold request data.
	Defect func(stack []byte)

	// HandshakeTimeout bounds TLS and Accept together; 0 stands for 10 s.
	HandshakeTimeout time.Duration
	// HeadTimeout bounds the reading of a request's head, from its first byte on, and the wait for a connection's
	// first byte; 0 stands for 10 s.
	HeadTimeout time.Duration
	// IdleTimeout bounds the wait between requests; 0 stands for 2 min. It may be an eighth less.
	IdleTimeout time.Duration
	// HeadBytes bounds a request's head; 0 stands for 64 KiB.
	HeadBytes int
	// MaxPending bounds connections that are being admitted at a time; 0 stands for 1024. One more cuts off the oldest
	// of the source that has the most.
	MaxPending int
	// MinRate is how many bytes a second a peer must at least send of a request's body while it is waited for, and
	// take of an answer; 0 stands for 1 KiB.
	MinRate int
	// RateGrace is how long a peer may be behind MinRate with a body; 0 stands for 10 s. With an answer it may be
	// three times as long: a reader that pauses is no attack yet, and what it has not read is not seen to move until
	// its buffers have room for a segment.
	RateGrace time.Duration

	once    sync.Once
	tls     *tls.Config
	limits  http1.Limits
	context context.Context // ends when what is left is closed
	close   context.CancelFunc
	turns   chan struct{} // full while as many handshakes are computed as may be: see handshake
	stores  stores
	dates   dates
	drain
	sweeper
	resters resters
	places  places
}

func (s *Server) setup() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&s.HandshakeTimeout, 10*time.Second)
	def(&s.HeadTimeout, 10*time.Second)
	def(&s.IdleTimeout, 2*time.Minute)
	def(&s.RateGrace, 10*time.Second)
	if s.HeadBytes == 0 {
		s.HeadBytes = 64 << 10
	}
	if s.MaxPending == 0 {
		s.MaxPending = 1024
	}
	if s.MinRate == 0 {
		s.MinRate = 1 << 10
	}
	if s.TLS != nil {
		s.tls = s.TLS.Clone()
		// Long bodies are written in pieces of many records, which growing records would only cut up.
		s.tls.DynamicRecordSizingDisabled = true
	}
	// The other half of the processors is for calls that run.
	s.turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	s.limits.Head = s.HeadBytes
	s.context, s.close = context.WithCancel(context.Background())
	s.taking, s.ending = context.WithCancel(s.context)
	s.admitting, s.dismiss = context.WithCancel(s.context)
}

// Serve accepts connections until Shutdown or until l fails. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.once.Do(s.setup)
	defer func() { _ = l.Close() }()
	return s.accept(ctx, l)
}

// serve serves one connection until it ends, or rests. It runs in a goroutine of its own, and goes on in a fresh one: a
// call makes a stack grow, and so does a handshake, and whoever idles would keep all of it.
func (s *Server) serve(a *admitted) {
	switch {
	case !s.attend(a):
		a.end()
	case a.repose == nil || !s.rest(a):
		go s.serve(a)
	}
}

// attend serves a connection until it ends, or rests.
func (s *Server) attend(a *admitted) (rests bool) {
	defer func() {
		if v := recover(); v != nil {
			a.aborted = true
			s.defect(v)
		}
	}()
	if a.protocol == "h2" {
		a.state.Store(busy)
		s.serveH2(s.taking, a)
		return false
	}
	for {
		if came, rests := a.await(); !came {
			return rests
		}
		if !a.exchange() {
			return a.place.kept != nil
		}
	}
}

// handle runs Handle, and reports whether it has panicked.
func (s *Server) handle(x *Exchange) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			x.Abort()
			s.defect(v)
			ok = false
		}
	}()
	s.Handle(x)
	return true
}

// defect tells where a panic with value v has come from.
func (s *Server) defect(v any) {
	if s.Defect == nil {
		return
	}
	if e, ok := v.(*elsewhere); ok {
		s.Defect(e.stack)
		return
	}
	s.Defect(debug.Stack())
}

// How long after an exchange's end its reads fail, and its writes: time to notice the end otherwise, and to say so.
const (
	readGrace  = time.Second
	writeGrace = 5 * time.Second
)

// errOver is what the reading of a body gives once its exchange is over.
var errOver = errors.New("wire: the exchange is over")
