package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// accept takes connections from l. Each is admitted in a goroutine of its own, so that a peer that stalls its handshake
// delays nobody; MaxPending bounds how many do so at a time, and then the oldest of some source is cut off.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	s.listens(l)
	waiting := &pending{max: s.MaxPending}
	s.enter()
	defer s.leave()
	for {
		c, err := l.Accept()
		if err != nil {
			if s.draining() {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && ctx.Err() == nil {
				// Out of file descriptors, most likely: exchanges that end will free some.
				select {
				case <-time.After(50 * time.Millisecond):
				case <-s.taking.Done():
				}
				continue
			}
			return err
		}
		s.enter()
		judging, cancel := context.WithCancel(ctx)
		turn := waiting.add(sourceOf(c.RemoteAddr()), func() {
			cancel()
			_ = c.Close()
		})
		go func() {
			stop := context.AfterFunc(s.admitting, cancel)
			a := s.judgeSafely(judging, c, turn)
			turn.done()
			stop()
			cancel()
			if a == nil {
				s.leave()
				return
			}
			go s.serve(a)
		}()
	}
}

// judgeSafely is judge; a panic, over a certificate of the peer's making for example, ends the connection alone.
func (s *Server) judgeSafely(ctx context.Context, c net.Conn, turn *waiter) (a *admitted) {
	defer func() {
		if v := recover(); v != nil {
			_ = c.Close()
			s.defect(v)
			a = nil
		}
	}()
	return s.judge(ctx, c, turn)
}

// judge makes c an admitted connection, or closes it and returns nil.
func (s *Server) judge(ctx context.Context, c net.Conn, turn *waiter) *admitted {
	ctx, cancel := context.WithTimeout(ctx, s.HandshakeTimeout)
	defer cancel()
	c, err := s.preface(ctx, c)
	if err != nil {
		if s.Failed != nil && !errors.Is(err, errCheck) {
			s.Failed(c.RemoteAddr(), err)
		}
		_ = c.Close()
		return nil
	}
	turn.comesFrom(sourceOf(c.RemoteAddr()))
	out := &outlet{Conn: c, grace: rateGraceOut * s.RateGrace, rate: s.MinRate}
	var state *tls.ConnectionState
	var secure *tls.Conn
	var under *Bulk
	if s.tls != nil {
		under = NewBulk(out)
		secure = tls.Server(under, s.tls)
		err := s.handshake(ctx, secure, out)
		if err != nil {
			if s.Failed != nil {
				s.Failed(c.RemoteAddr(), err)
			}
			_ = c.Close()
			return nil
		}
		st := secure.ConnectionState()
		state = &st
	}
	value, err := s.Accept(ctx, c, state)
	if err != nil {
		if secure != nil {
			_ = secure.Close()
		}
		_ = c.Close()
		return nil
	}
	return s.admit(c, out, under, secure, value)
}

// handshake makes the handshake. Those of peers that are there take turns: one costs as much as dozens of calls, the
// runtime knows no priorities, and calls that run would wait behind all that have come at once.
func (s *Server) handshake(ctx context.Context, c *tls.Conn, out *outlet) error {
	out.turns = s.turns
	defer func() {
		out.yield()
		out.turns = nil
	}()
	return c.HandshakeContext(ctx)
}

// Bounded closes c at the given time, whatever runs on it, and returns a connection whose Close stops the timer.
// A connection must not outlive the identities that were verified when it was made.
func Bounded(c net.Conn, until time.Time) net.Conn {
	b := &bounded{Conn: c}
	b.timer = time.AfterFunc(time.Until(until), func() { Sever(c) })
	return b
}

type bounded struct {
	net.Conn
	timer *time.Timer
}

func (b *bounded) Close() error {
	b.timer.Stop()
	return b.Conn.Close()
}

// Sever closes a connection without TLS's leave-taking, for which a peer that reads nothing could keep it for seconds.
func Sever(c net.Conn) {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok {
		_ = over.NetConn().Close()
	}
	_ = c.Close()
}
