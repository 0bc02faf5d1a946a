package fhir

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// What a caller confined to Patient/me may ask for, and what is forwarded for it.
func TestConfine(t *testing.T) {
	tests := []struct {
		name, method, target string
		class                Class  // 0: allowed
		forwarded            string // "" when as it came
		check                Check
	}{
		{"capabilities", "GET", "/metadata", 0, "", Check{}},
		{"own record", "GET", "/Patient/me", 0, "", Check{"me", "Patient", "me"}},
		{"own record, old", "GET", "/Patient/me/_history/1", 0, "", Check{"me", "Patient", "me"}},
		{"own record's history", "GET", "/Patient/me/_history", 0, "", Check{"me", "Patient", "me"}},
		{"another record", "GET", "/Patient/you", Outside, "", Check{}},
		{"another record, old", "GET", "/Patient/you/_history/1", Outside, "", Check{}},
		{"another record's history", "GET", "/Patient/you/_history", Outside, "", Check{}},
		{"another spelling of the id", "GET", "/Patient/ME", Outside, "", Check{}},
		{"a new record", "POST", "/Patient", Outside, "", Check{}},

		{"patients", "GET", "/Patient", 0, "/Patient?_id=me", Check{"me", "Patient", ""}},
		{"patients by name", "GET", "/Patient?name=x", 0, "/Patient?name=x&_id=me", Check{"me", "Patient", ""}},
		{"own id", "GET", "/Patient?_id=me", 0, "", Check{"me", "Patient", ""}},
		{"another id", "GET", "/Patient?_id=you", Outside, "", Check{}},
		{"own id or another", "GET", "/Patient?_id=me,you", Outside, "", Check{}},
		{"own id and another", "GET", "/Patient?_id=me&_id=you", Outside, "", Check{}},
		{"any id but own", "GET", "/Patient?_id:not=me", Outside, "", Check{}},
		{"ids that are missing", "GET", "/Patient?_id:missing=true", 0, "/Patient?_id%3Amissing=true&_id=me", Check{"me", "Patient", ""}},
		{"linked to another", "GET", "/Patient?link=Patient/you", Outside, "", Check{}},
		{"by practitioner", "GET", "/Patient?general-practitioner=Practitioner/p", 0, "/Patient?general-practitioner=Practitioner%2Fp&_id=me", Check{"me", "Patient", ""}},

		{"read in the compartment", "GET", "/Observation/o", 0, "", Check{"me", "Observation", "o"}},
		{"vread in the compartment", "GET", "/Observation/o/_history/1", 0, "", Check{"me", "Observation", "o"}},
		{"history in the compartment", "GET", "/Observation/o/_history", 0, "", Check{"me", "Observation", "o"}},
		{"HEAD in the compartment", "HEAD", "/Observation/o", Unsupported, "", Check{}},
		{"HEAD of own record", "HEAD", "/Patient/me", Unsupported, "", Check{}},
		{"create in the compartment", "POST", "/Observation", 0, "", Check{"me", "Observation", ""}},
		{"update", "PUT", "/Observation/o", Unsupported, "", Check{}},
		{"update of own record", "PUT", "/Patient/me", Unsupported, "", Check{}},
		{"delete", "DELETE", "/Observation/o", Unsupported, "", Check{}},
		{"history of a type", "GET", "/Observation/_history", Unsupported, "", Check{}},
		{"history of the system", "GET", "/_history", Unsupported, "", Check{}},

		{"search", "GET", "/Observation?code=x", 0, "/Observation?code=x&patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 own", "GET", "/Observation?patient=me", 0, "/Observation?patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 own by subject", "GET", "/Observation?subject=Patient/me", 0, "/Observation?subject=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 own by bare subject", "GET", "/Observation?subject=me", 0, "/Observation?subject=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 own by performer", "GET", "/Observation?performer=Patient/me", 0, "/Observation?performer=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 another", "GET", "/Observation?patient=you", Outside, "", Check{}},
		{"16 OR", "GET", "/Observation?subject=Patient/you,Patient/me", Outside, "", Check{}},
		{"16 OR", "GET", "/Observation?subject=Patient/me,Patient/you", Outside, "", Check{}},
		{"16 OR with another type", "GET", "/Observation?subject=Patient/me,Group/g", 0, "/Observation?subject=Patient%2Fme%2CGroup%2Fg&patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 AND", "GET", "/Observation?subject=Patient/you&subject=Patient/me", Outside, "", Check{}},
		{"16 AND", "GET", "/Observation?subject=Patient/me&patient=you", Outside, "", Check{}},
		{"16 another bare id", "GET", "/Observation?subject=you", Outside, "", Check{}},
		{"16 another through a practitioner's bare id", "GET", "/Observation?performer=p", Outside, "", Check{}},
		{"16 by practitioner", "GET", "/Observation?performer=Practitioner/p", 0, "/Observation?performer=Practitioner%2Fp&patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 those without a patient", "GET", "/Observation?patient:missing=true", 0, "/Observation?patient%3Amissing=true&patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 a parameter outside the compartment", "GET", "/Observation?focus=Patient/you", Outside, "", Check{}},
		{"16 a parameter outside the compartment does not confine", "GET", "/Observation?focus=Patient/me", 0, "/Observation?focus=Patient%2Fme&patient=Patient%2Fme", Check{"me", "Observation", ""}},
		{"16 contained in a longer id", "GET", "/Observation?patient=me2", Outside, "", Check{}},
		{"26 by type", "GET", "/Observation?subject:Patient=me", 0, "/Observation?subject=Patient%2Fme", Check{"me", "Observation", ""}},
		{"26 another by type", "GET", "/Observation?subject:Patient=you", Outside, "", Check{}},
		{"no parameter patient", "GET", "/Schedule", 0, "/Schedule?actor=Patient%2Fme", Check{"me", "Schedule", ""}},
		{"no parameter patient", "GET", "/Group", 0, "/Group?member=Patient%2Fme", Check{"me", "Group", ""}},
		{"no parameter patient", "GET", "/SupplyRequest", 0, "/SupplyRequest?subject=Patient%2Fme", Check{"me", "SupplyRequest", ""}},

		{"elements", "GET", "/Observation?patient=Patient/me&_elements=code", 0, "/Observation?patient=Patient%2Fme&_elements=code%2Cid%2Cperformer%2Csubject", Check{"me", "Observation", ""}},
		{"elements of own record", "GET", "/Patient/me?_elements=name", 0, "/Patient/me?_elements=name%2Cid", Check{"me", "Patient", "me"}},
		{"text only", "GET", "/Observation/o?_summary=text", Unsupported, "", Check{}},

		{"shared type", "GET", "/Practitioner/p", 0, "", Check{}},
		{"shared type", "HEAD", "/Organization/o", 0, "", Check{}},
		{"shared type, search", "GET", "/Medication?code=x", 0, "", Check{}},
		{"shared type, create", "POST", "/Practitioner", Outside, "", Check{}},
		{"type that can refer to a patient", "GET", "/Task/t", Outside, "", Check{}},
		{"type that can refer to a patient", "GET", "/Device?patient=Patient/me", Outside, "", Check{}},
		{"type that holds any resource", "GET", "/Bundle/b", Outside, "", Check{}},
		{"type that tells of a patient", "GET", "/Subscription/s", Outside, "", Check{}},
		{"type that tells of a patient", "GET", "/EnrollmentResponse/e", Outside, "", Check{}},
	}
	for _, tt := range tests {
		t.Run(tt.name+"/"+tt.method+" "+tt.target, func(t *testing.T) {
			in, err := classify(t, tt.method, tt.target, "")
			if err != nil {
				t.Fatal(err)
			}
			before := in.Target("")
			confined, check, err := Confine(in, "me")
			if classOf(err) != tt.class {
				t.Fatalf("got %+v, error %v; want class %d", confined, err, tt.class)
			}
			if in.Target("") != before {
				t.Errorf("the interaction itself has become %s", in.Target(""))
			}
			if err != nil {
				return
			}
			want := tt.forwarded
			if want == "" {
				want = tt.target
			}
			if got := confined.Target(""); got != want {
				t.Errorf("forwarded as %s, want %s", got, want)
			}
			if diff := cmp.Diff(tt.check, check); diff != "" {
				t.Error(diff)
			}
			checkFixpoint(t, confined, "")
		})
	}
}

func TestConfineToNobody(t *testing.T) {
	in, err := Classify("GET", "/Observation", "", header())
	if err != nil {
		t.Fatal(err)
	}
	for _, patient := range []string{"", "a/b", "Patient/me", "me,you", "*"} {
		if _, _, err := Confine(in, patient); classOf(err) != Outside {
			t.Errorf("%q: %v", patient, err)
		}
	}
	for kind := range HistorySystem + 2 {
		if _, check, err := Confine(Interaction{Kind: kind}, "me"); err == nil && kind != Capabilities {
			t.Errorf("%q of no type is allowed: %+v", kind, check)
		}
	}
}

// Every type of the compartment has a parameter by which a search is confined, whatever else the search has; and
// a search that names another patient in any reference parameter is refused.
func TestConfineEveryType(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom(typeNames[1:]).Draw(t, "type")
		in := Interaction{Kind: Search, Type: typ, path: "/" + typ}
		i := typeIndex(typ)
		var params []Param
		stranger := false
		for _, p := range searchParams[searchParamsOf[i]:searchParamsOf[i+1]] {
			if p.Type != ParamReference || !p.Targets("Patient") || !rapid.Bool().Draw(t, p.Name) {
				continue
			}
			values := rapid.SampledFrom([]string{"Patient/me", "me", "Patient/you", "Patient/me,Patient/you", "Practitioner/p",
				"Practitioner/p,Patient/me", "you"}).Draw(t, "value of "+p.Name)
			stranger = stranger || slices.Contains([]string{"Patient/you", "Patient/me,Patient/you", "you"}, values)
			params = append(params, Param{p.Name, values})
		}
		if _, err := in.refine(params); err != nil {
			t.Fatal(err)
		}
		confined, check, err := Confine(in, "me")
		if !InCompartment(typ) {
			if check != (Check{}) || err == nil && RefersToPatient(typ) {
				t.Errorf("outside the compartment: %+v, %v", check, err)
			}
			return
		}
		if stranger {
			if classOf(err) != Outside {
				t.Errorf("%s is allowed: %v", in.Target(""), err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", in.Target(""), err)
		}
		sure := false
		for _, p := range confined.Params {
			sure = sure || p == Param{"_id", "me"} && typ == "Patient" ||
				p.Value == "Patient/me" && slices.Contains(confiningParams[i], p.Name)
		}
		if !sure || check != (Check{"me", typ, ""}) {
			t.Errorf("%s, check %+v", confined.Target(""), check)
		}
	})
}

func TestPatients(t *testing.T) {
	for _, tt := range []struct {
		method, target string
		want           []string
	}{
		{"GET", "/metadata", nil},
		{"GET", "/Patient/a", []string{"a"}},
		{"PUT", "/Patient/a", []string{"a"}},
		{"GET", "/Patient/a/_history", []string{"a"}},
		{"GET", "/Observation/o", nil},
		{"GET", "/Patient?_id=a,b", []string{"a", "b"}},
		{"GET", "/Patient?link=Patient/c&name=x", []string{"c"}},
		{"GET", "/Observation?patient=a,b&subject=Patient/c,Group/g&code=d", []string{"a", "b", "c"}},
		{"GET", "/Observation?subject=a", []string{"a"}},
		{"GET", "/Observation?subject:Patient=a&performer=Patient/a", []string{"a"}},
		{"GET", "/Observation?focus=Patient/a&specimen=s", []string{"a"}},
		{"GET", "/Observation?encounter=e", nil},
	} {
		in, err := Classify(tt.method, tt.target, "", header())
		if err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		if diff := cmp.Diff(tt.want, Patients(in)); diff != "" {
			t.Errorf("%s: %s", tt.target, diff)
		}
	}
}
