package wire_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/wardmesh/ward/proxy/wire"
)

// A server that answers twice must not have its second answer taken for the reply to somebody else's request. What is
// raced for is the moment between a connection's being kept and its next reading.
func TestBytesAfterAReplyAnswerNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
			go answerTwice(c)
		}
	}()
	c := wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer c.CloseIdle()
	var g sync.WaitGroup
	for worker := range 16 {
		g.Go(func() {
			for i := range 400 {
				path := fmt.Sprintf("/%d-%d", worker, i)
				resp, err := c.RoundTrip(t.Context(), &wire.Request{Method: "GET", Target: path, Host: "fhir"})
				if err != nil {
					continue // a connection that had too much to say is closed
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if string(body) != path {
					t.Errorf("%s was answered with %q", path, body)
					return
				}
			}
		})
	}
	g.Wait()
}

func answerTwice(c net.Conn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		one := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		if _, err := io.WriteString(c, one+strings.Replace(one, "\r\n\r\n/", "\r\n\r\n!", 1)); err != nil {
			return
		}
	}
}
