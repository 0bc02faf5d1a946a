package fhir

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// facts are those of Content that the plain reading below finds too.
type facts struct {
	Type, ID, Version string
	Patients          []string
	Foreign           bool
}

func factsOf(c *Content) facts {
	return facts{c.Type, c.ID, c.Version, c.Patients, c.Foreign}
}

// plainFacts is the slow and obvious reading of a resource that the standard library has made a map of. It
// knows nothing of how ParseResource works.
func plainFacts(m map[string]any, bases []string) facts {
	var f facts
	f.Type, _ = m["resourceType"].(string)
	f.ID, _ = m["id"].(string)
	if meta, ok := m["meta"].(map[string]any); ok {
		f.Version, _ = meta["versionId"].(string)
	}
	patients := map[string]bool{}
	if f.Type == "Patient" && f.ID != "" {
		patients[f.ID] = true
	}
	for _, p := range CompartmentPaths(f.Type) {
		for _, ref := range plainAt([]any{m}, p) {
			ref := ref.(map[string]any)
			literal, ok := ref["reference"].(string)
			if !ok {
				f.Foreign = f.Foreign || ref["identifier"] != nil
				continue
			}
			typ, id := plainResolve(literal, bases)
			if want, ok := ref["type"].(string); typ == "" || ok && want != typ {
				f.Foreign = true
			} else if typ == "Patient" {
				patients[id] = true
			}
		}
	}
	switch f.Type {
	case "Bundle":
		f.Foreign = f.Foreign || len(plainAt([]any{m}, []string{"entry", "resource"})) > 0 || len(plainAt([]any{m}, []string{"entry", "response", "outcome"})) > 0
	case "Parameters":
		for at := []string{"parameter"}; len(at) < 64; at = append(at, "part") {
			f.Foreign = f.Foreign || len(plainAt([]any{m}, append(slices.Clone(at), "resource"))) > 0
		}
	}
	f.Patients = slices.Sorted(maps.Keys(patients))
	return f
}

// plainAt finds the values at a path, stepping over arrays.
func plainAt(values []any, path []string) []any {
	var flat []any
	for _, v := range values {
		if a, ok := v.([]any); ok {
			flat = append(flat, a...)
		} else {
			flat = append(flat, v)
		}
	}
	if len(path) == 0 {
		return flat
	}
	var next []any
	for _, v := range flat {
		if m, ok := v.(map[string]any); ok && m[path[0]] != nil {
			next = append(next, m[path[0]])
		}
	}
	return plainAt(next, path[1:])
}

var plainReference = regexp.MustCompile(`^([A-Z][A-Za-z]*)/([A-Za-z0-9\-.]{1,64})(/_history/[A-Za-z0-9\-.]{1,64})?$`)

func plainResolve(literal string, bases []string) (typ, id string) {
	for _, b := range bases {
		if rest, ok := strings.CutPrefix(literal, b+"/"); ok {
			literal = rest
			break
		}
	}
	m := plainReference.FindStringSubmatch(literal)
	if m == nil || !slices.Contains(typeNames[:], m[1]) {
		return "", ""
	}
	return m[1], m[2]
}
