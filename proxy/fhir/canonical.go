package fhir

import "strings"

// canonicalReferences brings the comma-separated values of a reference parameter into the form Type/id, so that
// whom they name can be read off: `subject:Patient=x` and `patient=x` say Patient/x. A bare id stays where the
// parameter can point to several types: it then names the resource of that id in each of them. modifier is a
// type, or "".
//
// Where a parameter can point to patients, other forms are refused: whether an absolute URL, a version, a
// logical reference or an escaped value leads to a patient of this server cannot be told here.
func canonicalReferences(info ParamInfo, modifier, value string) (string, error) {
	bare := modifier // the type of a bare id
	if modifier == "" {
		if !info.Targets("Patient") {
			return value, nil
		}
		if info.Name == "patient" || info.onlyPatients() {
			bare = "Patient"
		}
	}
	if !strings.Contains(value, ",") {
		return canonicalReference(info, modifier, bare, value)
	}
	items := strings.Split(value, ",")
	for i, item := range items {
		var err error
		if items[i], err = canonicalReference(info, modifier, bare, item); err != nil {
			return "", err
		}
	}
	return strings.Join(items, ","), nil
}

func canonicalReference(info ParamInfo, modifier, bare, item string) (string, error) {
	if r, ok := ParseReference(item); ok {
		if modifier != "" && r.Type != modifier {
			return "", malformed("the reference is of another type than the modifier says", info.Name)
		}
		return item, nil
	}
	if !IsID(item) {
		return "", &Error{Class: Unsupported, Text: "Ward cannot decide on a reference that is not written Type/id", Expression: info.Name}
	}
	if bare == "" {
		return item, nil
	}
	return bare + "/" + item, nil
}
