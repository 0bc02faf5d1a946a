package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// How a reply's body is read: what has come with the head lies in the flight's buffer, and everything else is read straight
// into the caller's. The framing is taken out of each where it lies.

const (
	// direct is the least room that a caller must give for that.
	direct = 512
	// settling bounds the wait for a request's last piece to go out once the reply has ended.
	settling = 5 * time.Second
)

// Read implements io.Reader. It gives all that is there, up to len(p) bytes, and waits only when there is nothing.
func (x *reply) Read(p []byte) (int, error) {
	if x.f == nil {
		return 0, x.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := x.payload(p)
	x.read += int64(n)
	switch {
	case err != nil:
		x.err = x.fail(err)
	case x.ended():
		x.finish()
	default:
		if b := x.conn.bulk; b != nil && x.read >= taking { // whoever this is for takes it, too
			b.readAhead(true)
		}
		return n, nil
	}
	return n, x.err
}

// Buffered implements Buffering.
func (x *reply) Buffered() int {
	if x.f == nil {
		return 0
	}
	return x.f.w - x.f.r
}

// ended reports whether all of the body has been given.
func (x *reply) ended() bool { return x.f.body.Done() && x.f.r == x.f.w }

// payload reads until there is some, or the body has ended.
func (x *reply) payload(p []byte) (n int, err error) {
	f := x.f
	if f.r < f.w {
		n = copy(p, f.in[f.r:f.w])
		f.r += n
		return n, nil
	}
	for n == 0 && x.broken == nil && !f.body.Done() {
		if len(p) >= direct {
			n, err = x.receive(p)
		} else {
			f.r = 0
			if f.w, err = x.receive(f.in); err == nil {
				n = copy(p, f.in[:f.w])
				f.r = n
			}
		}
		if err != nil {
			return 0, err
		}
	}
	if n == 0 {
		return 0, x.broken
	}
	return n, nil
}

// receive reads what is there, of a body whose length is known no more than that, and takes the framing out of it.
func (x *reply) receive(p []byte) (int, error) {
	if x.plain > 0 {
		p = p[:min(int64(len(p)), x.plain)]
	}
	n, err := x.conn.Read(p)
	switch {
	case n > 0:
		return x.unframe(p[:x.conn.bulk.afterwards(x.conn, p, n)]), nil // an error comes again
	case errors.Is(err, io.EOF):
		return 0, x.f.body.EOF()
	}
	return 0, err
}

// unframe takes the framing out of p, so that the payload stands at its beginning, and gives that one's length.
func (x *reply) unframe(p []byte) (n int) {
	f := x.f
	for at := 0; at < len(p); {
		if f.body.Done() {
			x.keep = false // nobody asked for what follows
			break
		}
		data, used, err := f.body.Next(p[at:])
		n += copy(p[n:], data)
		if at += used; err != nil {
			x.broken = err
			break
		}
	}
	if x.plain > 0 {
		x.plain -= int64(n)
	}
	return n
}

// Close implements io.Closer. A reply that has not been read to its end takes its connection with it, unless the end is
// here already.
func (x *reply) Close() error {
	f := x.f
	if f == nil {
		return nil
	}
	if f.body.Done() {
		x.finish()
	} else {
		_ = x.fail(errClosed)
	}
	x.err = errClosed
	return nil
}

// finish is the reply's end as it should be.
func (x *reply) finish() {
	f, k := x.f, x.conn
	x.f, x.err, x.whole = nil, io.EOF, true
	if !x.drop() {
		x.keep, x.whole = false, false // it is being cut
	}
	if k.bulk != nil && !k.bulk.readAhead(false) {
		x.keep = false
	}
	x.keep = x.keep && k.drained(f.own[:])
	if x.up != nil && x.keep {
		k.timed = true
		_ = k.SetWriteDeadline(time.Now().Add(settling))
	}
	f.free()
	x.leave()
}

// fail ends the exchange and cuts the connection. It returns why, as who called it is to see it.
func (x *reply) fail(err error) error {
	f, k := x.f, x.conn
	x.f, x.keep = nil, false
	k.abort()
	if x.up != nil {
		if own := x.up.failed(); own != nil {
			err = own
		} else if !x.began && x.up.unfinished() {
			err = fmt.Errorf("%w: %w", ErrUnfinished, err)
		}
		x.up.stop()
	}
	x.drop()
	if k.bulk != nil {
		k.bulk.readAhead(false)
	}
	if x.Body != nil { // else RoundTrip still needs it
		f.free()
	}
	x.leave()
	if errors.Is(err, os.ErrDeadlineExceeded) && !x.end.IsZero() && !time.Now().Before(x.end) {
		t := time.NewTimer(time.Second) // the context's own timer is about to go off
		defer t.Stop()
		select {
		case <-x.ctx.Done():
		case <-t.C:
		}
	}
	if gone := x.ctx.Err(); gone != nil {
		return gone
	}
	return err
}

// leave is the end of the exchange's two sides, the request's and the reply's. Who is last settles what becomes of the
// connection.
func (x *reply) leave() {
	if x.open.Add(-1) > 0 {
		return
	}
	k := x.conn
	if x.up != nil {
		x.up.mu.Lock()
		x.keep = x.keep && x.up.err == nil
		x.up.mu.Unlock()
	}
	if x.keep {
		k.client.put(k)
		return
	}
	k.end(x.whole)
}
