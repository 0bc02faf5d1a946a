package fhir

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// walk goes once through a text that is a resource, and takes from it what decisions rest on. It keeps
// nothing else: no tree is built.
type walk struct {
	*reader
	bases []string
	// ahead looks for a resourceType that is not its object's first member.
	ahead  *jsontext.Decoder
	words  map[string]string // one copy of each type and patient id
	search bool              // some reference is a search
	nested int               // resources within each other around the present place
}

// resource is what the walk found of one resource. Byte slices are parts of the text.
type resource struct {
	typ         string
	id, version []byte
	patients    []string // unsorted, with repeats
	carries     []string // the same
	inner       int      // resources within it
	foreign     bool
	labels      []Coding
}

// maxNested bounds how many resources may lie within each other inside one. Each may have its resourceType at its
// end, and then is read twice.
const maxNested = 4

// place says where a resource stands.
type place uint8

const (
	own       place = iota // a resource of its own: the body, or an entry's resource
	contained              // within another, without an identity of its own (references.html#contained)
)

func newWalk(body []byte, o ContentOptions) (*walk, error) {
	r, err := newReader(body, o.Limits)
	if err != nil {
		return nil, err
	}
	return &walk{reader: r, bases: o.Bases}, nil
}

// whole reads the text as one resource and nothing after it.
func (w *walk) whole(res *resource) error {
	err := w.resource(res, own)
	if err == nil {
		err = w.end()
	}
	if err != nil {
		name := res.typ
		if name == "" {
			name = "Resource"
		}
		return under(err, name)
	}
	return nil
}

// resource reads the resource that comes next into res, which must be clear.
func (w *walk) resource(res *resource, at place) error {
	var paths [][]string
	first := true
	err := w.object(func(name []byte) error {
		if first {
			// The compartment paths depend on the type, so the type has to be known before the members are read.
			first = false
			if string(name) != "resourceType" {
				w.findType(res)
			} else if err := w.resourceType(res); err != nil {
				return err
			}
			if res.typ == "" {
				return w.refuse(Malformed, "a resource must say its resourceType")
			}
			paths = CompartmentPaths(res.typ)
			if string(name) == "resourceType" {
				return nil
			}
		}
		if err := w.resourceMember(res, at, paths, name); err != nil {
			return under(err, string(name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if first {
		return w.refuse(Malformed, "a resource must say its resourceType")
	}
	if res.typ == "Patient" && at == own && len(res.id) > 0 {
		res.patients = append(res.patients, w.word(res.id))
	}
	return nil
}

// resourceMember reads the value of one member of a resource, other than a resourceType that came first.
func (w *walk) resourceMember(res *resource, at place, paths [][]string, name []byte) error {
	switch string(name) {
	case "resourceType":
		return w.resourceType(res)
	case "id":
		id, err := w.text()
		if err != nil {
			return err
		}
		if at == own && !IsID(string(id)) {
			return w.refuse(Invalid, "must be a FHIR id")
		}
		res.id = id
		return nil
	case "meta":
		return w.meta(res)
	case "contained":
		if at == contained { // dom-2
			return w.refuse(Invalid, "a contained resource must not contain another")
		}
		return w.array(func(i int) error {
			if err := w.carried(res, contained); err != nil {
				return under(err, index(i))
			}
			return nil
		})
	case "entry":
		if res.typ == "Bundle" {
			return w.array(func(i int) error {
				if i >= w.limits.Entries {
					return w.refuse(TooLarge, "too many entries")
				}
				if err := w.carriedEntry(res); err != nil {
					return under(err, index(i))
				}
				return nil
			})
		}
	case "parameter":
		if res.typ == "Parameters" {
			return w.parameters(res)
		}
	}
	next, leaf := live(paths, ^uint64(0), 0, name)
	if next != 0 {
		return w.path(res, paths, next, leaf, 1)
	}
	if alikePath(paths, ^uint64(0), 0, name) {
		return w.refuse(Invalid, wrongCase)
	}
	return w.ignore(name, "resourceType", "id", "meta", "contained", "entry", "parameter")
}

func (w *walk) resourceType(res *resource) error {
	t, err := w.text()
	if err != nil {
		return under(err, "resourceType")
	}
	if !IsType(string(t)) {
		return under(w.refuse(Invalid, "must be an R4 resource type"), "resourceType")
	}
	res.typ = w.word(t)
	return nil
}

// findType sets res.typ from the rest of the object whose first name has just been read; it leaves it empty
// when there is none or it is no R4 type. What it passes over is checked when the walk gets there.
func (w *walk) findType(res *resource) {
	text := bytes.NewBuffer(w.src[w.opened-1:])
	if w.ahead == nil {
		w.ahead = jsontext.NewDecoder(text)
	} else {
		w.ahead.Reset(text)
	}
	if _, err := w.ahead.ReadToken(); err != nil {
		return
	}
	for w.ahead.PeekKind() == jsontext.KindString {
		name, err := w.ahead.ReadValue()
		if err != nil {
			return
		}
		if string(name) != `"resourceType"` {
			if w.ahead.SkipValue() != nil {
				return
			}
			continue
		}
		if w.ahead.PeekKind() != jsontext.KindString {
			return
		}
		v, err := w.ahead.ReadValue()
		if err != nil {
			return
		}
		if t, err := jsontext.AppendUnquote(nil, v); err == nil && IsType(string(t)) {
			res.typ = w.word(t)
		}
		return
	}
}

// meta reads Resource.meta: the version and the security labels.
func (w *walk) meta(res *resource) error {
	return w.object(func(name []byte) (err error) {
		switch string(name) {
		case "versionId":
			if res.version, err = w.text(); err == nil && !IsID(string(res.version)) {
				err = w.refuse(Invalid, "must be a FHIR id")
			}
		case "security":
			err = w.array(func(i int) error {
				if err := w.label(res); err != nil {
					return under(err, index(i))
				}
				return nil
			})
		default:
			return w.ignore(name, "versionId", "security")
		}
		if err != nil {
			return under(err, string(name))
		}
		return nil
	})
}

func (w *walk) label(res *resource) error {
	var c Coding
	err := w.object(func(name []byte) error {
		field := &c.System
		switch string(name) {
		case "system":
		case "code":
			field = &c.Code
		default:
			return w.ignore(name, "system", "code")
		}
		v, err := w.text()
		if err != nil {
			return under(err, string(name))
		}
		*field = w.word(v)
		return nil
	})
	if err == nil {
		res.labels = append(res.labels, c)
	}
	return err
}

const wrongCase = "a member's name has the wrong case"

// ignore passes over the value of a member on which no decision rests, unless its name is like one of those
// on which some does.
func (w *walk) ignore(name []byte, known ...string) error {
	if alike(name, known...) {
		return w.refuse(Invalid, wrongCase)
	}
	return w.skip()
}

// skip passes over a value on which no decision rests. It still looks at every name and every reference.
func (w *walk) skip() error {
	switch w.kind() {
	case jsontext.KindBeginObject:
		return w.object(func(name []byte) error {
			if string(name) == "reference" && w.kind() == jsontext.KindString {
				literal, err := w.text()
				w.search = w.search || isSearch(literal)
				return err
			}
			return w.skip()
		})
	case jsontext.KindBeginArray:
		return w.array(func(int) error { return w.skip() })
	}
	_, err := w.scalar()
	return err
}

// word is the one string for b.
func (w *walk) word(b []byte) string {
	if s, ok := w.words[string(b)]; ok {
		return s
	}
	if w.words == nil {
		w.words = make(map[string]string)
	}
	s := string(b)
	w.words[s] = s
	return s
}
