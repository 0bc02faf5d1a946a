package wire_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy/wire"
)

// TLS writes on its own account, too, in whatever goroutine reads: when the other end asks for new keys (RFC 8446 §4.6.3).
// That may be while a body is being gathered, and nothing of either may be lost, or end up elsewhere.
func TestTLSWritesWhileABodyIsGathered(t *testing.T) {
	const count, mark = 3000, "~"
	client, server := net.Pipe()
	bulk := wire.NewBulk(client)
	got := make(chan int, 1)
	go func() {
		all, _ := io.ReadAll(server)
		got <- strings.Count(string(all), mark)
	}()
	// The client's TLS is this test: it writes to the Bulk whenever it likes, while a body goes out through it.
	c := wire.NewClient(wire.ClientOptions{Dial: func(context.Context) (net.Conn, error) { return &over{bulk, bulk}, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.RoundTrip(ctx, &wire.Request{Method: "POST", Target: "/", Host: "a", Body: &pulses{left: count, end: sent}, Length: -1})
	}()
	for range count {
		if _, err := io.WriteString(bulk, mark); err != nil {
			t.Fatal(err)
		}
	}
	<-sent
	cancel()
	_ = client.Close()
	<-done
	if n := <-got; n != count {
		t.Errorf("%d of %d came", n, count)
	}
}

// over is a connection that stands on another, as TLS does.
type over struct {
	net.Conn
	under net.Conn
}

func (o *over) NetConn() net.Conn { return o.under }

// pulses is a body of many small pieces.
type pulses struct {
	left int
	end  chan struct{}
}

func (p *pulses) Read(b []byte) (int, error) {
	if p.left--; p.left < 0 {
		close(p.end)
		return 0, io.EOF
	}
	return copy(b, "piece"), nil
}
