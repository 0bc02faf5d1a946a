package fhir

import (
	"bytes"
	"strings"
)

// reference reads a Reference at a compartment path and says in res whose compartment it opens.
func (w *walk) reference(res *resource) error {
	var literal, typ []byte
	var logical bool
	err := w.object(func(name []byte) (err error) {
		switch string(name) {
		case "reference":
			literal, err = w.text()
			if err == nil && len(literal) == 0 {
				err = w.refuse(Invalid, "must not be empty")
			}
		case "type":
			typ, err = w.text()
		case "identifier":
			logical = true
			err = w.skip()
		default:
			return w.ignore(name, "reference", "type", "identifier")
		}
		if err != nil {
			return under(err, string(name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if literal == nil {
		// A display text or an extension leads nowhere; an identifier might lead to any patient.
		res.foreign = res.foreign || logical
		return nil
	}
	w.search = w.search || isSearch(literal)
	t, id, ok := w.local(literal)
	switch {
	case !ok, typ != nil && !bytes.Equal(typ, t): // references.html#Reference: the type has to agree
		res.foreign = true
	case string(t) == "Patient":
		res.patients = append(res.patients, w.word(id))
	}
	return nil
}

// local resolves a literal reference to a resource of this server: `Type/id`, `Type/id/_history/version`, or
// one of these after a base of ours (references.html#literal).
func (w *walk) local(literal []byte) (typ, id []byte, ok bool) {
	rest := literal
	for _, base := range w.bases {
		base = strings.TrimSuffix(base, "/")
		if base != "" && len(literal) > len(base) && literal[len(base)] == '/' && string(literal[:len(base)]) == base {
			rest = literal[len(base)+1:]
			break
		}
	}
	typ, id, found := bytes.Cut(rest, []byte("/"))
	if !found {
		return nil, nil, false
	}
	if i := bytes.IndexByte(id, '/'); i >= 0 {
		version, found := bytes.CutPrefix(id[i:], []byte("/_history/"))
		if !found || !IsID(string(version)) {
			return nil, nil, false
		}
		id = id[:i]
	}
	return typ, id, IsType(string(typ)) && IsID(string(id))
}

// isSearch reports whether a literal reference is a conditional one, `Type?param=value`, on whatever base
// (http.html#trules).
func isSearch(literal []byte) bool {
	i := bytes.IndexByte(literal, '?')
	if i < 0 {
		return false
	}
	return IsType(string(literal[bytes.LastIndexByte(literal[:i], '/')+1 : i]))
}
