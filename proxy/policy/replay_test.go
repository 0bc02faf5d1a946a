package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
)

// recorded is the record that ingress leaves of a decision.
func recorded(id string, at time.Time, d proxy.Decision) *proxy.Record {
	r := &proxy.Record{Schema: proxy.RecordSchema, Hop: proxy.HopIngress, Stage: proxy.StageIntent, Time: at, Decision: id,
		Effect: "allow", Inputs: d.Inputs, PolicySet: d.Set, Policies: d.Policies}
	switch {
	case len(d.Errors) > 0:
		r.Cause = proxy.CausePolicyError
	case d.Effect == proxy.NeedsImage:
		r.Cause = proxy.CauseNeedsImage
	case d.Effect == proxy.Deny:
		r.Cause = proxy.CausePolicy
	}
	if r.Cause != "" {
		r.Stage, r.Effect = proxy.StageRefusal, "deny"
	}
	return r
}

func TestReplayGolden(t *testing.T) {
	old := parseText(t, `@id("reads") permit (principal, action in Action::"reads", resource) when { context.roles.contains("nurse") };
		@id("metadata") permit (principal, action == Action::"capabilities", resource);`)
	next := parseText(t, `@id("reads") permit (principal, action in Action::"reads", resource) when { context.roles.contains("nurse") };
		@id("no-conditions") forbid (principal, action, resource is FHIR::Condition);
		@id("labelled") forbid (principal, action, resource is FHIR::Observation) when { resource.labels.contains("s|V") };
		@id("overflows") forbid (principal, action, resource is FHIR::Slot) when { context.risk + 9223372036854775807 < 0 };
		@id("coverage") permit (principal == Workload::"/app/portal", action == Action::"read", resource is FHIR::Coverage);`)
	start := time.Date(2026, 11, 16, 8, 0, 0, 0, time.UTC)
	p := NewReplay(next)
	n := 0
	call := func(typ, by, user, role string) *proxy.Record {
		f := facts(read(typ, "1"))
		f.Caller, f.User.Subject, f.User.Roles, f.Risk.Score = workload(by), user, []string{role}, 1
		n++
		return recorded(fmt.Sprintf("01JC%022d", n), start.Add(time.Duration(n)*time.Hour), old.Decide(f))
	}
	for i := range 9 {
		p.Add(call("Condition", "/app/ward", fmt.Sprint("nurse", i), "nurse"))
		p.Add(call("Condition", "/app/ward", fmt.Sprint("nurse", i), "nurse"))
	}
	for range 120 {
		p.Add(call("Patient", "/app/ward", "nurse1", "nurse"))
	}
	p.Add(call("Coverage", "/app/portal", "pat", ""))
	p.Add(call("Coverage", "/app/portal", "pat", ""))
	p.Add(call("Coverage", "/app/ehr", "pat", ""))
	p.Add(call("Slot", "/app/ward", "nurse1", "nurse"))
	p.Add(call("Observation", "/app/ward", "nurse1", "nurse"))
	observed := call("Coverage", "/app/portal", "kim", "") // let through in spite of policy
	observed.Stage, observed.Effect, observed.Cause, observed.Would = proxy.StageIntent, "allow", "", &proxy.Would{Effect: "deny", Cause: proxy.CausePolicy}
	p.Add(observed)
	late := call("Patient", "/app/ward", "nurse1", "nurse") // policy allowed it, its reply did not
	late.Stage, late.Cause = proxy.StageRefusal, proxy.CauseReplyOutside
	p.Add(late)
	// What is no decision by policy.
	p.Add(&proxy.Record{Hop: proxy.HopIngress, Stage: proxy.StageRefusal, Cause: proxy.CauseTokenMissing})
	p.Add(&proxy.Record{Hop: proxy.HopIngress, Stage: proxy.StageOutcome})
	p.Add(&proxy.Record{Hop: proxy.HopEgress, Stage: proxy.StageEgress})
	p.Add(&proxy.Record{Stage: proxy.StageEvent})
	p.Add(&proxy.Record{Hop: proxy.HopIngress, Stage: proxy.StageIntent, Inputs: []byte(`{"model":2,"requests":[]}`)})
	p.Add(&proxy.Record{Hop: proxy.HopIngress, Stage: proxy.StageIntent, Inputs: []byte(`[]`)})
	p.Skip()
	p.Fold(1200)
	report := p.Report()
	if !report.Widened() || report.Calls != report.Unchanged+report.Lacking+report.NewlyAllowed+report.NewlyRefused {
		t.Errorf("%+v", report)
	}
	var b strings.Builder
	if _, err := report.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	want := `145 calls, 6 days; 122 unchanged; 1 lacked facts the new policy reads (it would refuse them)
newly refused  19 calls
  18  /app/ward read Condition  9 users  e.g. 01JC0000000000000000000001
   1  /app/ward read Slot       1 user   e.g. 01JC0000000000000000000142
newly allowed  3 calls
  3  /app/portal read Coverage  2 users  e.g. 01JC0000000000000000000139  <- review
policy errors  1: a policy cannot be evaluated, and that refuses
not replayed: 1 call refused before policy was asked
not replayed: 1,200 refusals recorded as a sum only
not replayed: 3 records of another version of Ward
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

// A replay says what the new set decides, and by the old set nothing changes.
func TestReplayIsDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, next := drawSet(t), drawSet(t)
		same, other := NewReplay(old), NewReplay(next)
		var want ReplayReport
		for range 10 {
			in := drawInputs(t)
			raw, err := in.append(nil)
			if err != nil {
				t.Fatal(err)
			}
			decide := func(s *Set) proxy.Decision {
				d := proxy.Decision{Set: s.hash, Effect: proxy.Allow, Inputs: raw}
				for i := range in.Requests {
					v := s.decide(in, &in.Requests[i])
					d.Errors = append(d.Errors, v.errors...)
					if severity(v.effect) > severity(d.Effect) {
						d.Effect = v.effect
					}
				}
				return d
			}
			was, is := decide(old), decide(next)
			r := recorded("01JC0000000000000000000001", time.Unix(1, 0), was)
			same.Add(r)
			other.Add(r)
			switch {
			case is.Effect == proxy.NeedsImage && was.Effect != proxy.NeedsImage:
				want.Lacking++
			case is.Effect == proxy.Allow && was.Effect != proxy.Allow:
				want.NewlyAllowed++
			case is.Effect != proxy.Allow && was.Effect == proxy.Allow:
				want.NewlyRefused++
			default:
				want.Unchanged++
			}
		}
		if r := same.Report(); r.Calls != 10 || r.Unchanged != 10 {
			t.Fatalf("by the same set: %+v", r)
		}
		r := other.Report()
		if got := (ReplayReport{Lacking: r.Lacking, NewlyAllowed: r.NewlyAllowed, NewlyRefused: r.NewlyRefused, Unchanged: r.Unchanged}); !cmp.Equal(got, want) {
			t.Fatalf("by another: %+v, want %+v", got, want)
		}
	})
}

// However many kinds of call and people a trail has, a replay counts every call and stays within its bounds.
func TestReplayIsBounded(t *testing.T) {
	old, next := parseText(t, `@id("a") permit (principal, action == Action::"create", resource);`), parseText(t, `@id("a") permit (principal, action, resource);`)
	p := NewReplay(next)
	p.people.left = 100
	const n = maxKinds + 500
	for i := range n {
		f := facts(read("Patient", "1"))
		f.Caller, f.User.Subject = workload(fmt.Sprint("/app/", i)), fmt.Sprint("u", i)
		p.Add(recorded("01JC0000000000000000000001", time.Unix(int64(i), 0), old.Decide(f)))
	}
	r := p.Report()
	if len(p.kinds) > maxKinds+1 || r.NewlyAllowed != n || len(p.people.all(p.kinds)) > 100 {
		t.Errorf("%d kinds, %d people, %d calls", len(p.kinds), len(p.people.all(p.kinds)), r.NewlyAllowed)
	}
	var calls int64
	for _, c := range r.Allowed {
		calls += c.Calls
	}
	if calls != n || r.Allowed[0].Caller != "" || !r.Allowed[0].AtLeast {
		t.Errorf("%d calls in groups, the first is %+v", calls, r.Allowed[0])
	}
	var b strings.Builder
	if _, err := r.WriteTo(&b); err != nil || !strings.Contains(b.String(), "other kinds of call") || !strings.Contains(b.String(), "kinds more") {
		t.Error(b.String())
	}
}

func (c *crowd) all(kinds map[ReplayKind]*tally) (out []uint64) {
	for _, t := range kinds {
		for h := range t.users {
			out = append(out, h)
		}
		for h := range t.workloads {
			out = append(out, h)
		}
	}
	return out
}

// BenchmarkReplay is one recorded call decided again, its inputs read included.
func BenchmarkReplay(b *testing.B) {
	for _, n := range []int{50, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			set := manyPolicies(b, n)
			r := recorded("01JC0000000000000000000001", time.Unix(1, 0), set.Decide(benchFacts()))
			p := NewReplay(set)
			b.ReportAllocs()
			for b.Loop() {
				p.Add(r)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}
