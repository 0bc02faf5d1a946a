package proxy_test

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wardmesh/ward/proxy"
)

// A storm: many callers at once, each call with a tag of its own in all that it sends and gets. Callers go away at any
// byte of their request or of its reply; the FHIR server breaks replies off at any byte, resets connections, and says
// more than it was asked. What must hold is that no byte of one call comes to another, that nothing broken looks whole,
// that who stays gets an answer, and that afterwards nothing is left.
const (
	stormSeed    = 20261123
	stormCallers = 16
	stormCalls   = 12 // of each caller
)

// fate is what becomes of a call. It follows from the call's tag, so that the FHIR server knows it, too.
type fate struct {
	write   bool
	upload  int    // bytes of filler in the request's body
	size    int    // bytes of filler in the reply's body
	framing string // of the reply
	planted bool   // another reply follows it, that nobody has asked for
	cut     int    // the reply ends after so many bytes; -1: it does not
	abort   int    // the caller goes away after so many bytes of its request; -1: it does not
	leave   int    // the caller goes away after so many bytes of the reply's body; -1: it does not
	reset   bool   // who goes away does so by a reset
}

func fateOf(tag string) fate {
	h := fnv.New64a()
	_, _ = h.Write([]byte(tag))
	rnd := rand.New(rand.NewPCG(stormSeed, h.Sum64())) //nolint:gosec // a test is to be repeatable
	sizes := []int{0, 100, 4 << 10, 8 << 10, 20 << 10, 70 << 10, 150 << 10}
	some := func() int { return sizes[rnd.IntN(len(sizes))] + rnd.IntN(200) }
	f := fate{write: rnd.IntN(3) == 0, upload: some(), size: some(), framing: []string{"length", "chunks", "end"}[rnd.IntN(3)], cut: -1, abort: -1, leave: -1, reset: rnd.IntN(2) == 0}
	switch rnd.IntN(8) {
	case 0:
		f.cut = rnd.IntN(len(f.reply(tag)))
	case 1:
		f.abort = rnd.IntN(len(f.request(tag, "token")))
	case 2:
		f.leave = rnd.IntN(len(stormBody(tag, f.size)))
	case 3:
		if f.framing != "end" {
			f.planted, f.size = true, f.size%(2<<10) // all of it in one piece
		}
	}
	return f
}

// stormBody is a resource of which every stretch is the tag's own.
func stormBody(tag string, filler int) string {
	own := strings.Repeat(tag+".", filler/(len(tag)+1)+1)[:filler]
	return `{"resourceType":"Observation","id":"` + tag + `","subject":{"reference":"Patient/a"},"note":[{"text":"` + own + `"}]}`
}

func (f fate) request(tag, token string) string {
	line := "GET /fhir/Observation/" + tag
	if f.write {
		return write("PUT"+strings.TrimPrefix(line, "GET"), token, stormBody(tag, f.upload))
	}
	return request(line, "", bearer(token))
}

func (f fate) reply(tag string) string {
	head, body := "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nETag: W/\""+tag+"\"\r\n", stormBody(tag, f.size)
	switch f.framing {
	case "length":
		head += "Content-Length: " + itoa(len(body)) + "\r\n"
	case "chunks":
		head += "Transfer-Encoding: chunked\r\n"
		var chunks strings.Builder
		for len(body) > 0 {
			n := min(len(body), 3000)
			fmt.Fprintf(&chunks, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
		}
		body = chunks.String() + "0\r\n\r\n"
	}
	return head + "\r\n" + body
}

// stormServer answers each call by its fate.
func stormServer(t *testing.T) func(net.Conn, *received) bool {
	return func(c net.Conn, r *received) bool {
		_, tag, _ := strings.Cut(r.line, "Observation/")
		f := fateOf(tag)
		if f.write && r.body != stormBody(tag, f.upload) {
			t.Errorf("%s came with the body of something else, of %d bytes", tag, len(r.body))
		}
		raw := f.reply(tag)
		switch {
		case f.cut >= 0:
			raw = raw[:f.cut]
		case f.planted:
			raw += reply(200, `{"resourceType":"Observation","id":"planted"}`)
		}
		if _, err := io.WriteString(c, raw); err != nil {
			return false
		}
		// Where the connection's end is the body's, a cut is one only by a reset.
		if f.cut >= 0 && (f.reset || f.framing == "end") {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		return f.cut < 0 && f.framing != "end"
	}
}

// stormCaller makes one call after the other, over one connection for as long as that lasts.
type stormCaller struct {
	*testing.T
	address, token string
	conn           net.Conn
	in             *bufio.Reader
	whole, broken  int
	decisions      []string
}

func (c *stormCaller) run(name string) {
	for i := range stormCalls {
		tag := fmt.Sprintf("%s-%d", name, i)
		if c.conn == nil {
			conn, err := net.Dial("tcp", c.address)
			if err != nil {
				c.Error(err)
				return
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			c.conn, c.in = conn, bufio.NewReader(conn)
		}
		if f := fateOf(tag); !c.call(tag, f) {
			if f.reset {
				_ = c.conn.(*net.TCPConn).SetLinger(0)
			}
			_ = c.conn.Close()
			c.conn = nil
		}
	}
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// call reports whether the connection can go on.
func (c *stormCaller) call(tag string, f fate) (more bool) {
	raw := f.request(tag, c.token)
	if f.abort >= 0 {
		_, _ = io.WriteString(c.conn, raw[:min(f.abort, len(raw)-1)])
		return false
	}
	_, _ = io.WriteString(c.conn, raw) // of which the ward may have had enough before its end
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		if c.broken++; f.cut < 0 { // else it was cut before the answer's head was out
			c.Errorf("%s, %+v: no answer: %v", tag, f, err)
		}
		return false
	}
	c.decisions = append(c.decisions, res.Header.Get(proxy.HeaderDecision))
	if f.leave >= 0 {
		_, _ = io.CopyN(io.Discard, res.Body, int64(f.leave))
		return false
	}
	body, err := io.ReadAll(res.Body)
	want := stormBody(tag, f.size)
	switch {
	case res.StatusCode != 200:
		c.broken++
		if f.cut < 0 || res.StatusCode != 502 || err != nil || !strings.Contains(string(body), "OperationOutcome") || strings.Contains(string(body), "note") {
			c.Errorf("%s, %+v: %d %.300s %v", tag, f, res.StatusCode, body, err)
		}
	case !strings.HasPrefix(want, string(body)) || res.Header.Get("ETag") != `W/"`+tag+`"`:
		c.Errorf("%s got %s with a body that is not its own: %.300q", tag, res.Header.Get("ETag"), body)
	case err != nil:
		c.broken++
		if f.cut < 0 {
			c.Errorf("%s, %+v: its reply breaks off after %d bytes: %v", tag, f, len(body), err)
		}
	case f.cut >= 0 || string(body) != want:
		c.Errorf("%s takes %d of %d bytes for whole", tag, len(body), len(want))
	default:
		c.whole++
	}
	return err == nil && !res.Close
}

func TestStorm(t *testing.T) {
	before, open := goleak.IgnoreCurrent(), descriptors(t)
	t.Run("both hops", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.upstream.script(stormServer(t))
		callers := make([]*stormCaller, stormCallers)
		var all sync.WaitGroup
		for i := range callers {
			callers[i] = &stormCaller{T: t, address: w.sharedAddress(w.ehr), token: w.issuer.token(t, "ehr")}
			all.Go(func() { callers[i].run(fmt.Sprint("c", i)) })
		}
		all.Wait()
		whole, broken, seen := 0, 0, map[string]bool{}
		for _, c := range callers {
			whole, broken = whole+c.whole, broken+c.broken
			for _, d := range c.decisions {
				if d == "" || seen[d] {
					t.Errorf("the decision %q is none, or another call's", d)
				}
				seen[d] = true
			}
		}
		t.Logf("%d calls were answered whole, %d were seen to be broken off", whole, broken)
		if whole < stormCallers*stormCalls/2 || broken == 0 {
			t.Errorf("%d whole and %d broken are no storm", whole, broken)
		}
		// And then it is quiet: the next one is served as ever.
		w.upstream.says(fhirReply)
		if a := w.call(w.portal, plainRead(w)); a.status != 200 || a.body != observation("1", "a") {
			t.Errorf("afterwards: %d %s", a.status, a.body)
		}
	})
	// What ends, ends a little later.
	var left error
	for enough := time.Now().Add(patience); time.Now().Before(enough); {
		if left = goleak.Find(before); left == nil && descriptors(t) <= open {
			return
		}
	}
	t.Errorf("left are %d descriptors, before there were %d, and %v", descriptors(t), open, left)
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
