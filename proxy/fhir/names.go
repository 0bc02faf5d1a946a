package fhir

//go:generate go run ./gen -out tables.go

// IsType reports whether s is the name of an R4 resource type that has instances: exact, in its own spelling.
func IsType(s string) bool { return typeIndex(s) != 0 }

// IsID reports whether s is a FHIR id: [A-Za-z0-9\-.]{1,64} (R4 datatypes, id).
func IsID(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

// ParamType is the type of a search parameter (R4 search, "Search Parameter Types").
type ParamType uint8

// The types of search parameters.
const (
	ParamNumber ParamType = iota + 1
	ParamDate
	ParamString
	ParamToken
	ParamReference
	ParamComposite
	ParamQuantity
	ParamURI
	ParamSpecial
)

// ParamInfo is what R4 says of one search parameter of one type.
type ParamInfo struct {
	Name    string
	Type    ParamType
	targets uint8 // index into targetSets
}

// Targets reports whether a reference parameter can point to resources of type typ.
func (p ParamInfo) Targets(typ string) bool { return targetSets[p.targets].has(typeIndex(typ)) }

// onlyPatients reports whether a reference parameter points to patients and to nothing else.
func (p ParamInfo) onlyPatients() bool {
	var s typeSet
	s[typePatient/64] = 1 << (typePatient % 64)
	return targetSets[p.targets] == s
}

// SearchParam finds a search parameter of R4 by the type that is searched and the parameter's name, without
// modifier. Those that every type has (_id, _lastUpdated, …) are among each type's; result parameters such as
// _count are no search parameters.
func SearchParam(typ, name string) (ParamInfo, bool) {
	t := typeIndex(typ)
	if t == 0 || name == "" {
		return ParamInfo{}, false
	}
	if name[0] == '_' {
		t = 0 // the first group: parameters of every type
	}
	group := searchParams[searchParamsOf[t]:searchParamsOf[t+1]]
	// A binary search by hand: every parameter of every request comes by here.
	low, high := 0, len(group)
	for low < high {
		switch mid := int(uint(low+high) >> 1); {
		case group[mid].Name == name:
			return group[mid], true
		case group[mid].Name < name:
			low = mid + 1
		default:
			high = mid
		}
	}
	return ParamInfo{}, false
}

// CompartmentPaths gives the paths, as names of JSON properties from the resource down, to the references that
// put a resource of type typ into a patient's compartment (R4 CompartmentDefinition/patient). A property on the
// way may hold an array: then the path goes through every element. It is nil for types outside of the compartment,
// and for Patient: of Patients only the patient's own record is inside, whatever links it claims. The result is
// shared and must not be changed.
func CompartmentPaths(typ string) [][]string { return compartmentPaths[typeIndex(typ)] }

// InCompartment reports whether resources of type typ can be in a patient's compartment.
func InCompartment(typ string) bool {
	t := typeIndex(typ)
	return t == typePatient || compartmentPaths[t] != nil
}

// RefersToPatient reports whether a resource of type typ can refer to a patient, or hold any other resource,
// by an element of its own: extensions and contained resources, which every resource can have, do not count.
func RefersToPatient(typ string) bool { return patientReferrers.has(typeIndex(typ)) }

// A typeSet is a set of types by their indexes.
type typeSet [3]uint64

func (s typeSet) has(i uint8) bool { return i != 0 && s[i/64]>>(i%64)&1 == 1 }
