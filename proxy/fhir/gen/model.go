package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// A model is what the tables say.
type model struct {
	types  []resourceType // sorted by name
	common []param        // the parameters of every type, sorted by name
}

type resourceType struct {
	name   string
	params []param // sorted by name
	// compartment holds the paths by which a resource of this type is in a patient's compartment.
	compartment []jsonPath
	// confining are the reference parameters that select only resources inside the compartment of the
	// patient they name, the best first.
	confining []string
	// refersToPatient: some element can refer to a patient, or hold a resource that does.
	refersToPatient bool
}

type param struct {
	name, typ string
	targets   []string // sorted
}

func compile(d *definitions) (*model, error) {
	m := new(model)
	params := map[string][]param{}
	source := map[string]map[string]searchParameter{} // by type and code
	for _, p := range d.params {
		for _, base := range p.Base {
			if source[base] == nil {
				source[base] = map[string]searchParameter{}
			}
			if _, twice := source[base][p.Code]; twice {
				return nil, fmt.Errorf("a second search parameter %s of %s", p.Code, base)
			}
			source[base][p.Code] = p
			targets := slices.Sorted(slices.Values(p.Target))
			params[base] = append(params[base], param{p.Code, p.Type, slices.Compact(targets)})
		}
	}
	for _, ps := range params {
		slices.SortFunc(ps, func(a, b param) int { return cmp.Compare(a.name, b.name) })
	}
	m.common = append(params["DomainResource"], params["Resource"]...)
	slices.SortFunc(m.common, func(a, b param) int { return cmp.Compare(a.name, b.name) })

	members := map[string][]string{}
	for _, r := range d.compartment.Resource {
		members[r.Code] = r.Param
	}
	patients := d.referrers()
	for _, name := range slices.Sorted(maps.Keys(d.structures)) {
		s := d.structures[name]
		if s.Kind != "resource" || s.Abstract {
			continue
		}
		t := resourceType{name: name, params: params[name], refersToPatient: patients[name]}
		for i, p := range t.params {
			// A canonical URL of any type names a definition, never a patient.
			places, err := d.selects(name, source[name][p.name].Expression)
			if err == nil && !slices.ContainsFunc(places, func(p place) bool { return p.root != "canonical" }) {
				t.params[i].targets = slices.DeleteFunc(p.targets, func(t string) bool { return t == "Patient" })
			}
		}
		if _, listed := members[name]; !listed && name != "Parameters" { // Parameters is never stored
			return nil, fmt.Errorf("the compartment definition does not know %s", name)
		}
		if err := t.compile(d, members[name], source[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		m.types = append(m.types, t)
		delete(members, name)
	}
	for name := range members {
		return nil, fmt.Errorf("the compartment definition has an unknown type %s", name)
	}
	return m, nil
}

// compile finds the compartment's paths in t, and the parameters that confine a search to them.
func (t *resourceType) compile(d *definitions, members []string, source map[string]searchParameter) error {
	// The definition lists Patient.link: any patient record that names mine as linked would be mine. Whoever
	// may write a Patient could so claim any other, hence of Patients only the patient's own is inside.
	if t.name == "Patient" {
		return nil
	}
	inside := map[string]bool{}
	for _, code := range members {
		p, ok := source[code]
		if !ok || p.Type != "reference" {
			return fmt.Errorf("the compartment's parameter %s is no reference parameter", code)
		}
		paths, err := d.referencePaths(t.name, p.Expression)
		if err != nil {
			return fmt.Errorf("%s: %w", code, err)
		}
		for _, path := range paths {
			if !inside[path.String()] {
				inside[path.String()] = true
				t.compartment = append(t.compartment, path)
			}
		}
	}
	slices.SortFunc(t.compartment, func(a, b jsonPath) int { return slices.Compare(a, b) })
	for _, p := range t.params {
		if p.typ != "reference" || !slices.Contains(p.targets, "Patient") {
			continue
		}
		paths, err := d.referencePaths(t.name, source[p.name].Expression)
		if err == nil && !slices.ContainsFunc(paths, func(path jsonPath) bool { return !inside[path.String()] }) {
			t.confining = append(t.confining, p.name)
		}
	}
	rank := func(name string) int {
		switch {
		case name == "patient":
			return 0
		case name == "subject":
			return 1
		}
		if i := slices.Index(members, name); i >= 0 {
			return 2 + i
		}
		return 2 + len(members)
	}
	slices.SortStableFunc(t.confining, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	if (len(t.compartment) == 0) != (len(t.confining) == 0) {
		return fmt.Errorf("compartment paths %v, but confining parameters %v", t.compartment, t.confining)
	}
	return nil
}

// referrers gives the types, of resources and of data, that can refer to a patient or hold any resource. The
// elements that every resource has (extensions, contained resources) do not count.
func (d *definitions) referrers() map[string]bool {
	found := map[string]bool{"Reference": false}
	for changed := true; changed; {
		changed = false
		for name, s := range d.structures {
			if !found[name] && name != "Reference" && d.refers(s, found) {
				found[name], changed = true, true
			}
		}
	}
	return found
}

func (d *definitions) refers(s *structure, found map[string]bool) bool {
	for _, e := range s.Snapshot.Element {
		for _, t := range e.Type {
			switch {
			case e.Path == s.Type+".contained" || t.Code == "Extension":
			case t.Code == "Resource":
				return true
			case t.Code == "Reference":
				if len(t.TargetProfile) == 0 || slices.ContainsFunc(t.TargetProfile, anyOrPatient) {
					return true
				}
			case t.Code != s.Type && found[t.Code]:
				return true
			}
		}
	}
	return false
}

func anyOrPatient(profile string) bool {
	return profile == "http://hl7.org/fhir/StructureDefinition/Patient" ||
		profile == "http://hl7.org/fhir/StructureDefinition/Resource"
}
