package proxy_test

import (
	"io"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// The tests that PROXY.md numbers, as far as a request plays them: each is tried on both hops, refused, and nothing of it
// reaches the FHIR server.
func TestNumberedRefusals(t *testing.T) {
	const get = "GET /fhir/Patient/a"
	raw := func(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }
	const post, fhirJSON = "POST /fhir/Observation", "Content-Type: application/fhir+json"
	host := "Host: " + serviceName
	type row struct {
		name  string
		raw   string
		cause proxy.Cause
		only  proxy.Hop // the hop that this is about; "" is both
	}
	rows := []row{
		{"11 Connection names Authorization", request(get, "", "Connection: keep-alive, AUTHORIZATION"), proxy.CauseHeaders, ""},
		{"11 Connection names Host", request(get, "", "Connection: host"), proxy.CauseHeaders, ""},
		{"11 Connection names an identity", request(get, "", "Connection: x-forwarded-client-cert"), proxy.CauseHeaders, ""},
		{"11 Connection names an identity with _", request(get, "", "Connection: Ward_Caller"), proxy.CauseHeaders, ""},
		{"11 Connection names it after an empty line", request(get, "", "Connection:", "Connection: , ,Ward-User"), proxy.CauseHeaders, ""},
		{"11 Connection names a condition", request(get, "", "Connection: If-Match", `If-Match: W/"1"`), proxy.CauseHeaders, ""},
		{"11 Connection names the body's type", request(get, "", "Connection: content_type"), proxy.CauseHeaders, ""},

		{"12 two Authorization fields", request(get, "", "Authorization: Bearer a.b.c", "authorization: Bearer a.b.c"), proxy.CauseTokenMalformed, proxy.HopIngress},
		{"12 two tokens in one field", request(get, "", "Authorization: Bearer a.b.c, Bearer a.b.c"), proxy.CauseTokenMalformed, proxy.HopIngress},
		{"12 a token in the query", request(get+"?access_token=a.b.c", ""), proxy.CauseTokenMalformed, proxy.HopIngress},
		{"12 an oversized token", request(get, "", bearer(strings.Repeat("a", 17<<10))), proxy.CauseTokenMalformed, proxy.HopIngress},
		{"12 alg none", request(get, "", bearer("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.e30.")), proxy.CauseTokenMalformed, proxy.HopIngress},
		{"12 another scheme", request(get, "", "Authorization: Basic YTpi"), proxy.CauseTokenMalformed, proxy.HopIngress},

		{"13 Host missing", raw(get + " HTTP/1.1"), proxy.CauseMalformed, ""},
		{"13 Host empty", raw(get+" HTTP/1.1", "Host:"), proxy.CauseMalformed, ""},
		{"13 Host twice", raw(get+" HTTP/1.1", host, host), proxy.CauseMalformed, ""},
		{"13 Host with @", raw(get+" HTTP/1.1", "Host: a@"+serviceName), proxy.CauseMalformed, ""},
		{"13 Host with /", raw(get+" HTTP/1.1", host+"/x"), proxy.CauseMalformed, ""},
		{`13 Host with \`, raw(get+" HTTP/1.1", host+`\x`), proxy.CauseMalformed, ""},
		{"13 Host with #", raw(get+" HTTP/1.1", host+"#x"), proxy.CauseMalformed, ""},
		{"13 Host with a bad port", raw(get+" HTTP/1.1", host+":99999"), proxy.CauseMalformed, ""},
		{"13 Host with an empty port", raw(get+" HTTP/1.1", host+":"), proxy.CauseMalformed, ""},
		{"13 Host with a signed port", raw(get+" HTTP/1.1", host+":+80"), proxy.CauseMalformed, ""},
		{"13 Host of nobody", raw(get+" HTTP/1.1", "Host: fhir.other.mesh.internal"), proxy.CauseUnknownService, proxy.HopEgress},
		{"13 Host is an address", raw(get+" HTTP/1.1", "Host: 127.0.0.1"), proxy.CauseUnknownService, proxy.HopEgress},
		{"13 Host not the route's", raw(get+" HTTP/1.1", "Host: fhir.other.mesh.internal"), proxy.CauseMalformed, proxy.HopIngress},
		{"13 Host with a port, at ingress", raw(get+" HTTP/1.1", host+":80"), proxy.CauseMalformed, proxy.HopIngress},
		{"13 Host in capitals, at ingress", raw(get+" HTTP/1.1", "Host: FHIR.EHR.mesh.internal"), proxy.CauseMalformed, proxy.HopIngress},

		{"14 absolute form of nobody", raw("GET http://evil.example/fhir/Patient/a HTTP/1.1", "Host: evil.example"), proxy.CauseUnknownService, proxy.HopEgress},
		{"14 absolute form of nobody, own Host", raw("GET http://evil.example/fhir/Patient/a HTTP/1.1", host), proxy.CauseMalformed, ""},
		{"14 absolute form, another Host", raw("GET http://"+serviceName+"/fhir/Patient/a HTTP/1.1", "Host: localhost"), proxy.CauseMalformed, ""},
		{"14 absolute form with a user", raw("GET http://u@"+serviceName+"/fhir/Patient/a HTTP/1.1", host), proxy.CauseMalformed, proxy.HopEgress},
		{"14 absolute form of another scheme", raw("GET https://"+serviceName+"/fhir/Patient/a HTTP/1.1", host), proxy.CauseMalformed, proxy.HopEgress},
		{"14 absolute form at ingress", raw("GET http://"+serviceName+"/fhir/Patient/a HTTP/1.1", host), proxy.CauseMalformed, proxy.HopIngress},
		{"14 authority form", raw("GET "+serviceName+":80 HTTP/1.1", host), proxy.CauseMalformed, ""},
		{"14 asterisk form", raw("OPTIONS * HTTP/1.1", host), proxy.CauseMalformed, ""},
		{"14 CONNECT", raw("CONNECT "+serviceName+":80 HTTP/1.1", host), proxy.CauseMethod, proxy.HopEgress},
		{"14 CONNECT at ingress", raw("CONNECT "+serviceName+" HTTP/1.1", host), proxy.CauseMethod, proxy.HopIngress},
		{"14 TRACE", request("TRACE /fhir/Patient/a", ""), proxy.CauseMethod, proxy.HopIngress},
		{"14 lower-case method", request("get /fhir/Patient/a", ""), proxy.CauseMethod, proxy.HopIngress},

		{"16 a fragment", request("GET /fhir/Patient/a#b", ""), proxy.CauseMalformed, proxy.HopIngress},
		{"16 a raw byte above 0x7f", request("GET /fhir/Patient/\xe9", ""), proxy.CauseMalformed, proxy.HopIngress},
		{"16 a bad escape", request("GET /fhir/Patient/%zz", ""), proxy.CauseMalformed, ""},
		{"16 two leading slashes", request("GET //fhir/Patient/a", ""), proxy.CauseMalformed, ""},

		{"18 a GET with a body", request("GET /fhir/Patient/a", "x"), proxy.CauseMalformed, proxy.HopIngress},
		{"18 a GET with a chunked body", request("GET /fhir/Patient/a", "", "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n", proxy.CauseMalformed, proxy.HopIngress},

		{"1 Content-Length, Transfer-Encoding", request(post, "x", fhirJSON, "Transfer-Encoding: chunked"), proxy.CauseMalformed, ""},
		{"1 Transfer-Encoding, Content-Length", raw(post+" HTTP/1.1", host, fhirJSON, "Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n", proxy.CauseMalformed, ""},
		{"2 Content-Length twice, equal", request(post, "x", fhirJSON, "Content-Length: 1"), proxy.CauseMalformed, ""},
		{"2 Content-Length twice, differing", request(post, "x", fhirJSON, "Content-Length: 0"), proxy.CauseMalformed, ""},
		{"2 Content-Length: 1, 1", raw(post+" HTTP/1.1", host, fhirJSON, "Content-Length: 1, 1") + "x", proxy.CauseMalformed, ""},
		{"2 Content-Length: +1", raw(post+" HTTP/1.1", host, fhirJSON, "Content-Length: +1") + "x", proxy.CauseMalformed, ""},
		{"2 Content-Length empty", raw(post+" HTTP/1.1", host, fhirJSON, "Content-Length:"), proxy.CauseMalformed, ""},
		{"2 Content-Length of 19 digits", raw(post+" HTTP/1.1", host, fhirJSON, "Content-Length: 0000000000000000001") + "x", proxy.CauseMalformed, ""},
		{"3 Transfer-Encoding twice", raw(post+" HTTP/1.1", host, fhirJSON, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + "0\r\n\r\n", proxy.CauseUnsupported, ""},
		{"3 Transfer-Encoding in capitals", raw(post+" HTTP/1.1", host, fhirJSON, "Transfer-Encoding: CHUNKED") + "0\r\n\r\n", proxy.CauseUnsupported, ""},
		{"3 Transfer-Encoding padded", raw(post+" HTTP/1.1", host, fhirJSON, "Transfer-Encoding:  chunked") + "0\r\n\r\n", proxy.CauseUnsupported, ""},
		{"3 Transfer-Encoding in HTTP/1.0", raw(post+" HTTP/1.0", host, fhirJSON, "Transfer-Encoding: chunked") + "0\r\n\r\n", proxy.CauseMalformed, ""},
		{"6 a bare LF", get + " HTTP/1.1\n" + host + "\r\n\r\n", proxy.CauseMalformed, ""},
		{"6 a bare LF at the end", get + " HTTP/1.1\r\n" + host + "\r\n\n", proxy.CauseMalformed, ""},
		{"6 a bare CR", raw(get+" HTTP/1.1", host, "X: a\rY: b"), proxy.CauseMalformed, ""},
		{"6 NUL", raw(get+" HTTP/1.1", host, "X: a\x00"), proxy.CauseMalformed, ""},
		{"6 a folded field", raw(get+" HTTP/1.1", host, "X: a", " b"), proxy.CauseMalformed, ""},
		{"6 a folded first field", raw(get+" HTTP/1.1", " "+host), proxy.CauseMalformed, ""},
		{"6 a space before the colon", raw(get+" HTTP/1.1", host, "X : a"), proxy.CauseMalformed, ""},
		{"6 an empty name", raw(get+" HTTP/1.1", host, ": a"), proxy.CauseMalformed, ""},
		{"6 a leading CRLF", "\r\n" + request(get, ""), proxy.CauseMalformed, ""},
		{"6 two spaces in the request line", raw(get+"  HTTP/1.1", host), proxy.CauseMalformed, ""},
		{"6 a tab in the request line", raw(get+"\tHTTP/1.1", host), proxy.CauseMalformed, ""},
		{"6 HTTP/0.9", get + "\r\n\r\n", proxy.CauseMalformed, ""},
		{"6 HTTP/1.2", raw(get+" HTTP/1.2", host), proxy.CauseMalformed, ""},
		{"6 HTTP/2.0", raw(get+" HTTP/2.0", host), proxy.CauseMalformed, ""},
		{"20 500 fields", request(get, "", strings.Split(strings.Repeat("X: x,", 499)+"X: x", ",")...), proxy.CauseHeadTooLarge, ""},
		{"20 a head of 100 KB", request(get, "", "X: "+strings.Repeat("x", 100<<10)), proxy.CauseHeadTooLarge, ""},
		{"3 an unknown transfer coding", request(get, "", "Transfer-Encoding: gzip"), proxy.CauseUnsupported, ""},

		{"22 Upgrade: websocket", request(get, "", "Connection: Upgrade", "Upgrade: websocket"), proxy.CauseHeaders, ""},
		{"22 Upgrade: h2c", request(get, "", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), proxy.CauseHeaders, ""},
		{"22 Upgrade that Connection does not name", request(get, "", "upgrade: h2c"), proxy.CauseHeaders, ""},
		{"22 h2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", proxy.CauseMalformed, ""},
	}
	for _, trick := range []string{"..", ".", "%2e", "%2e%2e", "%252e", "%2f", "%5c", `\`, ";", "a;b", "%3b", "%00", "a/../b", "a//"} {
		rows = append(rows, row{"16 " + trick, request("GET /fhir/Patient/"+trick, ""), proxy.CauseMalformed, proxy.HopIngress})
	}
	for name, chunk := range map[string]string{"bare LF": "1\nx\n0\n\n", "0x": "0x1\r\nx\r\n0\r\n\r\n", "a sign": "+1\r\nx\r\n0\r\n\r\n", "a space": " 1\r\nx\r\n0\r\n\r\n",
		"overflow": "fffffffffffffffff\r\nx\r\n0\r\n\r\n", "missing CRLF": "1\r\nxy\r\n0\r\n\r\n"} {
		rows = append(rows, row{"4 chunk size with " + name, request("POST /fhir/Observation", "", "Content-Type: application/fhir+json",
			"Transfer-Encoding: chunked") + chunk, proxy.CauseMalformed, ""})
	}
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			for _, r := range rows {
				if r.only != "" && r.only != h.name {
					continue
				}
				t.Run(r.name, func(t *testing.T) {
					a := send(t, h.dial(w, w.portal), withToken(r.raw, w.token()))
					w.checkRefusal(t, a, h.name, r.cause)
					if ends := a.status == 400 || a.status == 431; ends && !a.close {
						t.Error("the connection goes on")
					}
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
				a := w.call(w.portal, withToken(r.raw, w.token()))
				if contains(r.name, "fragment") || contains(r.name, "0x7f") {
					// The engine of egress may have refused these already.
					if a.status != 400 {
						t.Errorf("%d %s", a.status, a.body)
					}
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
}

// withToken adds a good token to a request that has none, so that nothing but the row's fault can refuse it.
func withToken(raw, token string) string {
	if contains(strings.ToLower(raw), "authorization: ") {
		return raw
	}
	head, rest, ok := strings.Cut(raw, "\r\n")
	if !ok {
		return raw
	}
	return head + "\r\n" + bearer(token) + "\r\n" + rest
}

// 8: each of several requests on one connection is decided on by itself, and a bad one ends it.
func TestPipelinedRequestsAreEachDecided(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			c := h.dial(w, w.portal)
			good := request("GET /fhir/Observation/1", "", bearer(w.token()))
			forbidden := request("GET /fhir/Account/1", "", bearer(w.token()))
			bad := "GET /fhir/Observation/1 HTTP/1.1\r\nHost : " + serviceName + "\r\n\r\n"
			if _, err := io.WriteString(c, good+forbidden+good+bad+good); err != nil {
				t.Fatal(err)
			}
			in := newReader(c)
			ids := map[string]bool{}
			for _, want := range []int{200, 403, 200, 400} {
				a := read(t, in, good)
				if a.status != want || ids[a.decision()] || a.decision() == "" {
					t.Errorf("got %d %q, want %d and an id of its own", a.status, a.decision(), want)
				}
				ids[a.decision()] = true
			}
			if rest, err := io.ReadAll(in); len(rest) > 0 {
				t.Errorf("after a request that is none came %q (%v)", rest, err)
			}
			if n := len(w.upstream.all()); n != 2 {
				t.Errorf("%d requests reached the FHIR server, want 2", n)
			}
		})
	}
}
