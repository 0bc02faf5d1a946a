package wire

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// A kept connection has no goroutine and no buffer, and no timer of its own: it is looked at when it is taken, and one
// timer for all of them closes those whose time is over.

// take gives a connection for one request: of those kept the one used last that is still good, else a new one.
func (c *Client) take(ctx context.Context, fresh bool) (*conn, error) {
	for !fresh {
		k := c.pop()
		if k == nil {
			break
		}
		if k.silent() {
			return k, nil
		}
		k.end(true)
	}
	k, err := c.slot(ctx)
	switch {
	case err != nil:
		return nil, err
	case k == nil:
	case k.silent(): // it comes straight from another exchange, whose server may have said more than its reply
		return k, nil
	default:
		k.shut(true) // its slot stays with us
	}
	return c.dial(ctx)
}

// pop takes the connection used last from those kept, closing any whose time is over.
func (c *Client) pop() *conn {
	c.mu.Lock()
	var over []*conn
	var k *conn
	now := time.Now()
	for n := len(c.idle); n > 0 && k == nil; n-- {
		k = c.idle[n-1]
		c.idle[n-1], c.idle = nil, c.idle[:n-1]
		if !now.Before(k.expires(c.IdleTimeout)) {
			over, k = append(over, k), nil
		}
	}
	c.mu.Unlock()
	for _, o := range over {
		o.end(true)
	}
	return k
}

// slot waits until one more connection may be opened, or until one that is open is free, and gives that.
func (c *Client) slot(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	if c.room() {
		c.open++
		c.opening++
		c.mu.Unlock()
		return nil, nil
	}
	turn := make(chan *conn, 1)
	c.waiting = append(c.waiting, turn)
	c.mu.Unlock()
	select {
	case k := <-turn:
		return k, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	i := slices.Index(c.waiting, turn)
	if i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
	c.mu.Unlock()
	if i < 0 { // it was our turn at the same moment: it is the next one's
		if k := <-turn; k != nil {
			c.put(k)
		} else {
			c.dialled(false)
		}
	}
	return nil, ctx.Err()
}

// dial opens a connection, for which the caller has a slot. TLS grows the stack of the goroutine on which its handshake
// runs, and the caller's may live for as long as an idle application's connection: so it runs on another.
func (c *Client) dial(ctx context.Context) (*conn, error) {
	type dialled struct {
		k   *conn
		err error
	}
	done := make(chan dialled, 1)
	c.mu.Lock()
	epoch := c.epoch
	c.mu.Unlock()
	go func() {
		defer func() {
			if v := recover(); v != nil {
				done <- dialled{nil, caught(v)}
			}
		}()
		raw, err := c.Dial(ctx)
		if err != nil {
			done <- dialled{nil, err}
			return
		}
		done <- dialled{newConn(c, raw, epoch, time.Now().Add(jitter(c.MaxAge))), nil}
	}()
	d := <-done
	c.dialled(d.err == nil)
	return d.k, d.err
}

// jitter takes up to a tenth off d.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }

// put keeps k for the next request, or gives it to one that waits.
func (c *Client) put(k *conn) {
	k.used, k.since = true, time.Now()
	c.mu.Lock()
	var over *conn
	switch {
	case k.epoch != c.epoch || !k.since.Before(k.until):
		over = k
	case len(c.waiting) > 0:
		turn := c.waiting[0]
		c.waiting = slices.Delete(c.waiting, 0, 1)
		turn <- k
	default:
		if len(c.idle) >= c.MaxIdle {
			over = c.idle[0] // which has not been needed for longest
			c.idle = slices.Delete(c.idle, 0, 1)
		}
		c.idle = append(c.idle, k)
		switch e := k.expires(c.IdleTimeout); {
		case c.sweeper == nil:
			c.sweeper, c.sweeps = time.AfterFunc(e.Sub(k.since), c.sweep), e
		case e.Before(c.sweeps):
			c.sweeper.Reset(e.Sub(k.since))
			c.sweeps = e
		}
	}
	c.mu.Unlock()
	if over != nil {
		over.end(true)
	}
}

// sweep closes the kept connections whose time is over, and comes again for the others.
func (c *Client) sweep() {
	now := time.Now()
	var over []*conn
	var next time.Time
	c.mu.Lock()
	c.idle = slices.DeleteFunc(c.idle, func(k *conn) bool {
		e := k.expires(c.IdleTimeout)
		if !now.Before(e) {
			over = append(over, k)
			return true
		}
		if next.IsZero() || e.Before(next) {
			next = e
		}
		return false
	})
	switch {
	case c.sweeper == nil: // CloseIdle came first
	case next.IsZero():
		c.sweeper = nil
	default:
		c.sweeper.Reset(next.Sub(now))
		c.sweeps = next
	}
	c.mu.Unlock()
	for _, k := range over {
		k.end(true)
	}
}

// leave gives a slot back.
func (c *Client) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.next()
}

// dialled says that a connection is open now, or that it will not be.
func (c *Client) dialled(open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening--
	if !open {
		c.open--
	}
	c.next()
}

// room reports whether one more connection may be opened. The lock is held, as it is for next.
func (c *Client) room() bool { return c.open < c.MaxConns && c.opening < c.MaxDials }

// next lets those who wait open connections, as far as they may.
func (c *Client) next() {
	for len(c.waiting) > 0 && c.room() {
		turn := c.waiting[0]
		c.waiting = slices.Delete(c.waiting, 0, 1)
		c.open++
		c.opening++
		turn <- nil
	}
}

// CloseIdle closes the connections that no exchange is using, and has those in use closed once their exchange is over.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	idle := c.idle
	c.idle = nil
	c.epoch++
	if c.sweeper != nil {
		c.sweeper.Stop()
		c.sweeper = nil
	}
	c.mu.Unlock()
	for _, k := range idle {
		k.end(true)
	}
}
