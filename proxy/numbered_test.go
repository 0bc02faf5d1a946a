package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// The tests that PROXY.md numbers, 1 to 23, through a real pair of wards in front of a FHIR server that records every
// byte. They stand in tables: what a request alone can play is a row of refusals, what needs more is a row of behaviours.
// The tables are in numbered_*_test.go by PROXY.md's groups: framing (1-9), identity (10-15), path (16-18), resource
// (19-23). Each name begins with its number, and TestNumberedIsWhole sees that none of the numbers goes missing.

// Where a numbered test plays.
const (
	atEgress  = string(proxy.HopEgress)  // HTTP/1.1 to the plain listener
	atIngress = string(proxy.HopIngress) // HTTP/1.1 over mTLS, past egress
	byH2      = "h2"                     // HTTP/2 over mTLS, past egress
)

// refused is a request that is refused with this cause, with nothing of it at the FHIR server, on a connection that then
// ends.
type refused struct {
	name  string // its number comes first
	raw   string
	cause proxy.Cause
	only  proxy.Hop           // the hop that this is about; "" is both
	alone bool                // it needs a world of its own
	of    func(*world) string // makes raw where that depends on the world
}

// refusals are all of them.
func refusals() []refused {
	return slices.Concat(refusedFraming(), refusedIdentity(), refusedPath(), refusedResource())
}

// behaviour is a test that plays more than one request.
type behaviour struct {
	name string // its number comes first
	at   string // where: names from above, with blanks between them
	run  func(*testing.T)
}

func behaviours() []behaviour {
	return slices.Concat(framingBehaviours(), identityBehaviours(), pathBehaviours(), resourceBehaviours(), h2Behaviours())
}

// number is what a name begins with.
func number(t testing.TB, name string) int {
	t.Helper()
	digits, _, _ := strings.Cut(name, " ")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > 23 {
		t.Fatalf("%q does not begin with a number of PROXY.md", name)
	}
	return n
}

func TestNumbered(t *testing.T) {
	rows := refusals()
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			for _, r := range rows {
				if r.only != "" && r.only != h.name {
					continue
				}
				t.Run(r.name, func(t *testing.T) {
					w := w
					if r.alone {
						w = newWorld(t, setup{})
					}
					c := h.dial(w, w.portal)
					a := send(t, c, w.row(r))
					w.checkRefusal(t, a, h.name, r.cause)
					wantEnd(t, c, a)
					w.upstream.untouched(t)
				})
			}
		})
	}
	// What only ingress judges is judged there when it comes by way of egress too: egress passes the target's bytes on.
	t.Run("both", func(t *testing.T) {
		w := newWorld(t, setup{})
		for _, r := range rows {
			if r.only != proxy.HopIngress || strings.HasPrefix(r.name, "13") || contains(r.name, "absolute") || contains(r.name, "CONNECT") {
				continue
			}
			t.Run(r.name, func(t *testing.T) {
				w := w
				if r.alone {
					w = newWorld(t, setup{})
				}
				a := w.call(w.portal, w.row(r))
				if len(w.trail.of(proxy.HopIngress, a.decision())) == 0 {
					w.checkRefusal(t, a, proxy.HopEgress, r.cause) // egress's own reader has refused it
				} else {
					w.checkRefusal(t, a, proxy.HopIngress, r.cause)
					out := w.trail.await(t, 1, func(rec *proxy.Record) bool { return rec.Hop == proxy.HopEgress && rec.Peer == a.decision() })
					if out[0].Stage != proxy.StageEgress || out[0].Status != a.status || out[0].Caller != w.portal.id.String() {
						t.Errorf("egress recorded %s", toJSON(out))
					}
				}
				w.upstream.untouched(t)
			})
		}
	})
	for _, b := range behaviours() {
		t.Run(b.name, b.run)
	}
}

// TestNumberedIsWhole looks at the tables, not at what a run has picked of them.
func TestNumberedIsWhole(t *testing.T) {
	found := map[string]map[int]bool{atEgress: {}, atIngress: {}, byH2: {}}
	names := map[string]bool{}
	note := func(name string, places ...string) {
		if names[name] {
			t.Errorf("%q stands there twice", name)
		}
		names[name] = true
		for _, p := range places {
			if found[p] == nil {
				t.Fatalf("%q is tried at %q, which is no place", name, p)
			}
			found[p][number(t, name)] = true
		}
	}
	for _, r := range refusals() {
		if r.only == "" {
			note(r.name, atEgress, atIngress)
		} else {
			note(r.name, string(r.only))
		}
	}
	for _, b := range behaviours() {
		note(b.name, strings.Fields(b.at)...)
	}
	// What a place cannot have, and why.
	const token, path, one = "tokens are read by ingress alone", "paths are read by ingress alone", "there is no such thing by HTTP/2"
	without := map[string]map[int]string{
		atEgress:  {12: token, 18: path, 21: "egress speaks HTTP/1.1 alone"},
		atIngress: {21: "it is about HTTP/2", 23: "its listener is not in plain text"},
		byH2: {3: one + ": 1 refuses every Transfer-Encoding", 4: one, 6: one, 7: "to the FHIR server ward speaks HTTP/1.1",
			23: "egress, which has the plaintext listener, speaks HTTP/1.1 alone"},
	}
	for place, has := range found {
		for n := 1; n <= 23; n++ {
			if why, none := without[place][n]; none == has[n] {
				t.Errorf("%d at %s: tested is %v; why it would not be: %q", n, place, has[n], why)
			}
		}
	}
}

// row is r's request.
func (w *world) row(r refused) string {
	if r.of != nil {
		return r.of(w)
	}
	return w.complete(r.raw)
}

// complete adds a good token to a request that has none, so that nothing but the row's fault can refuse it.
func (w *world) complete(raw string) string {
	if contains(strings.ToLower(raw), "authorization: ") {
		return raw
	}
	head, rest, ok := strings.Cut(raw, "\r\n")
	if !ok {
		return raw
	}
	return head + "\r\n" + bearer(w.token()) + "\r\n" + rest
}

// wantEnd sees that the connection, of which a came, says that it ends, and does, with nothing more on it.
func wantEnd(t testing.TB, c net.Conn, a *answer) {
	t.Helper()
	if !a.close {
		t.Fatal("the connection is said to go on")
	}
	wantSilence(t, c)
}

// wantSilence sees that c ends and brings nothing until then.
func wantSilence(t testing.TB, c io.Reader) {
	t.Helper()
	rest, err := io.ReadAll(c)
	if len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %q, %v", rest, err)
	}
}

// wantRefusal is a refusal as it comes on a connection to which more is being written.
func (w *world) wantRefusal(t testing.TB, c net.Conn, hop proxy.Hop, cause proxy.Cause) {
	t.Helper()
	in := bufio.NewReader(c)
	a := read(t, in, "GET /")
	w.checkRefusal(t, a, hop, cause)
	if !a.close {
		t.Error("the connection is said to go on")
	}
	wantSilence(t, in)
}

// rawHead is a head of these lines.
func rawHead(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

// What most rows are made of.
const (
	getLine  = "GET /fhir/Patient/a"
	postLine = "POST /fhir/Observation"
	fhirJSON = "Content-Type: application/fhir+json"
	hostLine = "Host: " + serviceName
)

// posted is a request with a body of which only the framing is in question.
func posted(name, body string, fields ...string) refused {
	return refused{name: name, raw: rawHead(append([]string{postLine + " HTTP/1.1", hostLine, fhirJSON}, fields...)...) + body, cause: proxy.CauseMalformed}
}

// chunked is a request whose body comes in these chunks.
func chunked(name, chunks string) refused { return posted(name, chunks, "Transfer-Encoding: chunked") }

// got is a GET with these lines after the request line, which it ends.
func got(name string, cause proxy.Cause, lines ...string) refused {
	return refused{name: name, raw: rawHead(append([]string{getLine + " HTTP/1.1"}, lines...)...), cause: cause}
}

// but is r at one hop alone.
func (r refused) but(h proxy.Hop) refused { r.only = h; return r }

// with is r with another cause.
func (r refused) with(c proxy.Cause) refused { r.cause = c; return r }

// many are n fields.
func many(n int) (fields []string) {
	for i := range n {
		fields = append(fields, fmt.Sprintf("X-%d: x", i))
	}
	return fields
}
