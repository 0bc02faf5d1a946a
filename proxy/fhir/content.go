package fhir

import (
	"slices"
	"strings"
)

// Content is what a strictly parsed resource says of itself: the facts that decisions rest on.
//
// A compartment path is one that HL7's CompartmentDefinition for Patient names, by way of its search
// parameters, for the resource's type. The resource is in the compartment of each patient to whom a
// reference at such a path leads.
type Content struct {
	Type string
	// ID and Version are the resource's id and meta.versionId, "" when it has none.
	ID, Version string
	// Patients are the ids of the patients of this server in whose compartments the resource is, sorted and
	// unique. A Patient is also in its own.
	Patients []string
	// Carries are the ids of the patients in whose compartments the resources within this one would be,
	// sorted and unique: those in `contained`, and those that a Bundle or Parameters holds. They tell of
	// these patients without being in their compartments.
	Carries []string
	// Foreign: a compartment path holds a reference that leads to no Type/id of this server (another base,
	// urn:, contained, an identifier only, a search), or the resource is a Bundle or Parameters with
	// resources in it. Which other compartments it touches cannot be vouched for.
	Foreign bool
	// Conditional: some reference, wherever it stands, is a search (`Patient?identifier=…`). A server that
	// resolves it tells the writer what it found.
	Conditional bool
	// Labels are the security labels of the resource and of all resources within it.
	Labels []Coding
}

// Coding is a code and the system that defines it.
type Coding struct{ System, Code string }

// ContentOptions says how to read a resource. The zero value knows no absolute URL as local.
type ContentOptions struct {
	// Bases are the absolute URLs of this server's FHIR base, `https://ehr.example/fhir`, compared exactly:
	// the one that callers use and the one that the server itself writes.
	Bases  []string
	Limits Limits
}

// ParseResource reads a body that must be one R4 resource in JSON, and refuses what two readers could
// understand differently. It does not tell whether the resource is valid beyond that.
//
// The error is an *Error: Malformed, Invalid or TooLarge, with the place in Expression.
func ParseResource(body []byte, o ContentOptions) (*Content, error) {
	w, err := newWalk(body, o)
	if err != nil {
		return nil, err
	}
	defer w.close()
	var res resource
	if err := w.whole(&res); err != nil {
		return nil, err
	}
	return res.content(w.search), nil
}

// CheckWrite reports whether the body of a create or update is one for that request, and one that Ward can
// decide on by its type, id and compartments.
//
// The id in the body of a create plays no part: the server has to ignore it (http.html#create).
func CheckWrite(in Interaction, c *Content) error {
	if c.Type != in.Type {
		return &Error{Class: Malformed, Text: "the body is of another type than the URL", Expression: c.Type + ".resourceType"}
	}
	switch c.Type {
	case "Bundle", "Parameters":
		// What such a resource holds is stored, searched and given out again under other rules than its
		// parts would be: no compartment, label or type of a part would protect it any longer.
		return &Error{Class: Unsupported, Text: "Ward does not let a " + c.Type + " be stored as a resource"}
	case "Subscription":
		// It makes the server send data where the writer wants, on later changes that nobody asks Ward about.
		return &Error{Class: Unsupported, Text: "Ward does not let a Subscription be stored"}
	}
	if c.Conditional {
		return &Error{Class: Unsupported, Text: "a reference in the body is a search, which Ward does not resolve", Expression: c.Type}
	}
	if in.Kind == Update && c.ID != in.ID { // http.html#update: no id, or another one, is a 400
		return &Error{Class: Malformed, Text: "the id in the body is not the one in the URL", Expression: c.Type + ".id"}
	}
	return nil
}

// Within reports whether the resource is in the patient's compartment: the test for what a caller confined
// to that patient may see. It may be in others' compartments too. The error is an *Error of class Outside.
func (c *Content) Within(patient string) error {
	if _, found := slices.BinarySearch(c.Patients, patient); !found {
		return &Error{Class: Outside, Text: "the resource is not in the patient's compartment", Expression: c.Type}
	}
	return nil
}

// OnlyWithin reports whether the resource that in creates or updates is in the patient's compartment and
// touches nobody else's: the test for what a caller confined to that patient may write. A reference that
// leads nowhere on this server counts as somebody else's. The error is an *Error of class Outside.
func (c *Content) OnlyWithin(in Interaction, patient string) error {
	if in.Kind == Create && c.Type == "Patient" {
		// The id in the body is void: the new Patient will be another one.
		return &Error{Class: Outside, Text: "a new Patient is outside every existing compartment", Expression: c.Type}
	}
	if err := c.Within(patient); err != nil {
		return err
	}
	if c.Foreign {
		return &Error{Class: Outside, Text: "a reference leads to something that is not known to be this patient's", Expression: c.Type}
	}
	if len(c.Patients) > 1 || len(c.Carries) > 1 || len(c.Carries) == 1 && c.Carries[0] != patient {
		return &Error{Class: Outside, Text: "the resource is also about another patient", Expression: c.Type}
	}
	return nil
}

// content copies what the walk found out of the text.
func (r *resource) content(conditional bool) *Content {
	return &Content{
		Type:        r.typ,
		ID:          string(r.id),
		Version:     string(r.version),
		Patients:    sortedSet(r.patients),
		Carries:     sortedSet(r.carries),
		Foreign:     r.foreign,
		Conditional: conditional,
		Labels:      r.labels,
	}
}

// sortedSet sorts ids in place and drops the repeats.
func sortedSet(ids []string) []string {
	slices.SortFunc(ids, strings.Compare)
	return slices.Compact(ids)
}
