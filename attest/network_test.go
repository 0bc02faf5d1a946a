package attest_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest/peer"
)

func TestNotLoopback(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	var own net.IP
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			own = n.IP
		}
	}
	if own == nil {
		t.Skip("SKIPPED: needs a network address beside loopback")
	}
	l := listenTCP(t, net.JoinHostPort(own.String(), "0"))
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
	wantError(t, err, peer.ErrNotAttributable)
}

// A connection in another network namespace may have the addresses of somebody else's here.
func TestOtherNetworkNamespace(t *testing.T) {
	rootOnly(t, "make a network namespace")
	pinner := newPinner(t, peer.Options{}) // asks about the namespace of this process
	conn := inOtherNetns(t)
	defer conn.Close()
	_, err := pinner.TCP(t.Context(), conn)
	wantError(t, err, peer.ErrNotAttributable)
}

// inOtherNetns returns the accepted end of a connection in a network namespace of its own.
func inOtherNetns(t *testing.T) *net.TCPConn {
	t.Helper()
	type result struct {
		conn *net.TCPConn
		err  error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		c, err := func() (*net.TCPConn, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
				return nil, fmt.Errorf("ip: %w: %s", err, out)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer l.Close()
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { client.Close() })
			c, err := l.Accept()
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}()
		results <- result{c, err}
	}()
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn
}

// A client that dialled an address which was redirected is found by what it dialled.
func TestRedirected(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	actor := start(t, "")
	actor.do("tcp " + l.Addr().String())
	conn := accept[*net.TCPConn](t, l)
	dialled := l.Addr().(*net.TCPAddr).AddrPort()
	if _, err := pinner.TCPTo(t.Context(), conn, dialled); err != nil {
		t.Fatal(err)
	}
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr("127.128.0.5"), 80)
	_, err := pinner.TCPTo(t.Context(), conn, elsewhere)
	wantError(t, err, peer.ErrNotAttributable)
}
