package wire_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy/wire"
)

// serve starts a server on loopback and gives its address. accepted gets what Accept returned for each connection.
func serve(t *testing.T, s *wire.Server) string {
	t.Helper()
	return serveOver(t, s, func(l net.Listener) net.Listener { return l })
}

// serveOver is serve where the server has what over makes of its listener.
func serveOver(t *testing.T, s *wire.Server, over func(net.Listener) net.Listener) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if s.Accept == nil {
		s.Accept = func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return "peer", nil }
	}
	if s.Refuse == nil {
		s.Refuse = func(_ any, _ string, status int) *wire.Response {
			return &wire.Response{Status: status, Header: wire.Header{{Name: "Refused-By", Value: "ward"}}, Body: text("refused"), Length: 7}
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), over(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func text(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }

// raw sends bytes and returns all that comes back.
func raw(t *testing.T, addr, in string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, in) // of which the server need not take all before it answers and closes
	out, _ := io.ReadAll(c)
	return string(out)
}

func TestRequestReachesTheHandlerRaw(t *testing.T) {
	var got wire.Request
	var body []byte
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		got = x.Request
		body, _ = io.ReadAll(x.Request.Body)
		_, _ = x.Commit(&wire.Response{Status: 200, Body: text("ok"), Length: 2})
	}})
	out := raw(t, addr, "POST /Patient/%2e%2e//x?a=%31;b HTTP/1.1\r\nHost: Fhir.Example:80\r\nContent-Length: 3\r\n"+
		"ward_caller: a\r\nX-Two: 1\r\nx-two: 2\r\nConnection: close\r\n\r\nabc")
	if !strings.HasPrefix(out, "HTTP/1.1 200 ") || !strings.HasSuffix(out, "\r\n\r\nok") {
		t.Fatalf("answer: %q", out)
	}
	if got.Target != "/Patient/%2e%2e//x?a=%31;b" || got.Host != "Fhir.Example:80" || got.Length != 3 || string(body) != "abc" {
		t.Errorf("request: %+v body %q", got, body)
	}
	if d := cmp.Diff([]string{"1", "2"}, got.Header.Values("X-TWO")); d != "" {
		t.Error(d)
	}
	if got.Header.Get("Ward_caller") != "a" {
		t.Error("a field with an underscore was lost before it could be judged")
	}
	if strings.Contains(out, "Content-Type") {
		t.Error("the engine guessed a content type")
	}
}

// What is not HTTP gets Ward's refusal, once, and the connection ends.
func TestEngineVerdictsAreReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		in     string
		status string
	}{
		"garbage":            {"\x00\x01\x02\r\n\r\n", "400"},
		"two lengths":        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "400"},
		"length and chunked": {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: gzip\r\n\r\nx", "501"},
		"no host":            {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two hosts":          {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		"space before colon": {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"},
		"head too large":     {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "431"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, &wire.Server{Handle: func(*wire.Exchange) { t.Error("handled") }})
			out := raw(t, addr, c.in)
			if !strings.HasPrefix(out, "HTTP/1.1 "+c.status+" ") || strings.Count(out, "HTTP/1.1") != 1 ||
				!strings.Contains(out, "Refused-By: ward") || !strings.HasSuffix(out, "refused") {
				t.Errorf("answer: %.300q", out)
			}
		})
	}
}

func TestAcceptDecidesBeforeAByteIsRead(t *testing.T) {
	addr := serve(t, &wire.Server{
		Accept: func(context.Context, net.Conn, *tls.ConnectionState) (any, error) { return nil, errors.New("not you") },
		Handle: func(*wire.Exchange) { t.Error("handled") },
	})
	if out := raw(t, addr, ""); out != "" {
		t.Errorf("answered %q", out)
	}
}

func TestAbortAndPanicCloseWithoutAnAnswer(t *testing.T) {
	defects := make(chan []byte, 1)
	for name, handle := range map[string]func(*wire.Exchange){
		"abort":   func(x *wire.Exchange) { x.Abort() },
		"nothing": func(*wire.Exchange) {},
		"panic":   func(*wire.Exchange) { panic("secret") },
	} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, &wire.Server{Handle: handle, Defect: func(stack []byte) { defects <- stack }})
			if out := raw(t, addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); out != "" {
				t.Errorf("answered %q", out)
			}
		})
	}
	if stack := <-defects; bytes.Contains(stack, []byte("secret")) || !bytes.Contains(stack, []byte("goroutine")) {
		t.Errorf("defect: %s", stack)
	}
}

// A body that breaks off must not look whole to the peer.
func TestBrokenReplyBodyEndsTheConnection(t *testing.T) {
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		body := io.MultiReader(strings.NewReader("half"), &failing{})
		if _, err := x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(body), Length: -1}); err == nil {
			t.Error("Commit reported no error")
		}
	}})
	resp, err := http.Get("http://" + addr + "/")
	if err != nil {
		return // cut before the head was out: as good
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the truncated body looked whole")
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, errors.New("upstream gone") }

func TestEventsAreFlushedAsTheyCome(t *testing.T) {
	r, w := io.Pipe()
	addr := serve(t, &wire.Server{Handle: func(x *wire.Exchange) {
		_, _ = x.Commit(&wire.Response{Status: 200, Body: r, Length: -1})
	}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	resp := make(chan *http.Response, 1)
	go func() {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Error(err)
			close(resp)
			return
		}
		resp <- res
	}()
	for _, event := range []string{"one", "two"} {
		_, _ = io.WriteString(w, event)
		if event == "one" {
			res := <-resp
			if res == nil {
				return
			}
			resp <- res
		}
		res := <-resp
		buf := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != event {
			t.Fatalf("%q %v", buf, err)
		}
		resp <- res
	}
	_ = w.Close()
}

func client(addr string) *wire.Client {
	return wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}})
}

func TestClientSendsExactlyWhatItIsGiven(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	head := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		var b strings.Builder
		for r := bufio.NewReader(c); ; {
			line, err := r.ReadString('\n')
			b.WriteString(line)
			if line == "\r\n" || err != nil {
				break
			}
		}
		head <- b.String()
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\r\nok")
	}()
	res, err := client(l.Addr().String()).RoundTrip(t.Context(), &wire.Request{
		Method: "GET", Target: "/Patient/a?name=%C3%A9", Host: "fhir.ehr.mesh.internal",
		Header: wire.Header{{Name: "Accept", Value: "a"}, {Name: "Connection", Value: "close"}, {Name: "Upgrade", Value: "h2c"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	if got, want := <-head, "GET /Patient/a?name=%C3%A9 HTTP/1.1\r\nHost: fhir.ehr.mesh.internal\r\nAccept: a\r\n\r\n"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	if res.Header.Has("X-Hop") || !res.Header.Has("X-Kept") || string(body) != "ok" || res.Length != 2 {
		t.Errorf("reply %+v %q", res, body)
	}
	for _, target := range []string{"http://other/", "//other/x", "*", ""} {
		if _, err := client(l.Addr().String()).RoundTrip(t.Context(), &wire.Request{Method: "GET", Target: target, Host: "a"}); err == nil {
			t.Errorf("target %q was sent", target)
		}
	}
}

func TestBoundedConnectionEndsOnTime(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _ = b.Close() }()
	_ = wire.Bounded(a, time.Now().Add(20*time.Millisecond))
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("read from a connection past its end")
	}
}
