package fhir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var ehr = ContentOptions{Bases: []string{"http://fhir.ehr.mesh.internal/fhir", "http://localhost:8103/r4/"}}

// example reads one of HL7's examples.
func example(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkError wants an *Error of this class, place and, in its text, this word; class 0 wants no error.
func checkError(t *testing.T, err error, class Class, expression, word string) {
	t.Helper()
	if class == 0 {
		if err != nil {
			t.Errorf("got %v, want no error", err)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	if e.Class != class || e.Expression != expression || !strings.Contains(e.Text, word) {
		t.Errorf("got class %d at %q: %s\nwant class %d at %q with %q", e.Class, e.Expression, e.Text, class, expression, word)
	}
}

func TestParseResourceRefuses(t *testing.T) {
	deep := func(n int) string {
		return `{"resourceType":"Patient","x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	tests := []struct {
		name, body string
		class      Class
		expression string
		word       string
	}{
		{"row 17: name twice", `{"resourceType":"Patient","id":"a","id":"b"}`, Malformed, "Patient", "twice"},
		{"row 17: name twice, deep", `{"resourceType":"Patient","contact":[{"name":{"text":"a","text":"b"}}]}`, Malformed, "Patient.contact", "twice"},
		{"row 17: two subjects", `{"resourceType":"Observation","subject":{"reference":"Patient/me"},"subject":{"reference":"Patient/x"}}`, Malformed, "Observation", "twice"},
		{"row 17: name twice by an escape", `{"resourceType":"Observation","subject":{"reference":"Patient/me"},"subjec\u0074":{"reference":"Patient/x"}}`, Malformed, "Observation", "twice"},
		{"row 17: two resourceTypes", `{"resourceType":"Patient","resourceType":"Observation"}`, Malformed, "Patient", "twice"},
		{"row 17: two resourceTypes, late", `{"id":"a","resourceType":"Patient","resourceType":"Observation"}`, Malformed, "Patient", "twice"},
		{"row 17: escaped name", `{"resourceType":"Patient","\u0069d":"a"}`, Malformed, "Patient", "escape"},
		{"row 17: escaped name, deep", `{"resourceType":"Patient","name":[{"\u0074ext":"a"}]}`, Malformed, "Patient.name", "escape"},
		{"row 17: escaped name of the type", `{"resource\u0054ype":"Patient"}`, Malformed, "Resource", "escape"},
		{"row 17: byte order mark", "\xef\xbb\xbf" + `{"resourceType":"Patient"}`, Malformed, "", "byte order mark"},
		{"row 17: line comment", "{\"resourceType\":\"Patient\" // x\n}", Malformed, "Patient", "not JSON"},
		{"row 17: block comment", `{"resourceType":/**/"Patient"}`, Malformed, "Resource.resourceType", "not JSON"},
		{"row 17: other case", `{"resourceType":"Observation","Subject":{"reference":"Patient/x"}}`, Invalid, "Observation", "name"},
		{"row 17: other case inside", `{"resourceType":"Observation","subJect":{"reference":"Patient/x"}}`, Invalid, "Observation.subJect", "case"},
		{"row 17: other case of reference", `{"resourceType":"Observation","subject":{"referencE":"Patient/x"}}`, Invalid, "Observation.subject", "case"},
		{"row 17: other case on the way", `{"resourceType":"Appointment","participant":[{"aCtor":{"reference":"Patient/x"}}]}`, Invalid, "Appointment.participant[0]", "case"},
		{"row 17: other case of the type", `{"resourceType":"Patient","resourcetype":"Observation"}`, Invalid, "Patient.resourcetype", "case"},
		{"row 17: other case of security", `{"resourceType":"Patient","meta":{"securitY":[]}}`, Invalid, "Patient.meta", "case"},
		{"row 17: look-alike letter", "{\"resourceType\":\"Observation\",\"\u017fubject\":{}}", Invalid, "Observation", "name"},
		{"row 17: empty name", `{"resourceType":"Patient","":1}`, Invalid, "Patient", "name"},
		{"row 17: UTF-16", "{\x00\"\x00", Malformed, "Resource", "not JSON"},
		{"row 17: not UTF-8", "{\"resourceType\":\"Patient\",\"language\":\"\xff\"}", Malformed, "Patient.language", "not JSON"},
		{"row 17: overlong UTF-8", "{\"resourceType\":\"Patient\",\"language\":\"\xc0\xaf\"}", Malformed, "Patient.language", "not JSON"},
		{"row 17: lone surrogate", `{"resourceType":"Patient","language":"\ud800"}`, Malformed, "Patient.language", "not JSON"},
		{"row 17: trailing text", `{"resourceType":"Patient"} {"resourceType":"Patient"}`, Malformed, "Patient", "follows"},
		{"row 17: trailing bracket", `{"resourceType":"Patient"}}`, Malformed, "Patient", "not JSON"},
		{"row 17: trailing comma", `{"resourceType":"Patient",}`, Malformed, "Patient", "not JSON"},
		{"row 17: single quotes", `{'resourceType':'Patient'}`, Malformed, "Resource", "not JSON"},
		{"row 17: NaN", `{"resourceType":"Patient","x":NaN}`, Malformed, "Patient.x", "not JSON"},

		{"empty", ``, Malformed, "Resource", "too early"},
		{"cut off", `{"resourceType":"Patient","id":"a`, Malformed, "Patient.id", "too early"},
		{"not an object", `[{"resourceType":"Patient"}]`, Invalid, "Resource", "object"},
		{"a string", `"Patient"`, Invalid, "Resource", "object"},
		{"no type", `{"id":"a"}`, Malformed, "Resource", "resourceType"},
		{"no member", `{}`, Malformed, "Resource", "resourceType"},
		{"no R4 type", `{"resourceType":"SubscriptionTopic"}`, Invalid, "Resource.resourceType", "R4"},
		{"type in other case", `{"resourceType":"patient"}`, Invalid, "Resource.resourceType", "R4"},
		{"abstract type", `{"resourceType":"DomainResource"}`, Invalid, "Resource.resourceType", "R4"},
		{"type is a number", `{"resourceType":1}`, Invalid, "Resource.resourceType", "string"},
		{"type is null, late", `{"id":"a","resourceType":null}`, Malformed, "Resource", "resourceType"},
		{"id not an id", `{"resourceType":"Patient","id":"a/b"}`, Invalid, "Patient.id", "id"},
		{"id too long", `{"resourceType":"Patient","id":"` + strings.Repeat("a", 65) + `"}`, Invalid, "Patient.id", "id"},
		{"id empty", `{"resourceType":"Patient","id":""}`, Invalid, "Patient.id", "id"},
		{"id a number", `{"resourceType":"Patient","id":1}`, Invalid, "Patient.id", "string"},
		{"id null", `{"resourceType":"Patient","id":null}`, Invalid, "Patient.id", "string"},
		{"version not an id", `{"resourceType":"Patient","meta":{"versionId":"a b"}}`, Invalid, "Patient.meta.versionId", "id"},
		{"meta an array", `{"resourceType":"Patient","meta":[{}]}`, Invalid, "Patient.meta", "object"},
		{"one label without array", `{"resourceType":"Patient","meta":{"security":{"code":"R"}}}`, Invalid, "Patient.meta.security", "array"},
		{"label a string", `{"resourceType":"Patient","meta":{"security":["R"]}}`, Invalid, "Patient.meta.security[0]", "object"},
		{"code a number", `{"resourceType":"Patient","meta":{"security":[{},{"code":1}]}}`, Invalid, "Patient.meta.security[1].code", "string"},
		{"subject a string", `{"resourceType":"Observation","subject":"Patient/x"}`, Invalid, "Observation.subject", "object"},
		{"subject null", `{"resourceType":"Observation","subject":null}`, Invalid, "Observation.subject", "object"},
		{"subjects in arrays", `{"resourceType":"Observation","subject":[[{"reference":"Patient/x"}]]}`, Invalid, "Observation.subject[0]", "object"},
		{"reference an array", `{"resourceType":"Observation","performer":[{},{"reference":["Patient/x"]}]}`, Invalid, "Observation.performer[1].reference", "string"},
		{"reference empty", `{"resourceType":"Observation","subject":{"reference":""}}`, Invalid, "Observation.subject.reference", "empty"},
		{"reference type a number", `{"resourceType":"Observation","subject":{"type":1}}`, Invalid, "Observation.subject.type", "string"},
		{"path through a string", `{"resourceType":"Appointment","participant":"x"}`, Invalid, "Appointment.participant", "object"},
		{"contained one object", `{"resourceType":"Patient","contained":{"resourceType":"Patient"}}`, Invalid, "Patient.contained", "array"},
		{"contained without type", `{"resourceType":"Patient","contained":[{"id":"a"}]}`, Malformed, "Patient.contained[0]", "resourceType"},
		{"contained in contained", `{"resourceType":"Patient","contained":[{"resourceType":"Patient","contained":[]}]}`, Invalid, "Patient.contained[0].contained", "another"},
		{"entry without type", `{"resourceType":"Bundle","entry":[{},{"resource":{}}]}`, Malformed, "Bundle.entry[1].resource", "resourceType"},
		{"part without type", `{"resourceType":"Parameters","parameter":[{"part":[{"resource":{}}]}]}`, Malformed, "Parameters.parameter[0].part[0].resource", "resourceType"},
		{"Bundles in Bundles", strings.Repeat(`{"resourceType":"Bundle","entry":[{"resource":`, 5) + `{"resourceType":"Patient"}` + strings.Repeat(`}]}`, 5), TooLarge,
			"Bundle" + strings.Repeat(".entry[0].resource", 5), "within each other"},
		{"deep", deep(65), TooLarge, "Patient.x", "deeper than 64"},
		{"very deep", deep(100_000), TooLarge, "Patient.x", "deeper than 64"},
		{"very deep, type last", `{"x":` + strings.Repeat("[", 100_000), Malformed, "Resource", "resourceType"},
		{"as deep as can be", deep(64), 0, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseResource([]byte(tt.body), ehr)
			checkError(t, err, tt.class, tt.expression, tt.word)
		})
	}
}

// An error goes to callers, logs and the audit trail: it must not carry what the body says.
func TestErrorsKeepContentSecret(t *testing.T) {
	for _, body := range []string{
		`{"resourceType":"secret"}`,
		`{"resourceType":"Patient","id":"secret!"}`,
		`{"resourceType":"Patient","secret":1,"secret":2}`,
		`{"resourceType":"Patient","name":{"secret name":1}}`,
		`{"resourceType":"Patient","name":{"secr\u0065t":1}}`,
		`{"resourceType":"Patient","name":[{"secret":secret}]}`,
		"{\"resourceType\":\"Patient\",\"name\":\"secret\xff\"}",
		`{"resourceType":"Observation","subject":"secret"}`,
	} {
		_, err := ParseResource([]byte(body), ehr)
		if err == nil {
			t.Errorf("%s: accepted", body)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error repeats it: %v", body, err)
		}
	}
}

func TestLimits(t *testing.T) {
	body := []byte(`{"resourceType":"Bundle","entry":[{},{},{}],"total":[1,2,3,4,5]}`)
	for _, tt := range []struct {
		name   string
		limits Limits
		class  Class
		at     string
	}{
		{"none given", Limits{}, 0, ""},
		{"all just enough", Limits{Bytes: len(body), Depth: 3, Values: 12, Entries: 3}, 0, ""},
		{"bytes", Limits{Bytes: len(body) - 1}, TooLarge, ""},
		{"depth", Limits{Depth: 2}, TooLarge, "Bundle.entry[0]"},
		{"values", Limits{Values: 11}, TooLarge, "Bundle.total"},
		{"entries", Limits{Entries: 2}, TooLarge, "Bundle.entry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseResource(body, ContentOptions{Limits: tt.limits})
			checkError(t, err, tt.class, tt.at, "")
		})
	}
}

func TestParseResourceFacts(t *testing.T) {
	tests := []struct {
		name, body string
		want       Content
	}{
		{"HL7 Patient", string(example(t, "Patient-example")),
			Content{Type: "Patient", ID: "example", Patients: []string{"example"}}},
		{"HL7 Observation", string(example(t, "Observation-f001")),
			Content{Type: "Observation", ID: "f001", Patients: []string{"f001"}}},
		{"HL7 Group", string(example(t, "Group-102")),
			Content{Type: "Group", ID: "102", Patients: []string{"pat1", "pat2", "pat3", "pat4"}}},
		{"HL7 Practitioner", string(example(t, "Practitioner-example")), Content{Type: "Practitioner", ID: "example"}},
		{"type last", `{"subject":{"reference":"Patient/a"},"id":"o","resourceType":"Observation"}`,
			Content{Type: "Observation", ID: "o", Patients: []string{"a"}}},
		{"two compartments", `{"resourceType":"Observation","subject":{"reference":"Patient/b"},"performer":[{"reference":"Practitioner/p"},{"reference":"Patient/a"},{"reference":"Patient/b"}]}`,
			Content{Type: "Observation", Patients: []string{"a", "b"}}},
		{"a longer path", `{"resourceType":"CarePlan","activity":[{},{"detail":{"performer":[{"reference":"Patient/a"}]}}]}`,
			Content{Type: "CarePlan", Patients: []string{"a"}}},
		{"array where one is meant", `{"resourceType":"Observation","subject":[{"reference":"Patient/a"},{"reference":"Patient/b"}]}`,
			Content{Type: "Observation", Patients: []string{"a", "b"}}},
		{"not a compartment path", `{"resourceType":"Observation","focus":[{"reference":"Patient/a"}]}`, Content{Type: "Observation"}},
		{"a link does not open the compartment", `{"resourceType":"Patient","id":"a","link":[{"other":{"reference":"Patient/b"}}]}`,
			Content{Type: "Patient", ID: "a", Patients: []string{"a"}}},
		{"escaped slash", `{"resourceType":"Observation","subject":{"reference":"Patient\/a"}}`,
			Content{Type: "Observation", Patients: []string{"a"}}},
		{"labels and version", `{"resourceType":"Patient","meta":{"versionId":"3","security":[{"system":"s","code":"R"},{"code":"V"}]}}`,
			Content{Type: "Patient", Version: "3", Labels: []Coding{{"s", "R"}, {"", "V"}}}},
		{"display only", `{"resourceType":"Observation","subject":{"display":"nobody"}}`, Content{Type: "Observation"}},

		{"row 20: our base", `{"resourceType":"Observation","subject":{"reference":"http://fhir.ehr.mesh.internal/fhir/Patient/a"}}`,
			Content{Type: "Observation", Patients: []string{"a"}}},
		{"row 20: our other base", `{"resourceType":"Observation","subject":{"reference":"http://localhost:8103/r4/Patient/a"}}`,
			Content{Type: "Observation", Patients: []string{"a"}}},
		{"row 20: foreign base", `{"resourceType":"Observation","subject":{"reference":"http://fhir.ehr.mesh.internal.evil/fhir/Patient/a"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: our base, other path", `{"resourceType":"Observation","subject":{"reference":"http://fhir.ehr.mesh.internal/fhir/x/Patient/a"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: our base, other case", `{"resourceType":"Observation","subject":{"reference":"HTTP://fhir.ehr.mesh.internal/fhir/Patient/a"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: urn", `{"resourceType":"Observation","subject":{"reference":"urn:uuid:3fdc72f4-a11d-4a9d-9260-a9f745779e1d"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: versioned", `{"resourceType":"Observation","subject":{"reference":"Patient/a/_history/2"}}`,
			Content{Type: "Observation", Patients: []string{"a"}}},
		{"row 20: ill versioned", `{"resourceType":"Observation","subject":{"reference":"Patient/a/_history/"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: contained", `{"resourceType":"Observation","contained":[{"resourceType":"Patient","id":"p"}],"subject":{"reference":"#p"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: identifier", `{"resourceType":"Observation","subject":{"type":"Patient","identifier":{"value":"1"}}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: reference and identifier", `{"resourceType":"Observation","subject":{"reference":"Patient/a","identifier":{"value":"1"}}}`,
			Content{Type: "Observation", Patients: []string{"a"}}},
		{"row 20: type contradicts", `{"resourceType":"Observation","subject":{"reference":"Group/a","type":"Patient"}}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: path tricks", `{"resourceType":"Observation","performer":[{"reference":"/Patient/a"},{"reference":"Patient/../a"},{"reference":"Patient/%61"},{"reference":"Patient//a"},{"reference":"patient/a"}]}`,
			Content{Type: "Observation", Foreign: true}},
		{"row 20: contained about another", `{"resourceType":"Observation","subject":{"reference":"Patient/a"},"contained":[{"resourceType":"Condition","subject":{"reference":"Patient/b"},"meta":{"security":[{"code":"R"}]}}]}`,
			Content{Type: "Observation", Patients: []string{"a"}, Carries: []string{"b"}, Labels: []Coding{{"", "R"}}}},
		{"row 26: bare id", `{"resourceType":"Observation","subject":{"reference":"a"}}`, Content{Type: "Observation", Foreign: true}},
		{"conditional", `{"resourceType":"Observation","subject":{"reference":"Patient?identifier=1"}}`,
			Content{Type: "Observation", Foreign: true, Conditional: true}},
		{"conditional, off the paths", `{"resourceType":"Observation","note":[{"authorReference":{"reference":"http://x/fhir/Practitioner?name=a"}}]}`,
			Content{Type: "Observation", Conditional: true}},
		{"conditional, contained", `{"resourceType":"Observation","contained":[{"resourceType":"Condition","subject":{"reference":"Patient?_id=1"}}]}`,
			Content{Type: "Observation", Conditional: true}},
		{"Bundle", `{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient","id":"a"}},{"response":{"outcome":{"resourceType":"OperationOutcome"}}}]}`,
			Content{Type: "Bundle", Carries: []string{"a"}, Foreign: true}},
		{"Parameters", `{"resourceType":"Parameters","parameter":[{"part":[{"resource":{"resourceType":"Observation","subject":{"reference":"Patient/a"}}}]}]}`,
			Content{Type: "Parameters", Carries: []string{"a"}, Foreign: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseResource([]byte(tt.body), ehr)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestCheckWrite(t *testing.T) {
	update := Interaction{Kind: Update, Type: "Observation", ID: "1"}
	create := Interaction{Kind: Create, Type: "Observation"}
	tests := []struct {
		name  string
		in    Interaction
		c     Content
		class Class
		at    string
	}{
		{"update", update, Content{Type: "Observation", ID: "1"}, 0, ""},
		{"create", create, Content{Type: "Observation"}, 0, ""},
		{"create with an id", create, Content{Type: "Observation", ID: "7"}, 0, ""},
		{"row 19: other id", update, Content{Type: "Observation", ID: "2"}, Malformed, "Observation.id"},
		{"row 19: no id", update, Content{Type: "Observation"}, Malformed, "Observation.id"},
		{"other type", update, Content{Type: "Patient", ID: "1"}, Malformed, "Patient.resourceType"},
		{"other type, create", create, Content{Type: "Patient"}, Malformed, "Patient.resourceType"},
		{"conditional reference", create, Content{Type: "Observation", Conditional: true}, Unsupported, "Observation"},
		{"Bundle stored", Interaction{Kind: Create, Type: "Bundle"}, Content{Type: "Bundle"}, Unsupported, ""},
		{"Parameters stored", Interaction{Kind: Create, Type: "Parameters"}, Content{Type: "Parameters"}, Unsupported, ""},
		{"Subscription", Interaction{Kind: Create, Type: "Subscription"}, Content{Type: "Subscription"}, Unsupported, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkError(t, CheckWrite(tt.in, &tt.c), tt.class, tt.at, "")
		})
	}
}

func TestCompartmentOfOne(t *testing.T) {
	update := Interaction{Kind: Update, Type: "Observation", ID: "1"}
	tests := []struct {
		name        string
		in          Interaction
		c           Content
		read, write bool
	}{
		{"mine", update, Content{Patients: []string{"me"}}, true, true},
		{"nobody's", update, Content{}, false, false},
		{"another's", update, Content{Patients: []string{"x"}}, false, false},
		{"row 19: mine and another's", update, Content{Patients: []string{"me", "x"}}, true, false},
		{"mine and unknown", update, Content{Patients: []string{"me"}, Foreign: true}, true, false},
		{"unknown", update, Content{Foreign: true}, false, false},
		{"carries mine", update, Content{Patients: []string{"me"}, Carries: []string{"me"}}, true, true},
		{"carries another's", update, Content{Patients: []string{"me"}, Carries: []string{"x"}}, true, false},
		{"carries both", update, Content{Patients: []string{"me"}, Carries: []string{"me", "x"}}, true, false},
		{"only carries mine", update, Content{Carries: []string{"me"}}, false, false},
		{"myself", Interaction{Kind: Update, Type: "Patient", ID: "me"}, Content{Type: "Patient", ID: "me", Patients: []string{"me"}}, true, true},
		{"another me", Interaction{Kind: Create, Type: "Patient"}, Content{Type: "Patient", ID: "me", Patients: []string{"me"}}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, side := range []struct {
				what string
				err  error
				want bool
			}{{"Within", tt.c.Within("me"), tt.read}, {"OnlyWithin", tt.c.OnlyWithin(tt.in, "me"), tt.write}} {
				var e *Error
				if (side.err == nil) != side.want || side.err != nil && (!errors.As(side.err, &e) || e.Class != Outside) {
					t.Errorf("%s: got %v, want allowed %v", side.what, side.err, side.want)
				}
			}
		})
	}
}

func TestJSONMedia(t *testing.T) {
	for contentType, ok := range map[string]bool{
		"application/fhir+json":                                 true,
		"application/json":                                      true,
		"Application/FHIR+JSON; Charset=UTF-8":                  true,
		"application/fhir+json; fhirVersion=4.0":                true,
		`application/fhir+json;charset="utf-8";fhirVersion=4.0`: true,
		"":                                      false,
		"application/fhir+xml":                  false,
		"application/xml":                       false,
		"text/turtle":                           false,
		"text/json":                             false,
		"application/json-patch+json":           false,
		"application/x-www-form-urlencoded":     false,
		"application/fhir+json; charset=utf-16": false,
		"application/fhir+json; charset=iso-8859-1":           false,
		"application/fhir+json; charset=utf-8; charset=utf-7": false,
		"application/fhir+json; charset*=utf-8''utf-8":        false,
		"application/fhir+json; fhirVersion=3.0":              false,
		"application/fhir+json; fhirVersion=5.0":              false,
		"application/fhir+json; profile=x":                    false,
		"application/fhir+json, application/xml":              false,
		"application/fhir+json application/xml":               false,
	} {
		if err := JSONMedia(contentType); (err == nil) != ok {
			t.Errorf("row 18: %q: %v", contentType, err)
		} else if err != nil {
			checkError(t, err, Media, "Content-Type", "")
		}
	}
	for coding, ok := range map[string]bool{"": true, "identity": true, "gzip": false, "br": false, "identity, gzip": false, "deflate": false} {
		if err := PlainCoding(coding); (err == nil) != ok {
			t.Errorf("row 18: %q: %v", coding, err)
		}
	}
}

func BenchmarkContent(b *testing.B) {
	for _, name := range []string{"Observation-f001", "Patient-example", "MedicationRequest-medrx0301"} {
		body := example(b, name)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseResource(body, ehr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
