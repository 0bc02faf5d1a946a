package fhir

import (
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// ReplyFacts is what a reply that may go out discloses.
type ReplyFacts struct {
	// Patients are the ids of all patients about whom the reply says something: those in whose compartments
	// its resources are, or the resources within these. Sorted and unique.
	Patients []string
	// Count is how many resources the reply holds, outcomes left aside.
	Count int
	// More is set when a Bundle has a link to a next page.
	More bool
	// Withhold: the server refused the request or failed, and its words must not reach the caller. The proxy
	// answers with an outcome of its own: to a caller who is confined to a patient always the same one,
	// since the server's words and status may tell whether something exists; otherwise because they
	// are not a clean OperationOutcome.
	Withhold bool
}

// CheckReply decides whether the server's whole reply to in may reach the caller, by its status, its
// Content-Type and its body without any Content-Encoding. Headers are not its concern. check is what Confine
// left to be seen to; in is the interaction as it was forwarded.
//
// An *Error of class Outside means that the reply holds what was not asked for or what this caller must not
// see; of any other class, that the reply cannot be vouched for. In both cases nothing of it may go out.
func CheckReply(in Interaction, check Check, status int, contentType string, body []byte, o ContentOptions) (*ReplyFacts, error) {
	r := &reply{in: in, patient: check.Patient, seen: make(map[string]struct{})}
	var err error
	switch {
	case status >= 400 && status <= 599:
		r.failed(contentType, body, o)
	case status == 304 && len(body) == 0 && !in.Kind.Writes():
		// "Not modified" says that the resource exists and has this version.
		err = r.unseen()
	case status == 204 && len(body) == 0, (status == 200 || status == 201) && len(body) == 0:
		err = r.empty()
	case status == 200, status == 201 && in.Kind.Writes():
		err = r.content(contentType, body, o)
	case status == 202:
		err = &Error{Class: Unsupported, Text: "the server means to answer later"}
	default:
		err = &Error{Class: Malformed, Text: "the reply's status is not one for this interaction"}
	}
	if err != nil {
		return nil, err
	}
	r.facts.Patients = make([]string, 0, len(r.seen))
	for id := range r.seen {
		r.facts.Patients = append(r.facts.Patients, id)
	}
	slices.Sort(r.facts.Patients)
	return &r.facts, nil
}

// reply is one reply under examination.
type reply struct {
	in      Interaction
	patient string // the patient to whom the caller is confined, "" when to none
	*walk
	facts ReplyFacts
	seen  map[string]struct{} // patients disclosed
}

func (r *reply) confined() bool { return r.patient != "" }

// failed looks at the server's refusal or fault.
func (r *reply) failed(contentType string, body []byte, o ContentOptions) {
	r.facts.Withhold = true
	if r.confined() || JSONMedia(contentType) != nil {
		return
	}
	var res resource
	w, err := newWalk(body, o)
	if err != nil {
		return
	}
	defer w.close()
	if w.whole(&res) != nil {
		return
	}
	r.facts.Withhold = res.typ != "OperationOutcome" || res.inner > 0
}

// empty decides on a success without a body.
func (r *reply) empty() error {
	switch {
	case r.in.Kind.Writes(), r.in.Kind == Capabilities:
		return nil
	case r.in.Head:
		return r.unseen()
	}
	return &Error{Class: Malformed, Text: "the reply has no body"}
}

// unseen decides on a reply that speaks of a resource without showing it: nobody can tell whose it is.
func (r *reply) unseen() error {
	if r.confined() {
		return &Error{Class: Outside, Text: "the reply does not show whose resource it speaks of"}
	}
	return nil
}

func (r *reply) content(contentType string, body []byte, o ContentOptions) error {
	if err := JSONMedia(contentType); err != nil {
		return err
	}
	var err error
	if r.walk, err = newWalk(body, o); err != nil {
		return err
	}
	defer r.close()
	switch r.in.Kind {
	case Search:
		return r.bundle("searchset", r.found)
	case HistoryInstance, HistoryType, HistorySystem:
		return r.history()
	case Capabilities:
		if strings.HasPrefix(r.in.path, "/.well-known/") { // SMART App Launch: not a resource
			if text := jsontext.Value(body); text.Kind() != jsontext.KindBeginObject || !text.IsValid() {
				return r.refuse(Malformed, "not a JSON object")
			}
			return nil
		}
	}
	var res resource
	if err := r.whole(&res); err != nil {
		return err
	}
	return r.single(&res)
}

// single decides on a reply that is one resource.
func (r *reply) single(res *resource) error {
	outcome := res.typ == "OperationOutcome" && res.inner == 0
	switch r.in.Kind {
	case Capabilities:
		if res.typ != "CapabilityStatement" && res.typ != "TerminologyCapabilities" { // http.html#capabilities
			return other(res.typ)
		}
		return nil
	case Delete:
		if !outcome {
			return other(res.typ)
		}
		return nil
	case Create, Update:
		if outcome { // Prefer: return=OperationOutcome
			return nil
		}
	}
	if res.typ != r.in.Type {
		return other("Resource")
	}
	switch {
	case len(res.id) == 0:
		return &Error{Class: Malformed, Text: "the resource has no id", Expression: res.typ + ".id"}
	case r.in.Kind != Create && string(res.id) != r.in.ID:
		return other(res.typ + ".id")
	case r.in.Kind == VRead && len(res.version) > 0 && string(res.version) != r.in.Version:
		return other(res.typ + ".meta.versionId")
	}
	return r.disclose(res)
}

// disclose lets one resource out, if it is in the compartment to which the caller is confined.
func (r *reply) disclose(res *resource) error {
	if r.confined() && !slices.Contains(res.patients, r.patient) {
		return &Error{Class: Outside, Text: "the reply holds a resource outside of the patient's compartment"}
	}
	for _, id := range res.patients {
		r.seen[id] = struct{}{}
	}
	for _, id := range res.carries {
		r.seen[id] = struct{}{}
	}
	r.facts.Count++
	return nil
}

// other refuses a reply that holds something else than was asked for.
func other(expression string) error {
	return &Error{Class: Outside, Text: "the reply holds another resource than was asked for", Expression: expression}
}
