package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy/wire/proxyproto"
)

// ErrPreface is why a connection from a balancer ended before TLS: it has not said, as the PROXY protocol asks, for whom
// it is.
var ErrPreface = errors.New("PROXY protocol")

// errCheck is the end of a balancer's own connection on which nothing was said: it has looked whether somebody listens.
var errCheck = errors.New("a balancer's check")

// preface gives c the address of the client for whom a balancer has opened it, and what follows the header is still to
// be read. Whoever is no balancer has none to give.
func (s *Server) preface(ctx context.Context, c net.Conn) (net.Conn, error) {
	if from := host(c.RemoteAddr()); s.Balancer == nil || !from.IsValid() || !s.Balancer(from) {
		return c, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	h, err := proxyproto.Read(c)
	if err == nil && h.Local && silent(c) {
		err = errCheck
	}
	if !stop() {
		err = ctx.Err()
	}
	switch {
	case errors.Is(err, errCheck):
		return c, err
	case err != nil:
		return c, fmt.Errorf("%w: %w", ErrPreface, err)
	case h.Local:
		return c, nil
	}
	return &handedOn{c, net.TCPAddrFromAddrPort(h.Source)}, nil
}

// silent waits for the peer to say something, of which nothing is taken, and reports whether it has left instead. Where
// that cannot be seen it has not.
func silent(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			n, _, failed = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK)
		}
		return !errors.Is(failed, unix.EAGAIN)
	})
	return err == nil && (n == 0 && failed == nil || errors.Is(failed, unix.ECONNRESET))
}

// handedOn is a connection that a balancer has opened for a client.
type handedOn struct {
	net.Conn
	client net.Addr
}

// RemoteAddr is the client's address.
func (h *handedOn) RemoteAddr() net.Addr { return h.client }

// NetConn is the connection itself, whose peer is the balancer.
func (h *handedOn) NetConn() net.Conn { return h.Conn }

// SyscallConn gives the socket, as the connection itself would.
func (h *handedOn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := h.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}
