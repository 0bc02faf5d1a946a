package wire_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/wardmesh/ward/proxy/wire"
)

// However many requests begin at once, only so many connections are opened at a time; the rest follow as those are done,
// whether they succeed or not, and who does not wait any longer takes nobody's place.
func TestOnlySoManyDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, all = 3, 20
		var dialling, failed atomic.Int32
		one := make(chan error)
		c := wire.NewClient(wire.ClientOptions{MaxDials: most, Dial: func(context.Context) (net.Conn, error) {
			dialling.Add(1)
			defer dialling.Add(-1)
			return nil, <-one
		}})
		impatient, leave := context.WithCancel(t.Context())
		for i := range all {
			ctx := t.Context()
			if i%4 == 3 {
				ctx = impatient
			}
			go func() {
				if _, err := c.RoundTrip(ctx, &wire.Request{Method: "GET", Target: "/", Host: "a"}); err != nil {
					failed.Add(1)
				}
			}()
			synctest.Wait()
		}
		if n := dialling.Load(); n != most {
			t.Fatalf("%d connections are being opened, want %d", n, most)
		}
		leave()
		synctest.Wait()
		gone := failed.Load()
		if gone != all/4 {
			t.Errorf("%d of those who do not wait have gone, want %d", gone, all/4)
		}
		for i := range int32(all) - gone {
			if n := dialling.Load(); n != min(most, all-gone-i) {
				t.Fatalf("%d connections are being opened after %d, want %d", n, i, min(most, all-gone-i))
			}
			one <- errors.New("refused")
			synctest.Wait()
		}
		if n := failed.Load(); n != all {
			t.Errorf("%d requests have come to an end, want %d", n, all)
		}
	})
}

// A connection that ends before the request is sent whole says so: it need not be the other end's fault.
func TestNoReplyToHalfARequest(t *testing.T) {
	s := script(t, func(net.Conn, int, int) bool { return false })
	c := wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Addr().String())
	}})
	body, rest := io.Pipe()
	defer func() { _ = rest.Close() }()
	_, err := c.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Body: body, Length: 10})
	if !errors.Is(err, wire.ErrUnfinished) || !errors.Is(err, wire.ErrNoReply) {
		t.Errorf("half a request: %v", err)
	}
	_, err = c.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a"})
	if errors.Is(err, wire.ErrUnfinished) || !errors.Is(err, wire.ErrNoReply) {
		t.Errorf("a whole request: %v", err)
	}
}
