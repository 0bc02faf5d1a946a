package fhir

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The rows of FHIR.md's bypass table that concern search parameters.
func TestBypassSearch(t *testing.T) {
	tests := []struct {
		row, target string
		class       Class  // 0: accepted
		forwarded   string // "" when as it came
	}{
		{"12 include", "/Observation?_include=Observation:patient", Unsupported, ""},
		{"12 include", "/Observation?_include:iterate=Observation:patient", Unsupported, ""},
		{"12 include", "/Observation?_include=*", Unsupported, ""},
		{"12 include", "/Patient?_revinclude=Provenance:target", Unsupported, ""},
		{"12 include", "/Patient?_revinclude:iterate=Provenance:target", Unsupported, ""},
		{"12 include", "/Patient?%5Finclude=Patient:link", Unsupported, ""},
		{"12 contained", "/Medication?_contained=true", Unsupported, ""},
		{"12 contained", "/Medication?_containedType=contained", Unsupported, ""},

		{"13 reverse chain", "/Patient?_has:Observation:patient:code=1234-5", Unsupported, ""},
		{"13 reverse chain", "/Patient?_has:Observation:patient:_has:AuditEvent:entity:agent=x", Unsupported, ""},
		{"13 chain", "/Observation?patient.name=peter", Unsupported, ""},
		{"13 chain", "/Observation?subject:Patient.name=peter", Unsupported, ""},
		{"13 chain", "/Observation?encounter.subject.name=peter", Unsupported, ""},
		{"13 chain", "/Observation?patient%2Ename=peter", Unsupported, ""},

		{"14 _filter", "/Patient?_filter=name%20eq%20x", Unsupported, ""},
		{"14 _query", "/Patient?_query=mine", Unsupported, ""},
		{"14 _content", "/Patient?_content=x", Unsupported, ""},
		{"14 _text", "/Patient?_text=x", Unsupported, ""},
		{"14 _list", "/Patient?_list=42", Unsupported, ""},
		{"14 _type", "/Patient?_type=Observation", Unsupported, ""},
		{"14 _security", "/Patient?_security=R", Unsupported, ""},
		{"14 _security", "/Patient?_security:not=R", Unsupported, ""},
		{"14 _source", "/Patient?_source=x", Unsupported, ""},
		{"14 :in", "/Observation?code:in=http://example/vs", Unsupported, ""},
		{"14 :not-in", "/Observation?code:not-in=http://example/vs", Unsupported, ""},
		{"14 :identifier", "/Observation?subject:identifier=http://mrn|1", Unsupported, ""},
		{"14 :above", "/Observation?code:above=x", Unsupported, ""},
		{"14 :below", "/ValueSet?url:below=http://example", Unsupported, ""},
		{"14 :missing", "/Patient?birthdate:missing=true", 0, "/Patient?birthdate%3Amissing=true"},
		{"14 :missing", "/Patient?birthdate:missing=1", Malformed, ""},
		{"14 :not", "/Patient?gender:not=male", 0, "/Patient?gender%3Anot=male"},
		{"14 :not of a string", "/Patient?name:not=x", Malformed, ""},
		{"14 :exact", "/Patient?name:exact=x", 0, "/Patient?name%3Aexact=x"},
		{"14 :exact of a token", "/Patient?gender:exact=x", Malformed, ""},
		{"14 :contains", "/Patient?name:contains=x", 0, "/Patient?name%3Acontains=x"},
		{"14 unknown modifier", "/Patient?name:like=x", Malformed, ""},
		{"14 empty modifier", "/Patient?name:=x", Malformed, ""},
		{"14 modifier twice", "/Patient?name:exact:exact=x", Malformed, ""},
		{"14 modifier in another case", "/Patient?name:EXACT=x", Malformed, ""},
		{"14 unknown name", "/Patient?nam=x", Malformed, ""},
		{"14 name in another case", "/Patient?Name=x", Malformed, ""},
		{"14 name of another type", "/Patient?code=x", Malformed, ""},
		{"14 unknown underscore", "/Patient?_nonsense=x", Malformed, ""},

		{"15 _summary=count", "/Patient?_summary=count", Unsupported, ""},
		{"15 _count=0", "/Patient?_count=0", Unsupported, ""},
		{"15 _count=0", "/Patient?_count=000", Unsupported, ""},
		{"15 _count", "/Patient?_count=20", 0, ""},
		{"15 _count", "/Patient?_count=020", Malformed, ""},
		{"15 _count", "/Patient?_count=-1", Malformed, ""},
		{"15 _count", "/Patient?_count=1&_count=2", Malformed, ""},
		{"15 _total", "/Patient?_total=accurate&name=x", 0, "/Patient?name=x"},
		{"15 _total", "/Patient?_total=yes", Malformed, ""},
		{"15 _sort", "/Patient?_sort=-birthdate,name,_lastUpdated", 0, "/Patient?_sort=-birthdate%2Cname%2C_lastUpdated"},
		{"15 _sort by what is no parameter", "/Patient?_sort=code", Malformed, ""},
		{"15 _sort by nothing", "/Patient?_sort=name,", Malformed, ""},
		{"15 _sort by label", "/Patient?_sort=_security", Unsupported, ""},
		{"15 _sort by chain", "/Observation?_sort=subject.name", Unsupported, ""},
		{"15 _sort by direction modifier", "/Patient?_sort:desc=name", Malformed, ""},
		{"15 _elements", "/Patient?_elements=name,birthDate", 0, "/Patient?_elements=name%2CbirthDate"},
		{"15 _elements", "/Patient?_elements:exclude=name", Malformed, ""},
		{"15 _elements", "/Patient?_elements=name.given", Malformed, ""},

		{"26 semicolon", "/Patient?name=a;gender=male", Malformed, ""},
		{"26 semicolon, escaped", "/Patient?name=a%3Bgender=male", 0, "/Patient?name=a%3Bgender%3Dmale"},
		{"26 plus", "/Patient?name=a+b", 0, "/Patient?name=a%20b"},
		{"26 plus, escaped", "/Patient?_lastUpdated=gt2020-01-01T00:00:00%2B02:00", 0, "/Patient?_lastUpdated=gt2020-01-01T00%3A00%3A00%2B02%3A00"},
		{"26 reference by type", "/Observation?subject:Patient=x", 0, "/Observation?subject=Patient%2Fx"},
		{"26 reference by type, twice said", "/Observation?subject:Patient=Patient/x", 0, "/Observation?subject=Patient%2Fx"},
		{"26 reference by type, contradicted", "/Observation?subject:Patient=Group/x", Malformed, ""},
		{"26 reference by type, contradicted", "/Observation?patient:Group=Patient/x", Malformed, ""},
		{"26 reference by an impossible type", "/Observation?subject:Medication=x", Malformed, ""},
		{"26 reference by type, list", "/Observation?subject:Patient=x,Patient/y", 0, "/Observation?subject=Patient%2Fx%2CPatient%2Fy"},
		{"26 bare id of patient", "/Observation?patient=x,y", 0, "/Observation?patient=Patient%2Fx%2CPatient%2Fy"},
		{"26 bare id, one target", "/Coverage?beneficiary=x", 0, "/Coverage?beneficiary=Patient%2Fx"},
		{"26 bare id, several targets", "/Observation?subject=x", 0, ""},
		{"26 reference, absolute", "/Observation?subject=http://ehr/fhir/Patient/x", Unsupported, ""},
		{"26 reference, versioned", "/Observation?subject=Patient/x/_history/1", Unsupported, ""},
		{"26 reference, logical", "/Observation?subject=urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7", Unsupported, ""},
		{"26 reference, escaped comma", `/Observation?subject=Patient/x\,y`, Malformed, ""},
		{"26 reference, empty alternative", "/Observation?subject=Patient/x,", Unsupported, ""},
		{"26 reference, lower case", "/Observation?subject=patient/x", Unsupported, ""},
		{"26 canonical", "/PlanDefinition?depends-on=http://example/l|1", 0, "/PlanDefinition?depends-on=http%3A%2F%2Fexample%2Fl%7C1"},
		{"26 canonical", "/Evidence?depends-on=http://example/l|1", 0, "/Evidence?depends-on=http%3A%2F%2Fexample%2Fl%7C1"},
		{"26 reference to no patient", "/QuestionnaireResponse?questionnaire=http://example/q", 0, "/QuestionnaireResponse?questionnaire=http%3A%2F%2Fexample%2Fq"},
	}
	for _, tt := range tests {
		t.Run(tt.row+"/"+tt.target, func(t *testing.T) {
			in, err := Classify("GET", tt.target, "", header())
			if classOf(err) != tt.class {
				t.Fatalf("got %+v, error %v; want class %d", in, err, tt.class)
			}
			if err != nil {
				return
			}
			want := tt.forwarded
			if want == "" {
				want = tt.target
			}
			if got := in.Target(""); got != want {
				t.Errorf("forwarded as %s, want %s", got, want)
			}
			checkFixpoint(t, in, "")

			_, query, _ := strings.Cut(tt.target, "?")
			posted, err := classify(t, "POST", "/"+in.Type+"/_search", query)
			if err != nil || !cmp.Equal(in.Params, posted.Params) {
				t.Errorf("by POST: %+v, %v", posted.Params, err)
			}
		})
	}
}

// Searches as R4's own pages write them (search.html and the pages of the types).
func TestSearchesOfTheStandard(t *testing.T) {
	for _, target := range []string{
		"/Patient?_id=23",
		"/Observation?_lastUpdated=gt2010-10-01",
		"/Condition?_tag=http://acme.org/codes|needs-review",
		"/DiagnosticReport?_profile=http://hl7.org/fhir/StructureDefinition/lipid",
		"/RiskAssessment?probability=gt0.8",
		"/Procedure?date=ge2010-01-01&date=le2011-12-31",
		"/Patient?given=eve",
		"/Patient?given:contains=eve",
		"/Patient?given:exact=Eve",
		"/Patient?identifier=http://acme.org/patient|2345",
		"/Patient?gender=male",
		"/Patient?gender:not=male",
		"/Patient?active=true",
		"/Condition?code=http://acme.org/conditions/codes|ha125",
		"/Condition?code=ha125",
		"/Condition?code:text=headache",
		"/Patient?identifier:of-type=http://terminology.hl7.org/CodeSystem/v2-0203|MR|446053",
		"/Observation?value-quantity=5.4|http://unitsofmeasure.org|mg",
		"/Observation?value-quantity=le5.4|http://unitsofmeasure.org|mg",
		"/Observation?value-quantity=ap5.4|http://unitsofmeasure.org|mg",
		"/Observation?subject=Patient/23",
		"/ValueSet?url=http://acme.org/fhir/ValueSet/123",
		"/DiagnosticReport?result=Observation/1&subject=Patient/2",
		"/Group?characteristic-value=gender$mixed",
		"/Observation?code-value-quantity=http://loinc.org|12907-2$150|http://unitsofmeasure.org|mmol/L",
		"/Patient?language=FR,NL",
		"/Patient?language=FR&language=NL",
		"/Observation?status=final&_sort=status,-date,category",
		"/MedicationRequest?status=active&patient=7123&_count=20&_summary=true",
		"/Observation?component-code-value-quantity=http://loinc.org|8480-6$lt60",
		"/Location?near=-83.694810|42.256500|11.20|km",
		"/Encounter?patient=23&status=in-progress",
	} {
		in, err := Classify("GET", target, "", header())
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		checkFixpoint(t, in, "")
	}
}

func TestQueryGrammar(t *testing.T) {
	tests := []struct {
		name, query string
		want        []Param // nil: refused
	}{
		{"pair", "a=b", []Param{{"a", "b"}}},
		{"order and repetition stay", "b=2&a=1&b=2", []Param{{"b", "2"}, {"a", "1"}, {"b", "2"}}},
		{"= in a value", "a=b=c", []Param{{"a", "b=c"}}},
		{"escapes", "a%3Ab=%C3%A9%26%2B", []Param{{"a:b", "é&+"}}},
		{"lower-case escapes", "a=%c3%a9", []Param{{"a", "é"}}},
		{"decoded once", "a=%2541", []Param{{"a", "%41"}}},
		{"raw |", "a=x|y", []Param{{"a", "x|y"}}},
		{"no-break space", "a=%C2%A0", []Param{{"a", "\u00a0"}}},
		{"no =", "a", nil},
		{"no name", "=b", nil},
		{"no value", "a=", nil},
		{"empty pair", "a=b&&c=d", nil},
		{"ends in &", "a=b&", nil},
		{"begins with &", "&a=b", nil},
		{"bad escape", "a=%zz", nil},
		{"short escape", "a=%4", nil},
		{"lone %", "a=%", nil},
		{"not UTF-8", "a=%ff", nil},
		{"overlong UTF-8", "a=%c0%af", nil},
		{"surrogate", "a=%ed%a0%80", nil},
		{"NUL", "a=%00", nil},
		{"CR LF", "a=%0d%0aX:y", nil},
		{"tab", "a=%09", nil},
		{"C1 control", "a=%c2%85", nil},
		{"DEL", "a=%7f", nil},
		{"raw byte", "a=\xc3\xa9", nil},
		{"raw quote", `a="b"`, nil},
		{"raw space", "a=b c", nil},
		{"backslash", `a=b\c`, nil},
		{"brackets", "a[$ne]=b", nil},
		{"semicolon", "a=b;c=d", nil},
		{"64 parameters", strings.Repeat("a=b&", 63) + "a=b", slicesRepeat(Param{"a", "b"}, 64)},
		{"65 parameters", strings.Repeat("a=b&", 64) + "a=b", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseQuery(tt.query)
			if tt.want == nil {
				if classOf(err) != Malformed {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func slicesRepeat(p Param, n int) []Param {
	var out []Param
	for range n {
		out = append(out, p)
	}
	return out
}

func FuzzQuery(f *testing.F) {
	for _, q := range []string{"", "a=b", "a=b&c=d", "name:exact=J%C3%BCrgen+X", "a=%2541", "a=%00", "a;b=c", "=", "a=%c2%85", "code=x|y&_count=5"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		params, err := parseQuery(raw)
		if err != nil {
			return
		}
		written := string(appendQuery(nil, params))
		for i := range len(written) {
			if c := written[i]; !unreserved[c] && c != '%' && c != '&' && c != '=' {
				t.Fatalf("%q is written as %q", raw, written)
			}
		}
		again, err := parseQuery(written)
		if err != nil || !cmp.Equal(params, again) {
			t.Errorf("%q is written as %q, which is read as %v, %v", raw, written, again, err)
		}
		if want := string(appendQuery(nil, again)); want != written {
			t.Errorf("%q is written as %q, then as %q", raw, written, want)
		}
	})
}

func TestForm(t *testing.T) {
	in, err := Classify("POST", "/Patient/_search?gender=male&_format=json", "", header())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Confine(in, "x"); err == nil {
		t.Error("a form that was not read has been confined")
	}
	merged, err := in.WithForm([]byte("name=a%7Cb&gender=female"), "application/x-www-form-urlencoded; charset=UTF-8")
	if err != nil {
		t.Fatal(err)
	}
	// URL and body merge (http.html#search): two genders, of which AND leaves nothing.
	if got := string(merged.FormBody()); got != "gender=male&name=a%7Cb&gender=female" {
		t.Errorf("body %s", got)
	}
	if got := merged.Target("/fhir"); got != "/fhir/Patient/_search" {
		t.Errorf("target %s", got)
	}
	if diff := cmp.Diff([]string{"gender", "name"}, merged.ParamNames()); diff != "" {
		t.Error(diff)
	}
	if _, err := merged.WithForm(nil, "application/x-www-form-urlencoded"); err == nil {
		t.Error("a second form has been added")
	}

	for _, tt := range []struct {
		name, body, contentType string
		class                   Class
	}{
		{"empty", "", "application/x-www-form-urlencoded", 0},
		{"no type", "name=x", "", Media},
		{"JSON", "{}", "application/fhir+json", Media},
		{"multipart", "name=x", "multipart/form-data; boundary=x", Media},
		{"other charset", "name=x", "application/x-www-form-urlencoded; charset=utf-16", Media},
		{"line break", "name=x\r\n", "application/x-www-form-urlencoded", Malformed},
		{"include", "_include=Patient:link", "application/x-www-form-urlencoded", Unsupported},
		{"result parameter in both", "_format=json&_count=1&_count=2", "application/x-www-form-urlencoded", Malformed},
		{"long", "name=" + strings.Repeat("a", maxForm), "application/x-www-form-urlencoded", TooLarge},
		{"long when escaped", "name=" + strings.Repeat("|", maxForm/2), "application/x-www-form-urlencoded", TooLarge},
	} {
		if _, err := in.WithForm([]byte(tt.body), tt.contentType); classOf(err) != tt.class {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	read, err := Classify("GET", "/Patient/1", "", header())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read.WithForm(nil, "application/x-www-form-urlencoded"); err == nil || read.FormBody() != nil {
		t.Error("a read has a form")
	}
}

// An error names the parameter, never what was asked for.
func TestErrorsHoldNoValues(t *testing.T) {
	for _, target := range []string{"/Patient?nam=SECRET", "/Patient?_count=SECRET", "/Patient?_format=SECRET", "/Patient?name=SECRET;",
		"/Observation?subject=http://SECRET", "/Observation?patient.name=SECRET", "/Patient?_sort=SECRET", "/SECRET/1", "/Patient/SECRET_",
		"/Patient/SECRET/$everything", "/Patient?SECRET%20=x", "/Patient?" + strings.Repeat("SECRET", 30) + "=x"} {
		_, err := Classify("GET", target, "", header())
		if err == nil {
			t.Errorf("%s is accepted", target)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", target, err)
		}
	}
}
