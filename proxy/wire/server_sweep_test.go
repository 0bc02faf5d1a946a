package wire_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// leaving is a connection whose peer's going is seen by whoever asks.
type leaving struct {
	net.Conn
	gone  *atomic.Bool
	asked *atomic.Int64
}

func (l leaving) HungUp() bool {
	l.asked.Add(1)
	return l.gone.Load()
}

// leavers is a listener of such connections.
type leavers struct {
	net.Listener
	gone  atomic.Bool
	asked atomic.Int64
}

func (l *leavers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return leaving{c, &l.gone, &l.asked}, nil
}

// 9: who goes away is noticed soon, and in an exchange that has lasted long soon enough: there may be thousands of those.
func TestAPeersGoingIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		after, within time.Duration
	}{
		"at first":            {0, 750 * time.Millisecond},
		"after a second":      {time.Second, 500 * time.Millisecond},
		"after a minute":      {time.Minute, 2250 * time.Millisecond},
		"after a minute more": {61300 * time.Millisecond, 2250 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			var ended chan time.Time
			s := &wire.Server{
				Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return "peer", nil },
				Handle: func(x *wire.Exchange) {
					<-x.Context().Done()
					ended <- time.Now()
				},
			}
			var l *leavers
			over := func(under net.Listener) net.Listener {
				l = &leavers{Listener: under}
				return l
			}
			inTimeOn(t, s, over, func(t *testing.T, dial func() net.Conn) {
				ended = make(chan time.Time, 1)
				conn := dial()
				defer func() { _ = conn.Close() }()
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.after)
				before := time.Now()
				l.gone.Store(true)
				if took := (<-ended).Sub(before); took > c.within {
					t.Errorf("it took %s, more than %s", took, c.within)
				}
				if most := int64(10 + c.after/(2*time.Second)); l.asked.Load() > most {
					t.Errorf("it was asked for %d times in %s, more than %d", l.asked.Load(), c.after, most)
				}
			})
		})
	}
}
