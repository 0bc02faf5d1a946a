package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// drawSet draws a set of policies whose scopes and conditions use all that the model has.
func drawSet(t *rapid.T) *Set {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	var b strings.Builder
	n := rapid.IntRange(1, 8).Draw(t, "policies")
	for i := range n {
		effect := pick("effect", "permit", "permit", "forbid")
		principal := pick("principal", "principal", "principal", `principal == Workload::"/app/ehr"`, `principal in Workload::"/app"`,
			"principal is Workload", `principal is Workload in Workload::"/bridge"`)
		action := pick("action", "action", "action", `action in Action::"reads"`, `action in [Action::"read", Action::"search", Action::"create"]`,
			`action == Action::"update"`, `action in [Action::"writes", Action::"history"]`, `action == Action::"read"`)
		resource := pick("resource", "resource", "resource", "resource is FHIR::Patient", "resource is FHIR::Observation",
			`resource == FHIR::Patient::"p1"`, `resource in FHIR::Patient::"p1"`, `resource is FHIR::Patient in FHIR::Patient::"p1"`)
		fmt.Fprintf(&b, "@id(\"p%d\") %s (%s, %s, %s)\n", i, effect, principal, action, resource)
		for range rapid.IntRange(0, 3).Draw(t, "conditions") {
			var parts []string
			for range rapid.IntRange(1, 3).Draw(t, "parts") {
				parts = append(parts, rapid.SampledFrom(conditions).Draw(t, "part"))
			}
			fmt.Fprintf(&b, "%s { %s }\n", pick("when", "when", "when", "unless"), strings.Join(parts, pick("join", " && ", " && ", " || ")))
		}
		b.WriteString(";\n")
	}
	s, err := Parse([]File{{Name: "drawn.cedar", Content: []byte(b.String())}})
	if err != nil {
		// Some scopes and conditions do not go together, which is for the validator to say.
		t.Skip(err)
	}
	return s
}

var conditions = []string{
	"true", "false",
	"resource is FHIR::Patient",
	"(resource is FHIR::Patient || resource is FHIR::Observation)",
	`resource has id`,
	`(resource has id && resource.id == "p1")`,
	`resource.patients.contains("p1")`,
	`!resource.patients.isEmpty()`,
	`resource.labels.containsAny(["s|R", "s|V"])`,
	`(if context.confined then resource.labels else context.roles).contains("nurse")`,
	`{"a": resource.patients}.a.contains("p2")`,
	`context.roles.contains("nurse")`,
	`context.roles.containsAll(["nurse", "physician"])`,
	`context has user`,
	`(context has user && context.user.subject == "lee")`,
	`(context has user.patient && context.patients == [context.user.patient])`,
	`(context has user && context.user == context.user)`,
	`(context has user.fhirUser && context.user.fhirUser like "Practitioner/*")`,
	`(context has purpose && context.purpose == "TREAT")`,
	`(context has body && context.body.patients == ["p1"])`,
	`(context has body && (context.body.foreign || context.body.conditional))`,
	`(context has body && context.body.labels.contains("s|R"))`,
	`context.client.id == "ehr"`,
	`context.client == {"issuer": "i", "id": "ehr"}`,
	`context.service == "fhir.ehr"`,
	`context.level == "user"`,
	`context.risk < 50`,
	`context.risk * 9223372036854775807 >= 0`, // fails from risk 2 on
	`context.params.contains("name")`,
	`context.patients.contains("p1")`,
	`principal.id like "spiffe://clinic.test/*"`,
	`principal in [Workload::"/app/ehr", Workload::"/bridge"]`,
	`action in [Action::"reads"]`,
}

// drawInputs draws a call in the shape in which see gives it, with the resource's facts known, unknown or empty.
func drawInputs(t *rapid.T) *inputs {
	someOf := func(label string, of ...string) []string {
		var out []string
		for _, s := range of {
			if rapid.Bool().Draw(t, label+" "+s) {
				out = append(out, s)
			}
		}
		return out
	}
	one := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	in := &inputs{Model: inputsModel, Principal: principal{Name: one("name", "/app/ehr", "/bridge/icu", "/etl", "spiffe://partner.test/app/ehr")}}
	if in.Principal.ID = "spiffe://clinic.test" + in.Principal.Name; strings.HasPrefix(in.Principal.Name, "spiffe:") {
		in.Principal.ID = in.Principal.Name
	}
	in.Context = shared{Service: one("service", "fhir.ehr", "fhir.lab"), Client: client{Issuer: one("issuer", "i", ""), ID: one("client", "ehr", "")},
		Level: one("level", "", "patient", "user", "system"), Confined: rapid.Bool().Draw(t, "confined"),
		Purpose: one("purpose", "", "TREAT", "HRESCH"), Risk: int64(rapid.IntRange(0, 100).Draw(t, "risk"))}
	if rapid.Bool().Draw(t, "user") {
		in.Context.User = &user{Issuer: "i", Subject: one("subject", "lee", "kim \u2028\"<"), FHIRUser: one("fhirUser", "", "Practitioner/lee"), Patient: one("launch", "", "p1")}
		in.Context.Roles = someOf("role", "nurse", "physician")
	}
	for range rapid.IntRange(1, 2).Draw(t, "interactions") {
		a := rapid.SampledFrom(slices.DeleteFunc(actions(), func(a action) bool { return !a.typed && !a.system })).Draw(t, "action")
		r := request{Action: a.name, Type: systemType}
		if a.typed {
			r.Type = one("type", "Patient", "Observation", "Slot", "Organization")
			r.ID = one("id", "", "p1", "p2")
		}
		if rapid.Bool().Draw(t, "patients known") {
			r.Patients = orEmpty(someOf("patient", "p1", "p2"))
		}
		if rapid.Bool().Draw(t, "labels known") {
			r.Labels = orEmpty(someOf("label", "s|R", "s|N"))
		}
		r.Params, r.Named = someOf("param", "name", "code"), someOf("named", "p1", "p2")
		if a.body {
			r.Body = &body{Patients: someOf("body patient", "p1", "p2"), Labels: someOf("body label", "s|R"), Carries: someOf("carried", "p2"),
				Foreign: rapid.Bool().Draw(t, "foreign"), Conditional: rapid.Bool().Draw(t, "conditional")}
		}
		in.Requests = append(in.Requests, r)
	}
	return in
}

// whole decides as the definition says: every policy of the set, as it was written, on every attribute and entity.
func whole(s *Set, in *inputs, r *request) verdict {
	c := s.model.call(in, r, s.model.everything)
	all := cedar.NewPolicySet()
	for _, p := range s.policies {
		all.Add(cedar.PolicyID(p.id), p.cedar)
	}
	entities := types.EntityMap{}
	for uid, e := range s.model.entities {
		entities[uid] = e
	}
	for _, uid := range []types.EntityUID{c.principal, c.resource} {
		entities[uid], _ = c.Get(uid)
	}
	decision, diag := cedar.Authorize(all, entities, c.request())
	slices.SortFunc(diag.Reasons, func(a, b cedar.DiagnosticReason) int { return strings.Compare(string(a.PolicyID), string(b.PolicyID)) })
	slices.SortFunc(diag.Errors, func(a, b cedar.DiagnosticError) int { return strings.Compare(string(a.PolicyID), string(b.PolicyID)) })
	var failed, open []string
	permits := false
	for _, e := range diag.Errors {
		p := s.policies[slices.IndexFunc(s.policies, func(p *policy) bool { return p.id == string(e.PolicyID) })]
		if p.reads.has(c.unknown()) {
			open = append(open, p.id)
			permits = permits || p.cedar.Effect() == cedar.Permit
		} else {
			failed = append(failed, p.id)
		}
	}
	forbids := decision == cedar.Deny && len(diag.Reasons) > 0
	switch {
	case failed != nil:
		return verdict{effect: proxy.Deny, policies: failed}
	case forbids:
		return verdict{effect: proxy.Deny, policies: reasons(diag)}
	case open == nil && decision == cedar.Allow:
		return verdict{effect: proxy.Allow, policies: reasons(diag)}
	case open == nil, decision == cedar.Deny && !permits:
		return verdict{effect: proxy.Deny}
	}
	return verdict{effect: proxy.NeedsImage, policies: open}
}

func TestSlicedIsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t)
		for range 10 {
			in := drawInputs(t)
			for i := range in.Requests {
				got, want := s.decide(in, &in.Requests[i]), whole(s, in, &in.Requests[i])
				if got.effect != want.effect || !slices.Equal(got.policies, want.policies) {
					t.Fatalf("sliced: %s by %v; whole: %s by %v", got.effect, got.policies, want.effect, want.policies)
				}
			}
		}
	})
}

// Whatever the server turns out to hold, an allowed call would have been allowed and a denied one denied.
func TestPartialKnowledgeFlipsNothing(t *testing.T) {
	completions := func(known []string, of ...string) [][]string {
		if known != nil {
			return [][]string{known}
		}
		return [][]string{{}, {of[0]}, {of[1]}, {of[0], of[1]}}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t)
		for range 5 {
			in := drawInputs(t)
			for i := range in.Requests {
				r := in.Requests[i]
				before := s.decide(in, &r)
				for _, patients := range completions(r.Patients, "p1", "p2") {
					for _, labels := range completions(r.Labels, "s|R", "s|V") {
						r := r
						r.Patients, r.Labels = patients, labels
						after := whole(s, in, &r)
						if before.effect != proxy.NeedsImage && before.effect != after.effect {
							t.Fatalf("%s before, %s once patients are %v and labels %v", before.effect, after.effect, patients, labels)
						}
					}
				}
			}
		}
	})
}

func TestInputsRoundTrip(t *testing.T) {
	m := newModel()
	rapid.Check(t, func(t *rapid.T) {
		in := drawInputs(t)
		b, err := in.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := m.parseInputs(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		// Unknown and empty are different for what can be unknown, and the same elsewhere.
		for i := range in.Requests {
			if (in.Requests[i].Patients == nil) != (back.Requests[i].Patients == nil) || (in.Requests[i].Labels == nil) != (back.Requests[i].Labels == nil) {
				t.Fatalf("known and unknown changed places: %s", b)
			}
		}
		if diff := cmp.Diff(in, back, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-written +read):\n%s", diff)
		}
	})
}

// The explanation comes from another evaluation, clause by clause: it must find what the decision found.
func TestExplanationAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t)
		in := drawInputs(t)
		b, err := in.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Explain(s, b)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range e.Requests {
			v := s.decide(in, &in.Requests[i])
			var by []Finding
			switch {
			case v.effect == proxy.Allow:
				by = r.Permits
			case v.effect == proxy.NeedsImage:
				by = r.Open
			case len(r.Failed) > 0:
				by = r.Failed
			default:
				by = r.Forbids
			}
			var names []string
			for _, f := range by {
				names = append(names, f.Policy)
			}
			slices.Sort(names)
			if r.Effect != v.effect.String() || !slices.Equal(names, v.policies) {
				t.Fatalf("explained as %s by %v; decided %s by %v", r.Effect, names, v.effect, v.policies)
			}
		}
	})
}

// What policies are checked against is what they get: every request and entity conforms to the schema.
func TestCallsConformToSchema(t *testing.T) {
	m := newModel()
	schema, err := m.resolve(fhir.Types())
	if err != nil {
		t.Fatal(err)
	}
	v := validate.New(schema)
	rapid.Check(t, func(t *rapid.T) {
		in := drawInputs(t)
		for i := range in.Requests {
			r := &in.Requests[i]
			r.Patients, r.Labels = orEmpty(r.Patients), orEmpty(r.Labels)
			c := m.call(in, r, m.everything)
			if err := v.Request(c.request()); err != nil {
				t.Fatal(err)
			}
			for _, uid := range []types.EntityUID{c.principal, c.resource} {
				e, _ := c.Get(uid)
				if err := v.Entity(e); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, e := range m.entities {
			if err := v.Entity(e); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Facts of any kind give inputs that the model accepts, or an error; never a panic, never a wrong allow.
func TestDecideAnyFacts(t *testing.T) {
	s := parseText(t, `@id("nothing") forbid (principal, action, resource);`)
	rapid.Check(t, func(t *rapid.T) {
		f := &proxy.Facts{Purpose: rapid.String().Draw(t, "purpose"), Service: rapid.String().Draw(t, "service")}
		if rapid.Bool().Draw(t, "caller") {
			f.Caller = spiffeid.RequireFromString("spiffe://clinic.test/app/x")
		}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			f.Interactions = append(f.Interactions, fhir.Interaction{Kind: fhir.Kind(rapid.Byte().Draw(t, "kind")),
				Type: rapid.SampledFrom([]string{"", "Patient", "Nonsense", "System"}).Draw(t, "type"), ID: rapid.String().Draw(t, "id")})
		}
		if rapid.Bool().Draw(t, "content") {
			f.Content = &fhir.Content{Patients: []string{rapid.String().Draw(t, "patient")}}
		}
		if d := s.Decide(f); d.Effect != proxy.Deny {
			t.Fatalf("%+v", d)
		}
	})
}

// What is remembered of users and workloads is what would have been built.
func TestRememberedIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSet(t)
		for range 20 {
			in := drawInputs(t)
			// Lists whose elements run together to the same bytes.
			in.Context.Roles = append(in.Context.Roles, rapid.SampledFrom([][]string{nil, {"ab", "c"}, {"a", "bc"}, {"abc"}, {"", "abc"}}).Draw(t, "more roles")...)
			for i := range in.Requests {
				r := &in.Requests[i]
				needs := s.slice(r).reads
				if rapid.Bool().Draw(t, "all") {
					needs = s.model.everything
				}
				built, recalled := s.model.call(in, r, needs), s.model.call(in, r, needs)
				recalled.memory = s.memory
				if got, want := recalled.context(), built.context(); !got.Equal(want) {
					t.Fatalf("context %s, want %s", got, want)
				}
				got, _ := recalled.Get(recalled.principal)
				want, _ := built.Get(built.principal)
				if got.UID != want.UID || !got.Parents.Equal(want.Parents) || !got.Attributes.Equal(want.Attributes) {
					t.Fatalf("principal %v, want %v", got, want)
				}
			}
		}
	})
}

// A key longer than any that is kept is no obstacle, and is not kept.
func TestTooLongToRemember(t *testing.T) {
	s := parseText(t, `@id("staff") permit (principal, action, resource) when { context.roles.contains("physician") };`)
	f := facts(read("Observation", "1"))
	for i := range 500 {
		f.User.Roles = append(f.User.Roles, fmt.Sprintf("role-%d", i))
	}
	for range 2 {
		if d := s.Decide(f); d.Effect != proxy.Allow {
			t.Fatalf("%+v", d)
		}
	}
	if n := s.memory.cache.EstimatedSize(); n != 0 {
		t.Errorf("%d records kept", n)
	}
}
