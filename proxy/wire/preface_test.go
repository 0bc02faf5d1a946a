package wire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

const (
	start    = "\r\n\r\n\x00\r\nQUIT\n"
	handedOn = start + "\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x05\xdd\xd5\x20\xfb" // for 192.0.2.7:56789
	local    = start + "\x20\x00\x00\x00"
	version1 = "PROXY TCP4 192.0.2.7 10.0.0.5 56789 8443\r\n"
)

// door is a TLS server that may be behind a balancer; each of its answers says from where the call came.
type door struct {
	addr   string
	failed chan error // what Failed was told
	from   chan string
	server *wire.Server
}

func newDoor(t *testing.T, balancer func(netip.Addr) bool, change func(*wire.Server)) *door {
	t.Helper()
	d := &door{failed: make(chan error, 16), from: make(chan string, 16)}
	d.server = &wire.Server{TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate(t)}}, Balancer: balancer,
		Failed: func(remote net.Addr, err error) { d.from <- remote.String(); d.failed <- err },
		Handle: func(x *wire.Exchange) {
			_, _ = x.Commit(&wire.Response{Status: 200, Body: text(x.Remote), Length: int64(len(x.Remote))})
		}}
	if change != nil {
		change(d.server)
	}
	d.addr = serve(t, d.server)
	return d
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func everybody(netip.Addr) bool { return true }

func loopback(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.1") }

// first sends in with the first bytes of TLS in one piece behind it, so that whatever a reader takes too much is missing
// from the handshake.
type first struct {
	net.Conn
	in string
}

func (f *first) Write(p []byte) (int, error) {
	if f.in == "" {
		return f.Conn.Write(p)
	}
	n, err := f.Conn.Write(append([]byte(f.in), p...))
	n, f.in = max(n-len(f.in), 0), ""
	return n, err
}

// call sends in and then, over TLS, a request; it gives what comes back.
func (d *door) call(t *testing.T, in string) (c net.Conn, answer string, err error) {
	t.Helper()
	c, err = net.Dial("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	over := tls.Client(&first{c, in}, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // whom it calls is not the point
	if _, err := io.WriteString(over, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		return c, "", err
	}
	out, err := io.ReadAll(over)
	_, body, _ := strings.Cut(string(out), "\r\n\r\n")
	return c, body, err
}

// refuses sees that a connection that begins with in gets nothing, and gives why.
func (d *door) refuses(t *testing.T, in string) error {
	t.Helper()
	if _, answer, err := d.call(t, in); err == nil {
		t.Errorf("it was answered %q", answer)
	}
	if from := <-d.from; !strings.HasPrefix(from, "127.0.0.1:") {
		t.Errorf("the refusal is of %s", from)
	}
	return <-d.failed
}

func TestBalancerSaysForWhom(t *testing.T) {
	d := newDoor(t, loopback, nil)
	if _, answer, err := d.call(t, handedOn); answer != "192.0.2.7:56789" {
		t.Errorf("the call came from %q: %v", answer, err)
	}
	// Its own connection keeps its own address.
	if c, answer, err := d.call(t, local); answer != c.LocalAddr().String() {
		t.Errorf("the balancer's own call came from %q: %v", answer, err)
	}
	for name, in := range map[string]string{"no header": "", "version 1": version1, "two headers": version1 + handedOn} {
		if err := d.refuses(t, in); !errors.Is(err, wire.ErrPreface) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A second header is not TLS, and neither is a header from somebody who is no balancer.
func TestHeaderWhereNoneBelongs(t *testing.T) {
	d := newDoor(t, loopback, nil)
	if _, answer, err := d.call(t, handedOn+handedOn); err == nil {
		t.Errorf("two headers were answered %q", answer)
	}
	if from, err := <-d.from, <-d.failed; from != "192.0.2.7:56789" || errors.Is(err, wire.ErrPreface) {
		t.Errorf("two headers: %v of %s", err, from)
	}
	for name, balancer := range map[string]func(netip.Addr) bool{"nobody is a balancer": nil,
		"another is": func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }} {
		d := newDoor(t, balancer, nil)
		for _, in := range []string{handedOn, local, version1} {
			if err := d.refuses(t, in); errors.Is(err, wire.ErrPreface) {
				t.Errorf("%s: a header was looked for: %v", name, err)
			}
		}
		if c, answer, err := d.call(t, ""); answer != c.LocalAddr().String() {
			t.Errorf("%s: the call came from %q: %v", name, answer, err)
		}
	}
}

// A balancer that connects, may say that it is itself, and leaves has looked whether somebody listens. That is no
// refusal of anybody.
func TestBalancersChecks(t *testing.T) {
	d := newDoor(t, everybody, nil)
	check := func(leave func(*net.TCPConn)) {
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, local); err != nil {
			t.Fatal(err)
		}
		leave(c.(*net.TCPConn))
		_ = c.Close()
	}
	check(func(c *net.TCPConn) {
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the other side has closed, too
	})
	check(func(c *net.TCPConn) { _ = c.SetLinger(0) })
	if err := d.refuses(t, version1); !errors.Is(err, wire.ErrPreface) {
		t.Errorf("%v", err)
	}
	if n := len(d.failed); n > 0 {
		t.Errorf("%d checks were taken for refusals: %v", n, <-d.failed)
	}
}

// 19: who is slow with the header, or with what follows it, is cut off when its handshake would be.
func TestSlowHeaders(t *testing.T) {
	for name, in := range map[string]string{"nothing": "", "a part of the signature": start[:5], "the start": handedOn[:16], "all but a byte": handedOn[:27],
		"nothing after it": handedOn, "nothing after the balancer's own": local} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t, everybody, func(s *wire.Server) { s.HandshakeTimeout = 50 * time.Millisecond })
			c, err := net.Dial("tcp", d.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(c, in); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("%d bytes, %v", n, err)
			}
			<-d.from
			if err := <-d.failed; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		})
	}
}

// What serves a connection can ask the kernel about it, whoever opened it.
func TestSocketBehindABalancer(t *testing.T) {
	peers := make(chan string, 1)
	d := newDoor(t, everybody, func(s *wire.Server) {
		s.Accept = func(_ context.Context, c net.Conn, _ *tls.ConnectionState) (any, error) {
			raw, err := c.(syscall.Conn).SyscallConn()
			if err != nil {
				return nil, err
			}
			_ = raw.Control(func(fd uintptr) {
				a, err := syscall.Getpeername(int(fd))
				if in, ok := a.(*syscall.SockaddrInet4); ok && err == nil {
					peers <- netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String()
				}
			})
			if got := c.(interface{ NetConn() net.Conn }).NetConn().RemoteAddr(); got.String() == c.RemoteAddr().String() {
				return nil, errors.New("the balancer is hidden")
			}
			return "peer", nil
		}
	})
	c, answer, err := d.call(t, handedOn)
	if answer != "192.0.2.7:56789" {
		t.Fatalf("%q, %v", answer, err)
	}
	if peer := <-peers; peer != c.LocalAddr().String() {
		t.Errorf("the kernel's peer is %s, want %s", peer, c.LocalAddr())
	}
}

// A connection past its end is cut, though its peer reads nothing, so that TLS cannot take its leave.
func TestBoundedConnectionWhosePeerReadsNothing(t *testing.T) {
	near, far := net.Pipe() // of which nothing is buffered: what is not read blocks
	raw := &closing{Conn: near, did: make(chan string, 8)}
	server := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{certificate(t)}})
	t.Cleanup(func() { _ = near.Close() })
	go func() {
		_ = tls.Client(far, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}).Handshake() //nolint:gosec // whom it calls is not the point
	}()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	_ = wire.Bounded(server, time.Now())
	if did := <-raw.did; did != "closed" {
		t.Errorf("the connection %s first", did)
	}
}

// closing tells what is done to it at the end.
type closing struct {
	net.Conn
	did chan string
}

func (c *closing) SetWriteDeadline(t time.Time) error {
	c.did <- "was given time for TLS's farewell"
	return c.Conn.SetWriteDeadline(t)
}

func (c *closing) Close() error {
	c.did <- "closed"
	return c.Conn.Close()
}
