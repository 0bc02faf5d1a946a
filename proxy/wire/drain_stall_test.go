package wire_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// stalling is a peer's connection of which nothing comes through any more once so many bytes have been written.
type stalling struct {
	net.Conn
	left, sent int
}

func (s *stalling) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	s.left, s.sent = s.left-n, s.sent+len(p)
	if n > 0 {
		if _, err := s.Conn.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// stalls makes a call over TLS, with a record for each piece of it, and stalls after so many bytes. It returns when the
// server ends the connection: how many bytes the handshake took, and all, and what was answered.
func stalls(c net.Conn, after int) (handshake, all int, answer string) {
	s := &stalling{Conn: c, left: after}
	over := tls.Client(s, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // whom it calls is not the point
	if over.Handshake() == nil {
		handshake = s.sent
		for _, piece := range []string{"POST / HTTP/1.1\r\nHo", "st: a\r\nContent-Length: 10\r\n\r\n", "01234", "56789"} {
			_, _ = io.WriteString(over, piece)
		}
		all = s.sent
		out, _ := io.ReadAll(over)
		answer = string(out)
	}
	_ = c.Close()
	return handshake, all, answer
}

// Peers that stall, in the handshake, in a record, in a head or in a body, hold a drain up no longer than the phase they
// are in may take; an end to its patience ends them at once.
func TestDrainOfPeersThatStall(t *testing.T) {
	const whole = math.MaxInt
	// play has one such peer meet a drain; took is how long that waits for it.
	play := func(t *testing.T, after int, patience time.Duration) (handshake, all int, answer string, took time.Duration, err error) {
		s := &wire.Server{TLS: secure(t), Handle: echo}
		inTime(t, s, func(t *testing.T, dial func() net.Conn) {
			ended := make(chan struct{})
			c := dial()
			go func() {
				defer close(ended)
				handshake, all, answer = stalls(c, after)
			}()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			err = s.Shutdown(ctx)
			took = time.Since(began)
			<-ended // at once: nothing of the connection is left
			if waited := time.Since(began) - took; waited > 0 {
				t.Errorf("after %d bytes: the connection goes on for %s after the drain", after, waited)
			}
		})
		return
	}
	handshake, all, answer, took, err := play(t, whole, time.Hour)
	if err != nil || took > time.Second || !strings.HasPrefix(answer, "HTTP/1.1 200 ") || !strings.HasSuffix(answer, "0123456789") {
		t.Fatalf("a whole call: %q, %s, %v", answer, took, err)
	}
	places := []int{0, 1, 5, 6, handshake - 1, handshake, handshake + 1, handshake + 5}
	for at := 50; at < all; at += 150 {
		places = append(places, at)
	}
	for at := handshake + 10; at < all; at += 9 {
		places = append(places, at)
	}
	for _, at := range places {
		_, _, answer, took, err := play(t, at, time.Hour)
		if most := 15 * time.Second; err != nil || took > most {
			t.Errorf("after %d of %d bytes, of which the handshake is %d: the drain took %s, %v", at, all, handshake, took, err)
		}
		if at < handshake+10 && took > time.Second { // the peer has said nothing yet
			t.Errorf("after %d of %d bytes of the handshake: the drain took %s", at, handshake, took)
		}
		if strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("after %d of %d bytes: answered %q", at, all, answer)
		}
		const brief = 100 * time.Millisecond
		if _, _, _, took, err := play(t, at, brief); took > brief || err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d of %d bytes: the drain without patience took %s, %v", at, all, took, err)
		}
	}
}
