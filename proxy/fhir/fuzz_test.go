package fhir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seed adds HL7's examples and what is known to trip parsers.
func seed(f *testing.F, add func(body []byte)) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatal("no examples", err)
	}
	for _, name := range names {
		body, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		add(body)
	}
	for _, body := range []string{
		``, `{}`, `[]`, `null`, `{"resourceType":"Patient"}`, `{"id":"a","resourceType":"Patient"}`, "\xef\xbb\xbf{}",
		`{"resourceType":"Patient","id":"a","id":"b"}`, `{"resourceType":"Patient","\u0069d":"a"}`,
		`{"resourceType":"Observation","subject":{"reference":"Patient\/a"},"performer":[{"identifier":{}},{"reference":"Patient/b/_history/1"}]}`,
		`{"resourceType":"CarePlan","activity":[{"detail":[{"performer":{"reference":"Patient/a","type":"Group"}}]}]}`,
		`{"resourceType":"Patient","contained":[{"resourceType":"Observation","subject":{"reference":"#"}}]}`,
		`{"resourceType":"Parameters","parameter":[{"part":[{"resource":{"resourceType":"Patient","id":"a"}}]}]}`,
		mineObs, sharedObs, anothers, nobodys, warning, smuggling,
		searchset(`,"total":1`, modeEntry(mineObs, "match"), modeEntry(warning, "outcome")),
		searchset(`,"link":[{"relation":"next"}]`, `{"fullUrl":"http://localhost:8103/r4/Observation/o1","resource":`+mineObs+`}`),
		historyOf(resourceEntry(mineObs), deletion("Observation/o1")),
	} {
		add([]byte(body))
	}
}

// FuzzContent: what is accepted, the standard library reads the same way.
func FuzzContent(f *testing.F) {
	seed(f, func(body []byte) { f.Add(body) })
	bases := []string{ehr.Bases[0], "http://localhost:8103/r4"}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseResource(body, ehr)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("got %T, want an *Error", err)
			}
			return
		}
		var plain map[string]any
		if err := json.Unmarshal(body, &plain); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		if diff := cmp.Diff(plainFacts(plain, bases), factsOf(c)); diff != "" {
			t.Errorf("-plain +Content\n%s", diff)
		}
		// A reader that ignores the case of names, as encoding/json does, finds nothing else either.
		var fold struct {
			ResourceType string
			ID           string
			Meta         struct{ VersionID string }
		}
		if err := json.Unmarshal(body, &fold); err == nil &&
			(fold.ResourceType != c.Type || fold.ID != c.ID || fold.Meta.VersionID != c.Version) {
			t.Errorf("a reader that ignores case finds %+v, not %+v", fold, c)
		}
	})
}

// FuzzReply: what reaches a confined caller is in the compartment by the standard library's reading too.
func FuzzReply(f *testing.F) {
	kinds := []Interaction{
		{Kind: Read, Type: "Observation", ID: "o1"}, {Kind: VRead, Type: "Observation", ID: "o1", Version: "2"},
		{Kind: Search, Type: "Observation"}, {Kind: Create, Type: "Observation"}, {Kind: Update, Type: "Observation", ID: "o1"},
		{Kind: HistoryInstance, Type: "Observation", ID: "o1"}, {Kind: HistoryType, Type: "Observation"},
	}
	seed(f, func(body []byte) {
		for i := range kinds {
			f.Add(uint8(i), true, body)
		}
		f.Add(uint8(2), false, body)
	})
	bases := []string{ehr.Bases[0], "http://localhost:8103/r4"}
	f.Fuzz(func(t *testing.T, kind uint8, confined bool, body []byte) {
		in := kinds[int(kind)%len(kinds)]
		patient := ""
		if confined {
			patient = "me"
		}
		facts, err := replyTo(in, patient, 200, fhirJSON, body, ehr)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("got %T, want an *Error", err)
			}
			return
		}
		if len(body) == 0 {
			return
		}
		var plain map[string]any
		if err := json.Unmarshal(body, &plain); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		disclosed := []any{plain}
		if in.Kind == Search || in.Kind == HistoryInstance || in.Kind == HistoryType {
			if plain["resourceType"] != "Bundle" {
				t.Fatal("not a Bundle")
			}
			disclosed = plainAt([]any{plain}, []string{"entry", "resource"})
		}
		count := 0
		for _, r := range disclosed {
			m := r.(map[string]any)
			if m["resourceType"] == "OperationOutcome" {
				continue
			}
			count++
			got := plainFacts(m, bases)
			if got.Type != in.Type {
				t.Errorf("a %s came through", got.Type)
			}
			if in.ID != "" && got.ID != in.ID {
				t.Errorf("id %q came through", got.ID)
			}
			if confined && !slices.Contains(got.Patients, patient) {
				t.Errorf("a resource of %q came through", got.Patients)
			}
			for _, id := range got.Patients {
				if !slices.Contains(facts.Patients, id) {
					t.Errorf("patient %q is not among those disclosed, %q", id, facts.Patients)
				}
			}
		}
		if count != facts.Count {
			t.Errorf("%d resources came through, %d were counted", count, facts.Count)
		}
	})
}
