package fhir

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	fhirJSON  = "application/fhir+json; charset=utf-8"
	mineObs   = `{"resourceType":"Observation","id":"o1","meta":{"versionId":"2"},"subject":{"reference":"Patient/me"}}`
	sharedObs = `{"resourceType":"Observation","id":"o2","subject":{"reference":"Patient/me"},"performer":[{"reference":"Patient/mum"}]}`
	anothers  = `{"resourceType":"Observation","id":"o3","subject":{"reference":"Patient/x"}}`
	nobodys   = `{"resourceType":"Observation","id":"o4"}`
	warning   = `{"resourceType":"OperationOutcome","issue":[{"severity":"warning","code":"processing"}]}`
	smuggling = `{"resourceType":"OperationOutcome","contained":[{"resourceType":"Patient","name":[{"text":"x"}]}]}`
)

func searchset(more string, entries ...string) string {
	return `{"resourceType":"Bundle","type":"searchset"` + more + `,"entry":[` + strings.Join(entries, ",") + `]}`
}

func historyOf(entries ...string) string {
	return `{"resourceType":"Bundle","type":"history","entry":[` + strings.Join(entries, ",") + `]}`
}

func resourceEntry(resource string) string { return `{"resource":` + resource + `}` }

func modeEntry(resource, mode string) string {
	return `{"resource":` + resource + `,"search":{"mode":"` + mode + `"}}`
}

func deletion(url string) string { return `{"request":{"method":"DELETE","url":"` + url + `"}}` }

// replyTo checks a reply for a caller who is confined to patient, or to none.
func replyTo(in Interaction, patient string, status int, contentType string, body []byte, o ContentOptions) (*ReplyFacts, error) {
	check := Check{}
	if patient != "" {
		check = Check{Patient: patient, Type: in.Type, ID: in.ID}
	}
	return CheckReply(in, check, status, contentType, body, o)
}

func TestCheckReply(t *testing.T) {
	var (
		read       = Interaction{Kind: Read, Type: "Observation", ID: "o1"}
		read3      = Interaction{Kind: Read, Type: "Observation", ID: "o3"}
		vread      = Interaction{Kind: VRead, Type: "Observation", ID: "o1", Version: "2"}
		vread1     = Interaction{Kind: VRead, Type: "Observation", ID: "o1", Version: "1"}
		search     = Interaction{Kind: Search, Type: "Observation"}
		create     = Interaction{Kind: Create, Type: "Observation"}
		update     = Interaction{Kind: Update, Type: "Observation", ID: "o1"}
		deleting   = Interaction{Kind: Delete, Type: "Observation", ID: "o1"}
		history    = Interaction{Kind: HistoryInstance, Type: "Observation", ID: "o1"}
		historyAll = Interaction{Kind: HistoryType, Type: "Observation"}
		metadata   = Interaction{Kind: Capabilities, path: "/metadata"}
		smart      = Interaction{Kind: Capabilities, path: "/.well-known/smart-configuration"}
		facts      = func(count int, patients ...string) *ReplyFacts { return &ReplyFacts{Patients: patients, Count: count} }
	)
	tests := []struct {
		name    string
		in      Interaction
		patient string // "me" or ""
		status  int
		body    string
		want    *ReplyFacts // nil: refused
		class   Class
		at      string
	}{
		{"read", read, "", 200, mineObs, facts(1, "me"), 0, ""},
		{"read mine", read, "me", 200, mineObs, facts(1, "me"), 0, ""},
		{"read shared", Interaction{Kind: Read, Type: "Observation", ID: "o2"}, "me", 200, sharedObs, facts(1, "me", "mum"), 0, ""},
		{"read another's, unconfined", read3, "", 200, anothers, facts(1, "x"), 0, ""},
		{"row 25: read another's", read3, "me", 200, anothers, nil, Outside, ""},
		{"row 25: read nobody's", Interaction{Kind: Read, Type: "Observation", ID: "o4"}, "me", 200, nobodys, nil, Outside, ""},
		{"read myself", Interaction{Kind: Read, Type: "Patient", ID: "me"}, "me", 200, `{"resourceType":"Patient","id":"me"}`, facts(1, "me"), 0, ""},
		{"read another patient", Interaction{Kind: Read, Type: "Patient", ID: "x"}, "me", 200, `{"resourceType":"Patient","id":"x"}`, nil, Outside, ""},
		{"read, other id", read, "", 200, anothers, nil, Outside, "Observation.id"},
		{"read, other type", read, "", 200, `{"resourceType":"Patient","id":"o1"}`, nil, Outside, "Resource"},
		{"read, outcome instead", read, "", 200, warning, nil, Outside, "Resource"},
		{"read, no id", read, "", 200, `{"resourceType":"Observation"}`, nil, Malformed, "Observation.id"},
		{"read, no body", read, "", 200, ``, nil, Malformed, ""},
		{"row 17: read, name twice", read, "", 200, `{"resourceType":"Observation","id":"o1","id":"o1"}`, nil, Malformed, "Observation"},
		{"read a Bundle", Interaction{Kind: Read, Type: "Bundle", ID: "b"}, "", 200, `{"resourceType":"Bundle","id":"b","entry":[` + resourceEntry(anothers) + `]}`, facts(1, "x"), 0, ""},
		{"read a Bundle with mine, confined", Interaction{Kind: Read, Type: "Bundle", ID: "b"}, "me", 200, `{"resourceType":"Bundle","id":"b","entry":[` + resourceEntry(mineObs) + `]}`, nil, Outside, ""},
		{"read, partial", read, "", 206, mineObs, nil, Malformed, ""},
		{"read, created", read, "", 201, mineObs, nil, Malformed, ""},
		{"read, redirect", read, "", 302, ``, nil, Malformed, ""},
		{"read, later", read, "", 202, ``, nil, Unsupported, ""},
		{"read, 100", read, "", 100, ``, nil, Malformed, ""},
		{"HEAD", Interaction{Kind: Read, Type: "Observation", ID: "o1", Head: true}, "", 200, ``, facts(0), 0, ""},
		{"row 25: HEAD", Interaction{Kind: Read, Type: "Observation", ID: "o1", Head: true}, "me", 200, ``, nil, Outside, ""},
		{"HEAD, answered in full", Interaction{Kind: Read, Type: "Observation", ID: "o1", Head: true}, "me", 200, mineObs, facts(1, "me"), 0, ""},
		{"not modified", read, "", 304, ``, facts(0), 0, ""},
		{"row 25: not modified", read, "me", 304, ``, nil, Outside, ""},
		{"not modified, with a body", read, "", 304, mineObs, nil, Malformed, ""},
		{"vread", vread, "me", 200, mineObs, facts(1, "me"), 0, ""},
		{"vread, other version", vread1, "", 200, mineObs, nil, Outside, "Observation.meta.versionId"},
		{"vread, no version", vread1, "", 200, `{"resourceType":"Observation","id":"o1"}`, facts(1), 0, ""},

		{"search", search, "", 200, searchset("", modeEntry(mineObs, "match"), resourceEntry(anothers)), facts(2, "me", "x"), 0, ""},
		{"search mine", search, "me", 200, searchset(`,"total":2`, modeEntry(mineObs, "match"), modeEntry(sharedObs, "match")), facts(2, "me", "mum"), 0, ""},
		{"search, nothing found", search, "me", 200, searchset(`,"total":0`), facts(0), 0, ""},
		{"search, no entry member", search, "me", 200, `{"resourceType":"Bundle","type":"searchset","total":0}`, facts(0), 0, ""},
		{"search, members in another order", search, "me", 200, `{"entry":[` + resourceEntry(mineObs) + `],"total":1,"type":"searchset","resourceType":"Bundle"}`, facts(1, "me"), 0, ""},
		{"search, another's among mine", search, "me", 200, searchset("", resourceEntry(mineObs), resourceEntry(anothers)), nil, Outside, "Bundle.entry[1].resource"},
		{"search, nobody's among mine", search, "me", 200, searchset("", resourceEntry(mineObs), resourceEntry(nobodys)), nil, Outside, "Bundle.entry[1].resource"},
		{"row 12: included other type", search, "", 200, searchset("", modeEntry(mineObs, "match"), modeEntry(`{"resourceType":"Patient","id":"me"}`, "include")), nil, Outside, "Bundle.entry[1].resource"},
		{"row 12: included other type, in my compartment", search, "me", 200, searchset("", modeEntry(`{"resourceType":"Patient","id":"me"}`, "include")), nil, Outside, "Bundle.entry[0].resource"},
		{"row 12: included same type", search, "me", 200, searchset(`,"total":1`, modeEntry(mineObs, "match"), modeEntry(sharedObs, "include")), facts(2, "me", "mum"), 0, ""},
		{"row 12: included same type of another", search, "me", 200, searchset("", modeEntry(anothers, "include")), nil, Outside, "Bundle.entry[0].resource"},
		{"hapi 6799: outcome among matches", search, "me", 200, searchset(`,"total":1`, modeEntry(mineObs, "match"), modeEntry(warning, "outcome")), facts(1, "me"), 0, ""},
		{"outcome without mode", search, "me", 200, searchset("", resourceEntry(warning)), facts(0), 0, ""},
		{"HL7 outcome in a searchset", search, "me", 200, string(example(t, "Bundle-bundle-search-warning")), facts(0), 0, ""},
		{"outcome with a resource in it", search, "me", 200, searchset("", modeEntry(smuggling, "outcome")), nil, Outside, "Bundle.entry[0].resource"},
		{"mode outcome on a match", search, "", 200, searchset("", modeEntry(mineObs, "outcome")), nil, Outside, "Bundle.entry[0].resource"},
		{"response outcome with a resource in it", search, "", 200, searchset("", `{"response":{"outcome":`+smuggling+`}}`), nil, Outside, "Bundle.entry[0].response.outcome"},
		{"unknown mode", search, "", 200, searchset("", modeEntry(mineObs, "x")), nil, Malformed, "Bundle.entry[0].search.mode"},
		{"entry without resource", search, "", 200, searchset("", `{}`), nil, Malformed, "Bundle.entry[0]"},
		{"row 15: _summary=count", search, "me", 200, `{"resourceType":"Bundle","type":"searchset","total":7}`, nil, Outside, "Bundle.total"},
		{"row 15: _summary=count, unconfined", search, "", 200, `{"resourceType":"Bundle","type":"searchset","total":7}`, facts(0), 0, ""},
		{"row 15: total above matches", search, "me", 200, searchset(`,"total":2`, modeEntry(mineObs, "match"), modeEntry(warning, "outcome")), nil, Outside, "Bundle.total"},
		{"row 15: total with a next page", search, "me", 200, searchset(`,"total":2,"link":[{"relation":"self"},{"relation":"next","url":"x"}]`, resourceEntry(mineObs)), &ReplyFacts{Patients: []string{"me"}, Count: 1, More: true}, 0, ""},
		{"total negative", search, "", 200, searchset(`,"total":-1`), nil, Invalid, "Bundle.total"},
		{"total a string", search, "me", 200, searchset(`,"total":"7"`), nil, Invalid, "Bundle.total"},
		{"total in other case", search, "me", 200, searchset(`,"Total":7`), nil, Invalid, "Bundle"},
		{"resource beside the entries", search, "me", 200, searchset(`,"contained":[`+anothers+`]`, resourceEntry(mineObs)), nil, Invalid, "Bundle"},
		{"resource beside the entry's", search, "me", 200, searchset("", `{"resource":`+mineObs+`,"outcome":`+anothers+`}`), nil, Invalid, "Bundle.entry[0]"},
		{"resource in other case", search, "me", 200, searchset("", `{"resource":`+mineObs+`,"Resource":`+anothers+`}`), nil, Invalid, "Bundle.entry[0]"},
		{"update, not modified", update, "", 304, ``, nil, Malformed, ""},
		{"fullUrl", search, "me", 200, searchset("", `{"fullUrl":"http://localhost:8103/r4/Observation/o1","resource":`+mineObs+`}`), facts(1, "me"), 0, ""},
		{"row 20: fullUrl on a foreign base", search, "me", 200, searchset("", `{"fullUrl":"http://other/Observation/o1","resource":`+mineObs+`}`), nil, Malformed, "Bundle.entry[0].fullUrl"},
		{"row 20: fullUrl a urn", search, "", 200, searchset("", `{"fullUrl":"urn:uuid:1","resource":`+mineObs+`}`), nil, Malformed, "Bundle.entry[0].fullUrl"},
		{"fullUrl of another resource", search, "", 200, searchset("", `{"fullUrl":"http://localhost:8103/r4/Observation/o9","resource":`+mineObs+`}`), nil, Malformed, "Bundle.entry[0].fullUrl"},
		{"row 20: reference on a foreign base", search, "me", 200, searchset("", resourceEntry(`{"resourceType":"Observation","id":"o","subject":{"reference":"http://other/Patient/me"}}`)), nil, Outside, "Bundle.entry[0].resource"},
		{"row 20: contained is not a compartment", search, "me", 200, searchset("", resourceEntry(`{"resourceType":"Observation","id":"o","contained":[`+mineObs+`],"subject":{"reference":"Patient/x"}}`)), nil, Outside, "Bundle.entry[0].resource"},
		{"a Bundle of another type", search, "", 200, `{"resourceType":"Bundle","type":"collection"}`, nil, Malformed, "Bundle"},
		{"not a Bundle", search, "", 200, mineObs, nil, Malformed, "Bundle"},
		{"HL7 searchset with an included Medication", Interaction{Kind: Search, Type: "MedicationRequest"}, "", 200, string(example(t, "Bundle-bundle-example")), nil, Malformed, "Bundle.entry[0].fullUrl"},

		{"history", history, "me", 200, historyOf(resourceEntry(mineObs), deletion("Observation/o1")), facts(1, "me"), 0, ""},
		{"row 19: history from before it was mine", history, "me", 200, historyOf(resourceEntry(mineObs), resourceEntry(`{"resourceType":"Observation","id":"o1","subject":{"reference":"Patient/x"}}`)), nil, Outside, "Bundle.entry[1].resource"},
		{"history of another", history, "", 200, historyOf(resourceEntry(sharedObs)), nil, Outside, "Bundle.entry[0].resource"},
		{"history, deletion on our base", history, "", 200, historyOf(deletion("http://localhost:8103/r4/Observation/o1/_history/3")), facts(0), 0, ""},
		{"history, another's deletion", history, "", 200, historyOf(deletion("Observation/o2")), nil, Outside, "Bundle.entry[0].request.url"},
		{"history, deletion elsewhere", history, "", 200, historyOf(deletion("http://other/Observation/o1")), nil, Outside, "Bundle.entry[0].request.url"},
		{"row 25: history, only deleted", history, "me", 200, historyOf(deletion("Observation/o1")), nil, Outside, "Bundle"},
		{"row 25: history, empty", history, "me", 200, historyOf(), nil, Outside, "Bundle"},
		{"history, entry without resource", history, "", 200, historyOf(`{"request":{"method":"PUT","url":"Observation/o1"}}`), nil, Malformed, "Bundle.entry[0]"},
		{"history of a type", historyAll, "", 200, historyOf(resourceEntry(mineObs), resourceEntry(anothers), deletion("Observation/o9")), facts(2, "me", "x"), 0, ""},
		{"row 25: history of a type, a deletion", historyAll, "me", 200, historyOf(resourceEntry(mineObs), deletion("Observation/o9")), nil, Outside, "Bundle"},
		{"history of the system", Interaction{Kind: HistorySystem}, "", 200, historyOf(resourceEntry(mineObs), resourceEntry(`{"resourceType":"Patient","id":"x"}`)), facts(2, "me", "x"), 0, ""},
		{"history as a searchset", history, "", 200, searchset("", resourceEntry(mineObs)), nil, Malformed, "Bundle"},

		{"create", create, "me", 201, mineObs, facts(1, "me"), 0, ""},
		{"create, nothing returned", create, "me", 201, ``, facts(0), 0, ""},
		{"create, outcome returned", create, "me", 201, warning, facts(0), 0, ""},
		{"rows 8-9: create returned another's match", create, "me", 200, anothers, nil, Outside, ""},
		{"create returned another type", create, "", 201, `{"resourceType":"Patient","id":"o1"}`, nil, Outside, "Resource"},
		{"update", update, "me", 200, mineObs, facts(1, "me"), 0, ""},
		{"update, no content", update, "me", 204, ``, facts(0), 0, ""},
		{"rows 8-9: update returned another", update, "", 200, sharedObs, nil, Outside, "Observation.id"},
		{"delete", deleting, "me", 204, ``, facts(0), 0, ""},
		{"delete, outcome returned", deleting, "me", 200, warning, facts(0), 0, ""},
		{"delete, resource returned", deleting, "", 200, mineObs, nil, Outside, "Observation"},

		{"capabilities", metadata, "me", 200, `{"resourceType":"CapabilityStatement"}`, facts(0), 0, ""},
		{"capabilities, something else", metadata, "", 200, mineObs, nil, Outside, "Observation"},
		{"SMART configuration", smart, "me", 200, `{"token_endpoint":"https://x"}`, facts(0), 0, ""},
		{"SMART configuration, name twice", smart, "me", 200, `{"token_endpoint":"https://x","token_endpoint":"https://y"}`, nil, Malformed, ""},
		{"SMART configuration, not an object", smart, "me", 200, `[]`, nil, Malformed, ""},

		{"error", read, "", 404, warning, facts(0), 0, ""},
		{"HL7 outcome", search, "", 400, string(example(t, "OperationOutcome-searchfail")), facts(0), 0, ""},
		{"row 25: not found", read, "me", 404, warning, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"row 25: gone", read, "me", 410, ``, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"row 25: forbidden", read, "me", 403, warning, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"error with a resource", read, "", 409, anothers, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"error with a resource in the outcome", read, "", 409, smuggling, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"error without body", read, "", 500, ``, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
		{"error, not JSON", read, "", 502, `<h1>`, &ReplyFacts{Patients: []string{}, Withhold: true}, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := replyTo(tt.in, tt.patient, tt.status, fhirJSON, []byte(tt.body), ehr)
			if tt.want == nil {
				checkError(t, err, tt.class, tt.at, "")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Patients == nil {
				tt.want.Patients = []string{}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestReplyMedia(t *testing.T) {
	in := Interaction{Kind: Read, Type: "Observation", ID: "o1"}
	for _, contentType := range []string{"", "text/html", "application/fhir+xml", "application/pdf"} {
		_, err := replyTo(in, "", 200, contentType, []byte(mineObs), ehr)
		checkError(t, err, Media, "Content-Type", "")
		facts, err := replyTo(in, "", 404, contentType, []byte(warning), ehr)
		if err != nil || !facts.Withhold {
			t.Errorf("%q: an error reply of another format: got %+v, %v; want it withheld", contentType, facts, err)
		}
	}
}

func TestReplyLimits(t *testing.T) {
	o := ContentOptions{Limits: Limits{Entries: 2}}
	_, err := replyTo(Interaction{Kind: Search, Type: "Observation"}, "", 200, fhirJSON,
		[]byte(searchset("", resourceEntry(mineObs), resourceEntry(mineObs), resourceEntry(mineObs))), o)
	checkError(t, err, TooLarge, "Bundle.entry", "entries")
}

// largeSearchset is a searchset of HL7's Observations, all of one patient, of about n bytes.
func largeSearchset(tb testing.TB, n int) ([]byte, int) {
	names, err := filepath.Glob("testdata/Observation-*.json")
	if err != nil || len(names) == 0 {
		tb.Fatal("no examples", err)
	}
	var b bytes.Buffer
	b.WriteString(`{"resourceType":"Bundle","type":"searchset","entry":[`)
	count := 0
	for ; b.Len() < n; count++ {
		name := strings.TrimSuffix(filepath.Base(names[count%len(names)]), ".json")
		body := bytes.ReplaceAll(example(tb, name), []byte("Patient/f001"), []byte("Patient/example"))
		if count > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"fullUrl":"http://localhost:8103/r4/Observation/%s","search":{"mode":"match"},"resource":`,
			strings.TrimPrefix(name, "Observation-"))
		b.Write(body)
		b.WriteByte('}')
	}
	b.WriteString(`]}`)
	return b.Bytes(), count
}

func BenchmarkReply(b *testing.B) {
	body, count := largeSearchset(b, 5<<20)
	in := Interaction{Kind: Search, Type: "Observation"}
	for _, patient := range []string{"", "example"} {
		b.Run(map[string]string{"": "open", "example": "confined"}[patient], func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				facts, err := replyTo(in, patient, 200, fhirJSON, body, ehr)
				if err != nil || facts.Count != count {
					b.Fatal(facts, err)
				}
			}
		})
	}
}

// An answer that was refused leaves nothing behind that could change the next one.
func TestReplyAfterRefusal(t *testing.T) {
	in := Interaction{Kind: Search, Type: "Observation"}
	good := []byte(searchset("", resourceEntry(mineObs)))
	for range 100 {
		_, err := replyTo(in, "me", 200, fhirJSON, []byte(searchset("", resourceEntry(mineObs), resourceEntry(anothers))), ehr)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Class != Outside {
			t.Fatal(err)
		}
		facts, err := replyTo(in, "me", 200, fhirJSON, good, ehr)
		if err != nil || facts.Count != 1 {
			t.Fatal(facts, err)
		}
	}
}
