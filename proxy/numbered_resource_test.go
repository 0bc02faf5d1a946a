package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// 20 and 22, as far as one request plays them.
func refusedResource() []refused {
	large := func(name string, lines ...string) refused {
		return refused{name: "20 " + name, raw: rawHead(lines...), cause: proxy.CauseHeadTooLarge}
	}
	field := "X: " + strings.Repeat("x", 1<<10)
	var fields []string
	for range 64 {
		fields = append(fields, field)
	}
	const get = getLine + " HTTP/1.1"
	upgrade := func(name string, cause proxy.Cause, lines ...string) refused {
		return got("22 "+name, cause, append([]string{hostLine}, lines...)...)
	}
	key := "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
	return []refused{
		large("a URI of 16 KB", "GET /"+strings.Repeat("a", 16<<10-1)+" HTTP/1.1", hostLine),
		large("a query of 16 KB", getLine+"?"+strings.Repeat("a", 16<<10)+" HTTP/1.1", hostLine),
		large("a URI of 100 KB", "GET /"+strings.Repeat("a", 100<<10)+" HTTP/1.1", hostLine),
		large("a URI without an end", "GET /"+strings.Repeat("a", 16<<10)),
		large("a field of 64 KB", get, hostLine, "X: "+strings.Repeat("x", 64<<10)),
		large("a field of 1 MB", get, hostLine, "X: "+strings.Repeat("x", 1<<20)),
		large("a name of 64 KB", get, hostLine, strings.Repeat("X", 64<<10)+": x"),
		large("64 KB in many fields", append([]string{get, hostLine}, fields...)...),
		large("a field without an end", get, hostLine, "X: "+strings.Repeat("x", 64<<10)),
		large("101 fields", append([]string{get, hostLine}, many(100)...)...),
		large("500 fields", append([]string{get, hostLine}, many(499)...)...),
		large("500 empty fields", append([]string{get, hostLine}, strings.Split(strings.Repeat("X:,", 498)+"X:", ",")...)...),

		upgrade("Upgrade: websocket", proxy.CauseHeaders, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key),
		upgrade("Upgrade: websocket in a list", proxy.CauseHeaders, "Connection: keep-alive, Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13", key),
		upgrade("Upgrade: h2c", proxy.CauseHeaders, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
		upgrade("Upgrade that Connection does not name", proxy.CauseHeaders, "upgrade: h2c"),
		upgrade("Upgrade: TLS", proxy.CauseHeaders, "Connection: Upgrade", "Upgrade: TLS/1.2"),
		upgrade("Upgrade: HTTP/3", proxy.CauseHeaders, "Connection: upgrade", "UPGRADE: HTTP/3.0"),
		upgrade("Upgrade: nothing", proxy.CauseHeaders, "Connection: Upgrade", "Upgrade:"),
		{name: "22 Upgrade in a POST", raw: request(postLine, newObservation, fhirJSON, "Connection: Upgrade", "Upgrade: websocket"), cause: proxy.CauseHeaders},
		{name: "22 Upgrade in an OPTIONS", raw: request("OPTIONS /fhir/metadata", "", "Connection: Upgrade", "Upgrade: h2c"), cause: proxy.CauseHeaders},
		{name: "22 h2 by prior knowledge", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", cause: proxy.CauseMalformed},
		{name: "22 CONNECT for a WebSocket", raw: rawHead("CONNECT "+serviceName+" HTTP/1.1", hostLine, ":protocol: websocket"), cause: proxy.CauseMalformed},
	}
}

func resourceBehaviours() []behaviour {
	const both = atEgress + " " + atIngress
	return []behaviour{
		{"19 a handshake that does not go on", atIngress, testSlowHandshake},
		{"19 a head that does not end", both, testSlowHead},
		{"19 a body that does not come", both, testBodyThatDoesNotCome},
		{"19 a body below the least rate", both, testSlowBody},
		{"19 an answer that nobody reads", both, testSlowReader},
		{"19 connections on which nothing is asked", both, testSilentConnections},
		{"19 the honest meanwhile", both, testSlowPeersDelayNobody},
		{"20 what is just small enough", both, testLargestHeads},
		{"20 one caller takes all connections", atIngress, testAttackOneCallerTakesAllConnections},
		{"20 all callers together", atIngress, testAttackAllCallersTogether},
		{"20 strangers take all connections", atIngress, testAttackStrangersTakeAllConnections},
		{"20 one user's connections to egress", atEgress, testCrowdAtEgress},
		{"23 a process without an identity", atEgress, testProcessWithoutIdentity},
		{"23 a process that cannot be attested", atEgress, testProcessThatCannotBeAttested},
		{"23 a process that ends", atEgress, testProcessThatEnds},
	}
}

// 20: the bounds are where they are said to be.
func testLargestHeads(t *testing.T) {
	for _, h := range hops {
		w := newWorld(t, setup{})
		for name, raw := range map[string]string{
			"a field of 60 KB": request(getLine, "", "X: "+strings.Repeat("x", 60<<10), bearer(w.token())),
			"99 fields":        request(getLine, "", append(many(97), bearer(w.token()))...),
		} {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				if a := send(t, h.dial(w, w.portal), raw); a.status != 200 {
					t.Errorf("%d %s", a.status, a.body)
				}
			})
		}
		t.Run(string(h.name)+"/a URI of 15 KB", func(t *testing.T) {
			target := "/fhir/Observation?code=" + strings.Repeat("a", 15<<10)
			if a := send(t, h.dial(w, w.portal), request("GET "+target, "", bearer(w.token()))); a.status == 431 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// The bounds that follow are short. What must happen is waited for; nothing has to happen within them.
const brief = 100 * time.Millisecond

// slow makes a world whose servers have these bounds.
func slow(t *testing.T, bounds func(*wire.Server)) *world {
	t.Helper()
	return newWorld(t, setup{server: bounds})
}

func testSlowHandshake(t *testing.T) {
	for name, first := range map[string]string{
		"nothing": "", "a record's head": "\x16\x03\x01", "half a ClientHello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 100),
		"a record of no bytes": "\x16\x03\x01\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			w := slow(t, func(s *wire.Server) { s.HandshakeTimeout = brief })
			c := w.dial(w.address)
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection goes on")
			}
			w.awaitHandshakeRefusal(t)
			w.upstream.untouched(t)
		})
	}
}

// trickle writes piece after piece until the connection ends, each when the last has gone and a tick has come.
func trickle(c io.Writer, first, piece string, every time.Duration) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		_, err := io.WriteString(c, first)
		for err == nil {
			<-tick.C
			_, err = io.WriteString(c, piece)
		}
		ended <- err
	}()
	return ended
}

func testSlowHead(t *testing.T) {
	bounds := func(s *wire.Server) { s.HeadTimeout = soon } // from its first byte on, which must come within it, too
	for name, c := range map[string]struct{ first, piece string }{
		"half a line":       {"GET /fh", ""},
		"half a head":       {getLine + " HTTP/1.1\r\n" + hostLine + "\r\n", ""},
		"a byte at a time":  {"GET /", "a"},
		"a field at a time": {getLine + " HTTP/1.1\r\n" + hostLine + "\r\n", "X: y\r\n"},
	} {
		for _, h := range hops {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, setup{})
				w.bounds = bounds
				if h.name == proxy.HopIngress {
					w = slow(t, bounds)
				}
				conn := h.dial(w, w.portal)
				ended := make(chan error, 1)
				if c.piece == "" {
					_, _ = io.WriteString(conn, c.first)
					ended <- nil
				} else {
					ended = trickle(conn, c.first, c.piece, soon/20)
				}
				w.wantRefusal(t, conn, h.name, proxy.CauseTimeout)
				_ = conn.Close()
				<-ended
				w.upstream.untouched(t)
			})
		}
	}
}

// A body that comes, but more slowly than it must.
func testSlowBody(t *testing.T) {
	bounds := func(s *wire.Server) { s.MinRate, s.RateGrace = 1<<20, brief }
	for name, c := range map[string]struct{ first, piece string }{
		"length":                         {"Content-Length: 100000\r\n\r\n{", " "},
		"chunks":                         {"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "1\r\n \r\n"},
		"a chunk that does not end":      {"Transfer-Encoding: chunked\r\n\r\nffff\r\n{", " "},
		"a size that does not end":       {"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", ""},
		"a trailer section without end":  {"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", "X: y\r\n"},
		"a body that stops at its start": {"Content-Length: 100000\r\n\r\n", ""},
	} {
		for _, h := range hops {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				w.bounds = bounds
				if h.name == proxy.HopIngress {
					w = slow(t, bounds)
				}
				conn := h.dial(w, w.ehr)
				head := rawHead(postLine+" HTTP/1.1", hostLine, fhirJSON, bearer(w.issuer.token(t, "ehr")))
				ended := trickle(conn, strings.TrimSuffix(head, "\r\n")+c.first, c.piece, brief/10)
				in := newReader(conn)
				a := read(t, in, head)
				if w.checkRefusal(t, a, h.name, proxy.CauseTimeout); !a.close {
					t.Error("the connection is said to go on")
				}
				_ = conn.Close()
				<-ended
				w.upstream.untouched(t)
			})
		}
	}
}

// An answer without end that its reader lets stand: it is ended, up to the FHIR server, and not taken for whole.
func testSlowReader(t *testing.T) {
	bounds := func(s *wire.Server) { s.MinRate, s.RateGrace = 1<<10, brief }
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			w.bounds = bounds
			if h.name == proxy.HopIngress {
				w = slow(t, bounds)
			}
			w.upstream.script(func(c net.Conn, _ *received) bool {
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n")
				for piece := "10000\r\n" + strings.Repeat("x", 0x10000) + "\r\n"; err == nil; {
					_, err = io.WriteString(c, piece)
				}
				w.upstream.ended()
				return false
			})
			c := h.dial(w, w.portal)
			if _, err := io.WriteString(c, plainRead(w)); err != nil {
				t.Fatal(err)
			}
			w.upstream.isLeft(t)
			stage := proxy.StageOutcome
			if h.name == proxy.HopEgress {
				stage = proxy.StageEgress
			}
			if r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == h.name && r.Stage == stage })[0]; r.Complete || r.Decision == "" {
				t.Errorf("%s", toJSON(r))
			}
		})
	}
}

// A connection on which nothing is asked ends: before its first request, and between two.
func testSilentConnections(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name)+"/before the first request", func(t *testing.T) {
			w := slow(t, func(s *wire.Server) { s.HeadTimeout = brief })
			wantSilence(t, h.dial(w, w.portal))
		})
		t.Run(string(h.name)+"/between two", func(t *testing.T) {
			w := slow(t, func(s *wire.Server) { s.IdleTimeout = brief })
			c := h.dial(w, w.portal)
			in := newReader(c)
			raw := plainRead(w)
			if _, err := io.WriteString(c, raw); err != nil {
				t.Fatal(err)
			}
			if a := read(t, in, raw); a.status != 200 || a.close {
				t.Errorf("%d %s", a.status, a.body)
			}
			wantSilence(t, in)
		})
	}
}

// While others are slow in every phase, a call is served.
func testSlowPeersDelayNobody(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			for range 50 {
				if h.name == proxy.HopIngress {
					_ = w.dial(w.address) // says nothing
				}
				_, _ = io.WriteString(h.dial(w, w.portal), "GET /fh")
				_, _ = io.WriteString(h.dial(w, w.portal), rawHead(postLine+" HTTP/1.1", hostLine, fhirJSON, bearer(w.token()), "Content-Length: 100000")+"{")
			}
			if a := send(t, h.dial(w, w.portal), plainRead(w)); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
			if n := len(w.upstream.all()); n != 1 {
				t.Errorf("%d requests reached the FHIR server", n)
			}
		})
	}
}

// 20, 23: a user whose processes have as many connections open as they may is cut off, recorded, before a byte is read.
func testCrowdAtEgress(t *testing.T) {
	w := newWorld(t, setup{})
	crowd := w.process("/app/portal", func(p *process) {
		p.unknown = proxy.OfProcess("uid 1001", fmt.Errorf("uid 1001: %w", proxy.ErrCrowded))
	})
	c := w.dialEgress(crowd)
	_, _ = io.WriteString(c, request(getLine, "", bearer(w.token())))
	wantSilence(t, c)
	r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress })[0]
	if r.Stage != proxy.StageRefusal || r.Cause != proxy.CauseLimit || r.Process != "uid 1001" || r.Decision == "" {
		t.Errorf("%s", toJSON(r))
	}
	w.upstream.untouched(t)
}
