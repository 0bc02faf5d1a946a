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
