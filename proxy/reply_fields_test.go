package proxy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy"
)

// A HEAD has no body by which to tell whose resource it is; to others it answers as a read does.
func TestHead(t *testing.T) {
	w := newWorld(t, setup{})
	w.upstream.always("HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: 50\r\nETag: W/\"1\"\r\n\r\n")
	a := w.call(w.portal, request("HEAD /fhir/Observation/1", "", bearer(w.token())))
	if a.status != 200 || a.body != "" || a.header.Get("ETag") != `W/"1"` || a.header.Get("Content-Length") != "50" || len(a.decision()) != 26 {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
	if r := w.upstream.only(t); r.line != "HEAD /fhir/Observation/1" {
		t.Error(r.line)
	}
	a = w.call(w.portal, request("HEAD /fhir/Observation/1", "", bearer(w.token(ofPatient("a")))))
	if a.status != 501 || a.body != "" || len(a.decision()) != 26 || len(w.upstream.all()) != 1 {
		t.Errorf("%d %q", a.status, a.body)
	}
}

// Location names what was created, by the name under which the caller knows the service, and nothing else.
func TestLocation(t *testing.T) {
	const mine = "http://" + serviceName + "/fhir/Observation/9"
	w := newWorld(t, setup{})
	for location, want := range map[string]string{
		mine:                       mine,
		mine + "/_history/1":       mine + "/_history/1",
		"/fhir/Observation/9":      mine,
		"Observation/9":            mine,
		"Observation/9/_history/1": mine + "/_history/1",
		"http://" + serviceName + ":8080/fhir/Observation/9":         mine,
		"https://" + serviceName + "/fhir/Observation/9":             "",
		"http://localhost:8080/fhir/Observation/9":                   "",
		"http://evil.example/fhir/Observation/9":                     "",
		"http://" + serviceName + ".evil.example/fhir/Observation/9": "",
		"http://" + serviceName + "@evil.example/fhir/Observation/9": "",
		"//evil.example/Observation/9":                               "",
		mine + "?x=y":                                                "",
		mine + "/$everything":                                        "",
		mine + "/../../Patient/b":                                    "",
		"http://" + serviceName + "/admin/9":                         "",
		"http://" + serviceName + "/fhir/job/1":                      "",
		"/fhir/Observation/a%2fb":                                    "",
		"javascript:Observation/9":                                   "",
		"":                                                           "",
	} {
		for _, field := range []string{"Location", "Content-Location"} {
			w.upstream.always(reply(201, observation("9", "a"), field+": "+location))
			a := w.call(w.ehr, write("POST /fhir/Observation", w.issuer.token(t, "ehr"), newObservation))
			if got := a.header.Get(field); a.status != 201 || got != want {
				t.Errorf("%s %q became %q, want %q (%d)", field, location, got, want, a.status)
			}
		}
	}
}

// Of the server's fields a caller gets those that FHIR gives a meaning, and Ward's own decision id alone.
func TestReplyFields(t *testing.T) {
	w := newWorld(t, setup{})
	w.upstream.always(reply(200, observation("1", "a"), "Server: hapi/1", "X-Powered-By: x", "Set-Cookie: a=b", "Ward-Decision: forged", "Ward_Decision: forged",
		"Access-Control-Allow-Origin: *", "Alt-Svc: h2=\":443\"", "Link: <http://x>", "X-Forwarded-For: forged", "Via: 1.1 x", "Trailer: X",
		"Connection: ETag", `ETag: W/"1"`, "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", "X-Request-Id: 7", "Cache-Control: no-cache", "Upgrade: h2c"))
	a := w.call(w.portal, request("GET /fhir/Observation/1", "", bearer(w.token())))
	a.header.Del("Date")
	want := map[string][]string{"Content-Type": {"application/fhir+json"}, "Content-Length": {itoa(len(a.body))}, "Last-Modified": {"Thu, 01 Jan 2026 00:00:00 GMT"},
		"X-Request-Id": {"7"}, "Cache-Control": {"no-cache"}, "Ward-Decision": {a.decision()}}
	if d := cmp.Diff(want, map[string][]string(a.header)); d != "" || len(a.decision()) != 26 {
		t.Errorf("(-want +got) %s", d)
	}
}

// Egress relays only what an ingress ward has decided on.
func TestReplyWithoutADecisionIsNotRelayed(t *testing.T) {
	for name, fields := range map[string][]string{"none": nil, "not an id": {"Ward-Decision: 7"}, "two": {"Ward-Decision: " + someDecision, "Ward-Decision: " + someDecision}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			w.nextWard(w.self.svid.Load()).always(reply(200, observation("1", "a"), fields...))
			w.checkRefusal(t, w.call(w.portal, request("GET /fhir/Observation/1", "")), proxy.HopEgress, proxy.CauseUpstreamReply)
		})
	}
}
