package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// Whoever keeps connections to the metrics' address open gets a few of them, and only for a while: the descriptors are
// for attesting processes.
func TestAttackMetricsHoldFewConnections(t *testing.T) {
	address := freePorts(t, 1)[0]
	cfg, _ := start(t, write(t, fmt.Sprintf("monitor: {metrics: '%s'}\n", address)))
	var open, cut int
	for range 200 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		// A whole request, so that the connection is one that may be used again.
		_, _ = io.WriteString(c, "GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		switch {
		case err == nil:
			_ = resp.Body.Close()
			open++
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Fatal("a connection was neither answered nor closed")
		default:
			cut++
		}
	}
	if open == 0 || open > 64 || cut == 0 {
		t.Errorf("%d connections are held, %d were cut", open, cut)
	}
	if id := fetch(t, cfg).DefaultSVID().ID.Path(); id != "/app/test" {
		t.Errorf("identity %s", id)
	}
}
