package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// manyPolicies is the clinic's set, grown to n by policies of the same kinds for other types and roles: a third of
// them about one type, the others about any.
func manyPolicies(tb testing.TB, n int) *Set {
	base := clinic(tb)
	var b strings.Builder
	names := fhir.Types()
	for i := base.Len(); i < n; i++ {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&b, "@id(\"type-%d\") permit (principal == Workload::\"/app/a%d\", action in Action::\"reads\", resource is FHIR::%s)\n"+
				"when { context.roles.containsAny([\"role-%d\", \"role-x\"]) };\n", i, i, names[i%len(names)], i)
		case 1:
			fmt.Fprintf(&b, "@id(\"types-%d\") permit (principal, action in [Action::\"read\", Action::\"search\"], resource)\n"+
				"when { resource is FHIR::%s || resource is FHIR::%s }\nwhen { context.roles.contains(\"role-%d\") && context.risk < 50 };\n", i, names[i%len(names)], names[(i+40)%len(names)], i)
		default:
			fmt.Fprintf(&b, "@id(\"any-%d\") forbid (principal in Workload::\"/team-%d\", action in Action::\"writes\", resource)\n"+
				"unless { context.roles.contains(\"role-%d\") };\n", i, i, i)
		}
	}
	set, err := Parse(append(base.Source(), File{Name: "more.cedar", Content: []byte(b.String())}))
	if err != nil {
		tb.Fatal(err)
	}
	if set.Len() != n {
		tb.Fatalf("%d policies", set.Len())
	}
	return set
}

func benchFacts() *proxy.Facts {
	domain := spiffeid.RequireTrustDomainFromString("clinic.test")
	return &proxy.Facts{
		Self:    spiffeid.RequireFromPath(domain, "/ward/ehr"),
		Caller:  spiffeid.RequireFromPath(domain, "/app/portal"),
		Service: "fhir.ehr.mesh.internal",
		Client:  proxy.Client{Issuer: "https://login.clinic.test", ID: "portal"},
		User: &proxy.User{Issuer: "https://login.clinic.test", Subject: "dr.lee", Roles: []string{"physician", "researcher"},
			FHIRUser: fhir.Reference{Type: "Practitioner", ID: "lee"}},
		Grant:   fhir.Grant{Level: fhir.UserLevel},
		Purpose: "TREAT",
		Interactions: []fhir.Interaction{{Kind: fhir.Search, Type: "Observation",
			Params: []fhir.Param{{Name: "subject", Value: "Patient/example"}, {Name: "code", Value: "http://loinc.org|8867-4"}, {Name: "_count", Value: "20"}}}},
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{50, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			set, f := manyPolicies(b, n), benchFacts()
			b.ReportAllocs()
			for b.Loop() {
				if d := set.Decide(f); d.Effect != proxy.Allow {
					b.Fatalf("%+v", d)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	set := manyPolicies(b, 50)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(set.Source()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExplain(b *testing.B) {
	set, f := manyPolicies(b, 50), benchFacts()
	f.User.Roles = nil
	d := set.Decide(f)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Explain(set, d.Inputs); err != nil {
			b.Fatal(err)
		}
	}
}

// A decision's allocations are Cedar's own for the most part: nine for its variables, and what its expressions need.
func TestDecideAllocations(t *testing.T) {
	set, f := manyPolicies(t, 50), benchFacts()
	if n := testing.AllocsPerRun(1000, func() { set.Decide(f) }); n > 17 {
		t.Errorf("%.0f allocations a decision, 17 allowed", n)
	}
}
