package policy

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// FuzzLoad: no text of policies makes Ward panic or hang, and what is refused is refused at a place.
func FuzzLoad(f *testing.F) {
	for _, file := range clinicFiles(f) {
		f.Add(string(file.Content))
	}
	for _, c := range conditions {
		f.Add(`@id("x") permit (principal, action, resource) when { ` + c + ` };`)
	}
	f.Add(`@id("x") forbid (principal in Workload::"/a", action in [Action::"read"], resource is FHIR::Patient in FHIR::Patient::"1") unless { ip("127.0.0.1").isLoopback() };`)
	f.Add("@id(\"x\") permit (principal, action, resource) when { \"\\u{202e}\" like \"\\*\" };")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse([]File{{Name: "fuzz.cedar", Content: []byte(text)}})
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || strings.TrimSpace(err.Error()) == "" {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		for _, r := range []request{{Action: "read", Type: "Patient", ID: "1"}, {Action: "create", Type: "Observation", Body: &body{}}, {Action: "capabilities", Type: systemType}} {
			in := &inputs{Model: inputsModel, Principal: principal{Name: "/a", ID: "spiffe://t/a"}, Requests: []request{r}}
			got, want := s.decide(in, &r), whole(s, in, &r)
			if got.effect != want.effect {
				t.Fatalf("sliced %s, whole %s", got.effect, want.effect)
			}
			x := s.explain(in, &r)
			if x.Effect != got.effect.String() {
				t.Fatalf("explained as %s, decided %s", x.Effect, got.effect)
			}
		}
	})
}

// FuzzExplain: inputs come from the audit trail, which others may have written.
func FuzzExplain(f *testing.F) {
	set := manyPolicies(f, 50)
	f.Add(set.Decide(benchFacts()).Inputs)
	f.Add([]byte(`{"model":1,"principal":{"name":"/a","id":"spiffe://t/a"},"context":{"service":"s","client":{"issuer":"","id":""},"user":{"issuer":"i","subject":"s"},"roles":["nurse"],"confined":true,"risk":99},` +
		`"requests":[{"action":"create","type":"Observation","patients":[],"labels":["s|R"],"body":{"patients":["1"],"foreign":true}},{"action":"search","type":"System"}]}`))
	f.Add([]byte(`{"model":2}`))
	f.Add([]byte(`{"model":1,"requests":[{"action":"read","type":"Patient","id":"\"\\"}]}`))
	f.Fuzz(func(t *testing.T, inputs []byte) {
		e, err := Explain(set, inputs)
		if err != nil {
			return
		}
		if _, err := e.WriteTo(io.Discard); err != nil {
			t.Fatal(err)
		}
		// What can be explained can be recorded again.
		in, err := set.model.parseInputs(inputs)
		if err != nil {
			t.Fatal(err)
		}
		again, err := in.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := set.model.parseInputs(again); err != nil {
			t.Fatalf("%v\n%s", err, again)
		}
	})
}
