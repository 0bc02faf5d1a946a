package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// 7: a reply that is cut, after whichever byte, from the FHIR server or from the next ward, is never taken for whole:
// neither by the caller nor in the trail.
func testReplyCutAtEachByte(t *testing.T) {
	const body = `{"resourceType":"Basic","id":"1"}`
	half := len(body) / 2
	for _, h := range hops {
		head := "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\n"
		if h.name == proxy.HopEgress {
			head += "Ward-Decision: " + someDecision + "\r\n"
		}
		for framing, raw := range map[string]string{
			"a length": head + "Content-Length: " + itoa(len(body)) + "\r\n\r\n" + body,
			"chunks":   fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", head, half, body[:half], len(body)-half, body[half:]),
			"its end":  head + "\r\n" + body,
		} {
			if framing == "its end" && h.name == proxy.HopEgress {
				continue // over TLS such a reply is none (RFC 9112 §9.8)
			}
			t.Run(string(h.name)+"/"+framing, func(t *testing.T) {
				w := newWorld(t, setup{})
				next := w.answering(h, "")
				call := plainRead(w)
				var conn net.Conn
				calls, whole := 0, 0
				see := func(cut int) {
					next.script(func(c net.Conn, _ *received) bool {
						_, _ = io.WriteString(c, raw[:cut])
						if framing == "its end" && cut < len(raw) { // where an end that is none is a reset
							reset(c)
						}
						return false
					})
					if conn == nil {
						conn = h.dial(w, w.portal)
					}
					a := attempted(conn, call)
					if a.err != nil || a.close {
						_ = conn.Close()
						conn = nil
					}
					calls++
					switch {
					case cut == len(raw):
						if whole++; a.status != 200 || a.err != nil || a.body != body {
							t.Errorf("whole: %d %q %v", a.status, a.body, a.err)
						}
					case a.status == 200 && a.err == nil:
						t.Errorf("cut after %d of %d bytes, the caller takes %q for whole", cut, len(raw), a.body)
					case a.status == 0: // cut before the answer's head was out
					case a.status == 200 && !strings.HasPrefix(body, a.body), a.status != 200 && (a.status != 502 || a.err != nil):
						t.Errorf("cut after %d of %d bytes: %d %q %v", cut, len(raw), a.status, a.body, a.err)
					}
				}
				for cut := range len(raw) {
					if see(cut); cut%3 == 2 {
						see(len(raw)) // a ward that fails again and again would be given a moment
					}
				}
				see(len(raw))
				if n := len(next.all()); n != calls {
					t.Errorf("%d calls came to where they were to be answered, want %d", n, calls)
				}
				stage := map[proxy.Hop]proxy.Stage{proxy.HopEgress: proxy.StageEgress, proxy.HopIngress: proxy.StageOutcome}[h.name]
				complete := func(r *proxy.Record) bool {
					return r.Hop == h.name && r.Stage == stage && r.Status == 200 && r.Complete
				}
				if n := len(w.trail.await(t, whole, complete)); n != whole {
					t.Errorf("the trail takes %d replies for whole, want %d", n, whole)
				}
			})
		}
	}
}

// attempted is a call that need not be answered.
func attempted(c net.Conn, raw string) *answer {
	if _, err := io.WriteString(c, raw); err != nil {
		return &answer{err: err}
	}
	res, err := http.ReadResponse(newReader(c), nil)
	if err != nil {
		return &answer{err: err}
	}
	body, err := io.ReadAll(res.Body)
	return &answer{status: res.StatusCode, header: res.Header, body: string(body), err: err, close: res.Close}
}

// reset makes the end of a connection one that is no end of what was sent on it.
func reset(c net.Conn) {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = over.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}
