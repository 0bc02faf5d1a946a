package wire

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// A connection takes bytes from its peer only while a request is under way. What a server sends beyond its reply, or while
// nothing is asked of it, would answer the next request, which may be somebody else's. So a connection is kept only when
// its reply has ended with the last byte that was read, in TLS's buffers too, and it is used again only when nothing has
// arrived since: neither bytes nor the connection's end.

// conn is a connection of a client. While no exchange runs on it, it holds no buffer and no goroutine.
type conn struct {
	net.Conn
	client *Client
	epoch  int
	until  time.Time // no request begins on it from then on
	since  time.Time // when it was put back
	used   bool      // it has served a request
	timed  bool      // it has a deadline

	secure bool
	under  net.Conn // below TLS, else the connection itself
	bulk   *Bulk    // under, where it is one
	raw    syscall.RawConn
	peek   func(fd uintptr) // looks, and sets quiet: made once, because a closure would be made anew at each look
	quiet  bool
	cut    func() // abort, made once
}

func newConn(c *Client, n net.Conn, epoch int, until time.Time) *conn {
	k := &conn{Conn: n, client: c, epoch: epoch, until: until, under: n}
	k.cut = k.abort
	if over, ok := n.(interface{ NetConn() net.Conn }); ok {
		k.secure, k.under = true, over.NetConn()
		k.bulk, _ = k.under.(*Bulk)
	}
	if sc, ok := k.under.(syscall.Conn); ok {
		k.raw, _ = sc.SyscallConn() // it fails on a closed connection, and so will the first Write
	}
	if k.raw != nil {
		k.peek = func(fd uintptr) {
			var b [1]byte
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			k.quiet = err == syscall.EAGAIN
		}
	}
	return k
}

// expires is when a kept connection is to be closed.
func (k *conn) expires(idle time.Duration) time.Time {
	if e := k.since.Add(idle); e.Before(k.until) {
		return e
	}
	return k.until
}

// silent reports whether the peer has sent nothing, not even its end, since the last reply.
func (k *conn) silent() bool {
	if k.raw == nil {
		return k.dry(make([]byte, 1))
	}
	k.quiet = false
	err := k.raw.Control(k.peek)
	return err == nil && k.quiet
}

// drained reports, after a reply's end, whether TLS holds nothing that came behind it. scratch is one byte or more.
func (k *conn) drained(scratch []byte) bool {
	switch {
	case !k.secure:
		return true // what waits is in the socket, and silent will see it there
	case k.bulk != nil:
		k.bulk.dry = true
		n, err := k.Read(scratch[:1])
		k.bulk.dry = false
		return n == 0 && errors.Is(err, errDry)
	}
	return k.dry(scratch)
}

// dry reports whether a Read that may not wait finds nothing.
func (k *conn) dry(scratch []byte) bool {
	k.timed = true
	if err := k.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return false
	}
	n, err := k.Read(scratch[:1])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// deadline bounds what is done on k; the zero time takes the bound away.
func (k *conn) deadline(t time.Time) {
	if k.timed || !t.IsZero() {
		k.timed = !t.IsZero()
		_ = k.SetDeadline(t)
	}
}

// abort cuts the connection, whoever is reading or writing. It takes no leave: TLS would wait until a peer that reads
// nothing has read that.
func (k *conn) abort() {
	_ = k.under.Close()
}

// Cut implements Cutter.
func (k *conn) Cut() { k.abort() }

// end closes the connection for good. Only who has taken it, or has taken it out of those kept, may call it, once.
// Politely is with TLS's leave, for a peer that has read all there was.
func (k *conn) end(politely bool) {
	k.shut(politely)
	k.client.leave()
}

// shut is end, but for the slot, which stays with the caller.
func (k *conn) shut(politely bool) {
	if !politely {
		k.abort()
	}
	_ = k.Close()
}
