package main

import (
	"fmt"
	"strings"
)

// A jsonPath is the names of the JSON properties that lead from a resource to an element. Arrays are not
// marked: where a property holds one, the path goes through each of its elements.
type jsonPath []string

func (p jsonPath) String() string { return strings.Join(p, ".") }

// referencePaths compiles a search parameter's FHIRPath expression to the JSON paths of the References that it
// selects in typ. It is an error if it selects anything else.
func (d *definitions) referencePaths(typ, expression string) ([]jsonPath, error) {
	places, err := d.selects(typ, expression)
	if err != nil {
		return nil, err
	}
	var paths []jsonPath
	for _, p := range places {
		if p.root != "Reference" {
			return nil, fmt.Errorf("%s is a %s, not a Reference", p.json, p.root)
		}
		paths = append(paths, p.json)
	}
	return paths, nil
}

// selects gives the places that an expression selects in typ. It knows the part of FHIRPath that HL7's
// definitions use for references: paths, `|`, `as`, `as()`, `ofType()`, `where(resolve() is T)` and
// `where(name='value')`. These filters are dropped, so that a path may select more than the parameter does.
// Anything else is an error.
func (d *definitions) selects(typ, expression string) ([]place, error) {
	terms, err := split(expression, '|')
	if err != nil {
		return nil, err
	}
	var places []place
	for _, term := range terms {
		for enclosed(term) {
			term = strings.TrimSpace(term[1 : len(term)-1])
		}
		steps, err := parseSteps(term)
		if err != nil {
			return nil, err
		}
		if steps[0].name != typ {
			continue // the parameter is shared by several types
		}
		found, err := d.resolve(typ, steps[1:])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", term, err)
		}
		places = append(places, found...)
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("%q selects nothing in %s", expression, typ)
	}
	return places, nil
}

// A step is one name of a FHIRPath, with the type that an `as` demands of it.
type step struct{ name, as string }

func parseSteps(term string) ([]step, error) {
	term, infix, found := cutInfixAs(term)
	for enclosed(term) {
		term = strings.TrimSpace(term[1 : len(term)-1])
	}
	names, err := split(term, '.')
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, n := range names {
		call, arg, isCall := strings.Cut(n, "(")
		if !isCall {
			if n == "" || strings.ContainsFunc(n, func(r rune) bool { return !letter(r) && (r < '0' || r > '9') }) {
				return nil, fmt.Errorf("no name of an element: %q", n)
			}
			steps = append(steps, step{name: n})
			continue
		}
		arg = strings.TrimSuffix(arg, ")")
		if len(steps) == 0 {
			return nil, fmt.Errorf("a path begins with the function %s", call)
		}
		switch {
		case (call == "as" || call == "ofType") && isName(arg):
			steps[len(steps)-1].as = arg
		case call == "where" && isFilter(arg):
		default:
			return nil, fmt.Errorf("the function %s(%s) is not known", call, arg)
		}
	}
	if found {
		steps[len(steps)-1].as = infix
	}
	return steps, nil
}

// resolve follows steps from the root of structure typ.
func (d *definitions) resolve(typ string, steps []step) ([]place, error) {
	at := []place{{root: typ, path: typ}}
	for _, s := range steps {
		var next []place
		for _, p := range at {
			found, err := d.children(p, s)
			if err != nil {
				return nil, err
			}
			next = append(next, found...)
		}
		if len(next) == 0 {
			return nil, fmt.Errorf("no element %s", s.name)
		}
		at = next
	}
	return at, nil
}

// A place is an element: its definition is at path in the structure root. Where an element has a type of its own,
// root and path are that type.
type place struct {
	root, path string
	json       jsonPath
}

// children gives the places that step s leads to: one, or for a choice element one for each type it can have
// that leads on to a Reference.
func (d *definitions) children(p place, s step) ([]place, error) {
	def := d.structures[p.root]
	if def == nil {
		return nil, fmt.Errorf("no definition of %s", p.root)
	}
	for _, e := range def.Snapshot.Element {
		choice := e.Path == p.path+"."+s.name+"[x]"
		if !choice && e.Path != p.path+"."+s.name {
			continue
		}
		if target, ok := strings.CutPrefix(e.ContentReference, "#"); ok {
			return []place{{p.root, target, extend(p.json, s.name)}}, nil
		}
		var found []place
		for _, t := range e.Type {
			name := s.name
			if choice {
				name += strings.ToUpper(t.Code[:1]) + t.Code[1:]
			}
			if s.as != "" && s.as != t.Code || choice && s.as == "" && t.Code != "Reference" {
				continue
			}
			next := place{t.Code, t.Code, extend(p.json, name)}
			if t.Code == "BackboneElement" || t.Code == "Element" {
				next.root, next.path = p.root, e.Path
			}
			if seen(found, next) {
				continue // R4 lists a Reference once per group of targets
			}
			found = append(found, next)
		}
		return found, nil
	}
	return nil, fmt.Errorf("no element %s.%s", p.path, s.name)
}

func seen(places []place, p place) bool {
	for _, q := range places {
		if q.root == p.root && q.path == p.path && q.json.String() == p.json.String() {
			return true
		}
	}
	return false
}

func extend(p jsonPath, name string) jsonPath { return append(append(jsonPath{}, p...), name) }

// cutInfixAs takes the type from `path as T` at the outermost level.
func cutInfixAs(term string) (path, typ string, found bool) {
	i := strings.LastIndex(term, " as ")
	if i < 0 || strings.ContainsAny(term[i:], "()") {
		return term, "", false
	}
	return strings.TrimSpace(term[:i]), strings.TrimSpace(term[i+4:]), true
}

// split divides s at each sep outside of parentheses and trims the parts.
func split(s string, sep byte) ([]string, error) {
	var parts []string
	depth, start := 0, 0
	for i := range len(s) {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth < 0 {
				return nil, fmt.Errorf("unbalanced parentheses in %q", s)
			}
		case sep:
			if depth == 0 {
				parts = append(parts, strings.TrimSpace(s[start:i]))
				start = i + 1
			}
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("unbalanced parentheses in %q", s)
	}
	return append(parts, strings.TrimSpace(s[start:])), nil
}

// enclosed reports whether one pair of parentheses encloses all of s.
func enclosed(s string) bool {
	if !strings.HasPrefix(s, "(") {
		return false
	}
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i == len(s)-1
			}
		}
	}
	return false
}

// isFilter reports whether a condition of where() only leaves elements out: `resolve() is T`, `name='value'`.
func isFilter(s string) bool {
	if typ, ok := strings.CutPrefix(s, "resolve() is "); ok {
		return isName(typ)
	}
	name, value, ok := strings.Cut(s, "=")
	value = strings.TrimSpace(value)
	return ok && isName(strings.TrimSpace(name)) && len(value) > 2 && strings.Count(value, "'") == 2 &&
		value[0] == '\'' && value[len(value)-1] == '\''
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !letter(r) })
}

func letter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }
