package wire

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// rateGraceOut is how many times as long as a sender a reader may be behind.
const rateGraceOut = 3

// outlet writes on a connection for as long as its peer takes what is written. TLS stands on it, so that one write of a
// long body, which is many records, is one write here.
type outlet struct {
	net.Conn
	grace time.Duration // in which a peer takes rate bytes a second
	rate  int

	mu     sync.Mutex
	end    time.Time // nothing is written after it; zero: there is no end
	until  time.Time // the deadline as it stands
	fixed  bool      // somebody else has set it
	gather []byte    // what waits to be written; nil: nothing waits
}

// Write implements net.Conn.
func (o *outlet) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gather == nil {
		return o.write(p)
	}
	if len(o.gather)+len(p) > cap(o.gather) {
		if err := o.flush(); err != nil {
			return 0, err
		}
		if len(p) > cap(o.gather) {
			return o.write(p)
		}
	}
	o.gather = append(o.gather, p...)
	return len(p), nil
}

func (o *outlet) flush() error {
	if len(o.gather) == 0 {
		return nil
	}
	_, err := o.write(o.gather)
	o.gather = o.gather[:0]
	return err
}

// write writes while the peer keeps to the rate. Bytes in the kernel's buffer count as taken: a peer that is behind is
// one for which that is full.
func (o *outlet) write(p []byte) (n int, err error) {
	for {
		if !o.fixed {
			o.allow()
		}
		m, err := o.Conn.Write(p[n:])
		n += m
		if err == nil || o.fixed || !errors.Is(err, os.ErrDeadlineExceeded) || m < int(o.grace.Seconds()*float64(o.rate)) || m == 0 {
			return n, err
		}
		if !o.end.IsZero() && !time.Now().Before(o.end) {
			return n, err
		}
	}
}

// allow gives the peer its time from now on. A deadline that is a little longer stays: to move it costs.
func (o *outlet) allow() {
	now := time.Now()
	least, most := now.Add(o.grace), now.Add(o.grace+o.grace/4)
	if !o.end.IsZero() && o.end.Before(most) {
		most = o.end
		if most.Before(least) {
			least = most
		}
	}
	if o.until.Before(least) || o.until.After(most) {
		o.until = most
		_ = o.Conn.SetWriteDeadline(most)
	}
}

// SetWriteDeadline implements net.Conn: a deadline that is set stands as it is, whatever the rate.
func (o *outlet) SetWriteDeadline(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fixed, o.until = !t.IsZero(), t
	return o.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (o *outlet) SetDeadline(t time.Time) error {
	return errors.Join(o.SetReadDeadline(t), o.SetWriteDeadline(t))
}

// endAt lets writes fail at t; zero takes that back.
func (o *outlet) endAt(t time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end = t
}

// collect makes what is written wait in b for pass; nil for b ends that.
func (o *outlet) collect(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gather = b
}

// pass writes what waits.
func (o *outlet) pass() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flush()
}

// NetConn is the connection that is written on.
func (o *outlet) NetConn() net.Conn { return o.Conn }
