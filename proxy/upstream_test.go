package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// received is one request as the FHIR server got it.
type received struct {
	raw  string // head and body, every byte
	head string // without the empty line at its end
	line string // METHOD target
	body string
	conn int    // the how manyth connection it came by
	peer string // the serial of the certificate at its other end, "" without TLS
}

// field gives every value of a field whose name, in exactly this spelling, stands in the head.
func (r *received) field(name string) []string {
	var values []string
	for line := range strings.SplitSeq(r.head, "\r\n") {
		if n, v, ok := strings.Cut(line, ": "); ok && n == name {
			values = append(values, v)
		}
	}
	return values
}

// upstream is a FHIR server that records every byte and answers by script.
type upstream struct {
	net.Listener

	mu       sync.Mutex
	answer   func(c net.Conn, r *received) (keep bool)
	requests []*received
	conns    map[net.Conn]bool
	total    int
	begun    chan struct{} // gets one value for each request of which the head has arrived
	closed   chan struct{} // gets one value for each connection that the peer has ended
	stopped  chan struct{} // closed when the test ends
	running  sync.WaitGroup
}

func newUpstream(t testing.TB, l net.Listener) *upstream {
	u := &upstream{Listener: l, conns: map[net.Conn]bool{}, begun: make(chan struct{}, 1024), closed: make(chan struct{}, 1024), stopped: make(chan struct{})}
	u.says(fhirReply)
	u.running.Add(1)
	go func() {
		defer u.running.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.conns[c] = true
			u.total++
			n := u.total
			u.mu.Unlock()
			u.running.Add(1)
			go func() {
				defer u.running.Done()
				u.serve(c, n)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		close(u.stopped)
		u.mu.Lock()
		for c := range u.conns {
			_ = c.Close()
		}
		u.mu.Unlock()
		u.running.Wait()
	})
	return u
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// script makes answer write every reply; keep says whether the connection goes on.
func (u *upstream) script(answer func(c net.Conn, r *received) (keep bool)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

// says makes the server answer every request with the bytes that reply gives, and keep the connection.
func (u *upstream) says(reply func(*received) string) {
	u.script(func(c net.Conn, r *received) bool {
		_, err := io.WriteString(c, reply(r))
		return err == nil
	})
}

// always makes the server answer every request with these bytes.
func (u *upstream) always(raw string) { u.says(func(*received) string { return raw }) }

func (u *upstream) serve(c net.Conn, n int) {
	defer func() {
		_ = c.Close()
		u.mu.Lock()
		delete(u.conns, c)
		u.mu.Unlock()
	}()
	var wire bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &wire))
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			u.ended()
			return
		}
		select {
		case u.begun <- struct{}{}:
		default: // nobody counts them
		}
		body, err := io.ReadAll(req.Body)
		raw := string(wire.Bytes()[:wire.Len()-in.Buffered()])
		wire.Next(len(raw))
		head, _, _ := strings.Cut(raw, "\r\n\r\n")
		r := &received{raw: raw, head: head, line: req.Method + " " + req.RequestURI, body: string(body), conn: n}
		if secure, ok := c.(*tls.Conn); ok {
			r.peer = secure.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
		u.mu.Lock()
		u.requests = append(u.requests, r)
		answer := u.answer
		u.mu.Unlock()
		if err != nil {
			u.ended()
			return
		}
		if !answer(c, r) {
			return
		}
	}
}

// ended tells that a peer has ended its connection.
func (u *upstream) ended() {
	select {
	case u.closed <- struct{}{}:
	default: // nobody counts them
	}
}

// arrives waits for the head of a request.
func (u *upstream) arrives(t testing.TB) {
	t.Helper()
	select {
	case <-u.begun:
	case <-time.After(patience):
		t.Fatal("no request has arrived")
	}
}

// isLeft waits for a peer to end its connection.
func (u *upstream) isLeft(t testing.TB) {
	t.Helper()
	select {
	case <-u.closed:
	case <-time.After(patience):
		t.Fatal("the connection is still open")
	}
}

// all gives what has arrived so far.
func (u *upstream) all() []*received {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]*received(nil), u.requests...)
}

// only gives the one request that arrived.
func (u *upstream) only(t testing.TB) *received {
	t.Helper()
	all := u.all()
	if len(all) != 1 {
		t.Fatalf("%d requests reached the FHIR server, want 1", len(all))
	}
	return all[0]
}

// untouched fails the test when anything has arrived.
func (u *upstream) untouched(t testing.TB) {
	t.Helper()
	for _, r := range u.all() {
		t.Errorf("this reached the FHIR server: %q", r.raw)
	}
}

// reply is an HTTP/1.1 reply with a body of FHIR JSON; fields are whole lines.
func reply(status int, body string, fields ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for _, f := range append(fields, fmt.Sprintf("Content-Length: %d", len(body))) {
		b.WriteString(f + "\r\n")
	}
	if body != "" {
		b.WriteString("Content-Type: application/fhir+json\r\n")
	}
	return b.String() + "\r\n" + body
}

// fhirReply answers as a small FHIR server would: Observation/1 is about Patient/a, Observation/2 about Patient/b.
func fhirReply(r *received) string {
	method, target, _ := strings.Cut(r.line, " ")
	path, _, _ := strings.Cut(strings.TrimPrefix(target, "/fhir/"), "?")
	switch {
	case path == "metadata":
		return reply(200, `{"resourceType":"CapabilityStatement"}`)
	case method == "POST" && path == "Observation":
		return reply(201, `{"resourceType":"Observation","id":"9"}`, "Location: http://"+serviceName+"/fhir/Observation/9/_history/1")
	case method == "PUT":
		return reply(200, r.body)
	case method == "DELETE":
		return reply(204, "")
	case path == "Observation", path == "Observation/_search":
		return reply(200, searchset(observation("1", "a")))
	case path == "Observation/1":
		return reply(200, observation("1", "a"))
	case path == "Observation/2":
		return reply(200, observation("2", "b"))
	case strings.HasPrefix(path, "Patient/") && len(path) == len("Patient/x"):
		return reply(200, `{"resourceType":"Patient","id":"`+path[len("Patient/"):]+`"}`)
	}
	return reply(404, outcome("not-found"))
}

func observation(id, patient string) string {
	return `{"resourceType":"Observation","id":"` + id + `","subject":{"reference":"Patient/` + patient + `"}}`
}

// newObservation is one to be created.
const newObservation = `{"resourceType":"Observation","subject":{"reference":"Patient/a"}}`

func searchset(resources ...string) string {
	var entries []string
	for _, r := range resources {
		entries = append(entries, `{"resource":`+r+`,"search":{"mode":"match"}}`)
	}
	return `{"resourceType":"Bundle","type":"searchset","entry":[` + strings.Join(entries, ",") + `]}`
}

func outcome(code string) string {
	return `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"` + code + `"}]}`
}
