package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// parseText makes a set of one file.
func parseText(t testing.TB, text string) *Set {
	t.Helper()
	s, err := Parse([]File{{Name: "clinic.cedar", Content: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func workload(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("clinic.test"), path)
}

// facts is a plain call: a physician's, by the EHR.
func facts(acts ...fhir.Interaction) *proxy.Facts {
	return &proxy.Facts{
		Self: workload("/ward/ehr"), Caller: workload("/app/ehr"), Service: "fhir.ehr.mesh.internal",
		Client:       proxy.Client{Issuer: "https://login.clinic.test", ID: "ehr"},
		User:         &proxy.User{Issuer: "https://login.clinic.test", Subject: "dr.lee", Roles: []string{"physician"}, Name: "Lee, Ada"},
		Grant:        fhir.Grant{Level: fhir.UserLevel},
		Purpose:      "TREAT",
		Interactions: acts,
	}
}

func read(typ, id string) fhir.Interaction {
	return fhir.Interaction{Kind: fhir.Read, Type: typ, ID: id}
}

func create(f *proxy.Facts, c fhir.Content) *proxy.Facts {
	f.Interactions, f.Content = []fhir.Interaction{{Kind: fhir.Create, Type: c.Type}}, &c
	return f
}

func TestDecide(t *testing.T) {
	const everyone = `@id("all") permit (principal, action, resource);`
	const overflow = `@id("bad") permit (principal, action, resource) when { context.risk * 9223372036854775807 > 0 };`
	risky := func(f *proxy.Facts) *proxy.Facts { f.Risk.Score = 50; return f }
	for name, tc := range map[string]struct {
		policies string
		facts    *proxy.Facts
		want     proxy.Effect
		by       []string
		errors   int
	}{
		"nothing permits": {`@id("a") permit (principal, action == Action::"delete", resource);`, facts(read("Patient", "1")), proxy.Deny, nil, 0},
		"a permit holds":  {everyone, facts(read("Patient", "1")), proxy.Allow, []string{"all"}, 0},
		"all that hold are named, sorted": {everyone + `@id("about") permit (principal, action in Action::"reads", resource is FHIR::Patient);`,
			facts(read("Patient", "1")), proxy.Allow, []string{"about", "all"}, 0},
		"a forbid wins": {everyone + `@id("no") forbid (principal, action, resource is FHIR::Patient);`, facts(read("Patient", "1")), proxy.Deny, []string{"no"}, 0},
		"a permit that fails denies, though another holds": {everyone + overflow, risky(facts(read("Patient", "1"))), proxy.Deny, []string{"bad"}, 1},
		"a forbid that fails denies": {everyone + `@id("bad") forbid (principal, action, resource) when { context.risk * 9223372036854775807 < 0 };`,
			risky(facts(read("Patient", "1"))), proxy.Deny, []string{"bad"}, 1},
		"a policy that could fail and does not": {everyone + overflow, facts(read("Patient", "1")), proxy.Allow, []string{"all"}, 0},

		"groups of actions":            {`@id("r") permit (principal, action in Action::"reads", resource);`, facts(fhir.Interaction{Kind: fhir.HistoryType, Type: "Patient"}), proxy.Allow, []string{"r"}, 0},
		"a write is no read":           {`@id("r") permit (principal, action in Action::"reads", resource);`, facts(fhir.Interaction{Kind: fhir.Delete, Type: "Patient", ID: "1"}), proxy.Deny, nil, 0},
		"capabilities are no read":     {`@id("r") permit (principal, action in Action::"reads", resource);`, facts(fhir.Interaction{Kind: fhir.Capabilities}), proxy.Deny, nil, 0},
		"capabilities concern nobody":  {`@id("c") permit (principal, action == Action::"capabilities", resource is FHIR::System) unless { resource.patients.contains("1") || resource.labels.contains("x") };`, facts(fhir.Interaction{Kind: fhir.Capabilities}), proxy.Allow, []string{"c"}, 0},
		"the system has a history":     {`@id("h") permit (principal, action in Action::"history", resource is FHIR::System);`, facts(fhir.Interaction{Kind: fhir.HistorySystem}), proxy.Allow, []string{"h"}, 0},
		"a resource by its name":       {`@id("p") permit (principal, action, resource == FHIR::Patient::"1");`, facts(read("Patient", "1")), proxy.Allow, []string{"p"}, 0},
		"another resource":             {`@id("p") permit (principal, action, resource == FHIR::Patient::"1");`, facts(read("Patient", "2")), proxy.Deny, nil, 0},
		"the same id of another type":  {`@id("p") permit (principal, action, resource == FHIR::Patient::"1");`, facts(read("Person", "1")), proxy.Deny, nil, 0},
		"a search has no id":           {`@id("p") permit (principal, action, resource) when { resource has id };`, facts(fhir.Interaction{Kind: fhir.Search, Type: "Patient"}), proxy.Deny, nil, 0},
		"a workload by its name":       {`@id("w") permit (principal == Workload::"/app/ehr", action, resource);`, facts(read("Patient", "1")), proxy.Allow, []string{"w"}, 0},
		"a workload in its folder":     {`@id("w") permit (principal in Workload::"/app", action, resource);`, facts(read("Patient", "1")), proxy.Allow, []string{"w"}, 0},
		"a workload in another folder": {`@id("w") permit (principal in Workload::"/ap", action, resource);`, facts(read("Patient", "1")), proxy.Deny, nil, 0},
		"a workload by its whole id":   {`@id("w") permit (principal, action, resource) when { principal.id like "spiffe://clinic.test/app/*" };`, facts(read("Patient", "1")), proxy.Allow, []string{"w"}, 0},

		"no interaction":                 {everyone, facts(), proxy.Deny, nil, 1},
		"an interaction that is none":    {everyone, facts(fhir.Interaction{Type: "Patient"}), proxy.Deny, nil, 1},
		"an action on the wrong thing":   {everyone, facts(fhir.Interaction{Kind: fhir.Read}), proxy.Deny, nil, 1},
		"a create without its resource":  {everyone, facts(fhir.Interaction{Kind: fhir.Create, Type: "Patient"}), proxy.Deny, nil, 1},
		"two interactions, both allowed": {everyone, facts(read("Patient", "1"), read("Patient", "2")), proxy.Allow, []string{"all"}, 0},
		"two interactions, one denied": {`@id("one") permit (principal, action, resource == FHIR::Patient::"1"); @id("no") forbid (principal, action, resource == FHIR::Patient::"2");`,
			facts(read("Patient", "1"), read("Patient", "2")), proxy.Deny, []string{"no"}, 0},

		"the user is not there":  {`@id("u") permit (principal, action, resource) when { context has user };`, &proxy.Facts{Self: workload("/w"), Caller: workload("/etl/night"), Interactions: []fhir.Interaction{read("Patient", "1")}}, proxy.Deny, nil, 0},
		"modifiers hide nothing": {everyone + `@id("n") forbid (principal, action == Action::"search", resource) when { context.params.containsAny(["name", "_has"]) };`, facts(fhir.Interaction{Kind: fhir.Search, Type: "Patient", Params: []fhir.Param{{Name: "name:exact", Value: "x"}}}), proxy.Deny, []string{"n"}, 0},
		"chains hide nothing":    {everyone + `@id("n") forbid (principal, action == Action::"search", resource) when { context.params.containsAny(["name", "_has"]) };`, facts(fhir.Interaction{Kind: fhir.Search, Type: "Patient", Params: []fhir.Param{{Name: "_has:Observation:patient:code", Value: "x"}}}), proxy.Deny, []string{"n"}, 0},
		"whom a search names":    {`@id("s") permit (principal, action == Action::"search", resource) when { context.patients == ["a", "b"] };`, facts(fhir.Interaction{Kind: fhir.Search, Type: "Observation", Params: []fhir.Param{{Name: "subject", Value: "Patient/b,Patient/a"}}}), proxy.Allow, []string{"s"}, 0},
		"what a create brings": {`@id("b") permit (principal, action == Action::"create", resource) when { context.body.patients == ["a"] && resource.patients == ["a"] && resource.labels == ["s|R"] && context.patients == ["a", "c"] && !context.body.foreign };`,
			create(facts(), fhir.Content{Type: "Observation", Patients: []string{"a"}, Carries: []string{"c"}, Labels: []fhir.Coding{{System: "s", Code: "R"}}}), proxy.Allow, []string{"b"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, parseText(t, tc.policies), tc.facts, tc.want, tc.by, tc.errors)
		})
	}
}

func check(t *testing.T, s *Set, f *proxy.Facts, want proxy.Effect, by []string, errors int) {
	t.Helper()
	d := s.Decide(f)
	if d.Effect != want || len(d.Errors) != errors {
		t.Errorf("effect %s with errors %v; want %s with %d errors", d.Effect, d.Errors, want, errors)
	}
	if diff := cmp.Diff(by, d.Policies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	if d.Set != s.Hash() {
		t.Errorf("set %q, want %q", d.Set, s.Hash())
	}
}

// A partner's workload bears its whole ID, whatever its path looks like.
func TestForeignWorkloadIsNeverOurs(t *testing.T) {
	s := parseText(t, `
		@id("ours") permit (principal == Workload::"/app/ehr", action, resource);
		@id("folder") permit (principal in Workload::"/app", action, resource);
		@id("partner") permit (principal == Workload::"spiffe://partner.test/app/ehr", action, resource is FHIR::Patient);
		@id("partners") permit (principal in Workload::"spiffe://partner.test", action, resource is FHIR::Slot);`)
	f := facts(read("Observation", "1"))
	f.Caller = spiffeid.RequireFromString("spiffe://partner.test/app/ehr")
	check(t, s, f, proxy.Deny, nil, 0)
	f.Interactions = []fhir.Interaction{read("Patient", "1")}
	check(t, s, f, proxy.Allow, []string{"partner"}, 0)
	f.Interactions = []fhir.Interaction{read("Slot", "1")}
	check(t, s, f, proxy.Allow, []string{"partners"}, 0)
	f = facts(read("Observation", "1"))
	f.Self = spiffeid.ID{} // a ward that does not know itself knows nobody of its own domain
	check(t, s, f, proxy.Deny, nil, 0)
}

func TestUnknownIsNotEmpty(t *testing.T) {
	const staff = `@id("staff") permit (principal, action, resource) when { context.roles.contains("physician") };`
	const vip = `@id("vip") forbid (principal, action, resource) when { resource.patients.contains("vip") };`
	const own = `@id("own") permit (principal, action, resource) when { resource.patients.contains("1") };`
	const labels = `@id("labels") forbid (principal, action, resource) when { resource.labels.contains("s|R") };`
	update := facts(fhir.Interaction{Kind: fhir.Update, Type: "Observation", ID: "1"})
	update.Content = &fhir.Content{Type: "Observation", ID: "1", Patients: []string{"1"}}
	search := facts(fhir.Interaction{Kind: fhir.Search, Type: "Observation", Params: []fhir.Param{{Name: "subject", Value: "Patient/1"}}})
	for name, tc := range map[string]struct {
		policies string
		facts    *proxy.Facts
		want     proxy.Effect
		by       []string
	}{
		"a forbid that may hold":                          {staff + vip, facts(read("Observation", "1")), proxy.NeedsImage, []string{"vip"}},
		"a permit that may hold":                          {own, facts(read("Observation", "1")), proxy.NeedsImage, []string{"own"}},
		"nothing could permit it":                         {`@id("none") permit (principal, action, resource) when { context.roles.contains("nobody") };` + vip, facts(read("Observation", "1")), proxy.Deny, nil},
		"it is forbidden anyway":                          {own + `@id("no") forbid (principal, action, resource);`, facts(read("Observation", "1")), proxy.Deny, []string{"no"}},
		"a permit holds but another is open":              {staff + own, facts(read("Observation", "1")), proxy.NeedsImage, []string{"own"}},
		"a policy that is false before it looks":          {staff + `@id("vip") forbid (principal, action, resource) when { !context.roles.contains("physician") && resource.patients.contains("vip") };`, facts(read("Observation", "1")), proxy.Allow, []string{"staff"}},
		"a policy that is true before it looks":           {`@id("own") permit (principal, action, resource) when { context.roles.contains("physician") || resource.patients.contains("1") };`, facts(read("Observation", "1")), proxy.Allow, []string{"own"}},
		"a Patient is its own patient":                    {staff + vip, facts(read("Patient", "1")), proxy.Allow, []string{"staff"}},
		"a Patient is its own patient, and forbidden":     {staff + vip, facts(read("Patient", "vip")), proxy.Deny, []string{"vip"}},
		"a Patient's labels":                              {staff + labels, facts(read("Patient", "1")), proxy.NeedsImage, []string{"labels"}},
		"what never refers to patients":                   {staff + vip, facts(read("Organization", "1")), proxy.Allow, []string{"staff"}},
		"a search's matches, whatever the search names":   {staff + vip, search, proxy.NeedsImage, []string{"vip"}},
		"an update replaces what nobody has looked at":    {own, update, proxy.NeedsImage, []string{"own"}},
		"an update's body is known":                       {`@id("b") permit (principal, action == Action::"update", resource) when { context.body.patients == ["1"] };`, update, proxy.Allow, []string{"b"}},
		"a new resource is what its body says":            {staff + vip + labels, create(facts(), fhir.Content{Type: "Observation", Patients: []string{"1"}}), proxy.Allow, []string{"staff"}},
		"a new resource is what its body says, forbidden": {staff + vip + labels, create(facts(), fhir.Content{Type: "Observation", Patients: []string{"vip"}}), proxy.Deny, []string{"vip"}},
		"through an expression that is hard to follow":    {staff + `@id("x") forbid (principal, action, resource) when { {"p": resource.patients}.p.contains("vip") };`, facts(read("Observation", "1")), proxy.NeedsImage, []string{"x"}},
		"through a choice":                                {staff + `@id("x") forbid (principal, action, resource) when { (if context.confined then context.roles else resource.labels).contains("vip") };`, facts(read("Observation", "1")), proxy.NeedsImage, []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) { check(t, parseText(t, tc.policies), tc.facts, tc.want, tc.by, 0) })
	}
}

// The record holds identifiers: no names of people and no search values but patients' ids.
func TestInputsHoldIdentifiersOnly(t *testing.T) {
	s := parseText(t, `@id("all") permit (principal, action, resource);`)
	f := facts(fhir.Interaction{Kind: fhir.Search, Type: "Patient",
		Params: []fhir.Param{{Name: "family", Value: "Secretname"}, {Name: "_id", Value: "p1"}}})
	got := string(s.Decide(f).Inputs)
	want := `{"model":1,"principal":{"name":"/app/ehr","id":"spiffe://clinic.test/app/ehr"},` +
		`"context":{"service":"fhir.ehr.mesh.internal","client":{"issuer":"https://login.clinic.test","id":"ehr"},` +
		`"user":{"issuer":"https://login.clinic.test","subject":"dr.lee"},"roles":["physician"],"level":"user","purpose":"TREAT"},` +
		`"requests":[{"action":"search","type":"Patient","params":["family","_id"],"named":["p1"]}]}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inputs (-want +got):\n%s", diff)
	}
}

// A value that JSON cannot hold would be explained as something else than was decided on.
func TestInputsThatCannotBeRecordedDeny(t *testing.T) {
	f := facts(read("Patient", "1"))
	f.User.Subject = "\xff"
	d := parseText(t, `@id("all") permit (principal, action, resource);`).Decide(f)
	if d.Effect != proxy.Deny || len(d.Errors) != 1 {
		t.Errorf("%+v", d)
	}
}

// Errors reach the log: they name the policy and quote nothing of the call.
func TestErrorsQuoteNothing(t *testing.T) {
	s := parseText(t, `@id("bad") permit (principal, action, resource == FHIR::Patient::"p-secret") when { context.risk * 9223372036854775807 > 0 };`)
	f := facts(read("Patient", "p-secret"))
	f.Risk.Score = 77
	d := s.Decide(f)
	if len(d.Errors) != 1 {
		t.Fatalf("%+v", d)
	}
	if got, want := d.Errors[0].Error(), "policy bad (clinic.cedar:1) cannot be evaluated on this call"; got != want || strings.Contains(got, "secret") {
		t.Errorf("error %q, want %q", got, want)
	}
}
