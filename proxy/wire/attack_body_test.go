package wire_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// Whoever still reads a body when its exchange ends shares nothing with the exchanges after it: the connection's buffer is
// not touched by two, nor given back twice.
func TestReaderAtItsEndLeavesTheConnectionAlone(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		begun := make(chan struct{})
		go func() {
			p := make([]byte, 4<<10)
			n, told := 0, false
			for err := error(nil); err == nil; {
				var m int
				m, err = x.Request.Body.Read(p)
				if n += m; !told && (n >= 190<<10 || err != nil) {
					told = true
					close(begun)
				}
			}
		}()
		<-begun
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text(x.Request.Target), Length: int64(len(x.Request.Target))})
	}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(c)
	body := strings.Repeat("1000\r\n"+strings.Repeat("x", 4<<10)+"\r\n", 48) + "0\r\n\r\n"
	for i := range 300 {
		target := fmt.Sprint("/", i)
		if _, err := io.WriteString(c, "POST "+target+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+body); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r.Body); err != nil || string(got) != target {
			t.Fatalf("%s was answered with %q, %v", target, got, err)
		}
	}
}

// An answer and 100 (Continue) may be due at the same moment. What has been answered is not continued, and an answer's
// bytes are its own.
func TestNothingContinuesWhatIsAnswered(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		began := make(chan struct{})
		go func() {
			close(began)
			_, _ = x.Request.Body.Read(make([]byte, 10))
		}()
		<-began
		_, _ = x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader("o"), strings.NewReader("k"))), Length: 2})
	}})
	for range 3000 {
		out := raw(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
		if i := strings.Index(out, "HTTP/1.1 200 "); i < 0 || strings.Contains(out[i:], "100 Continue") {
			t.Fatalf("%q", out)
		}
	}
}
