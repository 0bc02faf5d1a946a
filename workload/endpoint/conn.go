package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// listener accepts connections that can carry their process.
type listener struct {
	net.Listener
	server *Server
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c, server: l.server}, nil
}

// Conn is a connection whose process is pinned. It ends its calls before it is closed, and with it the process is let
// go: a client that hangs up is no process that lost its identity.
type Conn struct {
	net.Conn
	Process Process
	Guest   any // what Admit made of the process

	server *Server
	ctx    context.Context // nil until the process is pinned; ends by End, at Close and at Shutdown
	end    context.CancelCauseFunc
	rooms  []Room                     // in which it has places
	closer atomic.Pointer[time.Timer] // of one that has ended
	once   sync.Once
	err    error
}

// Context ends when the connection is closed or loses its standing (End), and at Shutdown.
func (c *Conn) Context() context.Context { return c.ctx }

// Place takes a place in each room until the connection is closed, or in none, and counts the connection against its
// user's rate, of new connections per second after a burst of twice as many; a rate of 0 is none. The reason is the room
// that is full.
func (c *Conn) Place(rate int, rooms ...Room) (reason string, err error) {
	if reason = c.server.places.take(c.Process.UID(), rate, rooms...); reason != "" {
		return reason, errNoPlace
	}
	c.rooms = append(c.rooms, rooms...)
	return "", nil
}

// Move gives a place in one room up for one in another, if there is one. Only Admit may ask for it.
func (c *Conn) Move(from, to Room) (reason string, err error) {
	if reason, err = c.Place(0, to); err == nil {
		c.rooms = slices.DeleteFunc(c.rooms, func(r Room) bool { return r == from })
		c.server.places.leave(c.Process.UID(), from)
	}
	return reason, err
}

var errNoPlace = errors.New("there is no place left")

// End tells every call of the connection the status that told is, now and later, and closes the connection after a while
// in which that can be read.
func (c *Conn) End(told error, after time.Duration) {
	c.end(told)
	c.closer.Store(time.AfterFunc(after, func() { _ = c.Close() }))
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.once.Do(func() {
		if c.ctx != nil {
			c.end(nil)
			c.server.places.leave(c.Process.UID(), c.rooms...)
			c.server.metrics.conns.Dec()
		}
		if t := c.closer.Load(); t != nil {
			t.Stop()
		}
		c.err = c.Conn.Close()
	})
	return c.err
}

// authInfo is what gRPC carries from the handshake to each call.
type authInfo struct{ conn *Conn }

const authType = "pinned-process"

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return authType }

// ConnOf is the connection on which a call has come.
func ConnOf(ctx context.Context) (*Conn, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.conn, nil
		}
	}
	return nil, status.Error(codes.Internal, "the connection has no pinned process")
}

// pinning is the transport security of the endpoint: none on the wire, and the kernel's word for who is at the other end.
type pinning struct{ server *Server }

// ServerHandshake pins the peer and admits it. It reads and writes no byte. gRPC closes the connection on an error.
func (h *pinning) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := h.server
	c, ok := raw.(*Conn)
	if !ok {
		return nil, nil, errors.New(s.o.Name + ": the connection does not come from Serve")
	}
	reason, err := s.admit(c)
	if reason != "" {
		s.metrics.refused.WithLabelValues(reason).Inc()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: refused: %s: %w", s.o.Name, reason, err)
	}
	return c, authInfo{c}, nil
}

func (s *Server) admit(c *Conn) (reason string, err error) {
	if c.Process, err = s.o.Pin(c.Conn); err != nil {
		return "unpinned", err
	}
	c.ctx, c.end = context.WithCancelCause(s.draining)
	s.metrics.conns.Inc()
	return s.o.Admit(c)
}

// ClientHandshake is refused: these credentials are a server's.
func (h *pinning) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New(h.server.o.Name + ": the credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (h *pinning) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: authType}
}

// Clone implements credentials.TransportCredentials.
func (h *pinning) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *pinning) OverrideServerName(string) error { return nil }
