package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// forgery is the value of every field that claims something which is not so.
const forgery = "etl-night"

// ask is a whole request: its line without the protocol's version, its body, and further fields.
func ask(line, body string, fields ...string) string {
	if body != "" {
		fields = append(fields, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	fields = append([]string{line + " HTTP/1.1", "Host: " + mesh}, append(fields, "Connection: close", "", "")...)
	return strings.Join(fields, "\r\n") + body
}

// write is an Observation about Patient/example by PUT or POST.
func write(line, body string, fields ...string) string {
	return ask(line, body, append([]string{"Content-Type: application/fhir+json"}, fields...)...)
}

const observation = `{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/example"}}`

// tricks are the rows of FHIR's bypass table that a path, a query, a field or a body's form can play.
func tricks() []trick {
	holds := func(s string) func(answer) bool {
		return func(a answer) bool { return a.Status == 200 && bytes.Contains(a.Body, []byte(s)) }
	}
	theirs := holds(`"theirs"`)
	patient := holds(`"Chalmers"`)
	is := func(status int) func(answer) bool { return func(a answer) bool { return a.Status == status } }
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(observation))
	_ = z.Close()
	var wide strings.Builder
	for _, u := range utf16.Encode([]rune(observation)) {
		wide.Write([]byte{byte(u), byte(u >> 8)})
	}

	out := []trick{
		{row: 2, name: "a slash at the end", as: "lee", request: ask("GET /Patient/example/", ""), falls: true, status: 200, reaches: "GET /Patient/example"},
		{row: 7, name: "?_method=DELETE", as: "lee", request: ask("GET /Account/mine?_method=DELETE", ""), falls: true, fell: is(204), status: 400, cause: "malformed"},
		{row: 7, name: "_method in a search form", as: "lee", request: ask("POST /Patient/_search", "_method=DELETE&_id=example", "Content-Type: application/x-www-form-urlencoded"),
			fell: is(204), status: 400, cause: "malformed"},
		{row: 16, name: "the other patient or me", as: "anna", request: ask("GET /Observation?subject=Patient/other,Patient/example", ""), falls: true, fell: theirs, status: 403, cause: "patient"},
		{row: 16, name: "me or the other patient, by patient", as: "anna", request: ask("GET /Observation?patient=example,other", ""), falls: true, fell: theirs, status: 403, cause: "patient"},
		{row: 16, name: "me or the other patient, by POST", as: "anna", request: ask("POST /Observation/_search", "subject=Patient/example%2CPatient/other",
			"Content-Type: application/x-www-form-urlencoded"), falls: true, fell: theirs, status: 403, cause: "patient"},
		{row: 16, name: "me, and by the form the other patient", as: "anna", request: ask("POST /Observation/_search?subject=Patient/example", "subject=Patient/other",
			"Content-Type: application/x-www-form-urlencoded"), falls: true, fell: theirs, status: 403, cause: "patient"},
	}
	for _, p := range []struct {
		row   int
		name  string
		path  string
		falls bool
	}{
		{1, "the type in lower case", "/patient/example", true},
		{1, "the type in capitals", "/PATIENT/example", true},
		{1, "a search in lower case", "/observation", true},
		{2, "two slashes at the end", "/Patient/example//", false},
		{2, "a slash after a search", "/Observation/?_id=mine", true},
		{3, "two slashes at the start", "//Patient/example", false},
		{3, "two slashes within", "/Patient//example", false},
		{4, "a letter of the type escaped", "/%50atient/example", false},
		{4, "a letter of the id escaped", "/Patient/ex%61mple", true},
		{4, "the slash escaped", "/Patient%2fexample", false},
		{4, "escaped twice", "/Patient/ex%2561mple", false},
		{5, "NUL after the id", "/Patient/example%00", true},
		{5, "a line feed after the id", "/Patient/example%0a", true},
		{5, "a tag within the id", "/Patient/%3Cb%3Eexample%3C/b%3E", false},
		{6, "/./", "/Patient/./example", false},
		{6, "/x/../", "/x/../Patient/example", false},
		{6, "a semicolon", "/Patient/example;a", false},
		{6, "a semicolon in the type", "/Patient;a/example", false},
		{6, "a backslash", `/Patient\example`, false},
		{6, "escaped dots", "/Patient/%2e%2e/Account/mine", false},
		{6, "escaped semicolon", "/Patient/example%3ba", false},
	} {
		t := trick{row: p.row, name: p.name, as: "lee", request: ask("GET "+p.path, ""), falls: p.falls, status: 400, cause: "malformed"}
		if p.path == "/Observation/?_id=mine" {
			t.status, t.cause, t.reaches = 200, "", "GET /Observation?_id=mine"
		}
		out = append(out, t)
	}
	for _, name := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "x-http-METHOD-override", "X_HTTP_Method_Override"} {
		out = append(out, trick{row: 7, name: name, as: "lee", request: ask("GET /Patient/example", "", name+": DELETE-"+forgery, name+": PUT"),
			fell: is(204), status: 200, reaches: "GET /Patient/example", lacks: []string{name}})
	}
	out = append(out,
		trick{row: 7, name: "X-HTTP-Method-Override: DELETE", as: "lee", request: ask("GET /Account/mine", "", "X-HTTP-Method-Override: DELETE"), falls: true, fell: is(204),
			status: 403, cause: "policy"},
		trick{row: 7, name: "X-HTTP-Method: DELETE on POST", as: "lee", request: write("POST /Account/mine", observation, "X-HTTP-Method: DELETE"), falls: true, fell: is(204),
			status: 405, cause: "method"},
	)
	for _, b := range []struct {
		row    int
		name   string
		body   string
		fields []string
		falls  bool
		status int
		cause  string
	}{
		{17, "a property twice", `{"resourceType":"Observation","status":"final","status":"entered-in-error","code":{"text":"x"},"subject":{"reference":"Patient/example"}}`, nil, true, 400, "malformed"},
		{17, "the subject twice", `{"resourceType":"Observation","subject":{"reference":"Patient/example"},"subject":{"reference":"Patient/other"},"status":"final","code":{"text":"x"}}`, nil, true, 400, "malformed"},
		{17, "two resource types", `{"resourceType":"Observation","resourceType":"Account","status":"final","code":{"text":"x"}}`, nil, true, 400, "malformed"},
		{17, "an escaped name beside its plain one", `{"resourceType":"Observation","status":"final","stat\u0075s":"amended","code":{"text":"x"}}`, nil, true, 400, "malformed"},
		{17, "a byte order mark", "\xef\xbb\xbf" + observation, nil, true, 400, "malformed"},
		{17, "a comment", "/* x */" + observation, nil, false, 400, "malformed"},
		{17, "the type in another case as well", `{"resourcetype":"Account",` + observation[1:], nil, true, 422, "invalid"},
		{18, "a gzip body", zipped.String(), []string{"Content-Type: application/fhir+json", "Content-Encoding: gzip"}, true, 415, "media-type"},
		{18, "a body in UTF-16", wide.String(), []string{"Content-Type: application/fhir+json; charset=utf-16le"}, true, 415, "media-type"},
		{18, "an XML body", "<Observation xmlns=\"http://hl7.org/fhir\"/>", []string{"Content-Type: application/fhir+xml"}, true, 415, "media-type"},
		{18, "a Turtle body", "@prefix fhir: <http://hl7.org/fhir/> .", []string{"Content-Type: text/turtle"}, true, 415, "media-type"},
		{18, "a form where a resource should be", "resourceType=Observation", []string{"Content-Type: application/x-www-form-urlencoded"}, true, 415, "media-type"},
		{18, "two content types", observation, []string{"Content-Type: application/fhir+json", "Content-Type: text/plain"}, true, 415, "media-type"},
	} {
		request := write("POST /Observation", b.body)
		if b.fields != nil {
			request = ask("POST /Observation", b.body, b.fields...)
		}
		out = append(out, trick{row: b.row, name: b.name, as: "lee", request: request, falls: b.falls, status: b.status, cause: b.cause})
	}
	out = append(out,
		trick{row: 18, name: "_format=xml", as: "lee", request: ask("GET /Patient/example?_format=xml", ""), falls: true, status: 415, cause: "media-type"},
		trick{row: 18, name: "_format escaped", as: "lee", request: ask("GET /Patient/example?_form%61t=ttl", ""), falls: true, status: 415, cause: "media-type"},
		trick{row: 18, name: "Accept: application/fhir+xml", as: "lee", request: ask("GET /Patient/example", "", "Accept: application/fhir+xml"), falls: true, status: 415, cause: "media-type"},
	)
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Client-Cert", "X_Forwarded_Client_Cert", "Forwarded", "X-Patient-id", "x-PATIENT-Id", "X-Authorization-Subject",
		"X-Remote-User", "X-Original-URL", "X-Rewrite-URL", "Ward-Caller", "ward_user", "WARD-PURPOSE", "Ward-Decision", "X-Forwarded-Host", "X-Cascade", "Range"} {
		row := 22
		if name == "Range" {
			row = 24
		}
		out = append(out, trick{row: row, name: name, as: "lee", request: ask("GET /Patient/example", "", name+": "+forgery, name+": x-"+forgery), falls: true, fell: patient,
			status: 200, reaches: "GET /Patient/example", lacks: []string{strings.ReplaceAll(name, "_", "-")}})
	}
	out = append(out, append(framing(), existence()...)...)
	for i := range out {
		if out[i].fell == nil {
			out[i].fell = func(a answer) bool { return a.Status >= 200 && a.Status < 300 }
		}
	}
	slices.SortStableFunc(out, func(a, b trick) int { return cmp.Compare(a.row, b.row) })
	return out
}
