package wire_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy/wire"
)

// BenchmarkRoundTrip is one exchange on a connection that is open already. The server allocates nothing.
func BenchmarkRoundTrip(b *testing.B) {
	const fields = "Content-Type: application/fhir+json\r\nETag: W/\"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
	header := wire.Header{{Name: "Accept", Value: "application/fhir+json"}, {Name: "Authorization", Value: "Bearer " + strings.Repeat("x", 600)},
		{Name: "X-Request-Id", Value: "7"}}
	payload := strings.Repeat("x", 1536)
	for name, c := range map[string]struct {
		method string
		send   string
		answer int
	}{
		"get":  {"GET", "", 1536},
		"post": {"POST", payload, 0},
		"bulk": {"GET", "", 50 << 20},
	} {
		b.Run(name, func(b *testing.B) {
			out := append([]byte("HTTP/1.1 200 OK\r\n"+fields+"Content-Length: "+strconv.Itoa(c.answer)+"\r\n\r\n"), bytes.Repeat([]byte{'x'}, c.answer)...)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = conn.Close() }()
				in := bufio.NewReader(conn)
				for skip(in, len(c.send)) == nil {
					if _, err := conn.Write(out); err != nil {
						return
					}
				}
			}()
			client := wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			}})
			defer client.CloseIdle()
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			buf := make([]byte, 128<<10)
			body := strings.NewReader(c.send)
			request := &wire.Request{Method: c.method, Target: "/fhir/Patient/a", Host: "fhir.ehr.mesh.internal", Header: header, Body: body, Length: int64(len(c.send))}
			b.SetBytes(int64(c.answer + len(c.send)))
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(c.send)
				r, err := client.RoundTrip(ctx, request)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = r.Body.Read(buf)
				}
				if err != io.EOF {
					b.Fatal(err)
				}
				_ = r.Body.Close()
			}
		})
	}
}

// skip reads one request whose body has that length.
func skip(in *bufio.Reader, length int) error {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == len("\r\n") {
			_, err := in.Discard(length)
			return err
		}
	}
}
