package api

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/workload"
)

// Pinner finds out which process opened a connection, without reading from it. The connection is one that
// the listener given to Serve has accepted, and its Close lets the process go: from then on the process's
// Alive returns an error. Implemented by attest/peer, as agent/daemon hands it in.
type Pinner func(net.Conn) (workload.Process, error)

// listener accepts connections that can carry their process.
type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn ends its calls before it is closed, and with it the process is let go: a client that hangs up is no
// process that lost its identity.
type conn struct {
	net.Conn
	once sync.Once
	gone func() // nil until the process is pinned
	err  error
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.gone != nil {
			c.gone()
		}
		c.err = c.Conn.Close()
	})
	return c.err
}

// authInfo is what gRPC carries from the handshake to each call.
type authInfo struct {
	process workload.Process
	uid     uint32
	ctx     context.Context // of the connection: ends when it is closed or the server drains
}

const authType = "pinned-process"

// AuthType implements credentials.AuthInfo.
func (*authInfo) AuthType() string { return authType }

func peerOf(ctx context.Context) (*authInfo, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*authInfo); ok {
			return info, nil
		}
	}
	return nil, status.Error(codes.Internal, "the connection has no pinned process")
}

// pinning is the transport security of the endpoint: none on the wire, and the kernel's word for who is at
// the other end.
type pinning struct{ server *Server }

// ServerHandshake pins the peer and charges the connection to its user. It reads and writes no byte.
func (h *pinning) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := h.server
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("workload api: the connection does not come from Serve")
	}
	process, err := s.o.Pin(c.Conn)
	if err != nil {
		s.metrics.refused.WithLabelValues("unpinned").Inc()
		return nil, nil, err
	}
	uid := process.UID()
	if reason := s.tenants.openConn(uid); reason != "" {
		s.metrics.refused.WithLabelValues(reason).Inc()
		return nil, nil, errors.New("workload api: refused by limit: " + reason)
	}
	ctx, cancel := context.WithCancel(s.draining)
	c.gone = func() {
		cancel()
		s.tenants.closeConn(uid)
	}
	return c, &authInfo{process: process, uid: uid, ctx: ctx}, nil
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
