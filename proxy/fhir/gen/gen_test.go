package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The committed tables are what the package gives, byte for byte.
func TestReproducible(t *testing.T) {
	pkg := os.Getenv("WARD_HL7_PACKAGE")
	if pkg == "" {
		t.Skip("SKIPPED: needs WARD_HL7_PACKAGE, the path of hl7.fhir.r4.examples-4.0.1.tgz (npm pack hl7.fhir.r4.examples@4.0.1)")
	}
	want, err := os.ReadFile("../tables.go")
	if err != nil {
		t.Fatal(err)
	}
	got, err := generate(pkg)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("tables.go is not what the generator writes; run go generate ./proxy/fhir")
	}
}

func TestForeignPackage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "other.tgz")
	if err := os.WriteFile(name, []byte("not HL7's"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "tables.go")
	if err := run(name, out); err == nil || !strings.Contains(err.Error(), "is not hl7.fhir.r4.examples") {
		t.Errorf("a foreign package: %v", err)
	}
	if err := run("", out); err == nil || !strings.Contains(err.Error(), "npm pack") {
		t.Errorf("no package: %v", err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("tables were written")
	}
}

// A small world of definitions with every shape that a path to a reference has in R4.
func world() *definitions {
	reference := []elementType{{Code: "Reference", TargetProfile: []string{"http://hl7.org/fhir/StructureDefinition/Patient"}}}
	thing := &structure{Type: "Thing", Kind: "resource"}
	thing.Snapshot.Element = []element{
		{Path: "Thing"},
		{Path: "Thing.contained", Type: []elementType{{Code: "Resource"}}},
		{Path: "Thing.subject", Type: reference},
		{Path: "Thing.value[x]", Type: []elementType{{Code: "Reference"}, {Code: "string"}, {Code: "CodeableConcept"}}},
		{Path: "Thing.part", Type: []elementType{{Code: "BackboneElement"}}},
		{Path: "Thing.part.actor", Type: reference},
		{Path: "Thing.part.note", Type: []elementType{{Code: "Annotation"}}},
		{Path: "Thing.part.part", ContentReference: "#Thing.part"},
		{Path: "Thing.name", Type: []elementType{{Code: "string"}}},
	}
	note := &structure{Type: "Annotation", Kind: "complex-type"}
	note.Snapshot.Element = []element{
		{Path: "Annotation"},
		{Path: "Annotation.author[x]", Type: append([]elementType{{Code: "string"}}, reference...)},
	}
	plain := &structure{Type: "Plain", Kind: "resource"}
	plain.Snapshot.Element = []element{
		{Path: "Plain"},
		{Path: "Plain.contained", Type: []elementType{{Code: "Resource"}}},
		{Path: "Plain.extension", Type: []elementType{{Code: "Extension"}}},
		{Path: "Plain.owner", Type: []elementType{{Code: "Reference", TargetProfile: []string{"http://hl7.org/fhir/StructureDefinition/Organization"}}}},
	}
	noted := &structure{Type: "Noted", Kind: "resource"}
	noted.Snapshot.Element = []element{{Path: "Noted"}, {Path: "Noted.note", Type: []elementType{{Code: "Annotation"}}}}
	return &definitions{structures: map[string]*structure{"Thing": thing, "Annotation": note, "Plain": plain, "Noted": noted}}
}

func TestReferencePaths(t *testing.T) {
	for _, tt := range []struct{ expression, want string }{ // want "": refused
		{"Thing.subject", "subject"},
		{"Thing.subject.where(resolve() is Patient)", "subject"},
		{"(Thing.subject)", "subject"},
		{"Thing.subject | Thing.part.actor", "subject part.actor"},
		{"Other.subject | Thing.subject", "subject"},
		{"Thing.value", "valueReference"},
		{"Thing.value.as(Reference)", "valueReference"},
		{"Thing.value.ofType(Reference)", "valueReference"},
		{"(Thing.value as Reference)", "valueReference"},
		{"Thing.value as Reference", "valueReference"},
		{"Thing.part.where(type = 'x').actor", "part.actor"},
		{"Thing.part.where(type='depends-on').actor", "part.actor"},
		{"Thing.part.part.actor", "part.part.actor"},
		{"Thing.part.note.author", "part.note.authorReference"},

		{"Other.subject", ""},
		{"Thing.name", ""},
		{"Thing.value as string", ""},
		{"Thing.value as Quantity", ""},
		{"Thing.nothing", ""},
		{"Thing.part", ""},
		{"Thing", ""},
		{"Thing.subject.where(type = 'Patient' or true)", ""},
		{"Thing.subject.where(exists())", ""},
		{"Thing.extension('http://example').value", ""},
		{"Thing.subject.first()", ""},
		{"Thing.subject[0]", ""},
		{"(Thing.subject", ""},
		{"Thing.subject)", ""},
		{"(Thing.value as Reference).identifier", ""},
		{"where(resolve() is Patient)", ""},
		{"", ""},
	} {
		paths, err := world().referencePaths("Thing", tt.expression)
		var got []string
		for _, p := range paths {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %v, %v", tt.expression, got, err)
		}
	}
}

func TestReferrers(t *testing.T) {
	got := world().referrers()
	want := map[string]bool{"Thing": true, "Annotation": true, "Noted": true, "Plain": false}
	for name, refers := range want {
		if got[name] != refers {
			t.Errorf("%s: %v", name, got[name])
		}
	}
}

// A compartment's parameter that is not understood stops the generator; it is never left out.
func TestCompileRefusesWhatItDoesNotUnderstand(t *testing.T) {
	member := func(code string) compartment {
		var c compartment
		for _, name := range []string{"Noted", "Plain", "Thing"} {
			c.Resource = append(c.Resource, struct {
				Code  string
				Param []string
			}{Code: name})
		}
		c.Resource[2].Param = []string{code}
		return c
	}
	d := world()
	d.params = []searchParameter{
		{Code: "subject", Base: []string{"Thing"}, Type: "reference", Expression: "Thing.subject", Target: []string{"Patient"}},
		{Code: "actor", Base: []string{"Thing"}, Type: "reference", Expression: "Thing.part.actor", Target: []string{"Patient"}},
		{Code: "odd", Base: []string{"Thing"}, Type: "reference", Expression: "Thing.subject.first()", Target: []string{"Patient"}},
		{Code: "name", Base: []string{"Thing"}, Type: "string", Expression: "Thing.name"},
	}
	d.compartment = member("subject")
	m, err := compile(d)
	if err != nil {
		t.Fatal(err)
	}
	thing := m.types[2]
	if diff := cmp.Diff([]string{"subject"}, thing.confining); diff != "" || thing.name != "Thing" {
		t.Errorf("%s: %s", thing.name, diff)
	}
	for _, code := range []string{"odd", "name", "missing"} {
		d.compartment = member(code)
		if _, err := compile(d); err == nil {
			t.Errorf("the compartment's parameter %s is accepted", code)
		}
	}
	d.compartment = member("subject")
	d.compartment.Resource = d.compartment.Resource[1:]
	if _, err := compile(d); err == nil {
		t.Error("a type that the compartment does not know is accepted")
	}
}
