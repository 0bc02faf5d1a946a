package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
	"syscall"
)

// errUnasked ends a connection on which the peer speaks without having been asked.
var errUnasked = errors.New("wire: the peer sent bytes that no request asked for")

// solicited is a connection that takes bytes from its peer only while a request is under way. The engine keeps a
// connection for reuse a moment before it looks whether more has arrived than the reply, and what has would answer
// the next request, which is somebody else's. So a request claims its connection first, and waits with that until the
// engine has used up what was there and asks for more.
type solicited struct {
	net.Conn
	raw syscall.RawConn // nil where there is none

	mu     sync.Mutex
	turn   sync.Cond // dry or closed has changed
	dry    bool      // the engine wants bytes and there are none
	asked  bool      // a request is under way
	closed bool
}

func newSolicited(c net.Conn) *solicited {
	s := &solicited{Conn: c}
	s.turn.L = &s.mu
	if sc, ok := c.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn() // it fails on a closed connection, and so will the first Read
	}
	return s
}

func (s *solicited) Read(p []byte) (n int, err error) {
	if s.raw == nil { // TLS: what it has decrypted already is not seen here, but that peer is a ward
		s.set(func() { s.dry = true })
		n, err = s.Conn.Read(p)
		s.set(func() { n, err = s.take(p, n, err) })
	} else if rerr := s.raw.Read(func(fd uintptr) bool { n, err = s.receive(int(fd), p); return err != syscall.EAGAIN }); rerr != nil {
		return 0, rerr
	}
	if err == errUnasked {
		_ = s.Close()
	}
	return n, err
}

// receive reads under the lock: either a request has been made before the bytes are taken, or nobody asked for them.
func (s *solicited) receive(fd int, p []byte) (n int, err error) {
	s.set(func() {
		for {
			n, err = syscall.Read(fd, p)
			if err != syscall.EINTR {
				break
			}
		}
		switch {
		case err == syscall.EAGAIN:
			s.dry = true
			return
		case err == nil && n == 0:
			err = io.EOF
		case err != nil:
			n, err = 0, &net.OpError{Op: "read", Net: s.LocalAddr().Network(), Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
		}
		n, err = s.take(p, n, err)
	})
	return n, err
}

func (s *solicited) take(p []byte, n int, err error) (int, error) {
	s.dry = false
	if n > 0 && !s.asked {
		clear(p[:n])
		return 0, errUnasked
	}
	return n, err
}

func (s *solicited) Close() error {
	s.set(func() { s.closed = true })
	return s.Conn.Close()
}

func (s *solicited) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.turn.Broadcast()
}

// claim begins a request, or closes the connection when the peer has said more than it was asked, or has ended it; the
// engine then takes another one.
func (s *solicited) claim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.dry && !s.closed {
		s.turn.Wait()
	}
	if s.raw == nil {
		s.asked = true
		return
	}
	peeked := errUnasked
	err := s.raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, peeked = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	if s.asked = err == nil && peeked == syscall.EAGAIN; !s.asked {
		s.closed = true
		_ = s.Conn.Close()
	}
}

// claiming makes the request of ctx claim the connection that it gets, and give it back with its reply's end.
func claiming(ctx context.Context) context.Context {
	var mine *solicited
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			mine = i.Conn.(*solicited)
			mine.claim()
		},
		// The engine calls this before it reads on, and so before the next request can claim.
		PutIdleConn: func(err error) {
			if err == nil {
				mine.set(func() { mine.asked = false })
			}
		},
	})
}
