package proxy_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// observing makes the service one that is observed for an hour.
func observing(s *proxy.Service) { s.ObserveUntil = time.Now().Add(time.Hour) }

// final gives the last record of the call at ingress.
func (w *world) final(t testing.TB, a *answer) proxy.Record {
	t.Helper()
	return w.trail.await(t, 1, func(r *proxy.Record) bool {
		return r.Hop == proxy.HopIngress && r.Decision == a.decision() && r.Stage != proxy.StageIntent
	})[0]
}

// ARCHITECTURE, Modes: observe relaxes only user token, policy, limits and validation.
func TestObserveNeverRelaxes(t *testing.T) {
	type attempt struct {
		*world
		line, body string
		fields     []string
	}
	create := func(c *attempt) { c.line, c.body = "POST /fhir/Observation", newObservation }
	for name, c := range map[string]struct {
		cause     proxy.Cause
		apply     func(*attempt)
		forwarded bool // the server's answer is what is refused
	}{
		"deny list":    {proxy.CauseDenyList, func(c *attempt) { c.denied.deny(c.ehr.id) }, false},
		"callers list": {proxy.CauseNotACaller, func(c *attempt) { c.service.Callers = c.service.Callers[:1] }, false},
		"expired SVID": {proxy.CausePeerChanged, func(c *attempt) {
			c.clock.Advance(50 * time.Hour)
			c.service.ObserveUntil = c.clock.Now().Add(time.Hour)
		}, false},
		"connection field":       {proxy.CauseHeaders, func(c *attempt) { c.fields = append(c.fields, "Connection: authorization") }, false},
		"upgrade":                {proxy.CauseHeaders, func(c *attempt) { c.fields = append(c.fields, "Upgrade: h2c") }, false},
		"malformed path":         {proxy.CauseMalformed, func(c *attempt) { c.line = "GET /fhir//Observation/1" }, false},
		"unknown type":           {proxy.CauseMalformed, func(c *attempt) { c.line = "GET /fhir/observation/1" }, false},
		"unsupported operation":  {proxy.CauseUnsupported, func(c *attempt) { c.line = "GET /fhir/Patient/a/$everything" }, false},
		"method":                 {proxy.CauseMethod, func(c *attempt) { c.line = "TRACE /fhir/Observation/1" }, false},
		"read with a body":       {proxy.CauseMalformed, func(c *attempt) { c.body = "{}" }, false},
		"token in the query":     {proxy.CauseTokenMalformed, func(c *attempt) { c.line = "GET /fhir/Observation?access_token=x" }, false},
		"several Authorizations": {proxy.CauseTokenMalformed, func(c *attempt) { c.fields = append(c.fields, bearer("a"), bearer("b")) }, false},
		"media type":             {proxy.CauseMedia, func(c *attempt) { create(c); c.fields = []string{"Content-Type: text/plain"} }, false},
		"encoded body":           {proxy.CauseMedia, func(c *attempt) { create(c); c.fields = append(c.fields, "Content-Encoding: gzip") }, false},
		"malformed body":         {proxy.CauseMalformed, func(c *attempt) { create(c); c.body = `{"resourceType":"Observation"` }, false},
		"key twice in a body":    {proxy.CauseMalformed, func(c *attempt) { create(c); c.body = `{"resourceType":"Observation","id":"1","id":"2"}` }, false},
		"body larger than bound": {proxy.CauseTooLarge, func(c *attempt) { create(c); c.body = strings.Repeat(" ", 2<<10) }, false},
		"trail full":             {proxy.CauseAudit, func(c *attempt) { c.trail.set(func(l *recorder) { l.refuse = errDisk }) }, true},
		"trail full, a write":    {proxy.CauseAudit, func(c *attempt) { create(c); c.trail.set(func(l *recorder) { l.refuse = errDisk }) }, false},
		"redirect":               {proxy.CauseUpstreamReply, func(c *attempt) { c.upstream.always(reply(302, "", "Location: http://evil.example/")) }, true},
		"reply encoded unasked":  {proxy.CauseUpstreamReply, func(c *attempt) { c.upstream.always(reply(200, "x", "Content-Encoding: gzip")) }, true},
		"search: another type": {proxy.CauseReplyOutside, func(c *attempt) {
			c.line = "GET /fhir/Observation?code=a"
			c.upstream.always(reply(200, searchset(`{"resourceType":"Patient","id":"b"}`)))
		}, true},
		"search: no JSON": {proxy.CauseUpstreamReply, func(c *attempt) {
			c.line = "GET /fhir/Observation?code=a"
			c.upstream.always("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nZebr")
		}, true},
		"search: too large": {proxy.CauseUpstreamReply, func(c *attempt) {
			c.line = "GET /fhir/Observation?code=a"
			c.upstream.always(reply(200, searchset(observation("1", strings.Repeat("a", 9<<20)))))
		}, true},
	} {
		for _, with := range []string{"a good token", "no token"} {
			t.Run(name+"/"+with, func(t *testing.T) {
				w := newWorld(t, setup{service: observing, ingress: func(o *proxy.IngressOptions) { o.MaxBody = 1 << 10 }})
				conn := w.dialIngress(w.ehr.svid.Load())
				_ = send(t, conn, request("GET /fhir/Patient/a/$everything", "")) // the handshake is done
				c0 := &attempt{world: w, line: "GET /fhir/Observation/1", fields: []string{"Content-Type: application/fhir+json"}}
				c.apply(c0)
				if with == "a good token" && name != "several Authorizations" {
					c0.fields = append(c0.fields, bearer(w.issuer.token(t, "ehr")))
				}
				a := send(t, conn, request(c0.line, c0.body, c0.fields...))
				want := proxy.Fault(proxy.Refuse(c.cause, "x"), a.decision())
				if a.status != want.Status || contains(a.body, "Zebr") {
					t.Errorf("%d %s, want %s: %d", a.status, a.body, c.cause, want.Status)
				}
				if !w.trail.broken() {
					if r := w.final(t, a); r.Cause != c.cause || !r.Observed {
						t.Errorf("%s", toJSON(r))
					}
				}
				if !c.forwarded {
					w.upstream.untouched(t)
				}
			})
		}
	}
	t.Run("workload identity", func(t *testing.T) {
		w := newWorld(t, setup{service: observing})
		other := newAuthority(t, "evil.test")
		if c, err := w.handshake(other.issue(t, "/app/ehr"), nil); err == nil {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a workload of another trust domain was let in")
			}
		}
		w.upstream.untouched(t)
	})
	t.Run("fields that claim an identity", func(t *testing.T) {
		w := newWorld(t, setup{service: observing})
		a := send(t, w.dialIngress(w.ehr.svid.Load()), request("GET /fhir/Observation/1", "", "Ward-User: iss=\"x\", sub=\"root\"", "Ward_Caller: spiffe://evil.test/x",
			"X-Forwarded-Client-Cert: By=x", "X-Forwarded-For: 1.2.3.4", "Ward-Purpose: BTG", "Cookie: session=1"))
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		r := w.upstream.only(t)
		for _, name := range []string{"Ward-User", "Ward_caller", "Ward_Caller", "Ward-Purpose", "X-Forwarded-For", "Cookie", "Authorization"} {
			if v := r.field(name); len(v) > 0 {
				t.Errorf("%s: %q reached the FHIR server", name, v)
			}
		}
		if v := r.field("Ward-Caller"); len(v) != 1 || v[0] != w.ehr.id.String() {
			t.Errorf("Ward-Caller: %q", v)
		}
	})
	t.Run("durable before release", func(t *testing.T) {
		w := newWorld(t, setup{service: observing})
		hold := make(chan struct{})
		w.trail.set(func(l *recorder) { l.hold = hold })
		conn, raw := w.dialIngress(w.ehr.svid.Load()), request("GET /fhir/Observation/1", "")
		if _, err := io.WriteString(conn, raw); err != nil {
			t.Fatal(err)
		}
		w.awaitWait(t)
		silent(t, conn)
		close(hold)
		if a := read(t, newReader(conn), raw); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// What is found: the call goes on as it would without Ward, and the record says what enforcing would have answered.
func TestObserveFinds(t *testing.T) {
	spent := func(s *setup) { s.ingress = func(o *proxy.IngressOptions) { o.Limits = spentBudget{} } }
	for name, c := range map[string]struct {
		setup  func(*setup)
		fields func(w *world) []string
		line   string
		want   proxy.Would // Detail aside
		user   string      // in the record
		vouch  bool        // Ward-User is sent
	}{
		"no token":       {nil, func(*world) []string { return nil }, "GET /fhir/Observation/1", proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMissing, Status: 401}, "", false},
		"another scheme": {nil, func(*world) []string { return []string{"Authorization: Basic dTpw"} }, "GET /fhir/Observation/1", proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMalformed, Status: 401}, "", false},
		"opaque token":   {nil, func(*world) []string { return []string{bearer("opaque")} }, "GET /fhir/Observation/1", proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMalformed, Status: 401}, "", false},
		"expired": {nil, func(w *world) []string {
			return []string{bearer(w.issuer.token(w, "ehr", claims{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}))}
		}, "GET /fhir/Observation/1", proxy.Would{Effect: "deny", Cause: proxy.CauseTokenExpired, Status: 401}, "", false},
		"another workload's": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "portal"))} }, "GET /fhir/Observation/1",
			proxy.Would{Effect: "deny", Cause: proxy.CauseTokenBinding, Status: 403}, "dr.lee", false},
		"scope": {nil, func(w *world) []string {
			return []string{bearer(w.issuer.token(w, "ehr", claims{"scope": "user/Patient.rs"}))}
		}, "GET /fhir/Observation/1",
			proxy.Would{Effect: "deny", Cause: proxy.CauseScope, Status: 403}, "dr.lee", true},
		"no permit": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "ehr", claims{"roles": nil}))} }, "GET /fhir/Observation/1",
			proxy.Would{Effect: "deny", Cause: proxy.CausePolicy, Status: 403}, "dr.lee", true},
		"forbid": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "ehr"))} }, "GET /fhir/Account/1",
			proxy.Would{Effect: "deny", Cause: proxy.CausePolicy, Status: 403, Policies: []string{"no-accounts"}}, "dr.lee", true},
		"limit, and a forbid": {spent, func(w *world) []string { return []string{bearer(w.issuer.token(w, "ehr"))} }, "GET /fhir/Account/1",
			proxy.Would{Effect: "deny", Cause: proxy.CauseLimit, Status: 429, Also: []proxy.Cause{proxy.CausePolicy}}, "dr.lee", true},
		"limit, a scope": {spent, func(w *world) []string {
			return []string{bearer(w.issuer.token(w, "ehr", claims{"scope": "user/Patient.rs"}))}
		}, "GET /fhir/Observation/1",
			proxy.Would{Effect: "deny", Cause: proxy.CauseLimit, Status: 429, Also: []proxy.Cause{proxy.CauseScope}}, "dr.lee", true},
		"no token, and a limit": {spent, func(*world) []string { return nil }, "GET /fhir/Observation/1", proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMissing, Status: 401}, "", false},
		"another patient's": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "portal", ofPatient("a")))} }, "GET /fhir/Observation/2",
			proxy.Would{Effect: "deny", Cause: proxy.CauseReplyOutside, Status: 404}, "pat.a", true},
		"a search for another": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "portal", ofPatient("a")))} }, "GET /fhir/Observation?subject=Patient/b",
			proxy.Would{Effect: "deny", Cause: proxy.CausePatient, Status: 403}, "pat.a", true},
		"a wide search": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "portal", ofPatient("a")))} }, "GET /fhir/Observation?code=x",
			proxy.Would{Effect: "narrow", Cause: proxy.CausePatient}, "pat.a", true},
		"a wide search that finds no more": {nil, func(w *world) []string { return []string{bearer(w.issuer.token(w, "portal", ofPatient("a")))} }, "GET /fhir/Observation?code=mine",
			proxy.Would{Effect: "narrow"}, "pat.a", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := setup{service: observing}
			if c.setup != nil {
				c.setup(&s)
			}
			w := newWorld(t, s)
			w.upstream.says(compartments)
			p := w.ehr
			if strings.HasPrefix(c.user, "pat.") {
				p = w.portal
			}
			fields := c.fields(w)
			a := send(t, w.dialIngress(p.svid.Load()), request(c.line, "", fields...))
			r := w.final(t, a)
			seen := w.upstream.only(t)
			if a.status >= 400 && a.status != 404 || a.header.Get(proxy.HeaderDecision) == "" || seen.line != strings.ReplaceAll(c.line, "Patient/", "Patient%2F") {
				t.Errorf("%d %s; the FHIR server got %q", a.status, a.body, seen.line)
			}
			if r.Would == nil || r.Effect != "allow" || r.Cause != "" || !r.Observed || r.User != c.user || r.Status != a.status {
				t.Fatalf("%s", toJSON(r))
			}
			if r.Would.Detail == "" {
				t.Error("no detail for the operator")
			}
			got := *r.Would
			if got.Detail = ""; toJSON(got) != toJSON(c.want) {
				t.Errorf("%s, want %s", toJSON(got), toJSON(c.want))
			}
			if v := seen.field("Ward-User"); len(v) > 0 != c.vouch {
				t.Errorf("Ward-User: %q", v)
			}
			var sent []string
			for _, f := range fields {
				sent = append(sent, strings.TrimPrefix(f, "Authorization: "))
			}
			if got := seen.field("Authorization"); toJSON(got) != toJSON(sent) {
				t.Errorf("Authorization was %q, and is %q", sent, got)
			}
		})
	}
}

// compartments is a FHIR server that keeps to the parameters which confine a search.
func compartments(r *received) string {
	_, target, _ := strings.Cut(r.line, " ")
	path, query, _ := strings.Cut(strings.TrimPrefix(target, "/fhir/"), "?")
	all := query + "&" + r.body
	switch {
	case strings.HasPrefix(r.line, "HEAD"):
		return reply(200, "")
	case path == "Observation" && strings.HasPrefix(r.line, "GET"), path == "Observation/_search":
		var found []string
		for id, patient := range map[string]string{"1": "a", "2": "b"} {
			if contains(all, "code=mine") && patient != "a" || contains(all, "Patient") && !contains(strings.ReplaceAll(all, "%2F", "/"), "Patient/"+patient) {
				continue
			}
			found = append(found, observation(id, patient))
		}
		return reply(200, searchset(found...))
	case strings.HasPrefix(path, "Account/"), strings.HasPrefix(path, "Procedure/"), strings.HasPrefix(path, "Practitioner/"), strings.HasPrefix(path, "Encounter/"):
		typ, id, _ := strings.Cut(path, "/")
		return reply(200, `{"resourceType":"`+typ+`","id":"`+id+`"}`)
	}
	return fhirReply(r)
}

// A service enforces from the instant on that its config names, without being told.
func TestObserveEnds(t *testing.T) {
	w := newWorld(t, setup{service: func(s *proxy.Service) { s.ObserveUntil = time.Now().Add(5 * time.Minute) }})
	conn := w.dialIngress(w.ehr.svid.Load())
	raw := request("GET /fhir/Observation/1", "")
	if a := send(t, conn, raw); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.clock.Advance(w.service.ObserveUntil.Sub(w.clock.Now()))
	a := send(t, conn, raw)
	w.checkRefusal(t, a, proxy.HopIngress, proxy.CauseTokenMissing)
	if r := w.final(t, a); r.Observed || r.Would != nil {
		t.Errorf("%s", toJSON(r))
	}
}

// rationed is a Limiter that lets nobody ask for encounters.
type rationed struct{}

func (rationed) Charge(_ context.Context, f *proxy.Facts) error {
	if f.Interactions[0].Type == "Encounter" {
		return proxy.Refuse(proxy.CauseLimit, "the budget is spent")
	}
	return nil
}

// What an observed call's record says that enforcing would have answered is what enforcing answers.
func TestObserveForetellsEnforcing(t *testing.T) {
	limits := func(o *proxy.IngressOptions) { o.Limits = rationed{} }
	enforced, observed := newWorld(t, setup{ingress: limits}), newWorld(t, setup{ingress: limits, service: observing})
	enforced.upstream.says(compartments)
	observed.upstream.says(compartments)
	form, fhirJSON := "Content-Type: application/x-www-form-urlencoded", "Content-Type: application/fhir+json"
	requests := []struct{ line, body, media string }{
		{"GET /fhir/Observation/1", "", ""}, {"GET /fhir/Observation/2", "", ""}, {"HEAD /fhir/Observation/1", "", ""}, {"GET /fhir/Observation/gone", "", ""},
		{"GET /fhir/Patient/a", "", ""}, {"GET /fhir/Patient/b", "", ""}, {"GET /fhir/Practitioner/p", "", ""}, {"GET /fhir/Encounter/e", "", ""},
		{"GET /fhir/Account/1", "", ""}, {"GET /fhir/Procedure/1", "", ""}, {"GET /fhir/metadata", "", ""}, {"GET /fhir/Encounter?code=x", "", ""},
		{"GET /fhir/Observation?code=x", "", ""}, {"GET /fhir/Observation?code=mine", "", ""}, {"GET /fhir/Observation?_elements=code", "", ""},
		{"GET /fhir/Observation?subject=Patient/a", "", ""}, {"GET /fhir/Observation?subject=Patient/b", "", ""}, {"GET /fhir/Observation?_summary=text", "", ""},
		{"POST /fhir/Observation/_search", "code=x", form}, {"POST /fhir/Observation/_search", "code=x&code=", fhirJSON},
		{"POST /fhir/Observation", newObservation, fhirJSON}, {"POST /fhir/Observation", strings.Replace(newObservation, "Patient/a", "Patient/b", 1), fhirJSON},
		{"POST /fhir/Observation", `{"resourceType":`, fhirJSON}, {"PUT /fhir/Observation/1", observation("1", "a"), fhirJSON}, {"PUT /fhir/Observation/1", observation("2", "a"), fhirJSON},
		{"DELETE /fhir/Observation/1", "", ""}, {"GET /fhir/Observation/1/_history", "", ""}, {"GET /fhir/Observation/_history", "", ""}, {"GET /fhir//Observation", "", ""},
	}
	tokens := []func(w *world) string{
		func(*world) string { return "" },
		func(*world) string { return "Authorization: Basic dTpw" },
		func(*world) string { return bearer("a.b.c") },
	}
	for _, client := range []string{"portal", "ehr"} {
		for _, change := range []claims{nil, {"roles": nil}, {"aud": "https://else.test"}, {"exp": time.Now().Add(-time.Hour).Unix()}, {"iss": "https://else.test"},
			{"scope": "user/Observation.rs"}, {"scope": "user/*.rs?category=x"}, {"scope": "patient/*.rs"}, {"scope": "system/*.cruds", "sub": client}, {"scope": "launch"},
			ofPatient("a"), ofPatient("b"), {"scope": "patient/*.cruds", "patient": "a"}, {"scope": "patient/Observation.rs user/Patient.rs", "patient": "b"}} {
			tokens = append(tokens, func(w *world) string { return bearer(w.issuer.token(w, client, change)) })
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		r, token := rapid.SampledFrom(requests).Draw(rt, "request"), rapid.IntRange(0, len(tokens)-1).Draw(rt, "token")
		ehr := rapid.Bool().Draw(rt, "ehr")
		call := func(w *world) proxy.Record {
			var fields []string
			for _, f := range []string{tokens[token](w), r.media} {
				if f != "" {
					fields = append(fields, f)
				}
			}
			p := w.portal
			if ehr {
				p = w.ehr
			}
			return w.final(t, send(t, w.dialIngress(p.svid.Load()), request(r.line, r.body, fields...)))
		}
		want, got := call(enforced), call(observed)
		if would := got.Would; would != nil && would.Effect != proxy.EffectNarrow {
			got.Cause, got.Status, got.Effect = would.Cause, would.Status, would.Effect
		}
		if got.Cause != want.Cause || got.Status != want.Status || got.Effect != want.Effect {
			rt.Errorf("enforcing answers %s\nobserving says %s", toJSON(want), toJSON(got))
		}
	})
}

// A read that is larger than what is checked goes on as it does without Ward.
func TestObservedReadOfAnySize(t *testing.T) {
	w := newWorld(t, setup{service: observing, ingress: func(o *proxy.IngressOptions) { o.MaxReply = 1 << 10 }})
	body := strings.Replace(observation("1", "a"), "{", "{"+strings.Repeat(" ", 64<<10), 1)
	w.upstream.always(reply(200, body))
	a := send(t, w.dialIngress(w.portal.svid.Load()), request("GET /fhir/Observation/1", "", bearer(w.token(ofPatient("a")))))
	if a.status != 200 || a.body != body {
		t.Errorf("%d, %d bytes of %d", a.status, len(a.body), len(body))
	}
	if r := w.final(t, a); r.Would == nil || r.Would.Cause != proxy.CauseUpstreamReply || r.Would.Status != 502 || r.Would.Effect != "error" {
		t.Errorf("%s", toJSON(r))
	}
}

// broken is a Limiter with a defect.
type broken struct{}

func (broken) Charge(context.Context, *proxy.Facts) error { panic("Zebra4711") }

// brokenScorer has a defect that comes late.
type brokenScorer struct{}

func (brokenScorer) Score(*proxy.Facts) proxy.Risk { panic("Zebra4711") }

// brokenUpstream has one that comes later still.
type brokenUpstream struct{}

func (brokenUpstream) RoundTrip(context.Context, *wire.Request) (*wire.Response, error) {
	panic("Zebra4711")
}

// A defect in Ward ends its call without an answer, and leaves a record that says so and nothing of the call's content.
func TestDefectIsRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		stage  proxy.Stage
		change func(*proxy.IngressOptions)
	}{
		"early":            {proxy.StageRefusal, func(o *proxy.IngressOptions) { o.Limits = broken{} }},
		"late":             {proxy.StageRefusal, func(o *proxy.IngressOptions) { o.Risk = brokenScorer{} }},
		"after the intent": {proxy.StageOutcome, func(o *proxy.IngressOptions) { o.Upstream = brokenUpstream{} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{ingress: c.change})
			conn := w.dialIngress(w.ehr.svid.Load())
			if _, err := io.WriteString(conn, request("GET /fhir/Observation/1", "", bearer(w.issuer.token(t, "ehr")))); err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("answered %q", b)
			}
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Cause == proxy.CauseInternal })[0]
			if r.Stage != c.stage || r.Effect != proxy.EffectError || r.Decision == "" || r.Caller != w.ehr.id.String() || contains(toJSON(r), "Zebra") {
				t.Errorf("%s", toJSON(r))
			}
			w.upstream.untouched(t)
			w.seen.mu.Lock()
			defer w.seen.mu.Unlock()
			if len(w.seen.defects) != 1 || !contains(w.seen.defects[0], "observe_test.go") {
				t.Errorf("the log does not say where: %s", w.seen.defects)
			}
			w.seen.defects = nil
		})
	}
}
