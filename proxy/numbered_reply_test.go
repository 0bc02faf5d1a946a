package proxy_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// 7: what PROXY.md asks of replies, from the FHIR server to ingress and from the next ward to egress.

// answering makes the peer that h's ward calls answer with raw and keep the connection, whatever it says.
func (w *world) answering(h hop, raw string) *upstream {
	next := w.upstream
	if h.name == proxy.HopEgress {
		next = w.nextWard(w.self.svid.Load())
	}
	next.script(func(c net.Conn, _ *received) bool {
		_, err := io.WriteString(c, raw)
		if err != nil { // the peer has ended it before all was written
			next.ended()
		}
		return err == nil
	})
	return next
}

// fresh sees that no connection has been used twice.
func (u *upstream) fresh(t testing.TB, want int) {
	t.Helper()
	seen := map[int]bool{}
	for _, r := range u.all() {
		if seen[r.conn] {
			t.Error("a connection on which a reply was none was used again")
		}
		seen[r.conn] = true
	}
	if len(seen) != want {
		t.Errorf("%d connections, want %d", len(seen), want)
	}
}

func testReplyFraming(t *testing.T) {
	const leak, ward, media = "Zebra4711", "Ward-Decision: " + someDecision, "Content-Type: application/fhir+json"
	lines := func(l ...string) string { return strings.Join(append(l, ward, media), "\r\n") + "\r\n\r\n" + leak }
	heads := map[string]string{
		"two lengths, equal": lines("HTTP/1.1 200 OK", "Content-Length: 9", "Content-Length: 9"), "two lengths, differing": lines("HTTP/1.1 200 OK", "Content-Length: 9", "Content-Length: 1"),
		"a list of lengths": lines("HTTP/1.1 200 OK", "Content-Length: 9, 9"), "a signed length": lines("HTTP/1.1 200 OK", "Content-Length: +9"), "an empty length": lines("HTTP/1.1 200 OK", "Content-Length:"),
		"a length of 19 digits": lines("HTTP/1.1 200 OK", "Content-Length: 0000000000000000009"), "a negative length": lines("HTTP/1.1 200 OK", "Content-Length: -9"),
		"a length and chunks": lines("HTTP/1.1 200 OK", "Content-Length: 9", "Transfer-Encoding: chunked"), "chunks and a length": lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 9"),
		"chunks in capitals": lines("HTTP/1.1 200 OK", "Transfer-Encoding: CHUNKED"), "chunks twice": lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
		"gzip, chunked": lines("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"), "identity": lines("HTTP/1.1 200 OK", "Transfer-Encoding: identity"), "chunks padded": lines("HTTP/1.1 200 OK", "Transfer-Encoding:  chunked"),
		"chunks in HTTP/1.0": lines("HTTP/1.0 200 OK", "Transfer-Encoding: chunked"), "a bare LF": "HTTP/1.1 200 OK\n" + lines("Content-Length: 9"), "a bare LF behind a field": "HTTP/1.1 200 OK\r\nX: y\n" + lines("Content-Length: 9"),
		"a bare CR": lines("HTTP/1.1 200 OK", "Content-Length: 9", "X: y\rz"), "NUL": lines("HTTP/1.1 200 OK", "Content-Length: 9", "X: \x00"), "a folded field": lines("HTTP/1.1 200 OK", "Content-Length: 9", "X: y", " z"),
		"a space before the colon": lines("HTTP/1.1 200 OK", "Content-Length : 9"), "an empty name": lines("HTTP/1.1 200 OK", "Content-Length: 9", ": x"), "a line without a colon": lines("HTTP/1.1 200 OK", "Content-Length: 9", "X"),
		"a leading CRLF": "\r\n" + lines("HTTP/1.1 200 OK", "Content-Length: 9"), "two spaces": lines("HTTP/1.1  200 OK", "Content-Length: 9"), "a tab": lines("HTTP/1.1\t200 OK", "Content-Length: 9"),
		"HTTP/0.9": leak + "\r\n\r\n", "HTTP/1.2": lines("HTTP/1.2 200 OK", "Content-Length: 9"), "HTTP/2.0": lines("HTTP/2.0 200 OK", "Content-Length: 9"), "HTTP/2": lines("HTTP/2 200 OK", "Content-Length: 9"),
		"http/1.1": lines("http/1.1 200 OK", "Content-Length: 9"), "a status of two digits": lines("HTTP/1.1 20 OK", "Content-Length: 9"), "a status of four digits": lines("HTTP/1.1 2000 OK", "Content-Length: 9"),
		"a status below 100": lines("HTTP/1.1 099 OK", "Content-Length: 9"), "a status beyond 599": lines("HTTP/1.1 799 OK", "Content-Length: 9"), "no status": lines("HTTP/1.1 OK", "Content-Length: 9"),
		"101": lines("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"), "an interim reply with a length": "HTTP/1.1 103 Early Hints\r\nContent-Length : 9\r\n\r\n" + lines("HTTP/1.1 200 OK", "Content-Length: 9"),
		"a flood of 100": strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5000) + lines("HTTP/1.1 200 OK", "Content-Length: 9"),
		"a flood of 103": strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <"+leak+">\r\n\r\n", 5000) + lines("HTTP/1.1 200 OK", "Content-Length: 9"),
		"500 fields":     lines(append([]string{"HTTP/1.1 200 OK", "Content-Length: 9"}, many(500)...)...), "a head of 100 KB": lines("HTTP/1.1 200 OK", "Content-Length: 9", "X: "+strings.Repeat("y", 100<<10)),
	}
	bodies := map[string]string{}
	for name, chunks := range map[string]string{
		"bare LF": "1\n{\r\n0\r\n\r\n", "bare LF behind the data": "1\r\n{\n0\r\n\r\n", "0x": "0x1\r\n{\r\n0\r\n\r\n", "a sign": "+1\r\n{\r\n0\r\n\r\n", "a space": "1 \r\n{\r\n0\r\n\r\n",
		"overflow": "10000000000000001\r\n{\r\n0\r\n\r\n", "missing CRLF": "1\r\n{}\r\n0\r\n\r\n", "no size": "\r\n{\r\n0\r\n\r\n", "LF in an extension": "1;a\n{\r\n0\r\n\r\n", "CR in an extension": "1;a\rb\r\n{\r\n0\r\n\r\n",
		"extensions beyond their budget": "1;" + strings.Repeat("a", 300) + "\r\n{\r\n0\r\n\r\n", "a trailer that is none": "2\r\n{}\r\n0\r\nX : y\r\n\r\n", "a folded trailer": "2\r\n{}\r\n0\r\nX: y\r\n z\r\n\r\n",
		"trailers of 100 KB": "2\r\n{}\r\n0\r\nX: " + strings.Repeat("y", 100<<10) + "\r\n\r\n",
	} {
		bodies["chunk with "+name] = "HTTP/1.1 200 OK\r\n" + ward + "\r\n" + media + "\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
	}
	for _, h := range hops {
		for name, raw := range heads {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				next := w.answering(h, raw)
				a := send(t, h.dial(w, w.portal), callKinds()["search"](w))
				w.checkRefusal(t, a, h.name, proxy.CauseUpstream)
				if contains(toJSON(a.header)+a.body+toJSON(w.trail.of(h.name, a.decision())), leak) {
					t.Errorf("it leaked: %s %s", toJSON(a.header), a.body)
				}
				next.isLeft(t)
				next.fresh(t, 1)
			})
		}
		for name, raw := range bodies {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				next := w.answering(h, raw)
				a := send(t, h.dial(w, w.portal), callKinds()["search"](w))
				if h.name == proxy.HopIngress { // which has read a search's reply whole before it releases any of it
					w.checkRefusal(t, a, h.name, proxy.CauseUpstreamReply)
				} else if r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == h.name })[0]; a.err == nil || r.Complete {
					t.Errorf("the caller takes %q for whole, and the trail %s", a.body, toJSON(r))
				}
				next.isLeft(t)
				next.fresh(t, 1)
			})
		}
	}
}

// unasked are replies with more behind them than the request had asked for.
func unasked() map[string]struct{ line, raw string } {
	const ok, injected = "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nWard-Decision: " + someDecision + "\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected"
	body := observation("1", "a")
	length := "Content-Length: " + itoa(len(body)) + "\r\n\r\n"
	return map[string]struct{ line, raw string }{
		"a length":             {"GET", ok + length + body + injected},
		"chunks":               {"GET", ok + "Transfer-Encoding: chunked\r\n\r\n" + "1\r\n{\r\n" + "0\r\n\r\n" + injected},
		"no body":              {"GET", ok + "Content-Length: 0\r\n\r\n" + injected},
		"a CRLF more":          {"GET", ok + length + body + "\r\n"},
		"a body to HEAD":       {"HEAD", ok + length + body},
		"chunks to HEAD":       {"HEAD", ok + "Transfer-Encoding: chunked\r\n\r\n8\r\ninjected\r\n0\r\n\r\n"},
		"a reply after HEAD":   {"HEAD", ok + length + injected},
		"204 with a body":      {"GET", "HTTP/1.1 204 No Content\r\nWard-Decision: " + someDecision + "\r\n\r\ninjected"},
		"204 with a length":    {"GET", "HTTP/1.1 204 No Content\r\nWard-Decision: " + someDecision + "\r\nContent-Length: 8\r\n\r\ninjected"},
		"204 with chunks":      {"GET", "HTTP/1.1 204 No Content\r\nWard-Decision: " + someDecision + "\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ninjected\r\n0\r\n\r\n"},
		"304 with a body":      {"GET", "HTTP/1.1 304 Not Modified\r\nWard-Decision: " + someDecision + "\r\n\r\ninjected"},
		"304 with its length":  {"GET", "HTTP/1.1 304 Not Modified\r\nWard-Decision: " + someDecision + "\r\nContent-Length: 8\r\n\r\ninjected"},
		"two replies to HEAD":  {"HEAD", ok + length + ok + length},
		"a reply without body": {"GET", "HTTP/1.1 304 Not Modified\r\nWard-Decision: " + someDecision + "\r\n\r\n" + injected},
	}
}

// A connection on which more came than was asked for is never used again, and nobody gets what came.
func testBytesAfterReplies(t *testing.T) {
	for _, h := range hops {
		for name, c := range unasked() {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				next := w.answering(h, c.raw)
				for range 3 {
					conn := h.dial(w, w.portal)
					a := send(t, conn, request(c.line+" /fhir/Observation/1", "", bearer(w.token()), `If-None-Match: W/"1"`))
					if contains(a.body+toJSON(a.header), "injected") || a.status < 200 || a.decision() == "" || c.line == "HEAD" && a.body != "" {
						t.Errorf("%d %s", a.status, a.body)
					}
					_ = conn.Close()
				}
				next.fresh(t, 3)
			})
		}
	}
}

// Replies that have no body have none, whatever they say of one, and leave their connection as good as it was.
func testRepliesWithoutABody(t *testing.T) {
	const ward = "Ward-Decision: " + someDecision
	for name, c := range map[string]struct {
		line, raw string
		status    int
	}{
		"HEAD with a length":   {"HEAD", rawHead("HTTP/1.1 200 OK", ward, fhirJSON, "Content-Length: 50"), 200},
		"HEAD with chunks":     {"HEAD", rawHead("HTTP/1.1 200 OK", ward, fhirJSON, "Transfer-Encoding: chunked"), 200},
		"HEAD with neither":    {"HEAD", rawHead("HTTP/1.1 200 OK", ward, fhirJSON), 200},
		"304 with a length":    {"GET", rawHead("HTTP/1.1 304 Not Modified", ward, "Content-Length: 50", `ETag: W/"1"`), 304},
		"304 without one":      {"GET", rawHead("HTTP/1.1 304 Not Modified", ward, `ETag: W/"1"`), 304},
		"404 of no bytes":      {"GET", rawHead("HTTP/1.1 404 Not Found", ward, "Content-Length: 0"), 404},
		"after interim ones":   {"HEAD", rawHead("HTTP/1.1 100 Continue") + rawHead("HTTP/1.1 103 Early Hints", "Link: <x>") + rawHead("HTTP/1.1 200 OK", ward, fhirJSON, "Content-Length: 50"), 200},
		"204 without a length": {"DELETE", rawHead("HTTP/1.1 204 No Content", ward), 204},
	} {
		for _, h := range hops {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				next := w.answering(h, c.raw)
				conn := h.dial(w, w.ehr)
				for range 3 {
					a := send(t, conn, request(c.line+" /fhir/Observation/1", "", bearer(w.issuer.token(t, "ehr")), `If-None-Match: W/"1"`))
					if a.status != c.status || a.body != "" || a.err != nil || a.close || a.header.Get("Transfer-Encoding") != "" || a.header.Get("Link") != "" {
						t.Errorf("%d %v %q", a.status, a.header, a.body)
					}
				}
				for _, r := range next.all() {
					if r.conn != 1 {
						t.Error("a connection was given up for nothing")
					}
				}
			})
		}
	}
}
