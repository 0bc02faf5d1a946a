package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// tricks are what 16 names, as the last segment of a path and as one before it.
var tricks = []string{"..", ".", "%2e", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "%252f", "%25%32%65", "%2f", "%2F", "a%2fb", "%5c", "%5C", `\`, `a\b`, `..\`, ";", "a;b", "a;", "..;", ";a", "%3b", "a%3Bb",
	"%00", "a%00", "a//", "a/../b", "a/./b", "a/%2e%2e/b", "a%23b", "%", "%z", "%zz", "%1", "a%", "%u002e", "%c0%ae", "%c0%af", "%e0%80%af", "a%0d%0a", "a%20", "a+b%2b"}

// 16 and 18, as far as one request plays them.
func refusedPath() []refused {
	var rows []refused
	at := func(n int, name, line, body string, only proxy.Hop, fields ...string) {
		rows = append(rows, refused{name: fmt.Sprintf("%d %s", n, name), raw: request(line, body, fields...), cause: proxy.CauseMalformed, only: only})
	}
	for _, trick := range tricks {
		at(16, trick, "GET /fhir/Patient/"+trick, "", proxy.HopIngress)
		at(16, trick+" before the type", "GET /fhir/"+trick+"/Patient/a", "", proxy.HopIngress)
		at(16, trick+" in a write", "PUT /fhir/Observation/"+trick, newObservation, proxy.HopIngress, fhirJSON)
	}
	for i := range rows {
		if strings.HasPrefix(rows[i].name, "16 %") && badEscape(rows[i].name) || contains(rows[i].name, "a% ") || rows[i].name == "16 a%" {
			rows[i].only = "" // what escapes nothing is no request to either hop
		}
	}
	at(16, "a fragment", "GET /fhir/Patient/a#b", "", "")
	at(16, "a fragment alone", "GET /fhir/Patient/#", "", "")
	at(16, "a raw byte above 0x7f", "GET /fhir/Patient/\xe9", "", "")
	at(16, "raw UTF-8", "GET /fhir/Patient/\u00e9", "", "")
	at(16, "an overlong dot", "GET /fhir/Patient/\xc0\xae", "", "")
	at(16, "a raw byte above 0x7f in the query", "GET /fhir/Observation?code=\xe9", "", "")
	at(16, "two leading slashes", "GET //fhir/Patient/a", "", "")
	at(16, "a leading slash and a host", "GET //"+serviceName+"/fhir/Patient/a", "", "")
	at(16, "a bad escape in the query", "GET /fhir/Observation?code=%zz", "", "")
	at(16, "the way out of the base", "GET /fhir/../admin", "", proxy.HopIngress)
	at(16, "the way out of the base, escaped", "GET /fhir/%2e%2e/admin", "", proxy.HopIngress)
	at(16, "an escaped slash behind the base", "GET /fhir%2fPatient/a", "", proxy.HopIngress)

	for n, paths := range bypassPaths() {
		for _, p := range paths {
			at(18, fmt.Sprintf("row %d %s", n, p), "GET /fhir"+p, "", proxy.HopIngress)
		}
	}
	at(18, "a GET with a body", getLine, "x", proxy.HopIngress)
	at(18, "a GET of a search with a form", "GET /fhir/Observation?status=final", "status=amended", proxy.HopIngress, "Content-Type: application/x-www-form-urlencoded")
	rows = append(rows, refused{name: "18 a GET with a chunked body", raw: request(getLine, "", "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n", cause: proxy.CauseMalformed, only: proxy.HopIngress})
	return rows
}

// badEscape reports whether a % is not followed by two hexadecimal digits.
func badEscape(s string) bool {
	for i := range len(s) {
		if s[i] == '%' && (i+2 >= len(s) || !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i+1])) || !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i+2]))) {
			return true
		}
	}
	return false
}

func pathBehaviours() []behaviour {
	const both = atEgress + " " + atIngress
	return []behaviour{
		{"16 what was decided on is what goes on", both, testBypassOneSpellingGoesOn},
		{"16 egress passes the target's bytes on", atEgress, testTargetPassesEgress},
		{"17 what turns a request into another is dropped", both, testOverridesAreDropped},
		{"18 a HEAD with a body", atIngress, testHeadWithABody},
	}
}

// 16: egress judges no path: it neither mends what ingress is to refuse, nor spoils what ingress is to decide on.
func testTargetPassesEgress(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	for _, trick := range slices.DeleteFunc(slices.Clone(tricks), badEscape) {
		for _, target := range []string{"/fhir/Patient/" + trick, "/fhir/" + trick + "/Patient/a?x=" + trick + "&y=%2f&&=", "/" + strings.TrimLeft(trick, "/")} {
			if a := w.call(w.portal, request("GET "+target, "")); a.status != 200 {
				t.Errorf("%s: %d %s", target, a.status, a.body)
				continue
			}
			all := next.all()
			if got := all[len(all)-1].line; got != "GET "+target {
				t.Errorf("%q went on as %q", target, got)
			}
		}
	}
}

// 17: in whatever spelling, on either hop; the method and the target are those of the request line.
func testOverridesAreDropped(t *testing.T) {
	overrides := map[string]string{"X-HTTP-Method-Override": "DELETE", "X-HTTP-Method": "DELETE", "X-Method-Override": "DELETE",
		"X-Original-URL": "/fhir/Account/1", "X-Rewrite-URL": "/fhir/Account/1"}
	for _, h := range hops {
		w := newWorld(t, setup{})
		next := w.upstream
		if h.name == proxy.HopEgress {
			next = w.nextWard(w.self.svid.Load())
		}
		for name, value := range overrides {
			for _, spelled := range spellings(name) {
				t.Run(string(h.name)+"/"+spelled, func(t *testing.T) {
					before := len(next.all())
					a := send(t, h.dial(w, w.portal), request("GET /fhir/Observation/1", "", spelled+": "+value, bearer(w.token())))
					all := next.all()
					if a.status != 200 || len(all) != before+1 {
						t.Fatalf("%d, %d requests went on", a.status, len(all)-before)
					}
					if r := all[before]; r.line != "GET /fhir/Observation/1" || contains(r.raw, value) {
						t.Errorf("passed on: %q", r.raw)
					}
				})
			}
		}
	}
}

// 18: as a GET with one; only that its refusal has no body either.
func testHeadWithABody(t *testing.T) {
	w := newWorld(t, setup{})
	for _, raw := range []string{request("HEAD /fhir/Patient/a", "x"), request("HEAD /fhir/Patient/a", "", "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n"} {
		c := w.dialIngress(w.portal.svid.Load())
		a := send(t, c, w.complete(raw))
		if recs := w.trail.of(proxy.HopIngress, a.decision()); a.status != 400 || a.body != "" || len(recs) != 1 || recs[0].Cause != proxy.CauseMalformed {
			t.Errorf("%d %q %s", a.status, a.body, toJSON(recs))
		}
		wantEnd(t, c, a)
	}
	w.upstream.untouched(t)
}
