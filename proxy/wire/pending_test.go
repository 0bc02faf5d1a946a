package wire_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// Whoever only opens connections must not keep those out who have something to say.
func TestSilentPeersGiveWay(t *testing.T) {
	const places = 4
	arrived := make(chan net.Conn, 10*places)
	release := make(chan struct{})
	addr := serve(t, &wire.Server{
		MaxPending: places,
		// Stands for a handshake that waits for its peer: it ends with ctx, or when the peer has spoken.
		Accept: func(ctx context.Context, c net.Conn, _ *tls.ConnectionState) (any, error) {
			arrived <- c
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-release:
				return "peer", nil
			}
		},
		Handle: func(x *wire.Exchange) {
			_, _ = x.Commit(&wire.Response{Status: 200, Body: text("ok"), Length: 2})
		},
	})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		<-arrived
		return c
	}
	first := dial()
	for range places {
		dial()
	}
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest silent connection is still there: %v", err)
	}
	last := dial()
	close(release)
	if _, err := io.WriteString(last, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if out, _ := io.ReadAll(last); !strings.HasPrefix(string(out), "HTTP/1.1 200 ") {
		t.Errorf("the newest was answered %q", out)
	}
}
