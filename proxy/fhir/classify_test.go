package fhir

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var sameInteraction = cmp.Options{cmp.AllowUnexported(Interaction{}), cmpopts.EquateEmpty()}

// header serves fields by their canonical names.
func header(pairs ...string) func(string) []string {
	return func(name string) []string {
		var out []string
		for i := 0; i < len(pairs); i += 2 {
			if strings.EqualFold(pairs[i], name) {
				out = append(out, pairs[i+1])
			}
		}
		return out
	}
}

func classOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return 0
}

// classify does what a call goes through, its form included: Classify, WithForm.
func classify(t testing.TB, method, target, form string, pairs ...string) (Interaction, error) {
	t.Helper()
	in, err := Classify(method, target, "", header(pairs...))
	if err == nil && in.Form {
		return in.WithForm([]byte(form), "application/x-www-form-urlencoded")
	}
	return in, err
}

// The rows of FHIR.md's classifier table, by their first column.
func TestClassifierTable(t *testing.T) {
	tests := []struct {
		row, method, target string
		want                Interaction // zero: refused as class
		class               Class
		target2             string // what is forwarded, when it is not target
	}{
		{row: "capabilities", method: "GET", target: "/metadata", want: Interaction{Kind: Capabilities}},
		{row: "capabilities", method: "HEAD", target: "/metadata", want: Interaction{Kind: Capabilities, Head: true}},
		{row: "capabilities", method: "GET", target: "/metadata?mode=terminology", want: Interaction{Kind: Capabilities, Params: []Param{{"mode", "terminology"}}}},
		{row: "capabilities", method: "GET", target: "/metadata?mode=x", class: Malformed},
		{row: "capabilities", method: "GET", target: "/.well-known/smart-configuration", want: Interaction{Kind: Capabilities}},
		{row: "capabilities", method: "OPTIONS", target: "/", want: Interaction{Kind: Capabilities}, target2: "/metadata"},
		{row: "capabilities", method: "OPTIONS", target: "/Patient", class: Method},
		{row: "capabilities", method: "POST", target: "/metadata", class: Method},
		{row: "capabilities", method: "GET", target: "/.well-known/openid-configuration", class: Malformed},

		{row: "read", method: "GET", target: "/Patient/example", want: Interaction{Kind: Read, Type: "Patient", ID: "example"}},
		{row: "read", method: "HEAD", target: "/Patient/example", want: Interaction{Kind: Read, Type: "Patient", ID: "example", Head: true}},
		{row: "read", method: "GET", target: "/Patient/example?_summary=true&_pretty=false", want: Interaction{Kind: Read, Type: "Patient", ID: "example", Params: []Param{{"_summary", "true"}, {"_pretty", "false"}}}},
		{row: "read", method: "GET", target: "/Patient/example?name=x", class: Malformed},
		{row: "read", method: "POST", target: "/Patient/example", class: Method},
		{row: "vread", method: "GET", target: "/Patient/example/_history/2", want: Interaction{Kind: VRead, Type: "Patient", ID: "example", Version: "2"}},
		{row: "vread", method: "PUT", target: "/Patient/example/_history/2", class: Method},
		{row: "vread", method: "GET", target: "/Patient/example/_history/_2", class: Malformed},

		{row: "update", method: "PUT", target: "/Patient/example", want: Interaction{Kind: Update, Type: "Patient", ID: "example"}},
		{row: "update", method: "PUT", target: "/Patient/example?_count=1", class: Malformed},
		{row: "update", method: "PUT", target: "/Patient", class: Method},
		{row: "patch", method: "PATCH", target: "/Patient/example", class: Unsupported},
		{row: "delete", method: "DELETE", target: "/Patient/example", want: Interaction{Kind: Delete, Type: "Patient", ID: "example"}},
		{row: "delete", method: "DELETE", target: "/Patient/example?_cascade=delete", class: Malformed},
		{row: "create", method: "POST", target: "/Patient", want: Interaction{Kind: Create, Type: "Patient"}},
		{row: "create", method: "POST", target: "/Patient?_format=json", want: Interaction{Kind: Create, Type: "Patient"}, target2: "/Patient"},
		{row: "create", method: "POST", target: "/Patient?name=x", class: Malformed},

		{row: "conditional", method: "PUT", target: "/Patient?identifier=x", class: Unsupported},
		{row: "conditional", method: "PATCH", target: "/Patient?identifier=x", class: Unsupported},
		{row: "conditional", method: "DELETE", target: "/Patient?identifier=x", class: Unsupported},
		{row: "conditional", method: "DELETE", target: "/Patient", class: Unsupported},

		{row: "search", method: "GET", target: "/Patient", want: Interaction{Kind: Search, Type: "Patient"}},
		{row: "search", method: "GET", target: "/Patient?", want: Interaction{Kind: Search, Type: "Patient"}, target2: "/Patient"},
		{row: "search", method: "GET", target: "/Observation?code=85354-9&date=ge2020-01-01", want: Interaction{Kind: Search, Type: "Observation", Params: []Param{{"code", "85354-9"}, {"date", "ge2020-01-01"}}}},
		{row: "search", method: "POST", target: "/Patient/_search", want: Interaction{Kind: Search, Type: "Patient", Form: true, merged: true}},
		{row: "search", method: "HEAD", target: "/Patient?name=x", class: Unsupported},
		{row: "search", method: "GET", target: "/Patient/_search", class: Method},
		{row: "search", method: "GET", target: "/?_type=Patient", class: Unsupported},
		{row: "search", method: "GET", target: "/", class: Unsupported},
		{row: "search", method: "POST", target: "/_search", class: Unsupported},

		{row: "compartment search", method: "GET", target: "/Patient/example/Observation?code=x", class: Unsupported},
		{row: "compartment search", method: "GET", target: "/Patient/example/*", class: Unsupported},
		{row: "compartment search", method: "POST", target: "/Patient/example/Observation/_search", class: Unsupported},

		{row: "history", method: "GET", target: "/Patient/example/_history", want: Interaction{Kind: HistoryInstance, Type: "Patient", ID: "example"}},
		{row: "history", method: "GET", target: "/Patient/_history?_since=2020-01-01T00:00:00Z&_count=10", want: Interaction{Kind: HistoryType, Type: "Patient", Params: []Param{{"_since", "2020-01-01T00:00:00Z"}, {"_count", "10"}}}, target2: "/Patient/_history?_since=2020-01-01T00%3A00%3A00Z&_count=10"},
		{row: "history", method: "GET", target: "/_history", want: Interaction{Kind: HistorySystem}},
		{row: "history", method: "GET", target: "/_history?_list=x", class: Unsupported},
		{row: "history", method: "DELETE", target: "/Patient/example/_history", class: Method},
		{row: "history", method: "HEAD", target: "/_history", class: Unsupported},

		{row: "batch, transaction", method: "POST", target: "/", class: Unsupported},
		{row: "operation", method: "POST", target: "/$process-message", class: Unsupported},
		{row: "operation", method: "GET", target: "/Patient/$match", class: Unsupported},
		{row: "operation", method: "GET", target: "/Patient/example/$everything", class: Unsupported},
		{row: "operation", method: "GET", target: "/patient/$match", class: Malformed},
		{row: "$everything, $graphql, …", method: "POST", target: "/$graphql", class: Unsupported},
		{row: "$everything, $graphql, …", method: "GET", target: "/Patient/example/$graphql?query=%7Bid%7D", class: Unsupported},
		{row: "$everything, $graphql, …", method: "GET", target: "/$export", class: Unsupported},
		{row: "paging", method: "GET", target: "/?_getpages=5a3b", class: Unsupported},
		{row: "paging", method: "GET", target: "/Patient?_getpages=5a3b&_getpagesoffset=20", class: Unsupported},
		{row: "paging", method: "GET", target: "/Patient?name=x&_offset=20", class: Unsupported},
		{row: "Binary", method: "GET", target: "/Binary/x", class: Unsupported},
		{row: "Binary", method: "POST", target: "/Binary", class: Unsupported},

		{row: "else", method: "GET", target: "/Patient/a/b", class: Malformed},
		{row: "else", method: "GET", target: "/Patient/a/_history/1/2", class: Malformed},
		{row: "else", method: "GET", target: "/Patient/a/_history/1/2/3/4", class: Malformed},
		{row: "else", method: "GET", target: "", class: Malformed},
		{row: "else", method: "GET", target: "?x=y", class: Malformed},
		{row: "else", method: "PUT", target: "/", class: Method},
		{row: "else", method: "GET", target: "/Resource", class: Malformed},
		{row: "else", method: "GET", target: "/DomainResource/1", class: Malformed},
		{row: "else", method: "GET", target: "/Nonsense/1", class: Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.row+"/"+tt.method+" "+tt.target, func(t *testing.T) {
			in, err := classify(t, tt.method, tt.target, "")
			if tt.class != 0 {
				if classOf(err) != tt.class {
					t.Fatalf("got %+v, error %v; want class %d", in, err, tt.class)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, in, sameInteraction, cmpopts.IgnoreFields(Interaction{}, "path")); diff != "" {
				t.Error(diff)
			}
			want := tt.target
			if tt.target2 != "" {
				want = tt.target2
			}
			if got := in.Target("/fhir"); got != "/fhir"+want {
				t.Errorf("forwarded as %s", got)
			}
			if tt.method != "OPTIONS" && in.Method() != tt.method {
				t.Errorf("forwarded by %s", in.Method())
			}
		})
	}
}

// The rows of FHIR.md's bypass table, and groups 14, 16 and 18 of PROXY.md's tests, that concern the method, the
// path and the header.
func TestBypassPath(t *testing.T) {
	tests := []struct {
		row, method, target string
		class               Class // 0: accepted
		forwarded           string
	}{
		{"1 type is an exact enum", "GET", "/patient/1", Malformed, ""},
		{"1 type is an exact enum", "GET", "/PATIENT/1", Malformed, ""},
		{"1 type is an exact enum", "GET", "/Patients/1", Malformed, ""},
		{"2 trailing slash", "GET", "/Patient/", 0, "/Patient"},
		{"2 trailing slash", "GET", "/Patient/1/", 0, "/Patient/1"},
		{"2 trailing slash", "GET", "/Patient/?name=x", 0, "/Patient?name=x"},
		{"2 trailing slash", "GET", "/Patient/1//", Malformed, ""},
		{"3 empty segment", "GET", "//Patient", Malformed, ""},
		{"3 empty segment", "GET", "/Patient//1", Malformed, ""},
		{"3 empty segment", "GET", "//", Malformed, ""},
		{"4 escapes", "GET", "/%50atient/1", Malformed, ""},
		{"4 escapes", "GET", "/Patient%2f1", Malformed, ""},
		{"4 escapes", "GET", "/Patient%2F1", Malformed, ""},
		{"4 escapes", "GET", "/Patient/%31", Malformed, ""},
		{"5 id grammar", "GET", "/Patient/1%00", Malformed, ""},
		{"5 id grammar", "GET", "/Patient/1\x00", Malformed, ""},
		{"5 id grammar", "GET", "/Patient/a_b", Malformed, ""},
		{"5 id grammar", "GET", "/Patient/a*", Malformed, ""},
		{"5 id grammar", "GET", "/Patient/" + strings.Repeat("a", 64), 0, "/Patient/" + strings.Repeat("a", 64)},
		{"5 id grammar", "GET", "/Patient/" + strings.Repeat("a", 65), Malformed, ""},
		{"6 dot segments", "GET", "/./Patient/1", Malformed, ""},
		{"6 dot segments", "GET", "/Patient/../Observation", Malformed, ""},
		{"6 dot segments", "GET", "/Patient/..", Malformed, ""},
		{"6 dot segments", "GET", "/Patient/.", Malformed, ""},
		{"6 dot segments", "GET", "/x/../Patient/1", Malformed, ""},
		{"6 dot segments", "GET", "/%2e%2e/Patient", Malformed, ""},
		{"6 dot segments", "GET", "/Patient/...", 0, "/Patient/..."},
		{"6 semicolon", "GET", "/Patient;a/1", Malformed, ""},
		{"6 semicolon", "GET", "/Patient/1;v=2", Malformed, ""},
		{"6 backslash", "GET", `/Patient\1`, Malformed, ""},
		{"7 _method", "GET", "/Patient/1?_method=DELETE", Malformed, ""},
		{"7 _method", "POST", "/Patient?_method=PUT", Malformed, ""},
		{"PROXY 12 token in the URL", "GET", "/Patient?access_token=x", Malformed, ""},
		{"PROXY 14 unknown methods", "get", "/Patient/1", Method, ""},
		{"PROXY 14 unknown methods", "TRACE", "/Patient/1", Method, ""},
		{"PROXY 14 unknown methods", "CONNECT", "/Patient/1", Method, ""},
		{"PROXY 14 unknown methods", "", "/Patient/1", Method, ""},
		{"PROXY 14 absolute form", "GET", "http://fhir.example/Patient/1", Malformed, ""},
		{"PROXY 14 asterisk form", "OPTIONS", "*", Malformed, ""},
		{"PROXY 16 bytes", "GET", "/Patient/\xc3\xa9", Malformed, ""},
		{"PROXY 16 bytes", "GET", "/Patient/a b", Malformed, ""},
		{"PROXY 16 bytes", "GET", "/Patient/a\tb", Malformed, ""},
		{"PROXY 16 bytes", "GET", "/Patient/a\x7f", Malformed, ""},
		{"PROXY 16 double escapes", "GET", "/Patient/%252e%252e", Malformed, ""},
		{"PROXY 16 fragment", "GET", "/Patient/1#x", Malformed, ""},
		{"PROXY 16 fragment", "GET", "/Patient?name=a#x", Malformed, ""},
		{"PROXY 20 long", "GET", "/Patient?name=" + strings.Repeat("a", 9000), Malformed, ""},
		{"PROXY 20 long", "GET", "/Patient?name=" + strings.Repeat("|", 5000), Malformed, ""},
	}
	for _, tt := range tests {
		t.Run(tt.row+"/"+tt.target[:min(len(tt.target), 40)], func(t *testing.T) {
			in, err := Classify(tt.method, tt.target, "", header())
			if classOf(err) != tt.class {
				t.Fatalf("got %+v, error %v; want class %d", in, err, tt.class)
			}
			if err == nil && in.Target("") != tt.forwarded {
				t.Errorf("forwarded as %s", in.Target(""))
			}
		})
	}
}

func TestBase(t *testing.T) {
	for _, tt := range []struct {
		base, target string
		ok           bool
	}{
		{"/fhir", "/fhir/Patient/1", true},
		{"/fhir", "/fhir/Patient/1/", true},
		{"/fhir", "/Patient/1", false},
		{"/fhir", "/fhirPatient/1", false},
		{"/fhir", "/FHIR/Patient/1", false},
		{"/fhir", "/fhir//Patient/1", false},
		{"/fhir", "/fhir/../Patient/1", false},
		{"", "/fhir/Patient/1", false},
	} {
		in, err := Classify("GET", tt.target, tt.base, header())
		if (err == nil) != tt.ok {
			t.Errorf("%s below %q: error %v", tt.target, tt.base, err)
		}
		if err == nil && in.Target(tt.base) != "/fhir/Patient/1" {
			t.Errorf("%s below %q is forwarded as %s", tt.target, tt.base, in.Target(tt.base))
		}
	}
}

func TestConditionsAndMedia(t *testing.T) {
	tests := []struct {
		name, method, target string
		header               []string
		class                Class
	}{
		{"8 If-None-Exist", "POST", "/Patient", []string{"If-None-Exist", "identifier=x"}, Unsupported},
		{"8 If-None-Exist, empty", "POST", "/Patient", []string{"If-None-Exist", ""}, Unsupported},
		{"9 update if there is none", "PUT", "/Patient/1", []string{"If-None-Match", "*"}, Unsupported},
		{"update of a version", "PUT", "/Patient/1", []string{"If-Match", `W/"1"`}, 0},
		{"async", "GET", "/Patient", []string{"Prefer", "respond-async"}, Unsupported},
		{"async in a list", "GET", "/Patient", []string{"Prefer", "handling=strict, Respond-Async; wait=5"}, Unsupported},
		{"async in a second field", "GET", "/Patient", []string{"Prefer", "handling=strict", "Prefer", "respond-async"}, Unsupported},
		{"other preferences", "POST", "/Patient", []string{"Prefer", "return=minimal"}, 0},

		{"18 _format", "GET", "/Patient/1?_format=xml", nil, Media},
		{"18 _format", "GET", "/Patient/1?_format=ttl", nil, Media},
		{"18 _format", "GET", "/Patient/1?_format=application/fhir%2Bxml", nil, Media},
		{"18 _format", "GET", "/Patient/1?_format=application/fhir%2Bjson", nil, 0},
		{"18 _format with an unescaped plus", "GET", "/Patient/1?_format=application/fhir+json", nil, 0},
		{"18 _format", "GET", "/Patient/1?_format=application/fhir%2Bjson%3BfhirVersion%3D4.0", nil, 0},
		{"18 _format of R5", "GET", "/Patient/1?_format=application/fhir%2Bjson%3BfhirVersion%3D5.0", nil, Media},
		{"18 _format twice", "GET", "/Patient/1?_format=json&_format=xml", nil, Malformed},
		{"18 Accept", "GET", "/Patient/1", []string{"Accept", "application/fhir+xml"}, Media},
		{"18 Accept", "GET", "/Patient/1", []string{"Accept", "application/fhir+xml, application/fhir+json;q=0.5"}, 0},
		{"18 Accept", "GET", "/Patient/1", []string{"Accept", "application/json;q=0"}, Media},
		{"18 Accept", "GET", "/Patient/1", []string{"Accept", "application/json;q=0.000, text/html"}, Media},
		{"18 Accept", "GET", "/Patient/1", []string{"Accept", "text/html", "Accept", "*/*"}, 0},
		{"18 Accept of R5", "GET", "/Patient/1", []string{"Accept", "application/fhir+json; fhirVersion=5.0"}, Media},
		{"18 _format overrides Accept", "GET", "/Patient/1?_format=json", []string{"Accept", "text/html"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name+"/"+tt.target, func(t *testing.T) {
			in, err := Classify(tt.method, tt.target, "", header(tt.header...))
			if classOf(err) != tt.class {
				t.Fatalf("got %+v, error %v; want class %d", in, err, tt.class)
			}
			if err == nil && strings.Contains(in.Target(""), "_format") {
				t.Errorf("_format is forwarded: %s", in.Target(""))
			}
		})
	}
}

// What Ward forwards is what it understood: classifying the rebuilt target gives the same interaction, and a
// plain URL parser reads the same parameters from it.
func checkFixpoint(t *testing.T, in Interaction, base string) {
	t.Helper()
	target := in.Target(base)
	short, _, _ := strings.Cut(target, "?")
	for _, asked := range []string{target, target + "?", target + "/", target + "&", target + "=", short, short + "?", short + "?x=y", base, base + "?", "", "?", strings.ToLower(target)} {
		if got := in.TargetOf(base, asked); got != target {
			t.Fatalf("%q, asked for as %q, is forwarded as %q", target, asked, got)
		}
	}
	again, err := Classify(in.Method(), in.Target(base), base, header())
	if err == nil && in.Form {
		again, err = again.WithForm(in.FormBody(), "application/x-www-form-urlencoded")
	}
	if err != nil {
		t.Fatalf("%+v, forwarded as %q, is refused: %v", in, in.Target(base), err)
	}
	if diff := cmp.Diff(in, again, sameInteraction); diff != "" {
		t.Errorf("forwarded as %q: %s", in.Target(base), diff)
	}
	path, query, _ := strings.Cut(in.Target(base), "?")
	if strings.ContainsFunc(path, func(r rune) bool { return r >= 0x80 || !pathBytes[r] }) || strings.Contains(path, "//") {
		t.Errorf("path %q", path)
	}
	if in.Form {
		query = string(in.FormBody())
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatalf("query %q: %v", query, err)
	}
	want := url.Values{}
	for _, p := range in.Params {
		want.Add(p.Name, p.Value)
	}
	if diff := cmp.Diff(want, values, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("query %q: %s", query, diff)
	}
}

func FuzzClassify(f *testing.F) {
	for _, target := range []string{"/Patient/example", "/Patient/", "/Patient/example/_history/1", "/metadata", "/_history?_count=5",
		"/Observation?subject:Patient=example&code=http://loinc.org|85354-9", "/Patient/_search", "/Patient?name:exact=J%C3%BCrgen+X",
		"/Patient/../x", "/Patient%2f1", "//Patient", "/Condition?patient=a,b&_sort=-onset-date&_elements=code&_total=none"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"} {
			f.Add(method, target, "name=x", "example")
		}
	}
	f.Fuzz(func(t *testing.T, method, target, form, patient string) {
		for _, base := range []string{"", "/fhir"} {
			in, err := Classify(method, base+target, base, header())
			if err == nil && in.Form {
				in, err = in.WithForm([]byte(form), "application/x-www-form-urlencoded")
			}
			if err != nil {
				if classOf(err) == 0 {
					t.Fatalf("error of no class: %v", err)
				}
				continue
			}
			checkFixpoint(t, in, base)
			in.ParamNames()
			Patients(in)
			confined, check, err := Confine(in, patient)
			if err != nil {
				continue
			}
			checkFixpoint(t, confined, base)
			again, recheck, err := Confine(confined, patient)
			if err != nil || check != recheck || !cmp.Equal(confined, again, sameInteraction) {
				t.Errorf("confined twice: %+v, %+v, %v", again, recheck, err)
			}
			if check != (Check{}) {
				for _, id := range Patients(confined) {
					if id != patient {
						t.Errorf("confined to %s, but %q names %s", patient, confined.Target(base), id)
					}
				}
			}
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	get := header("Accept", "application/fhir+json")
	for _, bm := range []struct{ name, method, target string }{
		{"read", "GET", "/fhir/Patient/example"},
		{"search", "GET", "/fhir/Observation?patient=Patient/example&code=85354-9&_count=50"},
		{"escaped", "GET", "/fhir/Observation?subject=Patient%2Fexample&code=http%3A%2F%2Floinc.org%7C85354-9&date=ge2020-01-01&_sort=-date"},
		{"create", "POST", "/fhir/Observation"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Classify(bm.method, bm.target, "/fhir", get); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
