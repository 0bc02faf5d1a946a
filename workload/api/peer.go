package api

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/workload"
)

// Peer is the pinned process behind a connection. Close lets it go.
type Peer interface {
	workload.Process
	Close() error
}

// Pinner finds out which process opened a connection, without reading from it. The connection is one that
// the listener given to Serve has accepted. Implemented by attest/peer, as agent/daemon hands it in.
type Pinner func(net.Conn) (Peer, error)

// listener accepts connections that can carry their peer.
type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn lets its peer go when it is closed.
type conn struct {
	net.Conn
	once sync.Once
	gone func()
	err  error
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		if c.gone != nil {
			c.gone()
		}
	})
	return c.err
}

// pinned is a Peer that outlives its connection while a call on it still runs, so that no attestor ever
// reads through a descriptor that now means something else.
type pinned struct {
	Peer
	uid   uint32
	users atomic.Int32 // the connection, and each call
}

// use adds a user, unless the last one has gone.
func (p *pinned) use() bool {
	for {
		n := p.users.Load()
		if n == 0 {
			return false
		}
		if p.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (p *pinned) release() {
	if p.users.Add(-1) == 0 {
		_ = p.Peer.Close() // nothing is written through it
	}
}

// pinning is the transport security of the endpoint: none on the wire, and the kernel's word for who is at
// the other end.
type pinning struct{ server *Server }

// ServerHandshake pins the peer and charges the connection to its user. It reads and writes no byte.
func (h *pinning) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("workload api: the connection does not come from Serve")
	}
	who, err := h.server.o.Pin(c.Conn)
	if err != nil {
		h.server.metrics.refused.WithLabelValues("unpinned").Inc()
		return nil, nil, err
	}
	p := &pinned{Peer: who, uid: who.UID()}
	p.users.Store(1)
	if reason := h.server.tenants.openConn(p.uid); reason != "" {
		h.server.metrics.refused.WithLabelValues(reason).Inc()
		p.release()
		return nil, nil, errors.New("workload api: refused by limit: " + reason)
	}
	c.gone = func() {
		h.server.tenants.closeConn(p.uid)
		p.release()
	}
	return c, &authInfo{peer: p}, nil
}

// ClientHandshake is refused: these credentials are a server's.
func (h *pinning) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload api: the credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (h *pinning) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: authType}
}

// Clone implements credentials.TransportCredentials.
func (h *pinning) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *pinning) OverrideServerName(string) error { return nil }

const authType = "pinned-process"

type authInfo struct{ peer *pinned }

// AuthType implements credentials.AuthInfo.
func (*authInfo) AuthType() string { return authType }

func peerOf(ctx context.Context) (*pinned, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*authInfo); ok {
			return info.peer, nil
		}
	}
	return nil, status.Error(codes.Internal, "the connection has no pinned process")
}
