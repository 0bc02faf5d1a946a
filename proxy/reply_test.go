package proxy_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy"
)

// callKinds are calls whose replies are treated differently.
func callKinds() map[string]func(w *world) string {
	return map[string]func(w *world) string{
		"read": func(w *world) string { return request("GET /fhir/Observation/1", "", bearer(w.token())) },
		"confined read": func(w *world) string {
			return request("GET /fhir/Observation/1", "", bearer(w.token(ofPatient("a"))))
		},
		"search": func(w *world) string { return request("GET /fhir/Observation?code=x", "", bearer(w.token())) },
		"confined search": func(w *world) string {
			return request("GET /fhir/Observation?code=x", "", bearer(w.token(ofPatient("a"))))
		},
		"create": func(w *world) string {
			return write("POST /fhir/Observation", w.issuer.token(w, "ehr"), newObservation)
		},
	}
}

// A FHIR server that answers with what is no answer, or with one that nobody can vouch for: nothing of it goes out.
func testHostileReplies(t *testing.T) {
	const leak = "Zebra4711"
	w := newWorld(t, setup{ingress: func(o *proxy.IngressOptions) { o.MaxReply = 64 << 10 }})
	all := []string{"read", "confined read", "search", "confined search", "create"}
	searches, checked := []string{"search", "confined search"}, []string{"confined read", "search", "confined search"}
	for name, c := range map[string]struct {
		raw   string
		kinds []string
		cause proxy.Cause
	}{
		"nothing":                        {"", all, proxy.CauseUpstream},
		"garbage":                        {"\x00\xff" + leak + "\r\n\r\n", all, proxy.CauseUpstream},
		"another protocol":               {"SSH-2.0-OpenSSH\r\n" + leak, all, proxy.CauseUpstream},
		"7 two lengths":                  {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a signed length":              {"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a space before the colon":     {"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a status of two digits":       {"HTTP/1.1 20 OK\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a status that is none":        {"HTTP/1.1 099 Odd\r\nContent-Length: 9\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a status beyond all":          {"HTTP/1.1 799 Odd\r\nContent-Length: 9\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 it switches protocols":        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + leak, all, proxy.CauseUpstream},
		"7 a flood of interim replies":   {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+leak+"\r\n\r\n", 500), all, proxy.CauseUpstream},
		"7 a head of 100 KB":             {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", all, proxy.CauseUpstream},
		"a redirect":                     {reply(302, leak, "Location: http://evil.example/"), all, proxy.CauseUpstreamReply},
		"a permanent redirect":           {reply(308, leak, "Location: /fhir/Patient/b"), all, proxy.CauseUpstreamReply},
		"choices":                        {reply(300, leak), all, proxy.CauseUpstreamReply},
		"encoded":                        {reply(200, leak, "Content-Encoding: gzip"), all, proxy.CauseUpstreamReply},
		"encoded twice":                  {reply(200, leak, "Content-Encoding: identity", "Content-Encoding: br"), all, proxy.CauseUpstreamReply},
		"not FHIR":                       {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n" + leak, checked, proxy.CauseUpstreamReply},
		"two types":                      {reply(200, leak, "Content-Type: text/html"), checked, proxy.CauseUpstreamReply},
		"broken JSON":                    {reply(200, `{"resourceType":"Observation","id":"1","x":"`+leak), checked, proxy.CauseUpstreamReply},
		"JSON after the end":             {reply(200, observation("1", "a")+`{"x":"`+leak+`"}`), checked, proxy.CauseUpstreamReply},
		"a body that ends early":         {"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: 900\r\n\r\n" + leak, checked, proxy.CauseUpstreamReply},
		"a broken chunk":                 {"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + leak + "\r\nzz\r\n", checked, proxy.CauseUpstreamReply},
		"more than is read":              {reply(200, searchset(strings.Repeat(" ", 1<<20))), checked, proxy.CauseUpstreamReply},
		"a promise":                      {reply(202, "", "Content-Location: http://"+serviceName+"/fhir/job/1"), checked, proxy.CauseUpstreamReply},
		"another type in a bundle":       {reply(200, searchset(`{"resourceType":"Patient","id":"`+leak+`"}`)), searches, proxy.CauseReplyOutside},
		"another patient in a bundle":    {reply(200, searchset(observation("1", "a"), observation(leak, "b"))), []string{"confined search"}, proxy.CauseReplyOutside},
		"one resource, not a bundle":     {reply(200, observation(leak, "a")), searches, proxy.CauseUpstreamReply},
		"an error in words":              {reply(500, leak+" at line 1 of C:\\fhir"), searches, proxy.CauseUpstreamReply},
		"an error in words, to confined": {reply(400, leak), []string{"confined search"}, proxy.CauseUpstreamReply},
		"overload, to confined":          {reply(503, outcome("transient")), []string{"confined read", "confined search"}, proxy.CauseUpstreamReply},
		"throttling, to confined":        {reply(429, outcome("throttled")), []string{"confined read", "confined search"}, proxy.CauseUpstreamReply},
	} {
		for _, kind := range c.kinds {
			t.Run(name+"/"+kind, func(t *testing.T) {
				before := len(w.upstream.all())
				w.upstream.script(func(conn net.Conn, _ *received) bool {
					_, _ = io.WriteString(conn, c.raw)
					return false
				})
				p := w.portal
				stages := []proxy.Stage{proxy.StageRefusal}
				switch kind {
				case "create":
					p = w.ehr
					fallthrough
				case "read": // its reply is not read before release, so the intent has been recorded
					stages = []proxy.Stage{proxy.StageIntent, proxy.StageOutcome}
				}
				a := w.call(p, callKinds()[kind](w))
				w.checkRefusal(t, a, proxy.HopIngress, c.cause, stages...)
				for name, values := range a.header {
					if contains(strings.Join(values, " "), leak) {
						t.Errorf("%s: %q", name, values)
					}
				}
				if contains(toJSON(w.trail.of(proxy.HopIngress, a.decision())), leak) {
					t.Error("it is in the trail")
				}
				if contains(a.body, leak) {
					t.Errorf("it leaked: %s", a.body)
				}
				if n := len(w.upstream.all()) - before; n != 1 {
					t.Errorf("the request was sent %d times", n)
				}
			})
		}
	}
}

// A reply that is released as it comes and then breaks off does not look whole to the caller, nor in the trail.
func testBrokenReplyLooksBroken(t *testing.T) {
	for name, raw := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: 900\r\n\r\n{\"resourceType\":",
		"chunks": "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"res\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			w.upstream.script(func(c net.Conn, _ *received) bool {
				_, _ = io.WriteString(c, raw)
				return false
			})
			c := w.dialEgress(w.portal)
			a := send(t, c, callKinds()["read"](w))
			if a.status != 200 || a.err == nil {
				t.Errorf("the caller got %d %q as if it were whole", a.status, a.body)
			}
			for _, r := range w.trail.await(t, 2, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome || r.Stage == proxy.StageEgress }) {
				if r.Complete {
					t.Errorf("recorded as complete: %s", toJSON(r))
				}
			}
		})
	}
}

// endsSoon bounds a service's exchanges.
func endsSoon(s *proxy.Service) { s.MaxExchange = soon }

// An upstream that is not there, and one that does not answer in time.
func TestUpstreamAway(t *testing.T) {
	hang := func(c net.Conn, _ *received) bool {
		_, _ = c.Read(make([]byte, 1)) // until the other side gives up
		return false
	}
	half := func(c net.Conn, r *received) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: 900\r\n\r\n{")
		return hang(c, r)
	}
	for name, c := range map[string]struct {
		setup setup
		do    func(u *upstream)
		kinds []string
		cause proxy.Cause
	}{
		"refuses connections": {setup{}, func(u *upstream) { _ = u.Close() }, []string{"read", "search", "create"}, proxy.CauseUpstream},
		"does not answer":     {setup{service: endsSoon}, func(u *upstream) { u.script(hang) }, []string{"read", "search", "create"}, proxy.CauseUpstreamTimeout},
		"stops in the middle": {setup{service: endsSoon}, func(u *upstream) { u.script(half) }, []string{"search", "confined read"}, proxy.CauseUpstreamTimeout},
	} {
		for _, kind := range c.kinds {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, c.setup)
				c.do(w.upstream)
				p, stages := w.portal, []proxy.Stage{proxy.StageRefusal}
				if kind == "create" {
					p = w.ehr
				}
				if kind == "create" || kind == "read" {
					stages = []proxy.Stage{proxy.StageIntent, proxy.StageOutcome}
				}
				a := send(t, w.dialIngress(p.svid.Load()), callKinds()[kind](w))
				w.checkRefusal(t, a, proxy.HopIngress, c.cause, stages...)
			})
		}
	}
}

// FHIR's bypass row 25: to a caller who is confined to one patient, what is there but another's and what is not there
// are the same, to the byte, but for the decision id.
func TestConfinedCallerCannotTellWhatExists(t *testing.T) {
	w := newWorld(t, setup{})
	token := w.token(ofPatient("a"))
	see := func(target, upstreamReply string) string {
		w.upstream.always(upstreamReply)
		a := w.call(w.portal, request("GET "+target, "", bearer(token)))
		header := a.header.Clone()
		header.Del("Date")
		return strings.ReplaceAll(itoa(a.status)+toJSON(header)+a.body, a.decision(), "ID")
	}
	honest := see("/fhir/Observation/7", reply(404, outcome("not-found")))
	for name, r := range map[string]string{
		"another patient's":         reply(200, observation("7", "b"), `ETag: W/"3"`, "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"),
		"nobody's":                  reply(200, `{"resourceType":"Observation","id":"7"}`),
		"by another id":             reply(200, observation("8", "a")),
		"of another type":           reply(200, `{"resourceType":"Condition","id":"7","subject":{"reference":"Patient/a"}}`),
		"deleted":                   reply(410, outcome("deleted"), "Location: http://"+serviceName+"/fhir/Observation/7/_history/2"),
		"forbidden by the server":   reply(403, outcome("forbidden")),
		"not found, in other words": reply(404, "Observation/7 is not known; did you mean 8?", "X-Request-Id: 5"),
		"not modified":              reply(304, "", `ETag: W/"3"`),
	} {
		if d := cmp.Diff(honest, see("/fhir/Observation/7", r)); d != "" {
			t.Errorf("%s can be told from what is not there: %s", name, d)
		}
	}
	if !strings.HasPrefix(honest, "404") || !contains(honest, `"text":"Not found."`) {
		t.Errorf("%s", honest)
	}
	// Versions and histories are no way around it.
	for _, target := range []string{"/fhir/Observation/7/_history/1", "/fhir/Observation/7/_history"} {
		there := see(target, reply(200, observation("7", "b")))
		if strings.HasPrefix(target, "/fhir/Observation/7/_history") && strings.HasSuffix(target, "_history") {
			there = see(target, reply(200, strings.Replace(strings.Replace(searchset(observation("7", "b")), "searchset", "history", 1),
				`"search":{"mode":"match"}`, `"request":{"method":"PUT","url":"Observation/7"}`, 1)))
		}
		if d := cmp.Diff(see(target, reply(404, outcome("not-found"))), there); d != "" {
			t.Errorf("%s: %s", target, d)
		}
	}
}
