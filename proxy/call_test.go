package proxy_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// request is a request with these field lines after Host, which is that of the target where it names one, and a body when
// there is one.
func request(line, body string, fields ...string) string {
	host := serviceName
	if _, after, ok := strings.Cut(line, " http://"); ok {
		if host = after; strings.ContainsAny(after, "/?") {
			host = after[:strings.IndexAny(after, "/?")]
		}
	}
	var b strings.Builder
	b.WriteString(line + " HTTP/1.1\r\nHost: " + host + "\r\n")
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	if body != "" {
		b.WriteString("Content-Length: " + itoa(len(body)) + "\r\n")
	}
	return b.String() + "\r\n" + body
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// bearer is the Authorization field for a token.
func bearer(token string) string { return "Authorization: Bearer " + token }

// write is a request that brings an Observation.
func write(line, token, body string) string {
	return request(line, body, bearer(token), "Content-Type: application/fhir+json")
}

// answer is a reply as a caller got it.
type answer struct {
	status int
	header http.Header
	body   string
	err    error // the body did not come whole
	close  bool  // the reply says that the connection ends with it
}

// decision is the call's id.
func (a *answer) decision() string { return a.header.Get(proxy.HeaderDecision) }

// code is the OperationOutcome's issue code.
func (a *answer) code(t testing.TB) string {
	t.Helper()
	var o struct {
		ResourceType string
		Issue        []struct{ Code string }
	}
	if err := json.Unmarshal([]byte(a.body), &o); err != nil || o.ResourceType != "OperationOutcome" || len(o.Issue) != 1 {
		t.Fatalf("not an OperationOutcome with one issue: %q", a.body)
	}
	return o.Issue[0].Code
}

// send writes one request and reads its reply.
func send(t testing.TB, c net.Conn, raw string) *answer {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	return read(t, bufio.NewReader(c), raw)
}

// read reads the reply to raw.
func read(t testing.TB, in *bufio.Reader, raw string) *answer {
	t.Helper()
	method, _, _ := strings.Cut(raw, " ")
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no reply: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	return &answer{status: res.StatusCode, header: res.Header, body: string(body), err: err, close: res.Close}
}

// call sends one request through egress as p.
func (w *world) call(p *process, raw string) *answer {
	w.Helper()
	c := w.dialEgress(p)
	defer func() { _ = c.Close() }()
	return send(w, c, raw)
}

// token is a physician's token for the portal.
func (w *world) token(changes ...claims) string { return w.issuer.token(w, "portal", changes...) }

func contains(s, part string) bool { return strings.Contains(s, part) }

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }
