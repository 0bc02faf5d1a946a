package attest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

func TestServeHTTP(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{})
			var l net.Listener = listenTCP(t, "127.0.0.1:0")
			if network == "unix" {
				l = listenUnix(t)
			}
			listener, err := pinner.Listen(l, func(err error) { t.Error(err) })
			if err != nil {
				t.Fatal(err)
			}
			type connKey struct{}
			server := &http.Server{
				ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					p, err := r.Context().Value(connKey{}).(*peer.Conn).Process()
					if err != nil {
						t.Error(err)
						return
					}
					n, _ := io.Copy(io.Discard, r.Body)
					fmt.Fprintf(w, "%d %d", p.PID(), n)
				}),
			}
			served := make(chan struct{})
			go func() { defer close(served); server.Serve(listener) }()
			defer func() { server.Close(); <-served }()
			client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, l.Addr().Network(), l.Addr().String())
			}}}
			defer client.CloseIdleConnections()
			for size := range 3 { // on one connection
				reply, err := client.Post("http://ward/", "text/plain", io.LimitReader(zeros{}, int64(size)<<20))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(reply.Body)
				reply.Body.Close()
				if want := fmt.Sprintf("%d %d", os.Getpid(), size<<20); err != nil || string(body) != want {
					t.Fatalf("%q %v; want %q", body, err, want)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// gRPC sees the wrapped connection in its handshake, where the process is handed on as authentication.
type pinned struct {
	credentials.TransportCredentials
}

type pinnedInfo struct{ process *peer.Process }

func (pinnedInfo) AuthType() string { return "pinned" }

func (pinned) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := c.(*peer.Conn).Process()
	return c, pinnedInfo{p}, err
}

func (p pinned) Clone() credentials.TransportCredentials { return p }

func TestServeGRPC(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	listener, err := pinner.Listen(l, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(pinned{insecure.NewCredentials()}))
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnDeadline(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	conn, _ := acceptPinned(t, pinner, l)
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("got %v; want a timeout", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	actor.do("send x")
	if n, err := conn.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	actor.do("close")
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v; want EOF", err)
	}
	conn.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v; want net.ErrClosed", err)
	}
}

// A peer whose process cannot be pinned never comes out of Accept.
func TestListenerRefuses(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	gone := start(t, "")
	gone.do("unix " + l.Addr().String())
	gone.kill()
	honest := start(t, "")
	honest.do("unix " + l.Addr().String())
	var refused []error
	listener, err := pinner.Listen(l, func(err error) { refused = append(refused, err) })
	if err != nil {
		t.Fatal(err)
	}
	p, err := accept[*peer.Conn](t, listener).Process()
	if err != nil || p.PID() != honest.pid() {
		t.Fatal(p, err)
	}
	if len(refused) != 1 || !errors.Is(refused[0], attest.ErrExited) {
		t.Fatalf("refused: %v", refused)
	}
}

func TestPinnerCloses(t *testing.T) {
	pinner, err := peer.New(peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	if err := pinner.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done(), "the pinner's end")
	wantError(t, p.Alive(), peer.ErrClosed)
	actor.do("unix " + l.Addr().String())
	if _, err := pinner.Unix(accept[*net.UnixConn](t, l)); !errors.Is(err, peer.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

// One user's connections do not use up what others need.
func TestTooManyConnections(t *testing.T) {
	pinner := newPinner(t, peer.Options{PerUser: 2})
	l := listenUnix(t)
	actor := start(t, "")
	var held []*peer.Process
	for range 2 {
		actor.do("unix " + l.Addr().String())
		p, err := pinner.Unix(accept[*net.UnixConn](t, l))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, p)
	}
	actor.do("unix " + l.Addr().String())
	conn := accept[*net.UnixConn](t, l)
	_, err := pinner.Unix(conn)
	wantError(t, err, peer.ErrTooMany)
	held[0].Close()
	if _, err := pinner.Unix(conn); err != nil {
		t.Fatalf("after one was closed: %v", err)
	}
}

// Descriptors are what a busy host runs out of first.
func TestNothingLeaks(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	attestors := allAttestors(t)
	actor := start(t, "")
	actor.do("unix " + unixListener.Addr().String())
	uc := accept[*net.UnixConn](t, unixListener)
	actor.do("tcp " + tcpListener.Addr().String())
	tc := accept[*net.TCPConn](t, tcpListener)
	once := func() {
		p, err := pinner.Unix(uc)
		if err != nil {
			t.Fatal(err)
		}
		run(t, p, attestors)
		p.Close()
		if p, err = pinner.TCP(t.Context(), tc); err != nil {
			t.Fatal(err)
		}
		run(t, p, attestors)
		p.Close()
	}
	once()
	before := descriptors(t)
	for range 10 {
		once()
	}
	if after := descriptors(t); after > before {
		t.Fatalf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
