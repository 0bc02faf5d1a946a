package wire_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// serving starts s for a benchmark, and gives a function that opens a connection to it.
func serving(b *testing.B, s *wire.Server) func() net.Conn {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s.Accept = func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return "peer", nil }
	s.Refuse = func(_ any, _ string, status int) *wire.Response { return &wire.Response{Status: status} }
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	b.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
		<-done
	})
	return func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		if s.TLS != nil {
			c = tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // whom it calls is not the point
		}
		b.Cleanup(func() { _ = c.Close() })
		return c
	}
}

func serverTLS(b testing.TB) *tls.Config {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
}

// constant is a body that costs nothing.
type constant struct{ left int }

func (c *constant) Read(p []byte) (int, error) {
	n := min(len(p), c.left)
	if c.left -= n; c.left == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (c *constant) Close() error { return nil }

// BenchmarkServer is one exchange on a connection that is open already. The handler's answer is of 1,536 bytes, or of
// 16 MiB in bulk; the body that is posted has as many as the answer.
func BenchmarkServer(b *testing.B) {
	const small, large = 1536, 16 << 20
	get := "GET /fhir/Patient/1 HTTP/1.1\r\nHost: fhir.example\r\nAccept: application/fhir+json\r\nUser-Agent: bench\r\n\r\n"
	post := "POST /fhir/Patient HTTP/1.1\r\nHost: fhir.example\r\nContent-Type: application/fhir+json\r\nContent-Length: 1536\r\n\r\n" +
		strings.Repeat("x", small)
	for _, c := range []struct {
		name   string
		secure bool
		in     string
		size   int
	}{{"get", false, get, small}, {"post", false, post, small}, {"bulk", false, get, large},
		{"tls", true, get, small}, {"tls bulk", true, get, large}} {
		b.Run(c.name, func(b *testing.B) {
			body, answer := &constant{}, &wire.Response{Status: 200, Length: int64(c.size)}
			answer.Header = wire.Header{{Name: "Content-Type", Value: "application/fhir+json"}}
			answer.Body = body
			sink := make([]byte, 4096)
			s := &wire.Server{Handle: func(x *wire.Exchange) {
				for {
					if _, err := x.Request.Body.Read(sink); err != nil {
						break
					}
				}
				body.left = c.size
				_, _ = x.Commit(answer)
			}}
			if c.secure {
				s.TLS = serverTLS(b)
			}
			conn := serving(b, s)()
			in, raw := bufio.NewReaderSize(conn, 128<<10), []byte(c.in)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(raw); err != nil {
					b.Fatal(err)
				}
				for {
					line, err := in.ReadSlice('\n')
					if err != nil {
						b.Fatal(err)
					}
					if len(line) == len("\r\n") {
						break
					}
				}
				if _, err := in.Discard(c.size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdle is what a connection costs that has had an answer and waits for the next request, both ends in this one
// process: the client's share is that of a bare socket, or of crypto/tls.
func BenchmarkIdle(b *testing.B) {
	for name, secure := range map[string]bool{"plain": false, "tls": true} {
		b.Run(name, func(b *testing.B) {
			s := &wire.Server{Handle: func(x *wire.Exchange) { _, _ = x.Commit(&wire.Response{Status: 200}) }}
			if secure {
				s.TLS = serverTLS(b)
			}
			dial := serving(b, s)
			const conns = 500
			settled := func() uint64 {
				var m runtime.MemStats
				for range 3 { // stacks shrink and pools empty over some rounds
					runtime.GC()
				}
				runtime.ReadMemStats(&m)
				return m.HeapAlloc + m.StackInuse
			}
			for b.Loop() {
				before := settled()
				open := make([]net.Conn, conns)
				buf := make([]byte, 4096)
				for i := range open {
					open[i] = dial()
					_, _ = io.WriteString(open[i], "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					if _, err := open[i].Read(buf); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(settled()-before)/conns, "B/conn")
				for _, c := range open {
					_ = c.Close()
				}
			}
		})
	}
}
