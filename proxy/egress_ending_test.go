package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// deny ends the process's identity, and returns once egress has cut answered, a connection of its that has been answered.
func (p *process) deny(t *testing.T, answered net.Conn) {
	t.Helper()
	var denied error = proxy.Refuse(proxy.CauseDenyList, "denied")
	p.ended.Store(&denied)
	close(p.over)
	if n, err := answered.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("a connection that rests is not cut: %d bytes, %v", n, err)
	}
}

// Who has connected, or calls for the first time, while the end of its identity is on its way to egress hears of it as
// whoever comes later does: by a refusal with a decision and a record, and never by a connection that just ends.
func TestIdentityThatEndsBeforeTheFirstAnswer(t *testing.T) {
	get, body := request("GET /fhir/Patient/a", ""), `{"resourceType":"Observation"}`
	post, _, _ := strings.Cut(request("POST /fhir/Observation", body, "Content-Type: application/fhir+json", "Expect: 100-continue"), body)
	nothing := func(*testing.T, *upstream, net.Conn) {}
	leaves := func(t *testing.T, u *upstream, _ net.Conn) { u.arrives(t) }
	for name, c := range map[string]struct {
		before string                                // what is sent before the end
		until  func(*testing.T, *upstream, net.Conn) // waits until that is where the case wants it
		after  string                                // what is sent after the end
		stays  bool                                  // the other ward gets to see nothing of it
	}{
		"nothing has come":        {"", nothing, get, true},
		"half a head has come":    {get[:10], nothing, get[10:], true},
		"its body is to come":     {post, isToldToGoOn, body, true},
		"its long body is to end": {request("POST /fhir/Observation", "", "Transfer-Encoding: chunked") + "4\r\n{\"re\r\n", leaves, "", false},
		"its reply is to come":    {get, leaves, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			next := w.nextWard(w.self.svid.Load())
			conn, answered := w.dialEgress(w.portal), w.dialEgress(w.portal)
			if a := send(t, answered, request("GET /fhir/metadata", "")); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			next.arrives(t)
			next.script(func(net.Conn, *received) bool { // never answers
				<-next.stopped
				return false
			})
			if _, err := io.WriteString(conn, c.before); err != nil {
				t.Fatal(err)
			}
			c.until(t, next, conn)
			w.portal.deny(t, answered)
			if _, err := io.WriteString(conn, c.after); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			a := read(t, in, c.before+c.after)
			w.checkRefusal(t, a, proxy.HopEgress, proxy.CauseDenyList)
			r := w.trail.of(proxy.HopEgress, a.decision())[0]
			if r.Caller != w.portal.id.String() || r.Process == "" {
				t.Errorf("%s", toJSON(r))
			}
			if _, err := in.ReadByte(); !a.close || !errors.Is(err, io.EOF) {
				t.Errorf("the connection goes on: %v", err)
			}
			if c.stays {
				next.only(t)
			}
		})
	}
}

// isToldToGoOn waits for 100 (Continue).
func isToldToGoOn(t *testing.T, _ *upstream, c net.Conn) {
	t.Helper()
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	b := make([]byte, len(goOn))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != goOn {
		t.Fatalf("%q %v", b, err)
	}
}
