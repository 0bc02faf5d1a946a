package attest_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// Whoever serves is known over each kind of address, before and after it has accepted; so is, on the same connection,
// whoever calls.
func TestServing(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	uid := []string{strconv.Itoa(os.Getuid())}
	for _, c := range []struct{ name, network, listen, dial string }{
		{"IPv4", "tcp4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv4, listening everywhere", "tcp4", "0.0.0.0:0", "127.0.0.1"},
		{"IPv4, on an IPv6 socket", "tcp", "[::]:0", "127.0.0.1"},
		{"IPv6", "tcp6", "[::1]:0", "::1"},
		{"IPv6, listening everywhere", "tcp6", "[::]:0", "::1"},
		{"Unix", "unix", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.network == "unix" {
				c.listen = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(c.network, c.listen)
			if err != nil {
				t.Skipf("SKIPPED: needs to listen at %s: %v", c.listen, err)
			}
			defer l.Close()
			address := l.Addr().String()
			if c.dial != "" {
				_, port, err := net.SplitHostPort(address)
				if err != nil {
					t.Fatal(err)
				}
				address = net.JoinHostPort(c.dial, port)
			}
			conn, err := net.Dial(c.network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, when := range []string{"not accepted", "accepted"} {
				a, err := pinner.Serving(t.Context(), conn, units(t))
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if diff := cmp.Diff(uid, values(a.Selectors, attest.UnixUID)); diff != "" || a.Strength != attest.Strong || a.Time.IsZero() {
					t.Errorf("%s: %+v: %s", when, a, diff)
				}
				if when == "accepted" {
					break
				}
				_, r := acceptReferred(t, pinner, l)
				if p := resolve(t, pinner, r); p.PID() != os.Getpid() {
					t.Errorf("the caller is %d", p.PID())
				}
			}
		})
	}
}

// The dialler gives up while the server has not accepted.
func TestServingCancelled(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pinner.Serving(ctx, conn, units(t))
	wantError(t, err, ctx.Err())
	if err := pinner.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = pinner.Serving(t.Context(), conn, units(t))
	wantError(t, err, peer.ErrClosed)
	_, err = pinner.Referred(accept[net.Conn](t, l))
	wantError(t, err, peer.ErrClosed)
}
