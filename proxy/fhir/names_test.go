package fhir

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTypes(t *testing.T) {
	if n := len(typeNames) - 1; n != 146 { // R4's 145 and Parameters
		t.Errorf("%d types", n)
	}
	for i, name := range typeNames {
		if i > 0 && (!IsType(name) || typeIndex(name) != uint8(i)) {
			t.Errorf("%s has index %d", name, typeIndex(name))
		}
	}
	for _, s := range []string{"", "patient", "PATIENT", "Patient ", "Resource", "DomainResource", "Element", "HumanName", "Patients"} {
		if IsType(s) {
			t.Errorf("%q is a type", s)
		}
	}
}

func TestIDs(t *testing.T) {
	for s, want := range map[string]bool{"a": true, "A-1.b": true, "..": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a_b": false, "a/b": false, "é": false, "a\x00": false, "a b": false} {
		if IsID(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestSearchParam(t *testing.T) {
	for _, tt := range []struct {
		typ, name string
		want      ParamType
		targets   []string
	}{
		{"Patient", "name", ParamString, nil},
		{"Patient", "gender", ParamToken, nil},
		{"Patient", "birthdate", ParamDate, nil},
		{"Patient", "link", ParamReference, []string{"Patient", "RelatedPerson"}},
		{"Patient", "_id", ParamToken, nil},
		{"VisionPrescription", "_lastUpdated", ParamDate, nil},
		{"Observation", "subject", ParamReference, []string{"Device", "Group", "Location", "Patient"}},
		{"Observation", "code-value-quantity", ParamComposite, nil},
		{"Observation", "value-quantity", ParamQuantity, nil},
		{"RiskAssessment", "probability", ParamNumber, nil},
		{"ValueSet", "url", ParamURI, nil},
		{"Location", "near", ParamSpecial, nil},
		{"Patient", "code", 0, nil},
		{"Patient", "Name", 0, nil},
		{"Patient", "", 0, nil},
		{"Patient", "_count", 0, nil},
		{"", "_id", 0, nil},
		{"Resource", "_id", 0, nil},
		{"Condition", "part-agree", 0, nil}, // from the examples of the package, not of the standard
		{"Patient", "part-agree", 0, nil},
	} {
		p, ok := SearchParam(tt.typ, tt.name)
		if ok != (tt.want != 0) || p.Type != tt.want {
			t.Errorf("%s.%s: %+v, %v", tt.typ, tt.name, p, ok)
		}
		var targets []string
		for _, name := range typeNames[1:] {
			if p.Targets(name) {
				targets = append(targets, name)
			}
		}
		if diff := cmp.Diff(tt.targets, targets); diff != "" {
			t.Errorf("%s.%s: %s", tt.typ, tt.name, diff)
		}
	}
	for i, typ := range typeNames[1:] {
		for _, p := range searchParams[searchParamsOf[i+1]:searchParamsOf[i+2]] {
			if found, ok := SearchParam(typ, p.Name); !ok || found != p {
				t.Errorf("%s.%s is not found", typ, p.Name)
			}
		}
	}
}

// 66 of R4's types have compartment parameters. One of them is Patient, of which the compartment holds the
// patient's own record only.
func TestCompartmentTable(t *testing.T) {
	in := 0
	for i, typ := range typeNames[1:] {
		if InCompartment(typ) {
			in++
		}
		if CompartmentPaths(typ) != nil && !RefersToPatient(typ) {
			t.Errorf("%s is in the compartment, but cannot refer to a patient", typ)
		}
		for _, p := range searchParams[searchParamsOf[i+1]:searchParamsOf[i+2]] {
			if p.Type == ParamReference && p.Targets("Patient") && !slices.Contains(confiningParams[i+1], p.Name) {
				if !RefersToPatient(typ) {
					t.Errorf("%s.%s can refer to a patient", typ, p.Name)
				}
			}
		}
	}
	if in != 66 {
		t.Errorf("%d types in the compartment", in)
	}
	for typ, want := range map[string][][]string{
		"Observation":   {{"performer"}, {"subject"}},
		"Appointment":   {{"participant", "actor"}},
		"AuditEvent":    {{"agent", "who"}, {"entity", "what"}},
		"CarePlan":      {{"activity", "detail", "performer"}, {"subject"}},
		"Coverage":      {{"beneficiary"}, {"payor"}, {"policyHolder"}, {"subscriber"}},
		"SupplyRequest": {{"deliverTo"}},
		"Patient":       nil,
		"Practitioner":  nil,
		"Device":        nil,
		"":              nil,
	} {
		if diff := cmp.Diff(want, CompartmentPaths(typ)); diff != "" {
			t.Errorf("%s: %s", typ, diff)
		}
	}
	for typ, want := range map[string]bool{"Task": true, "Device": true, "Bundle": true, "Parameters": true, "Binary": true,
		"Practitioner": false, "Organization": false, "Medication": false, "Location": false, "": false} {
		if RefersToPatient(typ) != want {
			t.Errorf("%s: %v", typ, !want)
		}
	}
}
