package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// 1-6 and 9, as far as one request plays them.
func refusedFraming() []refused {
	const te, body = "Transfer-Encoding: ", "0\r\n\r\n"
	rows := []refused{
		posted("1 Content-Length, Transfer-Encoding", body, "Content-Length: 5", te+"chunked"),
		posted("1 Transfer-Encoding, Content-Length", body, te+"chunked", "Content-Length: 5"),
		posted("1 Content-Length: 0, Transfer-Encoding", body, "Content-Length: 0", te+"chunked"),
		posted("1 in other spellings", body, "content-LENGTH:5", "tRANSFER-encoding:chunked"),
		got("1 in a GET", proxy.CauseMalformed, hostLine, "Content-Length: 5", te+"chunked"),

		posted("2 Content-Length twice, equal", "x", "Content-Length: 1", "Content-Length: 1"),
		posted("2 Content-Length twice, differing", "x", "Content-Length: 1", "Content-Length: 0"),
		posted("2 Content-Length twice in two spellings", "x", "Content-Length: 1", "CONTENT-LENGTH: 1"),
		posted("2 Content-Length: 5, 5", "xxxxx", "Content-Length: 5, 5"),
		posted("2 Content-Length: 5,", "xxxxx", "Content-Length: 5,"),
		posted("2 Content-Length: +5", "xxxxx", "Content-Length: +5"),
		posted("2 Content-Length: -5", "xxxxx", "Content-Length: -5"),
		posted("2 Content-Length: 0x5", "xxxxx", "Content-Length: 0x5"),
		posted("2 Content-Length: 5 5", "xxxxx", "Content-Length: 5 5"),
		posted("2 Content-Length: 5.0", "xxxxx", "Content-Length: 5.0"),
		posted("2 Content-Length in other digits", "x", "Content-Length: \u0661"),
		posted("2 Content-Length empty", "", "Content-Length:"),
		posted("2 Content-Length of blanks", "", "Content-Length: \t "),
		posted("2 Content-Length of 19 digits", "x", "Content-Length: 0000000000000000001"),
		posted("2 Content-Length of 2^64+1", "x", "Content-Length: 18446744073709551617"),

		{name: "3 Transfer-Encoding in HTTP/1.0", raw: rawHead(postLine+" HTTP/1.0", hostLine, fhirJSON, te+"chunked") + body, cause: proxy.CauseMalformed},
	}
	for name, value := range map[string]string{
		"in capitals": te + "CHUNKED", "gzip": te + "gzip", "gzip, chunked": te + "gzip, chunked", "chunked, gzip": te + "chunked, gzip",
		"chunked, chunked": te + "chunked, chunked", "identity": te + "identity", "identity, chunked": te + "identity, chunked", "with a parameter": te + "chunked;q=1",
		"in quotes": te + `"chunked"`, "with a comma": te + "chunked,", "with a comma before": te + ",chunked", "nothing": te,
		"padded by two spaces": te + " chunked", "padded by a tab": te + "\tchunked", "padded behind": te + "chunked ", "padded behind by a tab": te + "chunked\t",
		"xchunked": te + "xchunked", "in two fields": te + "chunked\r\n" + te + "chunked", "in two fields, one other": te + "chunked\r\n" + te + "identity",
		"in two fields, the other first": te + "identity\r\n" + te + "chunked",
	} {
		rows = append(rows, posted("3 Transfer-Encoding "+name, body, value).with(proxy.CauseUnsupported))
	}
	const rest = "\r\nx\r\n0\r\n\r\n"
	for name, chunks := range map[string]string{
		"bare LF": "1\nx\r\n0\r\n\r\n", "bare LF behind the data": "1\r\nx\n0\r\n\r\n", "bare LF behind the last": "1\r\nx\r\n0\n\r\n", "bare LF at the end": "1\r\nx\r\n0\r\n\n",
		"bare CR": "1\rx\r\n0\r\n\r\n", "0x": "0x1" + rest, "+": "+1" + rest, "-": "-1" + rest, "a space before": " 1" + rest, "a space behind": "1 " + rest,
		"a tab behind": "1\t" + rest, "a space before an extension": "1 ;a" + rest, "nothing": rest, "an extension alone": ";a" + rest, "no digit": "g" + rest, "_": "1_0" + rest,
		"overflow of 64 bits": "10000000000000001" + rest, "overflow of 63 bits": "8000000000000000" + rest, "zeros without end": strings.Repeat("0", 400) + "1" + rest,
		"missing CRLF": "1\r\nxy\r\n0\r\n\r\n", "missing CR": "1\r\nx0\r\n\r\n", "a chunk that is shorter than its size": "5\r\nx\r\n0\r\n\r\n0\r\n\r\n",
		"NUL": "1\x00" + rest,
	} {
		rows = append(rows, chunked("4 chunk size with "+name, chunks))
	}
	for name, chunks := range map[string]string{
		"bare LF": "1;a\nx\r\n0\r\n\r\n", "bare CR": "1;a\rb" + rest, "CR CR LF": "1;a\r" + rest, "LF in a quoted value": "1;a=\"\n\"" + rest, "CR LF in a quoted value": "1;a=\"\r\n\"" + rest,
		"NUL": "1;a\x00" + rest, "bare LF in the last": "1\r\nx\r\n0;a\n\r\n", "257 bytes": "1;" + strings.Repeat("a", 256) + rest,
		"16 KB": "1;" + strings.Repeat("a", 16<<10) + rest, "a little in each of many chunks": strings.Repeat("1;abcdefgh\r\n \r\n", 100) + "0\r\n\r\n",
		"300 bytes in the last": "1\r\nx\r\n0;" + strings.Repeat("a", 300) + "\r\n\r\n",
	} {
		rows = append(rows, chunked("4 extension with "+name, chunks))
	}
	const data = "1\r\nx\r\n0\r\n"
	for name, trailers := range map[string]string{
		"a space before the colon": "X : y\r\n\r\n", "no colon": "X\r\n\r\n", "an empty name": ": y\r\n\r\n", "a folded line": "X: y\r\n z\r\n\r\n", "bare LF": "X: y\n\r\n",
		"bare CR": "X: y\rz\r\n\r\n", "NUL": "X: \x00\r\n\r\n", "100 KB": "X: " + strings.Repeat("y", 100<<10) + "\r\n\r\n", "101 fields": strings.Join(many(101), "\r\n") + "\r\n\r\n",
		"a request in their place": request(getLine, ""),
	} {
		rows = append(rows, chunked("5 trailers with "+name, data+trailers))
	}
	for name, lines := range map[string][]string{
		"a bare CR in a value": {hostLine, "X: a\rY: b"}, "a bare CR at a line's start": {hostLine, "\rX: a"}, "NUL in a value": {hostLine, "X: a\x00"}, "NUL in a name": {hostLine, "X\x00: a"},
		"DEL in a value": {hostLine, "X: a\x7f"}, "a folded field": {hostLine, "X: a", " b"}, "a field folded by a tab": {hostLine, "X: a", "\tb"}, "a folded first field": {" " + hostLine},
		"a space before the colon": {hostLine, "X : a"}, "a tab before the colon": {hostLine, "X\t: a"}, "an empty name": {hostLine, ": a"}, "a line without a colon": {hostLine, "X"},
		"a byte above 0x7f in a name": {hostLine, "X\xe9: a"}, "a separator in a name": {hostLine, "X(y): a"}, "a space in a name": {hostLine, "X y: a"},
		"a vertical tab in a value": {hostLine, "X: a\vb"}, "a bare LF in a value": {hostLine, "X: a\nY: b"},
	} {
		rows = append(rows, got("6 "+name, proxy.CauseMalformed, lines...))
	}
	for name, raw := range map[string]string{
		"a bare LF behind the request line": getLine + " HTTP/1.1\n" + hostLine + "\r\n\r\n", "a bare LF behind a field": getLine + " HTTP/1.1\r\n" + hostLine + "\nX: y\r\n\r\n",
		"a bare LF at the end": getLine + " HTTP/1.1\r\n" + hostLine + "\r\n\n", "bare LFs alone": getLine + " HTTP/1.1\n" + hostLine + "\n\n",
		"a bare CR behind the request line": getLine + " HTTP/1.1\r" + hostLine + "\r\n\r\n", "CR CR LF": getLine + " HTTP/1.1\r\r\n" + hostLine + "\r\n\r\n",
		"a leading CRLF": "\r\n" + request(getLine, ""), "a leading LF": "\n" + request(getLine, ""), "a leading space": " " + request(getLine, ""), "leading CRLFs": "\r\n\r\n" + request(getLine, ""),
		"two spaces before the version": rawHead(getLine+"  HTTP/1.1", hostLine), "two spaces before the target": rawHead("GET  /fhir/Patient/a HTTP/1.1", hostLine),
		"a tab before the version": rawHead(getLine+"\tHTTP/1.1", hostLine), "a tab before the target": rawHead("GET\t/fhir/Patient/a HTTP/1.1", hostLine),
		"a space behind the version": rawHead(getLine+" HTTP/1.1 ", hostLine), "a space in the target": rawHead("GET /fhir/Patient/a b HTTP/1.1", hostLine),
		"NUL in the target": rawHead(getLine+"\x00 HTTP/1.1", hostLine), "no target": rawHead("GET HTTP/1.1", hostLine), "an empty target": rawHead("GET  HTTP/1.1", hostLine),
		"HTTP/0.9": getLine + "\r\n\r\n", "HTTP/0.9 by name": rawHead(getLine+" HTTP/0.9", hostLine), "HTTP/1.2": rawHead(getLine+" HTTP/1.2", hostLine), "HTTP/2.0": rawHead(getLine+" HTTP/2.0", hostLine),
		"HTTP/2": rawHead(getLine+" HTTP/2", hostLine), "HTTP/1": rawHead(getLine+" HTTP/1", hostLine), "HTTP/1.10": rawHead(getLine+" HTTP/1.10", hostLine), "HTTP/11.1": rawHead(getLine+" HTTP/11.1", hostLine),
		"http/1.1": rawHead(getLine+" http/1.1", hostLine), "HTTPS/1.1": rawHead(getLine+" HTTPS/1.1", hostLine), "ICY": rawHead(getLine+" ICY/1.1", hostLine),
		"no method": rawHead(" /fhir/Patient/a HTTP/1.1", hostLine), "a method that is no token": rawHead("G(T /fhir/Patient/a HTTP/1.1", hostLine), "TLS where none is spoken": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
	} {
		rows = append(rows, refused{name: "6 " + name, raw: raw, cause: proxy.CauseMalformed})
	}
	return append(rows,
		posted("9 another expectation", "x", "Expect: a miracle", "Content-Length: 1"),
		posted("9 two expectations", "x", "Expect: 100-continue", "Expect: 100-continue", "Content-Length: 1"),
		posted("9 an expectation and another", "x", "Expect: 100-continue, a miracle", "Content-Length: 1"))
}

func framingBehaviours() []behaviour {
	const both = atEgress + " " + atIngress
	return []behaviour{
		{"5 trailers are dropped", both, testTrailersAreDropped},
		{"5 trailers of replies are dropped", both, testReplyTrailersAreDropped},
		{"7 replies that are none, from the FHIR server", atIngress, testHostileReplies},
		{"7 replies that are none", both, testReplyFraming},
		{"7 replies without a body", both, testRepliesWithoutABody},
		{"7 an early reply during an upload", both, testEarlyRefusalDuringUpload},
		{"7 a reply that breaks off", both, testBrokenReplyLooksBroken},
		{"7 bytes after the body", both, testBytesAfterReplies},
		{"7 a reply cut at each byte", both, testReplyCutAtEachByte},
		{"8 pipelined requests are each decided", both, testPipelinedRequests},
		{"9 Expect: 100-continue is honoured", both, testExpectContinue},
		{"9 a caller that goes away", both, testCallerGoesAway},
		{"9 a caller that goes away amid its body", both, testCallerGoesAwayAmidItsBody},
	}
}

// 8: each of several requests on one connection is decided on by itself, and a bad one ends it.
func testPipelinedRequests(t *testing.T) {
	for _, h := range hops {
		for name, bad := range map[string]string{
			"a bad head":           "GET /fhir/Observation/1 HTTP/1.1\r\nHost : " + serviceName + "\r\n\r\n",
			"two lengths":          rawHead(postLine+" HTTP/1.1", hostLine, "Content-Length: 0", "Content-Length: 4") + "GET ",
			"a length and chunks":  rawHead(postLine+" HTTP/1.1", hostLine, "Content-Length: 4", "Transfer-Encoding: chunked") + "0\r\n\r\n",
			"a GET with a request": request("GET /fhir/Observation/1", request("GET /fhir/Observation/2", ""), bearer("TOKEN")),
		} {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				if contains(name, "GET") && h.name == proxy.HopEgress {
					return // which leaves the judgement to ingress
				}
				w := newWorld(t, setup{})
				c := h.dial(w, w.portal)
				good := request("GET /fhir/Observation/1", "", bearer(w.token()))
				forbidden := request("GET /fhir/Account/1", "", bearer(w.token()))
				if _, err := io.WriteString(c, good+forbidden+good+strings.ReplaceAll(bad, "TOKEN", w.token())+good); err != nil {
					t.Fatal(err)
				}
				in := newReader(c)
				ids := map[string]bool{}
				for _, want := range []int{200, 403, 200, 400} {
					a := read(t, in, good)
					if a.status != want || ids[a.decision()] || a.decision() == "" || len(w.trail.of(h.name, a.decision())) == 0 && h.name == proxy.HopIngress {
						t.Errorf("got %d %q, want %d and an id of its own", a.status, a.decision(), want)
					}
					ids[a.decision()] = true
				}
				wantSilence(t, in)
				if n := len(w.upstream.all()); n != 2 {
					t.Errorf("%d requests reached the FHIR server, want 2", n)
				}
			})
		}
	}
}

// 5: nor do those of a reply reach anybody.
func testReplyTrailersAreDropped(t *testing.T) {
	raw := func(body string) string {
		return "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nWard-Decision: " + someDecision + "\r\nTransfer-Encoding: chunked\r\nTrailer: Ward-Decision, X-Forged\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\nWard-Decision: forged\r\nX-Forged: forged\r\n\r\n", len(body), body)
	}
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			next := w.upstream
			if h.name == proxy.HopEgress {
				next = w.nextWard(w.self.svid.Load())
			}
			next.always(raw(observation("1", "a")))
			c := h.dial(w, w.portal)
			for range 2 { // the second finds nothing of the first's left
				if _, err := io.WriteString(c, plainRead(w)); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(newReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if all := toJSON(res.Header) + toJSON(res.Trailer); res.StatusCode != 200 || err != nil || string(body) != observation("1", "a") || contains(all, "orged") || res.Header["Trailer"] != nil {
					t.Errorf("%d %s %q, %v", res.StatusCode, all, body, err)
				}
			}
		})
	}
}

// 9: egress has begun to send a body on when its caller goes away: the next ward is to know, and not to wait.
func testCallerGoesAwayAmidItsBody(t *testing.T) {
	for name, half := range map[string]string{
		"length": "Content-Length: 100000\r\n\r\n{", "chunks": "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"res\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			next := w.nextWard(w.self.svid.Load())
			c := w.dialEgress(w.ehr)
			if _, err := io.WriteString(c, postLine+" HTTP/1.1\r\n"+hostLine+"\r\n"+half); err != nil {
				t.Fatal(err)
			}
			next.arrives(t)
			_ = c.Close()
			next.isLeft(t)
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress })[0]
			if r.Cause != proxy.CauseTimeout || r.Complete {
				t.Errorf("%s", toJSON(r))
			}
		})
	}
}
