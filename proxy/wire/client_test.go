package wire_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy/wire"
)

// scripted is a server that answers each request on each connection by script. It counts connections.
type scripted struct {
	net.Listener
	conns atomic.Int32
	mu    sync.Mutex
	heads []string
}

// answer is told the how manyth connection it serves and the how manyth request on it, and says whether to go on.
type answer func(c net.Conn, conn, request int) bool

func script(t testing.TB, a answer) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{Listener: l}
	var g sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		g.Wait()
	})
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := int(s.conns.Add(1))
			g.Go(func() {
				defer func() { _ = c.Close() }()
				in := bufio.NewReader(c)
				for i := 1; ; i++ {
					head, err := readHead(in)
					if err != nil {
						return
					}
					s.mu.Lock()
					s.heads = append(s.heads, head)
					s.mu.Unlock()
					if !a(c, n, i) {
						return
					}
				}
			})
		}
	})
	return s
}

func readHead(in *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if b.WriteString(line); line == "\r\n" {
			return b.String(), nil
		}
	}
}

// says answers every request with the same bytes; keep: on a connection that goes on.
func says(raw string, keep bool) answer {
	return func(c net.Conn, _, _ int) bool {
		_, err := io.WriteString(c, raw)
		return err == nil && keep
	}
}

// calls makes a client of s that is let go with the test.
func (s *scripted) client(t testing.TB, o wire.ClientOptions) *wire.Client {
	o.Dial = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Addr().String())
	}
	c := wire.NewClient(o)
	t.Cleanup(c.CloseIdle)
	return c
}

func ask(t testing.TB, c *wire.Client, method string) (*wire.Response, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := c.RoundTrip(ctx, &wire.Request{Method: method, Target: "/x", Host: "fhir"})
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	return r, string(b), err
}

// The replies that PROXY.md's tests 1 to 7 name: what a server may say, and what makes it unheard.
func TestReplies(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	interim := "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
	for name, c := range map[string]struct {
		raw    string
		method string // "": GET
		body   string
		bad    bool // the reply is refused, or its body breaks off
		conns  int  // that two such calls, one after the other, need
	}{
		"7 length":                          {raw: ok + "Content-Length: 2\r\n\r\nok", body: "ok", conns: 1},
		"7 no body":                         {raw: ok + "Content-Length: 0\r\n\r\n", conns: 1},
		"7 chunks":                          {raw: ok + "Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", body: "ok", conns: 1},
		"5 trailers are dropped":            {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nWard-User: root\r\n\r\n", body: "ok", conns: 1},
		"7 reply to HEAD":                   {raw: ok + "Content-Length: 500\r\n\r\n", method: "HEAD", conns: 1},
		"7 reply to HEAD, chunked":          {raw: ok + "Transfer-Encoding: chunked\r\n\r\n", method: "HEAD", conns: 1},
		"7 204":                             {raw: "HTTP/1.1 204 No Content\r\n\r\n", conns: 1},
		"7 304 with the length of a 200":    {raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", conns: 1},
		"7 until the connection ends":       {raw: ok + "\r\nok", body: "ok", conns: 2},
		"7 HTTP/1.0":                        {raw: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", body: "ok", conns: 2},
		"7 HTTP/1.0 that would go on":       {raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", body: "ok", conns: 2},
		"7 Connection: close":               {raw: ok + "Connection: close\r\nContent-Length: 2\r\n\r\nok", body: "ok", conns: 2},
		"7 eight interim replies":           {raw: strings.Repeat(interim, 8) + ok + "Content-Length: 2\r\n\r\nok", body: "ok", conns: 1},
		"7 bytes after the body":            {raw: ok + "Content-Length: 2\r\n\r\nok!", body: "ok", conns: 2},
		"7 another reply after the body":    {raw: ok + "Content-Length: 2\r\n\r\nok" + ok + "Content-Length: 2\r\n\r\nno", body: "ok", conns: 2},
		"7 bytes after chunks":              {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n!", body: "ok", conns: 2},
		"7 bytes after a reply to HEAD":     {raw: ok + "Content-Length: 2\r\n\r\nok", method: "HEAD", conns: 2},
		"7 a body after 204":                {raw: "HTTP/1.1 204 No Content\r\n\r\nbody", conns: 2},
		"7 nine interim replies":            {raw: strings.Repeat(interim, 9) + ok + "Content-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"7 1xx flood":                       {raw: strings.Repeat(interim, 1000), bad: true, conns: 2},
		"7 long interim replies":            {raw: strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 20<<10)+"\r\n\r\n", 4), bad: true, conns: 2},
		"22 101":                            {raw: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", bad: true, conns: 2},
		"1 CL+TE":                           {raw: ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", bad: true, conns: 2},
		"2 CL twice":                        {raw: ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"2 CL 2, 2":                         {raw: ok + "Content-Length: 2, 2\r\n\r\nok", bad: true, conns: 2},
		"2 CL +2":                           {raw: ok + "Content-Length: +2\r\n\r\nok", bad: true, conns: 2},
		"3 TE gzip":                         {raw: ok + "Transfer-Encoding: gzip\r\n\r\nok", bad: true, conns: 2},
		"3 TE in HTTP/1.0":                  {raw: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", bad: true, conns: 2},
		"4 chunk size 0x":                   {raw: ok + "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", bad: true, conns: 2},
		"4 chunk size with bare LF":         {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n", bad: true, conns: 2},
		"4 chunk without CRLF":              {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok0\r\n\r\n", bad: true, conns: 2},
		"6 bare LF":                         {raw: "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"6 obs-fold":                        {raw: ok + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"6 space before colon":              {raw: ok + "Content-Length : 2\r\n\r\nok", bad: true, conns: 2},
		"6 NUL":                             {raw: ok + "X: a\x00\r\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"6 HTTP/2.0":                        {raw: "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"20 64 KB head":                     {raw: ok + "X: " + strings.Repeat("x", 64<<10) + "\r\nContent-Length: 2\r\n\r\nok", bad: true, conns: 2},
		"20 500 fields":                     {raw: ok + strings.Repeat("X: x\r\n", 500) + "\r\n", bad: true, conns: 2},
		"20 a head of 40 KB":                {raw: ok + "X: " + strings.Repeat("x", 40<<10) + "\r\nContent-Length: 2\r\n\r\nok", body: "ok", conns: 1},
		"7 a body that ends early":          {raw: ok + "Content-Length: 9\r\n\r\nok", bad: true, conns: 2},
		"7 chunks that end early":           {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", bad: true, conns: 2},
		"7 a head that ends early":          {raw: ok + "Content-Le", bad: true, conns: 2},
		"7 the end":                         {raw: "", bad: true, conns: 2},
		"7 it says nothing of HTTP":         {raw: "220 mail ESMTP\r\n", bad: true, conns: 2},
		"7 a long body of a length":         {raw: ok + "Content-Length: 300000\r\n\r\n" + strings.Repeat("x", 300000), body: strings.Repeat("x", 300000), conns: 1},
		"7 a long body in chunks":           {raw: ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("3e8\r\n"+strings.Repeat("x", 1000)+"\r\n", 300) + "0\r\n\r\n", body: strings.Repeat("x", 300000), conns: 1},
		"7 a long body until the end":       {raw: ok + "\r\n" + strings.Repeat("x", 300000), body: strings.Repeat("x", 300000), conns: 2},
		"7 bytes after a long chunked body": {raw: ok + "Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("x", 100000) + "\r\n0\r\n\r\n!", body: strings.Repeat("x", 100000), conns: 2},
	} {
		t.Run(name, func(t *testing.T) {
			ends := c.bad || strings.Contains(name, "until the") || strings.Contains(name, "HTTP/1.0")
			s := script(t, says(c.raw, !ends))
			client := s.client(t, wire.ClientOptions{})
			method := c.method
			if method == "" {
				method = "GET"
			}
			for range 2 {
				r, body, err := ask(t, client, method)
				if c.bad != (err != nil) {
					t.Fatalf("error %v", err)
				}
				if c.bad {
					if r == nil && !errors.Is(err, wire.ErrNoReply) {
						t.Errorf("error %v is not ErrNoReply", err)
					}
					continue
				}
				if body != c.body {
					t.Errorf("%d bytes, want %d", len(body), len(c.body))
				}
			}
			if n := int(s.conns.Load()); n != c.conns {
				t.Errorf("%d connections, want %d", n, c.conns)
			}
		})
	}
}

// The reply's fields are those of the message, in order; lengths are what the header said where there is no body.
func TestReplyHead(t *testing.T) {
	s := script(t, says("HTTP/1.1 200 OK\r\nB: 1\r\na: 2\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nB: 3\r\nContent-Length: 7\r\n\r\n", false))
	r, _, err := ask(t, s.client(t, wire.ClientOptions{}), "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wire.Header{{Name: "B", Value: "1"}, {Name: "a", Value: "2"}, {Name: "B", Value: "3"}}, r.Header); d != "" || r.Length != 7 || r.Status != 200 {
		t.Errorf("%d %d %s", r.Status, r.Length, d)
	}
}

// A kept connection that has died is replaced, once and unseen, for a request that may be repeated.
func TestDeadConnections(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for method, fails := range map[string]bool{"GET": false, "HEAD": false, "POST": true, "DELETE": true} {
		t.Run("it dies when asked/"+method, func(t *testing.T) {
			s := script(t, func(c net.Conn, conn, n int) bool {
				if conn == 1 && n == 2 {
					return false
				}
				if method == "HEAD" {
					_, _ = io.WriteString(c, strings.TrimSuffix(ok, "ok"))
					return true
				}
				_, _ = io.WriteString(c, ok)
				return true
			})
			c := s.client(t, wire.ClientOptions{})
			if _, _, err := ask(t, c, method); err != nil {
				t.Fatal(err)
			}
			if _, _, err := ask(t, c, method); (err != nil) != fails {
				t.Errorf("error %v", err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if want := map[bool]int{true: 2, false: 3}[fails]; len(s.heads) != want {
				t.Errorf("%d requests were sent, want %d", len(s.heads), want)
			}
		})
	}
	t.Run("it has died before", func(t *testing.T) {
		closed := make(chan struct{}, 1)
		s := script(t, func(c net.Conn, conn, _ int) bool {
			_, _ = io.WriteString(c, ok)
			if conn == 1 {
				_ = c.Close()
				closed <- struct{}{}
				return false
			}
			return true
		})
		c := s.client(t, wire.ClientOptions{})
		for range 2 {
			if _, _, err := ask(t, c, "POST"); err != nil {
				t.Fatal(err)
			}
			if s.conns.Load() == 1 {
				<-closed
			}
		}
	})
	t.Run("every one dies", func(t *testing.T) {
		s := script(t, func(net.Conn, int, int) bool { return false })
		if _, _, err := ask(t, s.client(t, wire.ClientOptions{}), "GET"); !errors.Is(err, wire.ErrNoReply) {
			t.Error(err)
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// unending is a body that never ends and can be waited for to be closed.
type unending struct {
	once   sync.Once
	closed chan struct{}
	wait   bool // it gives nothing
}

func (e *unending) Read(p []byte) (int, error) {
	if e.wait {
		<-e.closed
	}
	select {
	case <-e.closed:
		return 0, errors.New("closed")
	default:
		return len(p), nil
	}
}

func (e *unending) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

// 7: an early reply during an upload is heard, ends the upload, and the connection is not used again.
func TestEarlyReply(t *testing.T) {
	for name, wait := range map[string]bool{"while it sends": false, "while its body waits": true} {
		t.Run(name, func(t *testing.T) {
			big := strings.Repeat("x", 1<<20) // more than lies in between: both sides would wait for each other
			s := script(t, says("HTTP/1.1 413 Too Large\r\nContent-Length: 1048576\r\n\r\n"+big, false))
			c := s.client(t, wire.ClientOptions{})
			body := &unending{closed: make(chan struct{}), wait: wait}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := c.RoundTrip(ctx, &wire.Request{Method: "POST", Target: "/", Host: "a", Body: body, Length: -1})
			if err != nil {
				t.Fatal(err)
			}
			<-body.closed // RoundTrip has seen to it
			got, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if r.Status != 413 || wait && (err != nil || len(got) != len(big)) {
				t.Errorf("%d, %d bytes, %v", r.Status, len(got), err)
			}
			if _, _, err := ask(t, c, "HEAD"); err != nil || s.conns.Load() != 2 {
				t.Errorf("%v, %d connections", err, s.conns.Load())
			}
		})
	}
}

// A body goes out as it was given, whether it is here or comes in pieces.
func TestRequestBodies(t *testing.T) {
	long := strings.Repeat("0123456789", 50000)
	for name, c := range map[string]struct {
		body   io.Reader
		length int64
		want   string
	}{
		"here":             {strings.NewReader("hello"), 5, "hello"},
		"here, chunked":    {strings.NewReader("hello"), -1, "hello"},
		"comes":            {io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo")), 5, "hello"},
		"comes, chunked":   {io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo")), -1, "hello"},
		"empty":            {strings.NewReader(""), 0, ""},
		"empty, chunked":   {io.MultiReader(), -1, ""},
		"long":             {strings.NewReader(long), int64(len(long)), long},
		"long, chunked":    {strings.NewReader(long), -1, long},
		"longer than said": {strings.NewReader("hello!"), 5, "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan string, 2)
			srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				got <- string(b)
			})}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = srv.Serve(l) }()
			defer func() { _ = srv.Close() }()
			client := client(l.Addr().String())
			defer client.CloseIdle()
			r, err := client.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Body: c.body, Length: c.length})
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			if g := <-got; g != c.want {
				t.Errorf("%d bytes, want %d", len(g), len(c.want))
			}
		})
	}
}

// wary is a body that knows how much it was asked for.
type wary struct {
	parts []int // how much each read gives at most
	asked []int
}

func (w *wary) Read(p []byte) (int, error) {
	w.asked = append(w.asked, len(p))
	if len(w.parts) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), w.parts[0])
	clear(p[:n])
	if w.parts[0] -= n; w.parts[0] == 0 {
		w.parts = w.parts[1:]
	}
	return n, nil
}

// Whoever brings a body little by little makes the client hold little; only for one that comes fast is there a large buffer.
func TestSlowBodiesTakeLittleRoom(t *testing.T) {
	const little, much = 16 << 10, 64 << 10
	for name, length := range map[string]int64{"length": 1<<20 + 20, "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if n, err := io.Copy(io.Discard, r.Body); n != 1<<20+20 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			}))
			defer srv.Close()
			client := client(srv.Listener.Addr().String())
			defer client.CloseIdle()
			body := &wary{parts: []int{5, 5, 1 << 20, 5, 5}}
			r, err := client.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Body: body, Length: length})
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			// RoundTrip returns, with the answer to it, after the body has been sent.
			if n := len(body.asked); n < 5 || slices.Max(body.asked[:3]) > little || slices.Max(body.asked) < much || body.asked[n-1] > little {
				t.Errorf("it was asked for %d", body.asked)
			}
		})
	}
}

// A body that fails half-way must not look whole to the other end.
func TestRequestBodyThatFails(t *testing.T) {
	for name, length := range map[string]int64{"length": 100, "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			whole := make(chan error, 1)
			srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				whole <- err
			})}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = srv.Serve(l) }()
			defer func() { _ = srv.Close() }()
			client := client(l.Addr().String())
			defer client.CloseIdle()
			_, err = client.RoundTrip(t.Context(), &wire.Request{Method: "POST", Target: "/", Host: "a", Length: length,
				Body: io.MultiReader(strings.NewReader("half"), &failing{})})
			if !errors.Is(err, wire.ErrRequestBody) {
				t.Errorf("error %v", err)
			}
			if err := <-whole; err == nil {
				t.Error("the other end takes it for whole")
			}
		})
	}
}

// What ends the context ends the exchange: while it is waited for a reply, and in the middle of one.
func TestContextEndsTheExchange(t *testing.T) {
	for name, raw := range map[string]string{"before the reply": "", "amid the reply": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"} {
		for how, want := range map[string]error{"cancelled": context.Canceled, "late": context.DeadlineExceeded} {
			t.Run(name+"/"+how, func(t *testing.T) {
				// try reports whether the server had been asked by the time the exchange ended.
				try := func(timeout time.Duration) bool {
					asked, gone := make(chan struct{}), make(chan struct{})
					s := script(t, func(c net.Conn, _, _ int) bool {
						_, _ = io.WriteString(c, raw)
						close(asked)
						_, _ = c.Read(make([]byte, 1))
						close(gone)
						return false
					})
					ctx, cancel := context.WithCancel(t.Context())
					if how == "late" {
						ctx, cancel = context.WithTimeout(t.Context(), timeout)
					}
					defer cancel()
					if how == "cancelled" {
						go func() {
							<-asked
							cancel()
						}()
					}
					r, err := s.client(t, wire.ClientOptions{}).RoundTrip(ctx, &wire.Request{Method: "GET", Target: "/", Host: "a"})
					if err == nil {
						_, err = io.ReadAll(r.Body)
						_ = r.Body.Close()
					}
					if !errors.Is(err, want) {
						t.Errorf("error %v", err)
					}
					select {
					case <-asked:
						<-gone
						return true
					default:
						return false
					}
				}
				for timeout := 100 * time.Millisecond; !try(timeout); timeout *= 2 {
				}
			})
		}
	}
}

func TestHeadTimeout(t *testing.T) {
	s := script(t, func(c net.Conn, _, _ int) bool {
		_, _ = c.Read(make([]byte, 1))
		return false
	})
	_, _, err := ask(t, s.client(t, wire.ClientOptions{HeadTimeout: 50 * time.Millisecond}), "GET")
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("error %v", err)
	}
}
