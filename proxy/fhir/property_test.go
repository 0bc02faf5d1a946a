package fhir

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// literals are what a reference may hold: local and foreign, of patients and of others.
func literals() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		typ := rapid.SampledFrom([]string{"Patient", "Patient", "Practitioner", "Group", "patient", "Nothing"}).Draw(t, "type")
		id := rapid.SampledFrom([]string{"a", "b", "c", "B", "a.1", "a-1", "a_1", "", strings.Repeat("x", 64), strings.Repeat("x", 65)}).Draw(t, "id")
		base := rapid.SampledFrom([]string{"", "", "http://other/", "/", "urn:uuid:", "#",
			ehr.Bases[0] + "/", "http://localhost:8103/r4/", "http://localhost:8103/r4//"}).Draw(t, "base")
		tail := rapid.SampledFrom([]string{"", "", "", "/_history/1", "/_history/", "/x", "#f", "?a=b", "|1"}).Draw(t, "tail")
		return base + typ + "/" + id + tail
	})
}

func references() *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		ref := map[string]any{}
		if rapid.IntRange(0, 5).Draw(t, "literal") > 0 {
			ref["reference"] = literals().Draw(t, "reference")
		}
		if rapid.IntRange(0, 5).Draw(t, "logical") == 0 {
			ref["identifier"] = map[string]any{"value": "1", "assigner": map[string]any{"reference": "Patient/assigner"}}
		}
		if rapid.IntRange(0, 5).Draw(t, "typed") == 0 {
			ref["type"] = rapid.SampledFrom([]string{"Patient", "Practitioner"}).Draw(t, "type")
		}
		return ref
	})
}

// many is one value, an array of some, or nothing.
func many(t *rapid.T, draw func() map[string]any) any {
	n := rapid.IntRange(-1, 3).Draw(t, "how many")
	if n < 0 {
		return draw()
	}
	values := make([]any, n)
	for i := range values {
		values[i] = draw()
	}
	return values
}

// grow puts references at a path below m, beside what is already there.
func grow(t *rapid.T, m map[string]any, path []string) {
	if rapid.IntRange(0, 3).Draw(t, "absent") == 0 {
		return
	}
	if len(path) == 1 {
		m[path[0]] = many(t, func() map[string]any { return references().Draw(t, "reference") })
		return
	}
	m[path[0]] = many(t, func() map[string]any {
		inner := map[string]any{"note": "x"}
		grow(t, inner, path[1:])
		return inner
	})
}

func resources(depth int) *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		typ := rapid.SampledFrom(typeNames[1:]).Draw(t, "type")
		m := map[string]any{"resourceType": typ}
		if rapid.Bool().Draw(t, "has id") {
			m["id"] = rapid.SampledFrom([]string{"a", "b", "r"}).Draw(t, "id")
		}
		for _, path := range CompartmentPaths(typ) {
			grow(t, m, path)
		}
		// Elements of the same names where they do not count.
		m["extension"] = []any{map[string]any{"url": "x", "valueReference": references().Draw(t, "ext"), "subject": map[string]any{"reference": "Patient/ext"}}}
		if depth > 0 && rapid.Bool().Draw(t, "contains") {
			inner := resources(0).Draw(t, "contained")
			m["contained"] = []any{inner}
		}
		return m
	})
}

// write is m as JSON with its members in any order, resourceType first only by chance.
func write(t *rapid.T, v any) string {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names)
		var members []string
		for _, name := range rapid.Permutation(names).Draw(t, "order") {
			members = append(members, fmt.Sprintf("%q: %s", name, write(t, v[name])))
		}
		return "{" + strings.Join(members, ", ") + "}"
	case []any:
		var elements []string
		for _, e := range v {
			elements = append(elements, write(t, e))
		}
		return "[" + strings.Join(elements, " ,") + "]"
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestContentProperty: on any resource, the one-pass reading finds what the plain one finds.
func TestContentProperty(t *testing.T) {
	bases := []string{ehr.Bases[0], "http://localhost:8103/r4"}
	rapid.Check(t, func(t *rapid.T) {
		m := resources(1).Draw(t, "resource")
		body := write(t, m)
		c, err := ParseResource([]byte(body), ehr)
		if err != nil {
			t.Fatalf("%v\n%s", err, body)
		}
		if diff := cmp.Diff(plainFacts(m, bases), factsOf(c)); diff != "" {
			t.Errorf("-plain +Content\n%s\n%s", diff, body)
		}
	})
}

// TestReplyProperty: a searchset gets to a confined caller exactly when each of its resources is in the
// compartment, and then the patients it tells of are those of all its resources.
func TestReplyProperty(t *testing.T) {
	bases := []string{ehr.Bases[0], "http://localhost:8103/r4"}
	rapid.Check(t, func(t *rapid.T) {
		in := Interaction{Kind: Search, Type: rapid.SampledFrom([]string{"Observation", "Coverage", "CarePlan", "Patient"}).Draw(t, "type")}
		var entries []any
		want, inside := map[string]bool{}, true
		for i := range rapid.IntRange(0, 4).Draw(t, "entries") {
			m := map[string]any{"resourceType": in.Type, "id": fmt.Sprint("r", i)}
			if in.Type == "Patient" {
				m["id"] = rapid.SampledFrom([]string{"a", "a", "b"}).Draw(t, "id")
			}
			for _, path := range CompartmentPaths(in.Type) {
				grow(t, m, path)
			}
			f := plainFacts(m, bases)
			inside = inside && slices.Contains(f.Patients, "a")
			for _, id := range f.Patients {
				want[id] = true
			}
			entries = append(entries, map[string]any{"resource": m, "search": map[string]any{"mode": "match"}})
		}
		body := []byte(write(t, map[string]any{"resourceType": "Bundle", "type": "searchset", "total": len(entries), "entry": entries}))
		facts, err := replyTo(in, "a", 200, fhirJSON, body, ehr)
		if (err == nil) != inside {
			t.Fatalf("got %v, all inside: %v\n%s", err, inside, body)
		}
		if err != nil {
			return
		}
		if len(facts.Patients) != len(want) || facts.Count != len(entries) {
			t.Errorf("got %+v, want patients %v\n%s", facts, want, body)
		}
		for _, id := range facts.Patients {
			if !want[id] {
				t.Errorf("patient %q is in no resource\n%s", id, body)
			}
		}
	})
}
