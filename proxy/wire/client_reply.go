package wire

import (
	"errors"
	"io"
	"os"
	"time"
)

// How a reply's body is read: what has come with the head lies in the flight's buffer; everything else is read straight
// into the caller's, where the framing is taken out of it.

const (
	// longBody is from where reading ahead below TLS pays.
	longBody = 64 << 10
	// direct is the least room that a caller must give for that.
	direct = 512
	// record is what one of TLS holds.
	record = 16 << 10
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
	case x.f.body.Done():
		x.finish()
	default:
		if b := x.conn.bulk; b != nil && b.ahead == nil && x.read >= longBody {
			b.readAhead(true)
		}
		return n, nil
	}
	return n, x.err
}

// payload reads until there is some, or the body has ended.
func (x *reply) payload(p []byte) (n int, err error) {
	f := x.f
	for n == 0 && !f.body.Done() {
		switch {
		case f.r < f.w:
			data, used, err := f.body.Next(f.in[f.r:min(f.w, f.r+len(p))])
			n = copy(p, data)
			f.r += used
			x.count(n)
			if err != nil {
				return n, err
			}
		case len(p) < direct:
			f.r = 0
			if f.w, err = x.receive(f.in); err != nil {
				return 0, err
			}
		default:
			if n, err = x.into(p); err != nil {
				return n, err
			}
		}
	}
	b := x.conn.bulk
	for b != nil && b.ahead != nil && f.r == f.w && len(p)-n >= record && !f.body.Done() {
		b.dry = true
		m, err := x.into(p[n:])
		b.dry = false
		n += m
		if errors.Is(err, errDry) {
			break
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// into reads into p, and takes the framing out of it.
func (x *reply) into(p []byte) (n int, err error) {
	f := x.f
	m, err := x.receive(p)
	if err != nil {
		return 0, err
	}
	for at := 0; at < m; {
		if f.body.Done() {
			x.keep = false // nobody asked for what follows
			break
		}
		data, used, err := f.body.Next(p[at:m])
		n += copy(p[n:], data)
		at += used
		if err != nil {
			return n, err
		}
	}
	x.count(n)
	return n, nil
}

// receive reads from the connection into p: of a body whose length is known no more than that.
func (x *reply) receive(p []byte) (int, error) {
	if x.plain > 0 {
		p = p[:min(int64(len(p)), x.plain)]
	}
	n, err := x.conn.Read(p)
	if n > 0 {
		return n, nil // an error comes again
	}
	if errors.Is(err, io.EOF) {
		return 0, x.f.body.EOF()
	}
	return 0, err
}

func (x *reply) count(n int) {
	if x.plain > 0 {
		x.plain -= int64(n)
	}
}

// Close implements io.Closer. A reply that has not been read to its end takes its connection with it, unless the end is
// here already.
func (x *reply) Close() error {
	f := x.f
	if f == nil {
		return nil
	}
	for f.r < f.w && !f.body.Done() {
		_, used, err := f.body.Next(f.in[f.r:f.w])
		if f.r += used; err != nil {
			break
		}
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
	if f.r < f.w {
		x.keep = false
	}
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
