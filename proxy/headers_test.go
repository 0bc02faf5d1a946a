package proxy_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// forged are fields by which a caller could pass for another, or turn a request into another one: PROXY 10 and 17, and
// FHIR's bypass rows 7 and 22.
var forged = []string{
	"X-Forwarded-Client-Cert", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-User",
	"X-Forwarded-Email", "X-Forwarded-Prefix", "X-Forwarded", "Forwarded", "Via", "X-Real-Ip", "True-Client-Ip", "Cf-Connecting-Ip",
	"Ward-Caller", "Ward-User", "Ward-Purpose", "Ward-Assertion", "Ward-Target", "Ward-Device-Token", "Ward-Anything",
	"X-Remote-User", "Remote-User", "X-Ssl-Client-Cert", "Ssl-Client-Verify", "X-Client-Cert", "Client-Cert", "Client-Cert-Chain",
	"X-Patient-Id", "X-Authorization-Roles", "X-User-Id", "X-Auth-Request-User", "X-Spiffe-Id", "X-Envoy-External-Address",
	"X-Amzn-Oidc-Identity", "X-Ms-Client-Principal", "Workload-Identity-Token", "Workload-Proof-Token", "From", "Proxy-Authorization",
	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Original-Host", "X-Rewrite-Url",
}

// spellings are the ways in which a server could take another name for this one.
func spellings(name string) []string {
	return []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"),
		strings.ToUpper(strings.ReplaceAll(name, "-", "_")), strings.Replace(name, "-", "_", 1)}
}

// 10, 17: whatever a caller sends, neither hop passes it on.
func testForgedFieldsAreStripped(t *testing.T) {
	t.Run("egress", func(t *testing.T) {
		w := newWorld(t, setup{})
		next := w.nextWard(w.self.svid.Load())
		w.tryForged(t, next, (*world).dialEgress, "Ward-Decision", "User-Agent", "Accept", "Authorization", "X-Custom")
	})
	t.Run("ingress", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.tryForged(t, w.upstream, hops[1].dial, append(toServer, "User-Agent")...)
	})
	t.Run("both", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.tryForged(t, w.upstream, (*world).dialEgress, append(toServer, "User-Agent")...)
	})
}

// toServer are the fields that the FHIR server always gets.
var toServer = []string{"Accept", "Accept-Encoding", "Authorization", "Ward-Caller", "Ward-Decision", "Ward-User", "X-Forwarded-Client-Cert"}

// tryForged sends requests with forged fields and looks at what next got: exactly the fields want, each once.
func (w *world) tryForged(t *testing.T, next *upstream, dial func(*world, *process) net.Conn, want ...string) {
	t.Helper()
	// Ward's own decision id is one that egress sends, so ingress reads it from there, but never passes it on.
	for _, name := range append(forged, "Ward-Decision") {
		var fields []string
		for _, s := range spellings(name) {
			fields = append(fields, s+": forged", s+": forged again")
		}
		fields = append(fields, bearer(w.token()), "User-Agent: app/1", "Accept: */*", "X-Custom: kept between wards")
		a := send(t, dial(w, w.portal), request("GET /fhir/Patient/a", "", fields...))
		if a.status != 200 {
			t.Fatalf("%s: %d %s", name, a.status, a.body)
		}
	}
	for i, r := range next.all() {
		if contains(r.raw, "forged") {
			t.Errorf("%s was passed on: %q", forged[i], r.head)
		}
		if d := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(r.names()))); d != "" {
			t.Errorf("fields (-want +got): %s", d)
		}
	}
	if n := len(next.all()); n != len(forged)+1 {
		t.Errorf("%d requests arrived", n)
	}
}

// names gives the names of the request's fields as they stand there, without Host.
func (r *received) names() (out []string) {
	for _, line := range strings.Split(r.head, "\r\n")[1:] {
		if name, _, _ := strings.Cut(line, ":"); name != "Host" {
			out = append(out, name)
		}
	}
	return out
}

// 10: trailers are dropped, whatever they say.
func testTrailersAreDropped(t *testing.T) {
	for _, h := range hops {
		t.Run(string(h.name), func(t *testing.T) {
			w := newWorld(t, setup{})
			body := newObservation
			raw := request("POST /fhir/Observation", "", bearer(w.issuer.token(t, "ehr")), "Content-Type: application/fhir+json",
				"Transfer-Encoding: chunked", "Trailer: Ward-Caller, X-Forwarded-For") +
				fmt.Sprintf("%x\r\n%s\r\n0\r\nWard-Caller: forged\r\nX-Forwarded-For: forged\r\n\r\n", len(body), body)
			if a := send(t, h.dial(w, w.ehr), raw); a.status != 201 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if r := w.upstream.only(t); contains(r.raw, "forged") || contains(r.raw, "Trailer") || r.body != body {
				t.Errorf("passed on: %q", r.raw)
			}
		})
	}
}

// INTERFACE, On the wire: what the FHIR server reads about the caller.
func TestServerLearnsWhoCalls(t *testing.T) {
	w := newWorld(t, setup{})
	token := w.token(claims{"sub": `o"brien\x`, "purpose": "TREAT"})
	a := w.call(w.portal, request("GET /fhir/Patient/a", "", bearer(token)))
	r := w.upstream.only(t)
	leaf := sha256.Sum256(w.portal.svid.Load().Certificates[0].Raw)
	for name, want := range map[string]string{
		// Envoy: By is the URI SAN of the proxy's own certificate, Hash the SHA-256 of the client's in hex, URI its URI SAN.
		"X-Forwarded-Client-Cert": "By=spiffe://clinic.test/ward/ehr;Hash=" + hex.EncodeToString(leaf[:]) + ";URI=spiffe://clinic.test/app/portal",
		"Ward-Caller":             "spiffe://clinic.test/app/portal",
		"Ward-User":               `iss="https://op.clinic.test", sub="o\"brien\\x"`,
		"Ward-Purpose":            "TREAT",
		"Ward-Decision":           a.decision(),
		"Authorization":           "Bearer " + token,
	} {
		if d := cmp.Diff([]string{want}, r.field(name)); d != "" {
			t.Errorf("%s (-want +got): %s", name, d)
		}
	}
	if r.line != "GET /fhir/Patient/a" || !contains(r.head, "\r\nHost: "+serviceName+"\r\n") {
		t.Errorf("%q", r.head)
	}
}

// A client that acts for itself, and one that only asks what the server can do.
func TestServerLearnsNoUserWhereThereIsNone(t *testing.T) {
	w := newWorld(t, setup{})
	if a := w.call(w.portal, request("GET /fhir/metadata", "")); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if r := w.upstream.only(t); len(r.field("Ward-User")) > 0 || len(r.field("Authorization")) > 0 || len(r.field("Ward-Caller")) != 1 {
		t.Errorf("%q", r.head)
	}
}

// The FHIR server gets only fields whose meaning was considered; what they say reaches it unchanged.
func TestFieldsForTheServer(t *testing.T) {
	for name, c := range map[string]struct {
		line   string
		token  []claims
		fields []string
		want   map[string][]string // nil: must be absent
	}{
		"tracing and language": {line: "GET /fhir/Patient/a", fields: []string{"Traceparent: 00-a-b-01", "Tracestate: c=d", "X-Request-Id: 7", "Accept-Language: de"},
			want: map[string][]string{"Traceparent": {"00-a-b-01"}, "Tracestate": {"c=d"}, "X-Request-Id": {"7"}, "Accept-Language": {"de"}}},
		"not understood": {line: "GET /fhir/Patient/a", fields: []string{"Cookie: a=b", "Range: bytes=0-1", "X-Cascade: delete", "X-Upsert-Extistence-Check: disabled",
			"X-Retry-On-Version-Conflict: retry; max-retries=9", "Cache-Control: no-cache"},
			want: map[string][]string{"Cookie": nil, "Range": nil, "X-Cascade": nil, "X-Upsert-Extistence-Check": nil, "X-Retry-On-Version-Conflict": nil, "Cache-Control": nil}},
		"conditional read": {line: "GET /fhir/Patient/a", fields: []string{`If-None-Match: W/"1"`, "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"},
			want: map[string][]string{"If-None-Match": {`W/"1"`}, "If-Modified-Since": {"Thu, 01 Jan 2026 00:00:00 GMT"}}},
		"conditional read, confined": {line: "GET /fhir/Patient/a", token: []claims{ofPatient("a")}, fields: []string{`If-None-Match: W/"1"`, "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"},
			want: map[string][]string{"If-None-Match": nil, "If-Modified-Since": nil}},
		"search is strict": {line: "GET /fhir/Observation?code=a",
			want: map[string][]string{"Prefer": {"handling=strict"}}},
		"search is strict against the caller's wish": {line: "GET /fhir/Observation?code=a", fields: []string{"Prefer: handling=lenient, return=minimal", "Prefer: handling=lenient"},
			want: map[string][]string{"Prefer": {"handling=strict"}}},
		"a lenient read": {line: "GET /fhir/Patient/a", fields: []string{"Prefer: handling=lenient", "Prefer: return=minimal"},
			want: map[string][]string{"Prefer": nil}},
		"no unknown preference": {line: "GET /fhir/Patient/a", fields: []string{"Prefer: wait=10, x"},
			want: map[string][]string{"Prefer": nil}},
		"11 what Connection names": {line: "GET /fhir/Patient/a", fields: []string{"Connection: keep-alive, Traceparent", "Traceparent: 00-a-b-01", "X-Request-Id: 7"},
			want: map[string][]string{"Traceparent": nil, "X-Request-Id": {"7"}, "Connection": nil}},
		"11 what Connection names after an empty line": {line: "GET /fhir/Patient/a", fields: []string{"Connection:", "Connection: traceparent", "Traceparent: 00-a-b-01"},
			want: map[string][]string{"Traceparent": nil}},
		"hop by hop": {line: "GET /fhir/Patient/a", fields: []string{"TE: trailers", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authenticate: x"},
			want: map[string][]string{"TE": nil, "Te": nil, "Keep-Alive": nil, "Proxy-Connection": nil, "Proxy-Authenticate": nil}},
	} {
		for _, h := range hops {
			t.Run(name+"/"+string(h.name), func(t *testing.T) {
				w := newWorld(t, setup{})
				a := send(t, h.dial(w, w.portal), request(c.line, "", append(c.fields, bearer(w.token(c.token...)))...))
				if a.status != 200 {
					t.Fatalf("%d %s", a.status, a.body)
				}
				r := w.upstream.only(t)
				for field, want := range c.want {
					if got := r.field(field); !slices.Equal(got, want) {
						t.Errorf("%s: %q, want %q", field, got, want)
					}
				}
			})
		}
	}
}

// A search by POST is strict too, and travels by the form that was decided on.
func TestSearchByPost(t *testing.T) {
	w := newWorld(t, setup{})
	a := w.call(w.portal, request("POST /fhir/Observation/_search?code=a", "status=final&_format=json", bearer(w.token()),
		"Content-Type: application/x-www-form-urlencoded", "Prefer: handling=lenient"))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	r := w.upstream.only(t)
	if r.line != "POST /fhir/Observation/_search" || r.body != "code=a&status=final" || !slices.Equal(r.field("Prefer"), []string{"handling=strict"}) ||
		!slices.Equal(r.field("Content-Type"), []string{"application/x-www-form-urlencoded"}) {
		t.Errorf("%q", r.raw)
	}
}
