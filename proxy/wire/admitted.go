package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// admitted is a connection that Accept has let in. One goroutine serves it: it reads a head, handles the exchange, and
// goes on to the next head. While it waits for one it holds no buffer.
type admitted struct {
	net.Conn          // what HTTP is spoken on: TLS, or the connection itself
	base     net.Conn // what the listener gave
	out      *outlet  // through which all is written to base
	bulk     *Bulk    // between the outlet and TLS; nil without TLS
	server   *Server
	value    any
	remote   string
	protocol string // that ALPN has chosen

	ctx    context.Context // ends with the connection, or when its peer is seen to have gone
	cancel context.CancelFunc
	raw    syscall.RawConn // where bytes may be taken from the socket itself; else nil
	take   func(fd uintptr) bool
	lender lender        // the connection, where it reads so itself; else nil
	lend   func() []byte // what it asks for a buffer
	back   func()        // and gives it back by
	hungUp func() bool   // whether the peer has gone; nil where that cannot be seen
	repose restful       // by which it can rest; else nil

	state   atomic.Int32
	since   atomic.Uint64 // the sweeper's time when the exchange under way began; 0: there is none
	begun   bool          // a request has been read
	aborted bool          // the connection ends without leave-taking
	openEnd bool          // an answer is under way whose end is the connection's
	rested  bool          // it has rested, or was about to, since the last request
	resting uint64        // as what number it rests; 0: it does not; guarded by the resters' mutex

	// What has been received and not used yet is buf[r:w]. buf is nil, or the desk's, or larger where a head is.
	desk *desk
	buf  []byte
	r, w int
	one  [1]byte // what is read to learn that there is more
	n    int     // what take has read
	err  error

	place place

	reading
}

// What a connection does, of which draining wants to know whether it may be closed.
const (
	idle   = iota // it waits for a request's first byte
	busy          // it serves one
	parted        // it waited, and has been closed
)

// reading guards the deadline for reading, which a body's reader moves on and the exchange's end takes away.
type reading struct {
	mu     sync.Mutex
	until  time.Time // the deadline as it stands
	closed bool      // no more reads for the exchange under way
}

// admit makes a connection that Accept has let in one that is served.
func (s *Server) admit(base net.Conn, out *outlet, under *Bulk, secure *tls.Conn, value any) *admitted {
	a := &admitted{Conn: out, base: base, out: out, bulk: under, server: s, value: value, remote: base.RemoteAddr().String()}
	ends := newEnding(s.context)
	a.ctx, a.cancel = ends, ends.end
	a.hungUp, a.repose = watch(base), repose(base)
	if secure != nil {
		a.Conn, a.protocol = secure, secure.ConnectionState().NegotiatedProtocol
	} else if l, ok := base.(lender); ok {
		a.lender, a.lend, a.back = l, a.lendDesk, a.release
	} else if sc, ok := base.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			a.raw, a.take = raw, a.receive
		}
	}
	s.keep(a)
	return a
}

// end closes the connection, and tells everybody.
func (a *admitted) end() {
	a.server.leavePlace(a)
	a.release()
	a.cancel()
	if a.aborted {
		a.sever() // RFC 9112 §9.8: an answer that was cut off must not look as if it had ended here
	} else {
		_ = a.Close()
		_ = a.base.Close()
	}
	a.server.drop(a)
	if a.server.Closed != nil {
		a.server.Closed(a.value)
	}
	a.server.leave()
}

// sever closes the connection whatever runs on it.
func (a *admitted) sever() {
	_ = a.base.Close()
	a.cancel()
	a.server.rouse(a)
}

// resets says that from now on, or no more, an answer is under way whose end is the connection's. Whatever cuts it must
// not look like that end: in plain text only a reset does not.
func (a *admitted) resets(yes bool) {
	if a.openEnd != yes {
		a.openEnd = yes
		a.out.endsByReset(yes)
	}
}

// await waits for a request's first byte. Reports false when the connection has ended instead, or its time has, or when
// it is to rest until there is something to read.
func (a *admitted) await() (came, rests bool) {
	if a.place.kept != nil {
		came = a.resume()
		return came, !came
	}
	if a.r < a.w {
		return true, false // the peer has sent it along with the last request
	}
	a.release()
	limit, short := time.Duration(0), false
	if !a.rested { // else it idles, and its deadline stands
		a.state.Store(idle)
		limit = a.patience()
		if short = limit > 2*restless; short {
			a.allow(restless)
		} else {
			a.allow(limit)
		}
	}
	if err := a.first(); err != nil {
		if !short || !errors.Is(err, os.ErrDeadlineExceeded) || a.ctx.Err() != nil {
			return false, false
		}
		a.rested = true
		a.allow(limit - restless)
		return false, true
	}
	a.rested = false
	return a.state.CompareAndSwap(idle, busy), false
}

// patience is how long a request may be in coming.
func (a *admitted) patience() time.Duration {
	limit := a.server.IdleTimeout
	if !a.begun {
		limit = a.server.HeadTimeout
	}
	if a.server.draining() {
		limit = min(limit, farewell)
	}
	return limit
}

// first receives a request's first bytes into a desk that it takes when they are there.
func (a *admitted) first() error {
	if a.raw != nil {
		if err := a.raw.Read(a.take); err != nil {
			return err
		}
		if a.err == nil && a.n == 0 {
			return io.EOF
		}
		a.w = a.n
		return a.err
	}
	if a.lender != nil {
		n, err := a.lender.ReadLent(a.lend, a.back)
		a.w = n
		return err
	}
	for {
		n, err := a.Read(a.one[:])
		if n > 0 {
			a.sit()
			a.buf[0], a.w = a.one[0], 1
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// receive reads from the socket, and reports whether there was something to read.
func (a *admitted) receive(fd uintptr) bool {
	a.sit()
	for {
		a.n, a.err = syscall.Read(int(fd), a.buf)
		switch a.err {
		case syscall.EINTR:
		case syscall.EAGAIN:
			a.release()
			return false
		default:
			return true
		}
	}
}

// lender is a connection that lets nobody read from its socket, because it checks what comes, and that can wait without a
// buffer: it asks lend for one when there may be something to read, and calls back when there was nothing.
type lender interface {
	ReadLent(lend func() []byte, back func()) (int, error)
}

// lendDesk takes a desk for a lender to read into.
func (a *admitted) lendDesk() []byte {
	a.sit()
	return a.buf
}

// sit takes a desk.
func (a *admitted) sit() {
	if a.desk == nil {
		a.desk = a.server.stores.desk()
		a.buf, a.r, a.w = a.desk.buf[:], 0, 0
	}
}

// release gives the desk back, and forgets what was received.
func (a *admitted) release() {
	if a.desk != nil {
		a.server.stores.desks.Put(a.desk)
	}
	a.desk, a.buf, a.r, a.w = nil, nil, 0, 0
}

// allow lets reads wait for d from now on. A deadline that is a little shorter stays: to move it costs.
func (a *admitted) allow(d time.Duration) {
	a.reading.mu.Lock()
	defer a.reading.mu.Unlock()
	now := time.Now()
	if left := a.until.Sub(now); left > d || left < d-d/8 {
		a.until = now.Add(d)
		_ = a.SetReadDeadline(a.until)
	}
}

// deadline is when reads fail.
func (a *admitted) deadline() time.Time {
	a.reading.mu.Lock()
	defer a.reading.mu.Unlock()
	return a.until
}

// expire lets reads fail at t, if they may go on at all.
func (a *admitted) expire(t time.Time) error {
	a.reading.mu.Lock()
	defer a.reading.mu.Unlock()
	if a.closed {
		return errOver
	}
	if !t.Equal(a.until) {
		a.until = t
		return a.SetReadDeadline(t)
	}
	return nil
}

// head reads a request's head, of which the first byte is there. A status says that it is refused; ok is false, too,
// when the connection has ended, and when the request waits for its turn.
func (a *admitted) head() (n, status int, ok bool) {
	head := &a.desk.head
	if a.place.late {
		return 0, 408, false // RFC 9110 §15.5.9
	}
	timed := false // it has HeadTimeout from here on
	for {
		n, err := head.Parse(a.buf[a.r:a.w], &a.server.limits)
		if err != nil {
			head.Reset()
			return 0, refused(err), false
		}
		if n > 0 {
			return n, 0, true
		}
		a.room()
		m, err := a.more(&timed)
		a.w += m
		if m > 0 || err == nil {
			continue
		}
		head.Reset()
		switch {
		case errors.Is(err, errTurn):
			a.queue()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, 408, false // RFC 9110 §15.5.9
		}
		return 0, 0, false
	}
}

// more reads more of a head. What has come with the first byte, and only TLS has held back, is not waited for; for the
// rest the head needs a place, and has its time.
func (a *admitted) more(timed *bool) (int, error) {
	if !*timed {
		if n, err := a.atHand(); !errors.Is(err, errDry) {
			return n, err
		}
		if !a.server.take(a) {
			return 0, errTurn
		}
		*timed = true
		_ = a.expire(time.Now().Add(a.place.shorter(a.server.HeadTimeout)))
	}
	return a.Read(a.buf[a.w:])
}

func refused(err error) int {
	var e *http1.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 400
}

// room makes room behind what was received: by moving it to the front, or else by growth, up to what a head may have.
func (a *admitted) room() {
	switch {
	case a.w < len(a.buf):
	case a.r > 0:
		a.w = copy(a.buf, a.buf[a.r:a.w])
		a.r = 0
	default:
		grown := make([]byte, 2*len(a.buf))
		copy(grown, a.buf)
		a.buf = grown
	}
}

// exchange serves one request, and reports whether another may follow on the connection.
func (a *admitted) exchange() (goesOn bool) {
	n, status, ok := a.head()
	if !ok {
		if status != 0 {
			a.server.leavePlace(a)
			a.refuse(status)
		}
		return false
	}
	if a.entire(n) {
		a.server.leavePlace(a)
	} else if !a.server.take(a) {
		a.desk.head.Reset()
		a.queue()
		return false
	}
	a.begun = true
	c := a.call(n)
	if a.r == a.w && c.body.ended.Load() {
		a.release() // the exchange may last
	}
	a.server.watched(a)
	ok = a.server.handle(&c.Exchange)
	a.since.Store(0)
	c.done = true
	return c.over(ok)
}

// refuse answers what is not acceptable HTTP, and ends the connection.
func (a *admitted) refuse(status int) {
	r := a.server.Refuse(a.value, a.remote, status)
	if r == nil {
		return
	}
	defer func() {
		if r.Body != nil {
			_ = r.Body.Close()
		}
	}()
	r.Close = true
	if r.Body == nil {
		r.Length = 0
	}
	if _, err := a.send(r, asked{minor: 1}); err == nil {
		a.linger()
	}
}

// linger ends the connection so that the peer gets to see the answer: what it still sends would make the kernel take
// back what has been written (RFC 9112 §9.6).
func (a *admitted) linger() {
	const patience, most = 2 * time.Second, 8 << 20
	if secure, ok := a.Conn.(*tls.Conn); ok {
		_ = secure.CloseWrite()
	}
	half, ok := closeWriter(a.base)
	if !ok || half.CloseWrite() != nil {
		return
	}
	a.sit()
	a.reading.mu.Lock()
	_ = a.base.SetReadDeadline(time.Now().Add(patience))
	a.reading.mu.Unlock()
	for n := 0; n < most; {
		m, err := a.base.Read(a.desk.buf[:])
		if n += m; err != nil {
			return
		}
	}
}

type writeCloser interface{ CloseWrite() error }

func closeWriter(c net.Conn) (writeCloser, bool) {
	for {
		if w, ok := c.(writeCloser); ok {
			return w, true
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		c = over.NetConn()
	}
}
