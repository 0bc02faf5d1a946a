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

// outlet writes on a connection for as long as its peer takes what is written.
type outlet struct {
	net.Conn
	grace time.Duration // in which a peer takes rate bytes a second
	rate  int

	turns chan struct{} // for handshakes; nil when this one is over
	turn  bool          // it has one

	mu    sync.Mutex
	end   time.Time // nothing is written after it; zero: there is no end
	until time.Time // the deadline as it stands
	fixed bool      // somebody else has set it
}

// Read implements net.Conn.
func (o *outlet) Read(p []byte) (int, error) {
	if o.turns == nil {
		return o.Conn.Read(p)
	}
	o.yield()
	n, err := o.Conn.Read(p)
	if err == nil {
		o.turns <- struct{}{}
		o.turn = true
	}
	return n, err
}

// yield gives back the turn that a handshake has taken when its peer was heard.
func (o *outlet) yield() {
	if o.turn {
		o.turn = false
		<-o.turns
	}
}

// Write implements net.Conn: it writes while the peer keeps to the rate. Bytes in the kernel's buffer count as taken: a
// peer that is behind is one for which that is full.
func (o *outlet) Write(p []byte) (n int, err error) {
	if o.turns != nil { // no turn lasts while a peer is waited for
		o.yield()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
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

// endsByReset says whether the connection's end, whoever brings it about, is a reset. Only TCP knows that.
func (o *outlet) endsByReset(yes bool) {
	seconds := -1 // the system's own way
	if yes {
		seconds = 0
	}
	for c := o.Conn; ; {
		if l, ok := c.(interface{ SetLinger(int) error }); ok {
			_ = l.SetLinger(seconds)
			return
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		c = over.NetConn()
	}
}

// NetConn is the connection that is written on.
func (o *outlet) NetConn() net.Conn { return o.Conn }
