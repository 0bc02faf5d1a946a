package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is an accepted connection whose peer is pinned before a byte is read or written. When that process ends,
// or is no longer the one that was pinned, the connection is closed. On a Unix socket every read also checks
// who sent what it returns.
type Conn struct {
	netConn
	pinner   *Pinner
	receiver *receiver // nil for TCP

	once    sync.Once
	process *Process
	refused error
}

// Process pins the peer at its first call and returns the same afterwards. The Conn closes the Process.
func (c *Conn) Process() (*Process, error) {
	c.once.Do(func() {
		c.process, c.refused = c.pinner.pinConn(c.anyConn)
		if c.refused != nil {
			_ = c.netConn.Close()
			return
		}
		c.process.onEnd(func(error) { _ = c.netConn.Close() })
	})
	return c.process, c.refused
}

// Dialed is the address that the peer dialled: not LocalAddr where netfilter redirected the connection. Of a Unix
// socket it is not valid.
func (c *Conn) Dialed() (netip.AddrPort, error) {
	if t, ok := c.anyConn.(*net.TCPConn); ok {
		return Dialed(t)
	}
	return netip.AddrPort{}, nil
}

// Read implements net.Conn. Its error wraps what Process.Alive says once the peer has ended, and ErrPassed when
// another process sent the message; both end the connection.
func (c *Conn) Read(b []byte) (int, error) {
	process, err := c.Process()
	if err != nil {
		return 0, c.opError("read", err)
	}
	var n int
	if c.receiver == nil {
		n, err = c.netConn.Read(b)
	} else {
		n, err = c.receiver.read(b, process.pid)
	}
	// What was read before the end was noticed may be another's.
	if ended := process.ended(); ended != nil && !errors.Is(ended, ErrClosed) && err != io.EOF {
		return 0, c.opError("read", ended)
	}
	if err != nil && c.receiver != nil && c.receiver.refused() {
		_ = c.netConn.Close()
		return 0, c.opError("read", err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	process, err := c.Process()
	if err != nil {
		return 0, c.opError("write", err)
	}
	if ended := process.ended(); ended != nil && !errors.Is(ended, ErrClosed) {
		return 0, c.opError("write", ended)
	}
	return c.netConn.Write(b)
}

// Close closes the connection and its Process.
func (c *Conn) Close() error {
	err := c.netConn.Close()
	c.once.Do(func() { c.refused = net.ErrClosed })
	if c.process != nil {
		_ = c.process.Close()
	}
	return err
}

// netConn is what a Conn and a Referred have in common. Neither is reached from outside: reading from it would go round
// the checks.
type netConn struct {
	anyConn
	raw syscall.RawConn // nil where it has none
}

type anyConn = net.Conn

func newNetConn(c net.Conn) netConn {
	n := netConn{anyConn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			n.raw = raw
		}
	}
	return n
}

// CloseWrite tells the other end that nothing more follows.
func (c netConn) CloseWrite() error {
	if h, ok := c.anyConn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return fmt.Errorf("peer: %s: close for writing: %w", c.LocalAddr().Network(), os.ErrInvalid)
}

// HungUp reports whether the other end has closed the connection, or has ended its sending. It reads nothing.
func (c *netConn) HungUp() bool {
	if c.raw == nil {
		return false
	}
	gone := false
	err := c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor fits
		n, err := unix.Poll(p, 0)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(p, 0)
		}
		gone = n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil // it is closed on this side
}

// EpollCtl lets an epoll set tell of the connection (epoll_ctl(2)), and gives nobody the socket. It fails once the
// connection has been closed.
func (c *netConn) EpollCtl(epoll, op int, event *unix.EpollEvent) error {
	if c.raw == nil {
		return os.ErrInvalid
	}
	var inner error
	if err := c.raw.Control(func(fd uintptr) { inner = unix.EpollCtl(epoll, op, int(fd), event) }); err != nil {
		return err
	}
	return inner
}

// Closed reports whether the connection has been closed on this side.
func (c *netConn) Closed() bool { return c.raw == nil || c.raw.Control(func(uintptr) {}) != nil }

func (c netConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// receiver reads from a Unix stream socket by recvmsg. The kernel never joins the bytes of two senders into
// one read while SO_PASSCRED is set, so one set of credentials covers what a read returns.
type receiver struct {
	raw syscall.RawConn
	ask func(fd uintptr) bool // receive once; kept, so that a read allocates nothing

	mu      sync.Mutex
	buf     []byte
	lend    func() []byte // where a lent read gets buf; else nil
	back    func()
	n, oobn int
	flags   int
	err     error
	sticky  error // ErrPassed, from then on
	// There is room for the credentials, which come first, and for nothing else: descriptors that were passed
	// are then dropped by the kernel itself, which says so by MSG_CTRUNC.
	oob [unix.SizeofCmsghdr + (unix.SizeofUcred+7)&^7]byte
}

func newReceiver(raw syscall.RawConn) *receiver {
	r := &receiver{raw: raw}
	r.ask = func(fd uintptr) bool {
		if r.lend != nil {
			r.buf = r.lend()
		}
		for {
			r.n, r.oobn, r.flags, _, r.err = unix.Recvmsg(int(fd), r.buf, r.oob[:], unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			switch r.err {
			case unix.EINTR:
			case unix.EAGAIN:
				if r.lend != nil {
					r.buf = nil
					r.back()
				}
				return false
			default:
				return true
			}
		}
	}
	return r
}

// read is one read of bytes that process pid sent.
func (r *receiver) read(b []byte, pid int) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf = b
	return r.receive(pid)
}

// readLent is read into what lend gives when there may be something to read; back is told when there was nothing.
func (r *receiver) readLent(lend func() []byte, back func(), pid int) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lend, r.back = lend, back
	defer func() { r.lend, r.back = nil, nil }()
	return r.receive(pid)
}

// receive waits for one message, and says how much of it may be used. r.mu is held.
func (r *receiver) receive(pid int) (int, error) {
	defer func() { r.buf = nil }()
	if r.sticky != nil {
		return 0, r.sticky
	}
	if err := r.raw.Read(r.ask); err != nil {
		return 0, err
	}
	if r.err != nil {
		return 0, os.NewSyscallError("recvmsg", r.err)
	}
	if r.n == 0 {
		return 0, io.EOF
	}
	if r.flags&unix.MSG_CTRUNC != 0 {
		r.sticky = fmt.Errorf("%w: descriptors were passed", ErrPassed)
	} else if sender, err := sender(r.oob[:r.oobn]); err != nil {
		r.sticky = err
	} else if sender != pid {
		r.sticky = fmt.Errorf("%w: process %d writes on the connection of process %d", ErrPassed, sender, pid)
	}
	if r.sticky != nil {
		clear(r.buf[:r.n])
		return 0, r.sticky
	}
	return r.n, nil
}

func (r *receiver) refused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sticky != nil
}

// sender is the pid in a message's SCM_CREDENTIALS, which must be all that came with it.
func sender(oob []byte) (int, error) {
	if len(oob) < unix.CmsgLen(unix.SizeofUcred) { // the parser wants a whole header
		return 0, fmt.Errorf("%w: a message came without its sender's credentials", ErrPassed)
	}
	h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil || len(rest) != 0 || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_CREDENTIALS {
		return 0, fmt.Errorf("%w: a message came without its sender's credentials", ErrPassed)
	}
	c, err := unix.ParseUnixCredentials(&unix.SocketControlMessage{Header: h, Data: data})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrPassed, err)
	}
	return int(c.Pid), nil
}
