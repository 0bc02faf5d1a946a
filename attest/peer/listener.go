package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const pinTimeout = 10 * time.Second

// Listener accepts connections whose peers are pinned or referred to: each is a *Conn or a *Referred.
type Listener struct {
	net.Listener
	take    func(net.Conn) (net.Conn, error)
	refused func(error)
}

// Listen wraps l, which is a *net.UnixListener or a *net.TCPListener. The peer of a Unix connection is pinned
// in Accept; that of a TCP connection, which costs more, at the first use of its Conn. A Unix connection whose
// peer cannot be pinned is closed in Accept, which then waits for the next one; refused is told why.
//
// A socket that was listening before, as with socket activation, may hold messages of which the kernel kept no
// sender: they are refused. Set PassCredentials=yes in its unit, or use Control.
//
// A TCP connection that netfilter redirected here is attributed by the address that its client dialled: Conn.Dialed.
func (p *Pinner) Listen(l net.Listener, refused func(error)) (*Listener, error) {
	if err := prepare(l); err != nil {
		return nil, err
	}
	return &Listener{Listener: l, refused: refused, take: func(c net.Conn) (net.Conn, error) { return p.Conn(c) }}, nil
}

func prepare(l net.Listener) error {
	switch l := l.(type) {
	case *net.UnixListener:
		raw, err := l.SyscallConn()
		if err != nil {
			return err
		}
		return passSenders(raw)
	case *net.TCPListener:
		return nil
	}
	return fmt.Errorf("peer: listening on a %s socket: neither Unix nor TCP", l.Addr().Network())
}

// Control is for net.ListenConfig: it asks for the senders of messages before anybody can connect.
func Control(network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return passSenders(raw)
	}
	return nil
}

// Accept returns the next connection, a *Conn from Pinner.Listen and a *Referred from Pinner.Refer.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn, err := l.take(c)
		if err == nil {
			return conn, nil
		}
		_ = c.Close()
		l.refused(err)
	}
}

// Conn wraps one accepted connection, Unix or TCP, as a Listener does.
func (p *Pinner) Conn(c net.Conn) (*Conn, error) {
	conn := &Conn{netConn: newNetConn(c), pinner: p}
	if conn.raw == nil {
		return nil, fmt.Errorf("peer: a connection over %s: it has no socket", c.LocalAddr().Network())
	}
	switch c.(type) {
	case *net.UnixConn:
		// A connection that waited in the backlog has not inherited what its listener asks for.
		if err := passSenders(conn.raw); err != nil {
			return nil, err
		}
		conn.receiver = newReceiver(conn.raw)
	case *net.TCPConn:
		return conn, nil
	default:
		return nil, fmt.Errorf("peer: a connection over %s: neither Unix nor TCP", c.LocalAddr().Network())
	}
	if _, err := conn.Process(); err != nil {
		return nil, err
	}
	return conn, nil
}

// passSenders makes the kernel name the sender of every message (SO_PASSCRED) and, from Linux 6.16, refuse
// descriptors that are passed to us (SO_PASSRIGHTS). Older kernels' descriptors are refused by the receiver.
func passSenders(raw syscall.RawConn) error {
	var inner error
	err := raw.Control(func(fd uintptr) {
		inner = os.NewSyscallError("setsockopt SO_PASSCRED", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		if inner != nil {
			return
		}
		err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) && !errors.Is(err, unix.EOPNOTSUPP) {
			inner = os.NewSyscallError("setsockopt SO_PASSRIGHTS", err)
		}
	})
	if err != nil {
		return err
	}
	return inner
}

// pinConn pins the peer of c. It waits for nothing but other searches for processes of the same user.
func (p *Pinner) pinConn(c net.Conn) (*Process, error) {
	switch c := c.(type) {
	case *net.UnixConn:
		return p.Unix(c)
	case *net.TCPConn:
		dialed, err := Dialed(c)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), pinTimeout)
		defer cancel()
		return p.TCPTo(ctx, c, dialed)
	}
	return nil, net.ErrClosed // Conn admits no others
}
