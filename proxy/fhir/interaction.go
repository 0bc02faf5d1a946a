package fhir

import (
	"slices"
	"strings"
)

// Kind is a FHIR RESTful interaction, named as FHIR R4 names it (http.html#summary).
type Kind uint8

// The interactions that Ward can decide on. The zero Kind is none of them.
const (
	Capabilities Kind = iota + 1
	Read
	VRead
	Search
	Create
	Update
	Delete
	HistoryInstance
	HistoryType
	HistorySystem
)

var kindNames = [...]string{"", "capabilities", "read", "vread", "search", "create", "update", "delete",
	"history-instance", "history-type", "history-system"}

// String is FHIR's code for the interaction; it is also the Cedar action and the audit record's word.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return ""
}

// Writes reports whether the interaction changes the server's state.
func (k Kind) Writes() bool { return k == Create || k == Update || k == Delete }

// Interaction is one request, completely understood. It comes only from Classify, so its fields are in
// canonical form: Type is an R4 resource type or empty, ID and Version match [A-Za-z0-9\-.]{1,64}.
type Interaction struct {
	Kind    Kind
	Type    string // "" for whole-system interactions
	ID      string
	Version string
	// Params are the decoded query parameters in order: for a search by POST, URL and form body merged.
	Params []Param
	// Form is set for a search by POST: its parameters travel in a form body, which WithForm adds.
	Form bool
	// Head is set for HEAD requests: the reply has no body to check.
	Head bool
	// path is the canonical path below the FHIR base, with a leading slash and without a query.
	path string
	// merged is set once the form body has been added.
	merged bool
}

// Method is the HTTP method by which the interaction is forwarded.
func (in Interaction) Method() string {
	switch {
	case in.Head:
		return "HEAD"
	case in.Kind == Create || in.Form:
		return "POST"
	case in.Kind == Update:
		return "PUT"
	case in.Kind == Delete:
		return "DELETE"
	}
	return "GET"
}

// Target is the request target by which the interaction is forwarded, rebuilt from what was understood: the path
// below base, and the parameters in their canonical spelling. A search by POST has its parameters in FormBody.
func (in Interaction) Target(base string) string {
	if in.Form || len(in.Params) == 0 {
		return base + in.path
	}
	n := len(base) + len(in.path)
	for _, p := range in.Params {
		n += escapedLen(p.Name) + escapedLen(p.Value) + 2
	}
	b := make([]byte, 0, n)
	b = append(append(append(b, base...), in.path...), '?')
	return string(appendQuery(b, in.Params))
}

// TargetOf is Target; where that is asked, byte for byte, it is asked itself and costs nothing.
func (in *Interaction) TargetOf(base, asked string) string {
	path, query, _ := strings.Cut(asked, "?")
	if len(path) != len(base)+len(in.path) || path[:len(base)] != base || path[len(base):] != in.path {
		return in.Target(base)
	}
	if in.Form || len(in.Params) == 0 {
		if len(path) == len(asked) {
			return asked
		}
		return in.Target(base)
	}
	var room [512]byte
	if b := appendQuery(room[:0], in.Params); string(b) == query {
		return asked
	}
	return in.Target(base)
}

// ParamNames gives the names of the parameters, each once, in order: what an audit record may hold of them.
func (in Interaction) ParamNames() []string {
	var names []string
	for _, p := range in.Params {
		if !slices.Contains(names, p.Name) {
			names = append(names, p.Name)
		}
	}
	return names
}

// Param is one decoded query parameter. Name keeps its modifier and chain (`subject:Patient.name`).
type Param struct{ Name, Value string }

// Reference is a resource on this server: `Patient/example`.
type Reference struct{ Type, ID string }

// String is the relative reference, `Type/id`.
func (r Reference) String() string {
	if r.Type == "" {
		return ""
	}
	return r.Type + "/" + r.ID
}

// ParseReference reads a relative literal reference `Type/id`; ok is false for anything else.
func ParseReference(s string) (r Reference, ok bool) {
	t, id, found := strings.Cut(s, "/")
	if !found || !IsType(t) || !IsID(id) {
		return Reference{}, false
	}
	return Reference{Type: t, ID: id}, true
}

// Error is a request or reply that FHIR or Ward does not allow. It carries no content of the request, only
// its place.
type Error struct {
	Class Class
	// Text says what is wrong, for the client's developer.
	Text string
	// Expression is the FHIRPath or header/parameter name at fault, "" when there is none.
	Expression string
}

// Class says what kind of answer an Error deserves; the proxy maps each class to a status.
type Class uint8

// The classes of Error.
const (
	Malformed   Class = iota + 1 // 400: not a FHIR request
	Unsupported                  // 501: FHIR, but Ward cannot decide on it
	Media                        // 415: a format that Ward does not read
	TooLarge                     // 413
	Invalid                      // 422: well-formed, but not valid
	Outside                      // the content is outside the patient's compartment
	Method                       // 405: FHIR has no such method here
)

func (e *Error) Error() string {
	if e.Expression != "" {
		return e.Text + " (" + e.Expression + ")"
	}
	return e.Text
}
