package wire_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/wardmesh/ward/proxy/wire"
	"github.com/wardmesh/ward/proxy/wire/h2test"
)

// 21: floods. Whoever sends them is sent away, and that is recorded once; Ward's work stays bounded meanwhile.
func TestH2Floods(t *testing.T) {
	// more repeats say until the server has had enough, which it must before n times.
	more := func(n int, say func(p *h2test.Peer, i uint32) error) func(*h2test.Peer) {
		return func(p *h2test.Peer) {
			for i := range uint32(n) { //nolint:gosec
				if say(p, i) != nil {
					return
				}
			}
		}
	}
	bomb := func(p *h2test.Peer) []byte {
		// One field of 4,000 bytes into the table, and then a byte for each time that it is meant.
		return append(p.Block(get("x", strings.Repeat("x", 3900))...), bytes.Repeat([]byte{0x80 | 62}, 12<<10)...)
	}
	for name, c := range map[string]struct {
		flood  func(*h2test.Peer)
		report int
	}{
		"rapid reset": {more(20_000, func(p *h2test.Peer, i uint32) error {
			_ = p.OpenBlock(2*i+1, true, p.Block(get()...))
			return p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}), 429},
		"resets that the server is made to make": {more(20_000, func(p *h2test.Peer, i uint32) error {
			_ = p.OpenBlock(2*i+1, true, p.Block(get()...))
			return p.WriteRawFrame(http2.FrameWindowUpdate, 0, 2*i+1, []byte{0, 0, 0, 0})
		}), 429},
		"PING": {more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WritePing(false, [8]byte{}) }), 429},
		"SETTINGS": {more(100_000, func(p *h2test.Peer, _ uint32) error {
			return p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		}), 429},
		"PRIORITY":       {more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WritePriority(1, http2.PriorityParam{}) }), 429},
		"WINDOW_UPDATE":  {more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteWindowUpdate(0, 1) }), 429},
		"unknown frames": {more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteRawFrame(0xfa, 0, 0, nil) }), 429},
		"empty DATA": {func(p *h2test.Peer) {
			p.Open(1, false, post()...)
			more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteData(1, false, nil) })(p)
		}, 429},
		"CONTINUATION": {func(p *h2test.Peer) {
			p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(get()...)}))
			block := p.Block("x", strings.Repeat("x", 100))
			more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteContinuation(1, false, block) })(p)
		}, 429},
		"empty CONTINUATION": {func(p *h2test.Peer) {
			p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(get()...)}))
			more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteContinuation(1, false, nil) })(p)
		}, 429},
		"a header block without end": {func(p *h2test.Peer) {
			p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(get()...)}))
			block := bytes.Repeat(p.Block(strings.Repeat("y", 50), strings.Repeat("x", 1000)), 15)
			more(1000, func(p *h2test.Peer, _ uint32) error { return p.WriteContinuation(1, false, block) })(p)
		}, 431},
		"an HPACK bomb": {func(p *h2test.Peer) { p.Do(p.OpenBlock(1, true, bomb(p))) }, 431},
	} {
		t.Run(name, func(t *testing.T) {
			s := newH2(t, func(x *wire.Exchange) {
				<-x.Context().Done()
				_, _ = x.Commit(&wire.Response{Status: 200, Length: 0})
			})
			p := s.peer(t)
			read := make(chan struct{})
			go func() { // the connection has two ends: what comes is read while the flood goes on
				defer close(read)
				for {
					f, err := p.ReadFrame()
					if err != nil {
						return
					}
					if g, ok := f.(*http2.GoAwayFrame); ok {
						p.Gone, p.Code = true, g.ErrCode
					}
				}
			}()
			c.flood(p)
			if got := <-s.reported; got != c.report {
				t.Errorf("reported %d, want %d", got, c.report)
			}
			<-s.closed
			<-read
			if len(s.reported) > 0 {
				t.Errorf("reported again: %d", <-s.reported)
			}
		})
	}
}

// Streams above the limit are refused, and those below go on.
func TestH2StreamsAtATime(t *testing.T) {
	release := make(chan struct{})
	s := newH2(t, func(x *wire.Exchange) {
		<-release
		_, _ = x.Commit(&wire.Response{Status: 200, Length: 0})
	})
	p := s.peer(t)
	for i := range uint32(101) {
		p.Open(2*i+1, true, get()...)
	}
	if a := p.Answer(201); !a.Reset {
		t.Errorf("%+v", a)
	}
	close(release)
	for i := range uint32(100) {
		if a := p.Answer(2*i + 1); a.Status != 200 {
			t.Fatalf("stream %d: %+v", 2*i+1, a)
		}
	}
}

// bubble runs f with a connection on which time costs nothing.
func bubble(t *testing.T, change func(*wire.Server), handle func(*wire.Exchange), f func(s *h2Server, p *h2test.Peer)) {
	cfg := secure(t, "h2")
	synctest.Test(t, func(t *testing.T) {
		s := &h2Server{reported: make(chan int, 100), closed: make(chan struct{}, 1)}
		s.Server = &wire.Server{TLS: cfg, Handle: handle,
			Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return "peer", nil },
			Closed: func(any) { close(s.closed) },
			Refuse: func(_ any, _ string, status int) *wire.Response {
				s.reported <- status
				return &wire.Response{Status: status, Body: text("refused"), Length: 7, Close: true}
			}}
		if change != nil {
			change(s.Server)
		}
		near, far := net.Pipe()
		l := &pipes{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
		l.conn <- far
		done := make(chan error, 1)
		go func() { done <- s.Serve(context.Background(), l) }()
		c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		f(s, h2test.New(t, c))
		_ = near.Close()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// pipes is a listener of connections that are made in memory.
type pipes struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error {
	select {
	case <-l.closed:
		return net.ErrClosed
	default:
		close(l.closed)
		return nil
	}
}

func (l *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// within checks how long something took.
func within(t *testing.T, begun time.Time, least, most time.Duration) {
	t.Helper()
	if d := time.Since(begun); d < least || d > most {
		t.Errorf("it took %v, want between %v and %v", d, least, most)
	}
}

// 21: a peer that opens no window is cut off: by the exchange's end, and before that when it takes nothing for half a minute.
func TestH2ZeroWindow(t *testing.T) {
	for name, c := range map[string]struct {
		until       time.Duration // 0: no end
		least, most time.Duration
	}{
		"no end":            {0, 29 * time.Second, 32 * time.Second},
		"an end after 10 s": {10 * time.Second, 14 * time.Second, 17 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			bubble(t, nil, func(x *wire.Exchange) {
				if c.until > 0 {
					x.Until(time.Now().Add(c.until))
				}
				_, err := x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(io.LimitReader(endless{}, 1<<20)), Length: 1 << 20})
				failed <- err
			}, func(s *h2Server, p *h2test.Peer) {
				p.Stingy = true
				begun := time.Now()
				p.Open(1, true, get()...)
				a := p.Answer(1)
				if !a.Reset || len(a.Body) != 65535 {
					t.Errorf("%v, %d bytes", a.Reset, len(a.Body))
				}
				within(t, begun, c.least, c.most)
				if err := <-failed; err == nil {
					t.Error("Commit reported no error")
				}
			})
		})
	}
}

// A source that is silent for long is no reason to end a stream.
func TestH2SilentSource(t *testing.T) {
	bubble(t, nil, func(x *wire.Exchange) {
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, "one")
			<-time.After(10 * time.Minute)
			_, _ = io.WriteString(w, "two")
			_ = w.Close()
		}()
		_, _ = x.Commit(&wire.Response{Status: 200, Body: r, Length: -1})
	}, func(_ *h2Server, p *h2test.Peer) {
		p.Open(1, true, get()...)
		if a := p.Answer(1); !a.Whole || a.Body != "onetwo" {
			t.Errorf("%+v", a)
		}
	})
}

// 19: what has begun must come to an end.
func TestH2SlowPeers(t *testing.T) {
	deadline := func(least, most time.Duration, say func(p *h2test.Peer), status int) func(*testing.T) {
		return func(t *testing.T) {
			bubble(t, nil, func(*wire.Exchange) { t.Error("handled") }, func(s *h2Server, p *h2test.Peer) {
				p.Next() // SETTINGS, which must be acknowledged before
				begun := time.Now()
				say(p)
				p.End()
				within(t, begun, least, most)
				if got := <-s.reported; got != status {
					t.Errorf("reported %d", got)
				}
			})
		}
	}
	t.Run("a header block that does not end", deadline(9*time.Second, 14*time.Second, func(p *h2test.Peer) {
		p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(get()...)}))
	}, 408))
	t.Run("a frame that does not end", deadline(9*time.Second, 14*time.Second, func(p *h2test.Peer) {
		p.Must(p.Conn.Write([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1}))
	}, 408))
	t.Run("nothing", func(t *testing.T) {
		bubble(t, nil, nil, func(s *h2Server, p *h2test.Peer) {
			begun := time.Now()
			p.End()
			within(t, begun, 2*time.Minute, 2*time.Minute+5*time.Second)
			if !p.Gone || p.Code != http2.ErrCodeNo || len(s.reported) > 0 {
				t.Errorf("%v %v", p.Gone, p.Code)
			}
		})
	})
	t.Run("a body that comes too slowly", func(t *testing.T) {
		failed := make(chan error, 1)
		bubble(t, nil, func(x *wire.Exchange) {
			_, err := io.ReadAll(x.Request.Body)
			failed <- err
			_, _ = x.Commit(&wire.Response{Status: 408, Length: 0, Close: true})
		}, func(_ *h2Server, p *h2test.Peer) {
			begun := time.Now()
			p.Open(1, false, post()...)
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				out := http2.NewFramer(p.Conn, nil) // the peer's own belongs to who reads
				for {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Second):
						_ = out.WriteData(1, false, make([]byte, 100))
					}
				}
			}()
			if a := p.Answer(1); a.Status != 408 {
				t.Errorf("%+v", a)
			}
			within(t, begun, 29*time.Second, 40*time.Second)
			if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			close(stop)
			_ = p.Conn.Close()
			<-stopped
		})
	})
	t.Run("a peer that does not answer PING", func(t *testing.T) {
		gone := make(chan error, 1)
		bubble(t, nil, func(x *wire.Exchange) {
			<-x.Context().Done()
			gone <- x.Context().Err()
		}, func(_ *h2Server, p *h2test.Peer) {
			begun := time.Now()
			p.Open(1, true, get()...)
			p.SetReuseFrames()
			for {
				if _, err := p.ReadFrame(); err != nil { // reads, and says nothing
					break
				}
			}
			within(t, begun, time.Minute, 80*time.Second)
			<-gone
		})
	})
}

// Who connects and says nothing does not keep a ward from stopping.
func TestH2ShutdownWithASilentPeer(t *testing.T) {
	s := newH2(t, nil)
	c := s.connect(t)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, c)
	<-s.closed
}
