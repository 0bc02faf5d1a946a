package fhir

import "strings"

// maxTarget bounds a request target, path and query together, in bytes.
const maxTarget = 8 << 10

// Classify understands a request completely, or refuses it. It reads nothing but the method, the target and the
// header; a search by POST has its form body still to come (WithForm).
//
// target is the request target in origin form, `path?query`, as it arrived; base is the path under which FHIR
// lives, "" or `/fhir`. get gives the values of a header field, one for each occurrence. The error is an *Error.
//
// What is accepted has one spelling, which Target gives back: classifying that again gives the same Interaction.
// A path with an escape, an empty or dot segment, or any byte beyond FHIR's own is refused, never normalised, so
// that no server can read it differently (FHIR.md, bypass rows 1 to 6). Only one slash at the end is dropped.
func Classify(method, target, base string, get func(name string) []string) (Interaction, error) {
	if !knownMethod(method) {
		return Interaction{}, &Error{Class: Method, Text: "FHIR does not use this method; methods are case-sensitive"}
	}
	if len(target) > maxTarget {
		return Interaction{}, malformed("the request target is longer than 8192 bytes", "")
	}
	path, query, _ := strings.Cut(target, "?")
	segments, n, err := splitPath(path, base)
	if err != nil {
		return Interaction{}, err
	}
	params, err := parseQuery(query)
	if err != nil {
		return Interaction{}, err
	}
	in, err := interaction(method, segments[:n], len(params) > 0)
	if err != nil {
		return Interaction{}, err
	}
	if err := checkConditions(method, get); err != nil {
		return Interaction{}, err
	}
	if in.path == "" {
		in.path = strings.TrimSuffix(path[len(base):], "/")
	}
	json, err := in.refine(params)
	if err != nil {
		return Interaction{}, err
	}
	// R4 http.html#parameters: _format overrides Accept.
	if !json && !acceptsJSON(get("Accept")) {
		return Interaction{}, &Error{Class: Media, Text: "Ward serves FHIR as application/fhir+json only", Expression: "Accept"}
	}
	return in, nil
}

func knownMethod(m string) bool {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS":
		return true
	}
	return false
}

// maxSegments is the length of the longest FHIR path, T/id/_history/vid, and one more to tell what is longer.
const maxSegments = 5

// splitPath divides the path below base into segments; the base itself has none.
func splitPath(path, base string) (segments [maxSegments]string, n int, err error) {
	for i := range len(path) {
		if pathBytes[path[i]] {
			continue
		}
		text := "the path holds a byte that no FHIR path has"
		switch path[i] {
		case '%':
			text = "the path is escaped; FHIR paths need no escapes"
		case ';':
			text = "the path holds a semicolon"
		case '\\':
			text = "the path holds a backslash"
		case '#':
			text = "the request target has a fragment"
		}
		return segments, 0, malformed(text, "")
	}
	rest, ok := strings.CutPrefix(path, base)
	if !ok || rest != "" && rest[0] != '/' || path == "" {
		return segments, 0, malformed("the path is not below the FHIR base", "")
	}
	if rest == "" || rest == "/" {
		return segments, 0, nil
	}
	rest = strings.TrimSuffix(rest[1:], "/")
	for more := true; more; n++ {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		if s == "" || s == "." || s == ".." {
			return segments, 0, malformed("the path has an empty or a dot segment", "")
		}
		if n == maxSegments {
			return segments, 0, malformed("the path is longer than any FHIR path", "")
		}
		segments[n] = s
	}
	return segments, n, nil
}

// pathBytes are the bytes of FHIR paths: ids, type names, `_`, the `$` of operations, the `*` of compartments.
var pathBytes = byteSet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/$*")

func byteSet(members string) (set [256]bool) {
	for i := range len(members) {
		set[members[i]] = true
	}
	return set
}

// interaction tells what method and path ask for (R4 http.html#summary).
func interaction(method string, s []string, query bool) (Interaction, error) {
	if len(s) == 0 {
		return wholeSystem(method)
	}
	last := s[len(s)-1]
	switch {
	case len(s) == 1 && s[0] == "metadata", len(s) == 2 && s[0] == ".well-known" && s[1] == "smart-configuration":
		return reading(method, Interaction{Kind: Capabilities})
	case len(s) == 1 && s[0] == "_history":
		return getting(method, Interaction{Kind: HistorySystem})
	case len(s) == 1 && s[0] == "_search":
		return posting(method, Interaction{}, unsupported("a search of the whole system"))
	case last[0] == '$':
		return operation(s)
	}
	if !IsType(s[0]) {
		return Interaction{}, malformed("the path does not begin with an R4 resource type in its own spelling", "")
	}
	if s[0] == "Binary" {
		return Interaction{}, unsupported("a Binary, which is as secret as the resource that its securityContext names")
	}
	in := Interaction{Type: s[0]}
	if len(s) == 1 {
		return onType(method, in, query)
	}
	switch {
	case len(s) == 2 && s[1] == "_search":
		in.Kind, in.Form = Search, true
		return posting(method, in, nil)
	case len(s) == 2 && s[1] == "_history":
		in.Kind = HistoryType
		return getting(method, in)
	case !IsID(s[1]):
		return Interaction{}, malformed("the path holds something that is not a FHIR id", "")
	}
	in.ID = s[1]
	switch {
	case len(s) == 2:
		return onInstance(method, in)
	case len(s) == 3 && s[2] == "_history":
		in.Kind = HistoryInstance
		return getting(method, in)
	case len(s) == 4 && s[2] == "_history":
		if !IsID(s[3]) {
			return Interaction{}, malformed("the path holds something that is not a version id", "")
		}
		in.Kind, in.Version = VRead, s[3]
		return reading(method, in)
	case s[2] == "*" || IsType(s[2]):
		return Interaction{}, unsupported("a search by a compartment's path; search the type, with patient=Patient/id")
	}
	return Interaction{}, malformed("the path is none of FHIR's", "")
}

func wholeSystem(method string) (Interaction, error) {
	switch method {
	case "OPTIONS":
		// What OPTIONS on the base asks for is the capability statement: it is forwarded as GET /metadata.
		return Interaction{Kind: Capabilities, path: "/metadata"}, nil
	case "GET", "HEAD":
		return Interaction{}, unsupported("a search of the whole system, or a page of a search")
	case "POST":
		return Interaction{}, unsupported("a batch or transaction")
	}
	return Interaction{}, noMethod()
}

func operation(s []string) (Interaction, error) {
	if s[len(s)-1] == "$graphql" {
		return Interaction{}, unsupported("GraphQL")
	}
	if len(s) > 3 || len(s) > 1 && !IsType(s[0]) || len(s) > 2 && !IsID(s[1]) {
		return Interaction{}, malformed("the path is none of FHIR's", "")
	}
	return Interaction{}, unsupported("an operation ($name)")
}

func onType(method string, in Interaction, query bool) (Interaction, error) {
	switch method {
	case "GET", "HEAD":
		in.Kind = Search
		return getting(method, in)
	case "POST":
		in.Kind = Create
		return in, nil
	case "PATCH":
		return Interaction{}, unsupported("a conditional patch")
	case "PUT":
		if query {
			return Interaction{}, unsupported("a conditional update")
		}
	case "DELETE":
		return Interaction{}, unsupported("a conditional delete") // without a condition: of everything
	}
	return Interaction{}, noMethod()
}

func onInstance(method string, in Interaction) (Interaction, error) {
	switch method {
	case "GET", "HEAD":
		in.Kind = Read
		return reading(method, in)
	case "PUT":
		in.Kind = Update
		return in, nil
	case "DELETE":
		in.Kind = Delete
		return in, nil
	case "PATCH":
		return Interaction{}, unsupported("a patch")
	}
	return Interaction{}, noMethod()
}

// reading lets GET and HEAD through.
func reading(method string, in Interaction) (Interaction, error) {
	if method == "HEAD" {
		in.Head = true
		return in, nil
	}
	return getting(method, in)
}

// getting lets GET through. What a HEAD would tell about many resources, their count and size, cannot be
// checked against what they hold.
func getting(method string, in Interaction) (Interaction, error) {
	switch method {
	case "GET":
		return in, nil
	case "HEAD":
		return Interaction{}, unsupported("a HEAD of more than one resource")
	}
	return Interaction{}, noMethod()
}

func posting(method string, in Interaction, err error) (Interaction, error) {
	if method != "POST" {
		return Interaction{}, noMethod()
	}
	return in, err
}

// checkConditions refuses header fields that make another interaction of the request.
func checkConditions(method string, get func(string) []string) error {
	// R4 http.html#ccreate. On other methods it means nothing, so nobody needs it there.
	if len(get("If-None-Exist")) > 0 {
		return &Error{Class: Unsupported, Text: "Ward cannot decide on a conditional create", Expression: "If-None-Exist"}
	}
	// R4 async.html: the answer would be a job, to be fetched later.
	for _, v := range get("Prefer") {
		if strings.Contains(strings.ToLower(v), "respond-async") {
			return &Error{Class: Unsupported, Text: "Ward cannot decide on an asynchronous request", Expression: "Prefer"}
		}
	}
	if method == "PUT" && len(get("If-None-Match")) > 0 {
		return &Error{Class: Unsupported, Text: "Ward cannot decide on an update that depends on what is not there", Expression: "If-None-Match"}
	}
	return nil
}

func malformed(text, expression string) *Error {
	return &Error{Class: Malformed, Text: text, Expression: expression}
}

func unsupported(what string) *Error {
	return &Error{Class: Unsupported, Text: "Ward cannot decide on " + what}
}

func noMethod() *Error {
	return &Error{Class: Method, Text: "FHIR has no such method for this path"}
}
