package fhir

import (
	"slices"
	"strings"
)

// Check is what the reply to a confined caller has to keep to: every resource in it is in the compartment of
// Patient. For a create, the body has to. The zero Check asks for nothing.
type Check struct {
	Patient string // the patient's id
	Type    string // the type that was asked for
	ID      string // the id that was asked for, "" for a search or create
}

// Confine keeps a caller to one patient: one whose scopes are patient/ scopes only, with patient the launch
// patient's id. It gives the interaction to forward, narrowed where it has to be, and what the reply must still
// be checked for; the error is an *Error, of class Outside where the request itself leads to another patient.
//
//   - Of Patients, only the patient's own record; links to others do not count.
//   - Of the types in HL7's patient compartment, what is inside: a read by the check of its reply, a search also
//     by the compartment's parameter, which is added with AND unless the request has it already. It adds one
//     parameter, the first that names the patient in the type's main role (patient, subject): what the patient
//     only performed or signed is found by asking for that (performer=Patient/id).
//   - Of other types, those that cannot hold or tell of a patient (Practitioner, Organization, Medication).
//   - Changes of what exists need the resource as it is now, and history of a type the resources as they were.
func Confine(in Interaction, patient string) (Interaction, Check, error) {
	none := Interaction{}
	if !IsID(patient) {
		return none, Check{}, outside("the token's patient is not a FHIR id")
	}
	switch in.Kind {
	case Capabilities:
		return in, Check{}, nil
	case Update, Delete:
		return none, Check{}, unsupported("a change by a caller confined to one patient: it needs the resource as it is now")
	case Read, VRead, HistoryInstance, Create:
	case Search:
		if in.Form && !in.merged {
			return none, Check{}, unsupported("a search by POST before its form is read")
		}
	default:
		return none, Check{}, unsupported("the history of a type for a caller confined to one patient")
	}
	if !IsType(in.Type) {
		return none, Check{}, unsupported("an interaction without a type")
	}
	if !InCompartment(in.Type) {
		if !shared(in.Type) || in.Kind == Create {
			return none, Check{}, outside("resources of this type are outside the patient's compartment")
		}
		return in, Check{}, nil
	}
	if in.Type == "Patient" && (in.Kind == Create || in.Kind != Search && in.ID != patient) {
		return none, Check{}, outside("the request is for another patient")
	}
	if in.Head {
		return none, Check{}, unsupported("a HEAD by a caller confined to one patient: there is no body to check")
	}
	if in.Kind == Search {
		var err error
		if in.Params, err = confineSearch(in.Type, in.Params, patient); err != nil {
			return none, Check{}, err
		}
	}
	if err := in.keepCheckable(); err != nil {
		return none, Check{}, err
	}
	if err := in.fits(); err != nil {
		return none, Check{}, err
	}
	return in, Check{Patient: patient, Type: in.Type, ID: in.ID}, nil
}

// shared reports whether resources of a type outside the compartment are the same for everybody. Two types that
// cannot refer to a patient tell of one all the same: a Subscription by its criteria, an EnrollmentResponse by
// the request that it answers.
func shared(typ string) bool {
	return !RefersToPatient(typ) && typ != "Subscription" && typ != "EnrollmentResponse"
}

// confineSearch makes sure that a search of a type in the compartment finds only what is inside: some parameter
// confines it with each of its alternatives, and none names another patient (FHIR.md, bypass row 16).
func confineSearch(typ string, params []Param, patient string) ([]Param, error) {
	own := "Patient/" + patient
	out := slices.Clone(params)
	confining := confiningParams[typeIndex(typ)]
	confined := false
	for i, p := range out {
		base, modifier, _ := strings.Cut(p.Name, ":")
		if typ == "Patient" && base == "_id" && modifier != "missing" {
			if modifier != "" || !eachItem(p.Value, func(id string) bool { return id == patient }) {
				return nil, outside("the search is for another patient")
			}
			confined = true
			continue
		}
		if info, _ := SearchParam(typ, base); info.Type != ParamReference || !info.Targets("Patient") || modifier != "" {
			continue
		}
		items := strings.Split(p.Value, ",")
		all := true
		for j, item := range items {
			r, literal := ParseReference(item)
			switch {
			case item == own:
			case item == patient:
				items[j] = own // a bare id means every type's: the patient's is what may be asked for
			case literal && r.Type != "Patient":
				all = false
			default:
				return nil, outside("the search is for another patient, or for one that cannot be told")
			}
		}
		out[i].Value = strings.Join(items, ",")
		confined = confined || all && slices.Contains(confining, base)
	}
	switch {
	case confined:
		return out, nil
	case typ == "Patient":
		return append(out, Param{"_id", patient}), nil
	}
	return append(out, Param{confining[0], own}), nil
}

// keepCheckable makes the server send the elements by which the reply is checked, when the caller asked for a
// few elements only.
func (in *Interaction) keepCheckable() error {
	for i, p := range in.Params {
		switch {
		case p.Name == "_summary" && p.Value == "text":
			return &Error{Class: Unsupported, Text: "Ward cannot check a summary without the patient's reference", Expression: "_summary"}
		case p.Name == "_elements":
			value := p.Value
			need := []string{"id"}
			for _, path := range CompartmentPaths(in.Type) {
				need = append(need, path[0])
			}
			for _, name := range need {
				if !slices.Contains(strings.Split(value, ","), name) {
					value += "," + name
				}
			}
			in.Params = slices.Clone(in.Params)
			in.Params[i].Value = value
		}
	}
	return nil
}

// Patients gives the ids of the patients that the request itself names, in its order: the Patient that it reads or
// changes, and those that it searches for. A bare id counts where it can be a patient's. What the reply tells of
// further patients is not known yet.
func Patients(in Interaction) []string { return AppendPatients(nil, &in) }

// AppendPatients appends what Patients gives to ids, each id once.
func AppendPatients(ids []string, in *Interaction) []string {
	add := func(id string) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if in.Type == "Patient" && in.ID != "" {
		add(in.ID)
	}
	if in.Kind != Search {
		return ids
	}
	for _, p := range in.Params {
		if in.Type == "Patient" && p.Name == "_id" {
			for id := range strings.SplitSeq(p.Value, ",") {
				if IsID(id) {
					add(id)
				}
			}
			continue
		}
		info, _ := SearchParam(in.Type, p.Name) // a name with a modifier is in no table
		if info.Type != ParamReference || !info.Targets("Patient") {
			continue
		}
		for item := range strings.SplitSeq(p.Value, ",") {
			if r, ok := ParseReference(item); ok && r.Type == "Patient" {
				add(r.ID)
			} else if !ok && IsID(item) {
				add(item)
			}
		}
	}
	return ids
}

func outside(text string) *Error { return &Error{Class: Outside, Text: text} }
