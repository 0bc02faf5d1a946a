package main

import (
	"bytes"
	"fmt"
	"strings"
)

// framing are rows 24 and 26: requests that two parsers may read as different ones.
func framing() []trick {
	raw := func(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }
	const get, post, host, json, end = "GET /Patient/example HTTP/1.1", "POST /Observation HTTP/1.1", "Host: " + mesh, "Content-Type: application/fhir+json", "Connection: close"
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(observation), observation)
	length := fmt.Sprintf("Content-Length: %d", len(observation))
	many := []string{get, host, end}
	for i := range 120 {
		many = append(many, fmt.Sprintf("X-%d: x", i))
	}
	var out []trick
	for _, f := range []struct {
		name, request string
		falls         bool
		status        int
		cause         string
	}{
		{"Content-Length beside Transfer-Encoding", raw(post, host, json, end, "Content-Length: 4", "Transfer-Encoding: chunked") + chunked, false, 400, "malformed"},
		{"Transfer-Encoding beside Content-Length", raw(post, host, json, end, "Transfer-Encoding: chunked", length) + chunked, false, 400, "malformed"},
		{"two lengths that differ", raw(post, host, json, end, length, "Content-Length: 0") + observation, false, 400, "malformed"},
		{"two lengths that are equal", raw(post, host, json, end, length, length) + observation, false, 400, "malformed"},
		{"a list of lengths", raw(post, host, json, end, length+", 5") + observation, false, 400, "malformed"},
		{"a signed length", raw(post, host, json, end, "Content-Length: +5") + observation, false, 400, "malformed"},
		{"Transfer-Encoding twice", raw(post, host, json, end, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunked, false, 501, "unsupported"},
		{"Transfer-Encoding: identity, chunked", raw(post, host, json, end, "Transfer-Encoding: identity, chunked") + chunked, true, 501, "unsupported"},
		{"Transfer-Encoding: xchunked", raw(post, host, json, end, "Transfer-Encoding: xchunked") + chunked, false, 501, "unsupported"},
		{"Transfer-Encoding with a vertical tab", raw(post, host, json, end, "Transfer-Encoding: \vchunked") + chunked, false, 400, "malformed"},
		{"a chunk size with 0x", raw(post, host, json, end, "Transfer-Encoding: chunked") + "0x" + chunked, false, 400, "malformed"},
		{"a space before the colon", raw(get, host, end, "X-A : b"), false, 400, "malformed"},
		{"a folded field", raw(get, host, end, "X-A: b", " c"), false, 400, "malformed"},
		{"lines that end in LF", "GET /Patient/example HTTP/1.1\nHost: " + mesh + "\nConnection: close\n\n", false, 400, "malformed"},
		{"a bare CR in a value", raw(get, host, end, "X-A: b\rX-B: c"), false, 400, "malformed"},
		{"NUL in a value", raw(get, host, end, "X-A: b\x00c"), false, 400, "malformed"},
		{"HTTP/1.2", raw("GET /Patient/example HTTP/1.2", host, end), false, 400, "malformed"},
		{"HTTP/2.0", raw("GET /Patient/example HTTP/2.0", host, end), true, 400, "malformed"},
		{"an absolute target that is not Host's", raw("GET http://"+mesh+"/Patient/example HTTP/1.1", "Host: fhir.other.mesh.internal", end), true, 400, "malformed"},
		{"an absolute target of nobody", raw("GET http://evil.example/Patient/example HTTP/1.1", host, end), true, 400, "malformed"},
		{"two Hosts", raw(get, host, "Host: fhir.other.mesh.internal", end), true, 400, "malformed"},
		{"120 fields", raw(many...), true, 431, "head-too-large"},
		{"two spaces in the request line", raw("GET  /Patient/example HTTP/1.1", host, end), true, 400, "malformed"},
		{"Upgrade: h2c", raw(get, host, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), true, 400, "headers"},
		{"Upgrade: websocket", raw(get, host, "Connection: Upgrade", "Upgrade: websocket"), true, 400, "headers"},
	} {
		out = append(out, trick{row: 24, name: f.name, as: "lee", request: f.request, falls: f.falls, status: f.status, cause: f.cause})
	}
	theirs := func(a answer) bool { return a.Status == 200 && bytes.Contains(a.Body, []byte(`"theirs"`)) }
	for _, q := range []struct {
		name, query string
		falls       bool
		status      int
		cause       string
	}{
		{"a semicolon between parameters", "subject=Patient/example;subject=Patient/other", false, 400, "malformed"},
		{"a semicolon that hides the restriction", "x=1;subject=Patient/example", true, 400, "malformed"},
		{"subject:Patient=other", "subject:Patient=other", true, 403, "patient"},
		{"a bare id", "subject=other", true, 403, "patient"},
		{"the name escaped", "%73ubject=Patient/other", true, 403, "patient"},
		{"the value escaped", "subject=Patient%2fother", true, 403, "patient"},
		{"the equals sign escaped", "subject%3dPatient/example", true, 400, "malformed"},
		{"an index in brackets", "subject[0]=Patient/other", true, 400, "malformed"},
		{"an escape that is none", "subject=Patient/other%zz", false, 400, "malformed"},
		{"NUL in the value", "subject=Patient/other%00", false, 400, "malformed"},
		{"a parameter without a name", "=x&subject=Patient/other", true, 400, "malformed"},
		{"an unknown parameter", "subjekt=Patient/example", true, 400, "malformed"},
	} {
		out = append(out, trick{row: 26, name: q.name, as: "anna", request: ask("GET /Observation?"+q.query, ""), falls: q.falls, fell: theirs, status: q.status, cause: q.cause})
	}
	return append(out, trick{row: 26, name: "a plus in the value", as: "anna", request: ask("GET /Observation?_id=theirs+", ""), fell: theirs, status: 200,
		reaches: "GET /Observation?_id=theirs%20&patient=Patient%2Fexample"})
}

// existence is row 25: what a patient may not see must not be told from what does not exist.
func existence() []trick {
	there := func(a answer) bool { return a.Status == 200 || a.Status == 304 }
	const get, head = "GET", "HEAD"
	validators := []string{"", `If-None-Match: W/"1"`, "If-None-Match: *", "If-Modified-Since: Wed, 01 Jan 2025 00:00:00 GMT"}
	var out []trick
	for _, method := range []string{get, head} {
		for _, validator := range validators {
			var fields []string
			said := method
			if validator != "" {
				fields, said = []string{validator}, method+", "+validator
			}
			for _, what := range []struct {
				path, cause, name string
				reaches           bool
			}{
				{"/Observation/theirs", "reply-outside", "another's data", true},
				{"/Patient/other", "patient", "another patient", false},
			} {
				nobody := what.path[:strings.LastIndex(what.path, "/")] + "/nobody"
				status, cause := 404, ""
				reaches := ""
				if what.reaches {
					reaches = "GET " + nobody
				} else {
					status, cause = 403, what.cause
				}
				if what.reaches && method == head {
					// Whether a reply without a body holds what is hers cannot be seen: it is not even asked for.
					status, cause, reaches, what.cause = 501, "unsupported", "", "unsupported"
				}
				first := trick{row: 25, name: said + " of what does not exist beside " + what.name, as: "anna", request: ask(method+" "+nobody, "", fields...), fell: there,
					status: status, cause: cause, reaches: reaches}
				second := trick{row: 25, name: said + " of " + what.name, as: "anna", request: ask(method+" "+what.path, "", fields...), falls: true, fell: there,
					status: status, cause: what.cause, reaches: strings.ReplaceAll(reaches, "/nobody", what.path[strings.LastIndex(what.path, "/"):]), like: first.name}
				out = append(out, first, second)
			}
		}
	}
	return out
}
