package proxy_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// The rows of FHIR's bypass table that a path, a query, a field or a body's form can play, by their numbers, through both
// wards: refused, with the cause in the trail of the ward that refuses it, and with nothing at the FHIR server. What
// examples/interop tries against a real server that falls for it is tried here in every method.
func TestBypassRows(t *testing.T) {
	const form = "Content-Type: application/x-www-form-urlencoded"
	type row struct {
		row   int
		name  string
		line  string
		body  string
		field []string
		cause proxy.Cause
	}
	var rows []row
	for n, list := range bypassPaths() {
		for _, p := range list {
			for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT"} {
				rows = append(rows, row{row: n, name: method + " " + p, line: method + " /fhir" + p, cause: proxy.CauseMalformed})
			}
		}
	}
	for _, p := range []string{"/Fhir/Patient/a", "/FHIR/Patient/a", "/fhirx/Patient/a", "/Patient/a", "/", "/fhir%2fPatient/a", "/f%68ir/Patient/a"} {
		rows = append(rows, row{row: 1, name: "outside the base: " + p, line: "GET " + p, cause: proxy.CauseMalformed})
	}
	for _, q := range []string{"_method=DELETE", "_METHOD=PUT", "_method", "%5fmethod=DELETE", "_format=json&_method=DELETE", "X-HTTP-Method-Override=DELETE"} {
		rows = append(rows,
			row{row: 7, name: "?" + q, line: "GET /fhir/Observation/1?" + q, cause: proxy.CauseMalformed},
			row{row: 7, name: "search ?" + q, line: "GET /fhir/Observation?" + q, cause: proxy.CauseMalformed},
			row{row: 7, name: "form " + q, line: "POST /fhir/Observation/_search", body: q, field: []string{form}, cause: proxy.CauseMalformed},
			row{row: 7, name: "form's URL ?" + q, line: "POST /fhir/Observation/_search?" + q, body: "status=final", field: []string{form}, cause: proxy.CauseMalformed})
	}
	for _, b := range []string{`{"resourceType":"Observation","resourceType":"Account"}`, `{"resourceType":"Observation","status":"final","status":"amended"}`,
		`{"resourceType":"Observation","sub\u006aect":{"reference":"Patient/a"},"subject":{"reference":"Patient/b"}}`, "\xef\xbb\xbf" + observation("1", "a"),
		observation("1", "a") + observation("1", "a"), "// x\n" + observation("1", "a"), `{"resourceType":"Observation",}`, `{resourceType:"Observation"}`, "{\"resourceType\":\"Observation\",\"x\":\"\xff\"}"} {
		rows = append(rows, row{row: 17, name: b, line: "POST /fhir/Observation", body: b, field: []string{"Content-Type: application/fhir+json"}, cause: proxy.CauseMalformed})
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(observation("1", "a")))
	_ = z.Close()
	for _, f := range [][]string{{"Content-Type: application/fhir+xml"}, {"Content-Type: text/turtle"}, {"Content-Type: application/fhir+json; charset=utf-16"}, {"Content-Type: text/plain"},
		{form}, {"Content-Type: multipart/form-data; boundary=x"}, {"Content-Type: application/fhir+json", "Content-Encoding: gzip"}, {"Content-Type: application/fhir+json", "Content-Encoding: br"},
		{"Content-Type: application/fhir+json", "Content-Type: application/fhir+xml"}, {"Content-Type: application/fhir+json", "Content-Encoding: identity, gzip"}, nil} {
		body := observation("1", "a")
		if strings.HasSuffix(strings.Join(f, ""), "gzip") {
			body = zipped.String()
		}
		rows = append(rows, row{row: 18, name: strings.Join(f, ", "), line: "POST /fhir/Observation", body: body, field: f, cause: proxy.CauseMedia})
	}
	for _, q := range []string{"_format=xml", "_format=ttl", "_form%61t=xml", "_format=application/fhir%2Bxml", "_format=html"} {
		rows = append(rows, row{row: 18, name: q, line: "GET /fhir/Observation/1?" + q, cause: proxy.CauseMedia}, row{row: 18, name: "search " + q, line: "GET /fhir/Observation?" + q, cause: proxy.CauseMedia})
	}
	for _, q := range []string{"patient=a;patient=b", "status=final;x", "patient=a%zz", "patient=a%", "patient=%00", "=a", "&=&", "patient[0]=a", "patient%5b%5d=a", "patient=\xe9", "unknown=1", "patient%3da"} {
		rows = append(rows, row{row: 26, name: q, line: "GET /fhir/Observation?" + q, cause: proxy.CauseMalformed})
		if q != "patient=\xe9" {
			rows = append(rows, row{row: 26, name: "form " + q, line: "POST /fhir/Observation/_search", body: q, field: []string{form}, cause: proxy.CauseMalformed})
		}
	}
	w := newWorld(t, setup{})
	token := w.token()
	for _, r := range rows {
		t.Run(fmt.Sprintf("%d %.80s", r.row, r.name), func(t *testing.T) {
			a := w.call(w.portal, request(r.line, r.body, append(r.field, bearer(token))...))
			if strings.HasPrefix(r.line, "HEAD") {
				if want := proxy.Fault(proxy.Refuse(r.cause, "x"), ""); a.status != want.Status || a.decision() == "" || a.body != "" {
					t.Errorf("%d %q %s", a.status, a.decision(), a.body)
				}
			} else if recs := w.trail.of(proxy.HopIngress, a.decision()); len(recs) > 0 {
				w.checkRefusal(t, a, proxy.HopIngress, r.cause)
			} else {
				w.checkRefusal(t, a, proxy.HopEgress, r.cause) // egress's own reader has refused it
			}
			w.upstream.untouched(t)
		})
	}
}

// bypassPaths are the table's paths behind the base, by row.
func bypassPaths() map[int][]string {
	return map[int][]string{
		1: {"/patient/a", "/PATIENT/a", "/Patients/a", "/observation", "/patient/a/_history", "/Patient/a/_HISTORY", "/METADATA"},
		2: {"/Patient/a//", "/Patient//", "/metadata//"},
		3: {"//Patient/a", "/Patient//a", "/Patient/a//_history"},
		4: {"/%50atient/a", "/Patient%2fa", "/Patient%2Fa", "/Patient/%61", "/Patient/a%2f_history", "/Patient/a%252f", "/%2fPatient/a", "/Patient/a/_histor%79/1", "/Patient%3f_id=a", "/%6detadata"},
		5: {"/Patient/a%00", "/Patient/a%0a", "/Patient/a%20", "/Patient/" + strings.Repeat("a", 65), "/Patient/a_b", "/Patient/a:b", "/Patient/a,b", "/Patient/a@b", "/Patient/~a", "/Patient/a|b"},
		6: {"/./Patient/a", "/Patient/./a", "/x/../Patient/a", "/Patient/b/../a", "/Patient/a;b", "/Patient;a/a", "/Patient/a;", `/Patient\a`, `/\Patient/a`, "/%2e/Patient/a", "/%2e%2e/Patient/a",
			"/Patient/%2e%2e/Account/1", "/Patient/a%3bb", "/Patient/a%5cb", "/Patient/..", "/Patient/.", "/..", "/.", "/../fhir/Patient/a", "/Patient/..;/Account/1", "/Patient/a/..%00/"},
	}
}

// Row 2: what is served has one spelling on its way to the FHIR server, whichever it came in.
func testBypassOneSpellingGoesOn(t *testing.T) {
	w := newWorld(t, setup{})
	w.upstream.always(reply(200, searchset(observation("1", "a"))))
	for in, out := range map[string]string{
		"GET /fhir/Observation/?status=final":                "GET /fhir/Observation?status=final",
		"GET /fhir/Observation?%73tatus=%66inal":             "GET /fhir/Observation?status=final",
		"GET /fhir/Observation?code=a+b":                     "GET /fhir/Observation?code=a%20b",
		"GET /fhir/Observation?patient=Patient%2Fa":          "GET /fhir/Observation?patient=Patient%2Fa",
		"GET /fhir/Observation?patient=Patient/a":            "GET /fhir/Observation?patient=Patient%2Fa",
		"GET /fhir/Observation?status=final&_format=json":    "GET /fhir/Observation?status=final",
		"GET /fhir/Observation?_format=json&status=final":    "GET /fhir/Observation?status=final",
		"GET http://" + serviceName + "/fhir/Observation/?":  "GET /fhir/Observation",
		"GET http://" + serviceName + "/fhir/Observation?":   "GET /fhir/Observation",
		"GET http://" + serviceName + ":80/fhir/Observation": "GET /fhir/Observation",
	} {
		a := w.call(w.portal, request(in, "", bearer(w.token())))
		all := w.upstream.all()
		if a.status != 200 || len(all) == 0 {
			t.Errorf("%s: %d %s", in, a.status, a.body)
			continue
		}
		if got := all[len(all)-1].line; got != out {
			t.Errorf("%s went on as %s, not %s", in, got, out)
		}
	}
}

// Row 16: a comma is OR, so each of its values must be allowed; and no second place for a value is overlooked.
func TestBypassEveryValueOfAnOr(t *testing.T) {
	w := newWorld(t, setup{})
	token := w.token(ofPatient("a"))
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, q := range []string{"patient=a,b", "patient=b,a", "patient=Patient/a,Patient/b", "subject=Patient/b,Patient/a", "patient=a&patient=b", "patient=b&patient=a", "patient=a&subject=Patient/b",
		"patient=a,Patient%2Fb", "patient=a%2Cb", "subject:Patient=b", "subject:Patient=a,b", "patient=b", "subject=b", "%70atient=b",
		"patient=http://" + serviceName + "/fhir/Patient/b", "subject=Patient/b/_history/1"} {
		for _, c := range []string{
			request("GET /fhir/Observation?"+q, "", bearer(token)),
			request("POST /fhir/Observation/_search", q, form, bearer(token)),
			request("POST /fhir/Observation/_search?"+q, "status=final", form, bearer(token)),
			request("POST /fhir/Observation/_search?patient=a", q, form, bearer(token)),
		} {
			if a := w.call(w.portal, c); a.status < 400 || a.status > 403 && a.status != 501 {
				t.Errorf("%s: %d %s", c[:60], a.status, a.body)
			}
		}
	}
	w.upstream.untouched(t)
}

// Row 25: neither a validator, nor another method or form of asking, tells a confined caller what exists. Each is sent with
// all that the server could answer if it did exist, and if it did not.
func TestBypassNothingTellsWhatExists(t *testing.T) {
	w := newWorld(t, setup{})
	token := w.token(ofPatient("a"))
	conditions := [][]string{nil, {`If-None-Match: W/"3"`}, {"If-None-Match: *"}, {"If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"}, {`If-Match: W/"3"`}, {"If-Match: *"},
		{"If-Unmodified-Since: Thu, 01 Jan 2026 00:00:00 GMT"}, {"Range: bytes=0-0", `If-Range: W/"3"`}, {"Prefer: return=minimal"}, {"Cache-Control: only-if-cached"}}
	for _, line := range []string{"GET /fhir/Observation/7", "HEAD /fhir/Observation/7", "GET /fhir/Observation/7?_summary=true", "GET /fhir/Observation/7/_history/3", "HEAD /fhir/Observation/7/_history/3",
		"GET /fhir/Patient/b", "HEAD /fhir/Patient/b", "DELETE /fhir/Observation/7", "HEAD /fhir/Observation?_id=7", "OPTIONS /fhir/Observation/7"} {
		for _, fields := range conditions {
			see := func(upstream string) string {
				w.upstream.always(upstream)
				a := w.call(w.portal, request(line, "", append(fields, bearer(token))...))
				h := a.header.Clone()
				h.Del("Date")
				return strings.ReplaceAll(itoa(a.status)+toJSON(h)+a.body, a.decision(), "ID")
			}
			absent := see(reply(404, outcome("not-found")))
			if strings.HasPrefix(absent, "2") || strings.HasPrefix(absent, "5") && !strings.HasPrefix(absent, "501") {
				t.Errorf("%s %s: %s", line, fields, absent)
			}
			for name, r := range map[string]string{
				"there":         reply(200, observation("7", "b"), `ETag: W/"3"`),
				"not modified":  reply(304, "", `ETag: W/"3"`),
				"precondition":  reply(412, outcome("conflict"), `ETag: W/"3"`),
				"a part":        reply(206, `{`, "Content-Range: bytes 0-0/99"),
				"deleted":       reply(410, outcome("deleted"), `ETag: W/"4"`),
				"forbidden":     reply(403, outcome("forbidden")),
				"not allowed":   reply(405, outcome("not-supported"), "Allow: GET"),
				"without words": reply(200, "", `ETag: W/"3"`),
			} {
				if strings.HasPrefix(line, "HEAD") {
					r, _, _ = strings.Cut(r, "\r\n\r\n")
					r += "\r\n\r\n"
				}
				if name == "a part" && !strings.HasPrefix(absent, "501") && !strings.HasPrefix(absent, "403") {
					continue // asked for by nobody: Range is not passed on, so this is a fault (502)
				}
				if name == "without words" && strings.HasPrefix(line, "GET") && strings.HasPrefix(absent, "404") {
					continue // a read that succeeds without a body is a fault (502)
				}
				if got := see(r); got != absent {
					t.Errorf("%s %s: %s can be told from what is not there:\n%s\n%s", line, fields, name, got, absent)
				}
			}
		}
	}
}

// What a caller would like of the form of an answer is for writes. A server that obeyed it on a read would answer without
// the resource, and so neither show whose it is nor look like one that is not there.
func TestBypassReadsHaveNoPreference(t *testing.T) {
	w := newWorld(t, setup{})
	w.upstream.always(reply(200, observation("7", "a")))
	for _, line := range []string{"GET /fhir/Observation/7", "GET /fhir/Observation/7/_history/3"} {
		for _, token := range []string{w.token(), w.token(ofPatient("a"))} {
			a := w.call(w.portal, request(line, "", "Prefer: return=minimal, handling=strict", "Prefer: return=OperationOutcome", bearer(token)))
			all := w.upstream.all()
			if got := all[len(all)-1]; a.status != 200 || contains(got.head, "return=") {
				t.Errorf("%s: %d %s after %q", line, a.status, a.body, got.head)
			}
		}
	}
}
