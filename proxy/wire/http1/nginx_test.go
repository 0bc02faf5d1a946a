package http1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A third reader: nginx, between a client that sends what we have accepted and a server that records what it passes on.
// It says of each request how it read the first line, the Host, every field and the body; a second request behind the
// first shows where it thinks that ends. It may refuse what we accept, but not read it otherwise.

// seen is what nginx made of a request.
type seen struct {
	Line, Host, Body string
	Fields           []string
}

// The first line goes in a field of its own, as it came: the one that nginx sends has its own version and path.
const nginxConf = `
daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr notice;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	client_max_body_size 0;
	client_header_buffer_size 128k;
	large_client_header_buffers 4 128k;
	underscores_in_headers on;
	ignore_invalid_headers off;
	merge_slashes off;
	lingering_close off;
	keepalive_requests 1000000;
	server {
		listen unix:%[1]s/front;
		location / {
			proxy_pass http://unix:%[1]s/back;
			proxy_http_version 1.1;
			proxy_set_header Ward-Line $request;
			proxy_set_header Ward-Host $http_host;
		}
	}
}
`

type nginx struct {
	front string

	mu   sync.Mutex
	seen []seen
}

// startNginx runs nginx over Unix sockets in a folder of its own, in one process that is ended with the test.
func startNginx(t *testing.T) *nginx {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // which is not in everybody's path
		if _, err := os.Stat(program); err != nil {
			t.Skip("SKIPPED: nginx is not installed: what is accepted is not compared with how nginx reads it (Debian: nginx-light)")
		}
	}
	dir, err := os.MkdirTemp("", "http1") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &nginx{front: filepath.Join(dir, "front")}
	back, err := net.Listen("unix", filepath.Join(dir, "back"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Close() })
	go n.record(back)

	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", conf, "-e", "stderr")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// It says how it will wait for events once it listens.
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "event method") {
			go func() { _, _ = io.Copy(io.Discard, log) }()
			return n
		}
		t.Logf("nginx says: %s", lines.Text())
	}
	t.Fatal("nginx does not start")
	return nil
}

// record answers what nginx passes on. nginx writes each request anew, so any reader of HTTP will do.
func (n *nginx) record(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			s := seen{Line: r.Header.Get("Ward-Line"), Host: r.Header.Get("Ward-Host"), Body: string(body)}
			for name, values := range r.Header {
				if nginxPasses(name) {
					for _, v := range values {
						s.Fields = append(s.Fields, name+": "+v)
					}
				}
			}
			slices.Sort(s.Fields)
			n.mu.Lock()
			n.seen = append(n.seen, s)
			n.mu.Unlock()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}()
	}
}

// nginxPasses reports whether nginx sends a client's field on. The others are the connection's, and it writes its own.
func nginxPasses(name string) bool {
	return !slices.Contains([]string{"host", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "content-length", "ward-line", "ward-host"}, strings.ToLower(name))
}

const sentinel = "GET /sentinel HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n"

// play sends one message with another behind it, and gives what nginx made of both. The connection's end says that
// nginx is done.
func (n *nginx) play(t *testing.T, in string) []seen {
	t.Helper()
	n.mu.Lock()
	n.seen = nil
	n.mu.Unlock()
	c, err := net.Dial("unix", n.front)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, in+sentinel) // nginx may have refused it, and gone, before it has come
	if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
		t.Fatalf("%q: nginx waits for more", in)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.seen)
}

// asNginx is what nginx must make of a message that it does not refuse.
func asNginx(m message) seen {
	r := m.what.(requestSeen)
	s := seen{Line: fmt.Sprintf("%s %s HTTP/1.%d", r.method, r.target, r.minor), Body: m.body}
	// The recorder is net/http's: it makes up a Cache-Control.
	for name, values := range header(r.fields, false, false) {
		switch {
		case name == "Host":
			s.Host = values[0]
		case nginxPasses(name):
			for _, v := range values {
				s.Fields = append(s.Fields, name+": "+v)
			}
		}
	}
	slices.Sort(s.Fields)
	return s
}

// corpus gives the inputs kept for a fuzz target.
func corpus(t *testing.T, target string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if quoted, ok := strings.CutPrefix(strings.TrimSpace(line), "string("); ok {
				in, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				out = append(out, in)
				break
			}
		}
	}
	return out
}

func TestNginx(t *testing.T) {
	n := startNginx(t)
	var streams []string
	for _, r := range slices.Concat(requestRows(), bodyRows()) {
		streams = append(streams, r.in)
	}
	streams = append(streams, corpus(t, "FuzzRequestHead")...)
	for _, body := range corpus(t, "FuzzBody") {
		streams = append(streams, chunked+body)
	}
	composed := rapid.Custom(func(t *rapid.T) string { return newComposer(t).requests() })
	for i := range 400 {
		streams = append(streams, composed.Example(i))
	}
	second := readRequests(sentinel, len(sentinel), &Limits{}).messages[0]
	played, refused := map[string]bool{}, 0
	for _, in := range streams {
		for _, m := range readRequests(in, len(in)+1, &Limits{}).messages {
			one := in[m.start:max(m.start, m.end)]
			if !m.whole || played[one] {
				continue
			}
			played[one] = true
			got := n.play(t, one)
			if len(got) > 0 && cmp.Equal(got[0], asNginx(second)) {
				got, refused = nil, refused+1 // it goes on behind what it has refused, and at the right place
			} else if len(got) == 0 {
				refused++
			}
			if len(got) == 0 {
				continue
			}
			want := []seen{asNginx(m)}
			// RFC 9112 §9.6: nothing is read behind a close. nginx may be told otherwise by a later keep-alive, and then
			// it must see the next message where it is.
			if !m.what.(requestSeen).close || len(got) > 1 {
				want = append(want, asNginx(second))
			}
			if d := cmp.Diff(got, want); d != "" {
				t.Errorf("%q: -nginx +http1\n%s", one, d)
			}
		}
	}
	t.Logf("nginx was played %d requests, and refused %d of them", len(played), refused)
	if len(played) < 100 || refused > len(played)/2 {
		t.Errorf("nginx was played %d requests and refused %d of them: that compares little", len(played), refused)
	}
}
