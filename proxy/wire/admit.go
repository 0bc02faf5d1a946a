package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

// admit turns l into a listener of connections that are through TLS and Accept. Each is admitted in a goroutine of
// its own, so that a peer that stalls its handshake delays nobody; MaxPending bounds how many do so at a time, and
// then the oldest is cut off.
func (s *Server) admit(ctx context.Context, l net.Listener) net.Listener {
	ready := &admittedListener{Listener: l, conns: make(chan *admitted), failed: make(chan error, 1), closed: make(chan struct{})}
	s.listens(l)
	waiting := &pending{max: s.MaxPending}
	s.enter()
	go func() {
		defer s.leave()
		for {
			c, err := l.Accept()
			if err != nil {
				var temporary interface{ Temporary() bool }
				if errors.As(err, &temporary) && temporary.Temporary() && ctx.Err() == nil {
					// Out of file descriptors, most likely: exchanges that end will free some.
					select {
					case <-time.After(50 * time.Millisecond):
						continue
					case <-ready.closed:
					}
				}
				if !s.draining() { // else the connections that are being admitted have their turn yet
					ready.failed <- err
				}
				return
			}
			s.enter()
			judging, cancel := context.WithCancel(ctx)
			turn := waiting.add(sourceOf(c.RemoteAddr()), func() {
				cancel()
				_ = c.Close()
			})
			go func() {
				a := s.judge(judging, c, turn)
				turn.done()
				cancel()
				if a == nil {
					s.leave()
					return
				}
				if a.h2 {
					s.apart(a)
					return
				}
				select {
				case ready.conns <- a:
				case <-ready.closed:
					_ = a.Close()
					if s.Closed != nil {
						s.Closed(a.value)
					}
					s.leave()
				}
			}()
		}
	}()
	return ready
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
	var state *tls.ConnectionState
	conn := c
	if s.TLS != nil {
		t := tls.Server(c, s.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			if s.Failed != nil {
				s.Failed(c.RemoteAddr(), err)
			}
			_ = c.Close()
			return nil
		}
		st := t.ConnectionState()
		state, conn = &st, t
	}
	value, err := s.Accept(ctx, c, state)
	if err != nil {
		_ = conn.Close()
		return nil
	}
	return &admitted{Conn: conn, value: value, server: s, h2: state != nil && state.NegotiatedProtocol == "h2"}
}

type admittedListener struct {
	net.Listener
	conns  chan *admitted
	failed chan error
	once   sync.Once
	closed chan struct{}
}

func (l *admittedListener) Accept() (net.Conn, error) {
	select {
	case a := <-l.conns:
		return a, nil
	case err := <-l.failed:
		l.failed <- err // it stays failed
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *admittedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) { // draining has closed it already
		return err
	}
	return nil
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

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// statusOf reads the status from the start of an HTTP/1.x response, 400 when there is none.
func statusOf(p []byte) int {
	if f := bytes.Fields(p[:min(len(p), 32)]); len(f) >= 2 && bytes.HasPrefix(f[0], []byte("HTTP/1.")) {
		if n, err := strconv.Atoi(string(f[1])); err == nil && n >= 400 && n <= 599 {
			return n
		}
	}
	return http.StatusBadRequest
}

// rawResponse writes a response that ends its connection.
func rawResponse(r *Response) []byte {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		_ = r.Body.Close()
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", r.Status, http.StatusText(r.Status))
	for _, f := range r.Header {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\nConnection: close\r\n\r\n", len(body))
	b.Write(body)
	return b.Bytes()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
func stack() []byte       { return debug.Stack() }
