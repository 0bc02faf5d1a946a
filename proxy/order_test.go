package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// trial is a call to ingress that is to go wrong in some way.
type trial struct {
	*world
	line, body, token string
	fields            []string
}

// spentBudget is a Limiter whose every budget is spent.
type spentBudget struct{}

func (spentBudget) Charge(context.Context, *proxy.Facts) error {
	return proxy.Refuse(proxy.CauseLimit, "the budget is spent")
}

// A step of the journey may rely on those before it, so when several would refuse, the first one has to. Each fault is
// tried alone, and together with all that come later.
func TestIngressChecksInOrder(t *testing.T) {
	type fault struct {
		name  string
		cause proxy.Cause
		setup func(*setup)
		apply func(*trial)
	}
	faults := []fault{
		{"deny list", proxy.CauseDenyList, nil, func(c *trial) { c.denied.deny(c.ehr.id) }},
		{"not a caller", proxy.CauseNotACaller, nil, func(c *trial) { c.service.Callers = c.service.Callers[:1] }},
		{"connection field", proxy.CauseHeaders, nil, func(c *trial) { c.fields = append(c.fields, "Connection: authorization") }},
		{"path", proxy.CauseMalformed, nil, func(c *trial) { c.line = "POST /fhir//Observation" }},
		{"no token", proxy.CauseTokenMissing, nil, func(c *trial) { c.token = "" }},
		{"another's token", proxy.CauseTokenBinding, nil, func(c *trial) {
			c.token = c.issuer.token(c, "portal", claims{"scope": "user/Observation.rs", "roles": nil})
		}},
		{"limit", proxy.CauseLimit, func(s *setup) {
			s.ingress = func(o *proxy.IngressOptions) { o.Limits = spentBudget{} }
		}, func(*trial) {}},
		{"body", proxy.CauseMalformed, nil, func(c *trial) { c.body = `{"resourceType":"Observation"` }},
		{"scope", proxy.CauseScope, nil, func(c *trial) {
			c.token = c.issuer.token(c, "ehr", claims{"scope": "user/Observation.rs", "roles": nil})
		}},
		{"policy", proxy.CausePolicy, nil, func(c *trial) { c.token = c.issuer.token(c, "ehr", claims{"roles": nil}) }},
		{"trail full", proxy.CauseAudit, nil, func(c *trial) { c.trail.set(func(l *recorder) { l.refuse = errDisk }) }},
		{"upstream", proxy.CauseUpstream, nil, func(c *trial) { _ = c.upstream.Close() }},
	}
	run := func(t *testing.T, faults []fault) {
		var s setup
		for _, f := range faults {
			if f.setup != nil {
				f.setup(&s)
			}
		}
		w := newWorld(t, s)
		c := &trial{world: w, line: "POST /fhir/Observation", body: newObservation, token: w.issuer.token(t, "ehr")}
		for _, f := range slices.Backward(faults) {
			f.apply(c)
		}
		fields := append(c.fields, "Content-Type: application/fhir+json")
		if c.token != "" {
			fields = append(fields, bearer(c.token))
		}
		a := send(t, c.dialIngress(c.ehr.svid.Load()), request(c.line, c.body, fields...))
		stages := []proxy.Stage{proxy.StageRefusal}
		if faults[0].cause == proxy.CauseUpstream {
			stages = []proxy.Stage{proxy.StageIntent, proxy.StageOutcome} // a write is in the trail before it is tried
		}
		w.checkRefusal(t, a, proxy.HopIngress, faults[0].cause, stages...)
		w.upstream.untouched(t)
	}
	for i, f := range faults {
		t.Run(f.name+"/alone", func(t *testing.T) { run(t, faults[i:i+1]) })
		t.Run(f.name+"/and all later", func(t *testing.T) { run(t, faults[i:]) })
	}
}

// The same for a local call that leaves.
func TestEgressChecksInOrder(t *testing.T) {
	type fault struct {
		name    string
		cause   proxy.Cause
		process func(*process)
		apply   func(*trial)
	}
	faults := []fault{
		{"process ended", proxy.CausePeerChanged, func(p *process) { err := errGone; p.ended.Store(&err) }, func(*trial) {}},
		{"unknown service", proxy.CauseUnknownService, nil, func(c *trial) { c.line = "GET http://other.mesh.internal/fhir/Patient/a" }},
		{"not a caller", proxy.CauseNotACaller, nil, func(c *trial) { c.service.Callers = nil }},
		{"connection field", proxy.CauseHeaders, nil, func(c *trial) { c.fields = append(c.fields, "Connection: Ward-Caller") }},
		// It has an SVID, but no bundle by which to know the other end.
		{"no bundle", proxy.CauseUpstream, func(p *process) { p.identity = newIdentity(p.svid.Load()) }, func(*trial) {}},
		{"ingress", proxy.CauseUpstream, nil, func(c *trial) { c.service.Addresses = []string{"127.0.0.1:1"} }},
	}
	run := func(t *testing.T, faults []fault) {
		w := newWorld(t, setup{})
		c := &trial{world: w, line: "GET /fhir/Patient/a"}
		p := w.process("/app/portal")
		for _, f := range slices.Backward(faults) {
			if f.process != nil {
				f.process(p)
			}
			f.apply(c)
		}
		a := w.call(p, request(c.line, "", c.fields...))
		w.checkRefusal(t, a, proxy.HopEgress, faults[0].cause)
		w.upstream.untouched(t)
	}
	for i, f := range faults {
		t.Run(f.name+"/alone", func(t *testing.T) { run(t, faults[i:i+1]) })
		t.Run(f.name+"/and all later", func(t *testing.T) { run(t, faults[i:]) })
	}
}

// checkRefusal holds a to what every refusal owes: the cause's status and words, a decision id, and exactly these
// records under it (none stands for one refusal), of which the last says why.
func (w *world) checkRefusal(t testing.TB, a *answer, hop proxy.Hop, cause proxy.Cause, stages ...proxy.Stage) {
	t.Helper()
	want := proxy.Fault(proxy.Refuse(cause, "x"), a.decision())
	if a.status != want.Status || a.code(t) == "" {
		t.Errorf("got %d %s, want %s: %d", a.status, a.body, cause, want.Status)
	}
	if got := a.header["Content-Type"]; len(got) != 1 || got[0] != "application/fhir+json" {
		t.Errorf("Content-Type %q", got)
	}
	if ids := a.header[proxy.HeaderDecision]; len(ids) != 1 || len(ids[0]) != 26 {
		t.Errorf("decision ids: %q", ids)
	}
	if !contains(a.body, "Decision "+a.decision()+".") {
		t.Errorf("the body does not give the decision id: %s", a.body)
	}
	if w.trail.broken() {
		return
	}
	if len(stages) == 0 {
		stages = []proxy.Stage{proxy.StageRefusal}
	}
	records := w.trail.of(hop, a.decision())
	var got []proxy.Stage
	for _, r := range records {
		got = append(got, r.Stage)
	}
	if !slices.Equal(got, stages) {
		t.Fatalf("records %s, want the stages %q", toJSON(records), stages)
	}
	r := records[len(records)-1]
	effect := "deny"
	if a.status >= 500 && a.status != 501 {
		effect = proxy.EffectError
	}
	if r.Cause != cause || r.Status != a.status || r.Effect != effect || r.Detail == "" {
		t.Errorf("record %s, want %s, %d, %s", toJSON(r), cause, a.status, effect)
	}
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
