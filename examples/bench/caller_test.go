package main

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// The FHIR server's replies have the sizes that the figures are about, and the client reads exactly one.
func TestOriginAndCaller(t *testing.T) {
	o, err := newOrigin()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go o.serve(c)
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := newCaller(conn)
	for target, want := range map[string]int64{"/Patient/example": patientBytes, "/DocumentReference/bulk": bulkBytes} {
		for range 2 {
			if n, err := c.call(request(target, "t")); n != want || err != nil {
				t.Errorf("%s: %d bytes, not %d: %v", target, n, want, err)
			}
		}
	}
	n, err := c.call(request("/Observation?patient=Patient/example", "t"))
	if n > checkedBytes || n < checkedBytes-2000 || err != nil {
		t.Errorf("a search: %d bytes, %v", n, err)
	}
}

// Whatever is not one whole 200 of a known length is a failure, never a call that counts.
func TestCallerAcceptsNothingElse(t *testing.T) {
	for _, reply := range []string{
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10),
	} {
		app, server := net.Pipe()
		go func() {
			_, _ = io.CopyN(io.Discard, server, 4)
			fmt.Fprint(server, reply)
			_ = server.Close()
		}()
		if n, err := newCaller(app).call([]byte("GET ")); err == nil {
			t.Errorf("%.60q: %d bytes are accepted", reply, n)
		}
		_ = app.Close()
	}
}

// A client that knows HTTP's rules makes a call anew when its connection was closed before a byte of an answer, and not
// when there was one: then nobody knows what has happened.
func TestInsist(t *testing.T) {
	for name, c := range map[string]struct {
		first string // what the first connection says to its second call
		again int64
		fails bool
	}{
		"closed before": {"", 1, false},
		"closed within": {"HTTP/1.1 2", 0, true},
		"refused":       {"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 0, true},
		"told before":   {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Close() }()
			go func() {
				for i := 0; ; i++ {
					conn, err := server.Accept()
					if err != nil {
						return
					}
					go func() {
						defer func() { _ = conn.Close() }()
						for call, buf := 0, make([]byte, 64); ; call++ {
							if _, err := conn.Read(buf); err != nil {
								return
							}
							if i == 0 && call == 1 {
								_, _ = io.WriteString(conn, c.first)
								return
							}
							_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
						}
					}()
				}
			}()
			l := &load{errand: errand{Address: "unix:" + server.Addr().String(), Request: []byte("GET / HTTP/1.1\r\n\r\n")}}
			conn, err := l.insist(t.Context(), nil)
			if err == nil {
				conn, err = l.insist(t.Context(), conn)
			}
			if (err != nil) != c.fails || l.again.Load() != c.again {
				t.Errorf("%v, %d made anew", err, l.again.Load())
			}
			if conn != nil {
				_ = conn.Close()
			}
		})
	}
}
