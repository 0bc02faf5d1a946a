package fhir

// entry is one element of Bundle.entry in a reply. Byte slices are parts of the text, nil when absent.
type entry struct {
	fullURL, mode, method, url []byte
	res                        resource
	present                    bool // it has a resource
}

// bundle reads the reply as a Bundle of the given type and hands each entry to visit as it passes. Nothing is
// known of the Bundle as a whole before bundle returns.
func (r *reply) bundle(typ string, visit func(*entry) error) error {
	err := r.bundleMembers(typ, visit)
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return under(err, "Bundle")
	}
	return nil
}

func (r *reply) bundleMembers(typ string, visit func(*entry) error) error {
	var isBundle, isType bool
	var total, matches = -1, 0
	notBundle := &Error{Class: Malformed, Text: "the reply is not a Bundle of type " + typ}
	err := r.object(func(name []byte) (err error) {
		var v []byte
		switch string(name) {
		case "resourceType":
			if v, err = r.text(); err == nil && string(v) != "Bundle" {
				return notBundle
			}
			isBundle = true
		case "type":
			if v, err = r.text(); err == nil && string(v) != typ {
				return notBundle
			}
			isType = true
		case "total":
			total, err = r.number()
		case "link":
			err = r.links()
		case "entry":
			matches, err = r.entries(visit)
		default:
			// Anything else, such as `contained`, could hold what nothing here would check.
			if !isBundleElement(string(name)) {
				return r.refuse(Invalid, "not an element of a Bundle")
			}
			return r.skip()
		}
		if err != nil {
			return under(err, string(name))
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !isBundle || !isType:
		return notBundle
	case r.confined() && total > matches && !r.facts.More:
		// What the caller is not shown must not be counted for them either: _summary=count, _count=0.
		return &Error{Class: Outside, Text: "the reply counts more than it shows", Expression: "total"}
	}
	return nil
}

// isBundleElement knows the elements of a Bundle that are passed over (bundle.html).
func isBundleElement(name string) bool {
	switch name {
	case "id", "meta", "implicitRules", "language", "identifier", "timestamp", "signature",
		"_id", "_implicitRules", "_language", "_type", "_timestamp", "_total":
		return true
	}
	return false
}

// isEntryElement knows the elements of Bundle.entry that are passed over.
func isEntryElement(name string) bool {
	switch name {
	case "id", "extension", "modifierExtension", "link", "_id", "_fullUrl":
		return true
	}
	return false
}

// links reads Bundle.link to learn whether there are more pages.
func (r *reply) links() error {
	return r.array(func(i int) error {
		err := r.object(func(name []byte) error {
			if string(name) != "relation" {
				return r.ignore(name, "relation")
			}
			v, err := r.text()
			r.facts.More = r.facts.More || string(v) == "next"
			return err
		})
		if err != nil {
			return under(err, index(i))
		}
		return nil
	})
}

// entries reads Bundle.entry. matches counts what Bundle.total counts: neither included resources nor outcomes.
func (r *reply) entries(visit func(*entry) error) (matches int, err error) {
	var e entry
	err = r.array(func(i int) error {
		if i >= r.limits.Entries {
			return r.refuse(TooLarge, "too many entries")
		}
		e = entry{res: resource{patients: e.res.patients[:0], carries: e.res.carries[:0], labels: e.res.labels[:0]}}
		err := r.entry(&e)
		if err == nil {
			err = visit(&e)
		}
		if err != nil {
			return under(err, index(i))
		}
		if string(e.mode) != "include" && !e.isOutcome() {
			matches++
		}
		return nil
	})
	return matches, err
}

// entry reads one element of Bundle.entry.
func (r *reply) entry(e *entry) error {
	return r.object(func(name []byte) (err error) {
		switch string(name) {
		case "fullUrl":
			e.fullURL, err = r.text()
		case "resource":
			e.present = true
			err = r.resource(&e.res, own)
		case "search":
			err = r.strings(field{"mode", &e.mode})
		case "request":
			err = r.strings(field{"method", &e.method}, field{"url", &e.url})
		case "response":
			err = r.response(func() error {
				var res resource
				err := r.resource(&res, own)
				if err == nil && (res.typ != "OperationOutcome" || res.inner > 0) {
					err = other("")
				}
				return err
			})
		default:
			if !isEntryElement(string(name)) {
				return r.refuse(Invalid, "not an element of a Bundle's entry")
			}
			return r.skip()
		}
		if err != nil {
			return under(err, string(name))
		}
		return nil
	})
}

// field is a string member and where its value goes.
type field struct {
	name string
	to   *[]byte
}

// strings reads an object for some of its string members.
func (r *reply) strings(fields ...field) error {
	return r.object(func(name []byte) (err error) {
		for _, f := range fields {
			if f.name == string(name) {
				if *f.to, err = r.text(); err != nil {
					return under(err, f.name)
				}
				return nil
			}
		}
		for _, f := range fields {
			if alike(name, f.name) {
				return r.refuse(Invalid, wrongCase)
			}
		}
		return r.skip()
	})
}

// isOutcome: a searchset may hold one OperationOutcome about the search itself (search.html#bundle), which
// discloses no resource.
func (e *entry) isOutcome() bool {
	return e.present && e.res.typ == "OperationOutcome" && e.res.inner == 0
}

// found decides on one entry of a searchset.
func (r *reply) found(e *entry) error {
	switch string(e.mode) {
	case "", "match", "include":
	case "outcome":
		if !e.isOutcome() {
			return other("resource")
		}
	default:
		return &Error{Class: Malformed, Text: "not a search mode", Expression: "search.mode"}
	}
	if e.isOutcome() {
		return nil
	}
	if !e.present {
		return &Error{Class: Malformed, Text: "an entry has no resource"}
	}
	// Also what was included must be of the searched type: the caller was granted no other.
	if e.res.typ != r.in.Type {
		return other("resource")
	}
	return r.discloseEntry(e)
}

// history decides on a Bundle of versions.
func (r *reply) history() error {
	deletions := 0
	err := r.bundle("history", func(e *entry) error {
		if e.present {
			if !r.asked([]byte(e.res.typ), e.res.id) {
				return other("resource")
			}
			return r.discloseEntry(e)
		}
		if string(e.method) != "DELETE" { // http.html#history: only a deletion has no resource
			return &Error{Class: Malformed, Text: "an entry has no resource"}
		}
		deletions++
		if typ, id, ok := r.local(e.url); !ok || !r.asked(typ, id) {
			return other("request.url")
		}
		return nil
	})
	if err != nil {
		return err
	}
	// A deletion does not say whose the resource was; only its other versions can.
	if r.confined() && (r.facts.Count == 0 || deletions > 0 && r.in.Kind != HistoryInstance) {
		return &Error{Class: Outside, Text: "the history does not show whose it is", Expression: "Bundle"}
	}
	return nil
}

// asked reports whether the request asked for the history of this resource.
func (r *reply) asked(typ, id []byte) bool {
	return (r.in.Type == "" || r.in.Type == string(typ)) && (r.in.Kind != HistoryInstance || r.in.ID == string(id))
}

// discloseEntry lets an entry's resource out. Its fullUrl, when given, must be its own URL on this server: the
// relative references in it are resolved against that (bundle.html#references).
func (r *reply) discloseEntry(e *entry) error {
	if len(e.res.id) == 0 {
		return &Error{Class: Malformed, Text: "the resource has no id", Expression: "resource.id"}
	}
	if e.fullURL != nil {
		typ, id, ok := r.local(e.fullURL)
		if !ok || string(typ) != e.res.typ || string(id) != string(e.res.id) {
			return &Error{Class: Malformed, Text: "not the resource's URL on this server", Expression: "fullUrl"}
		}
	}
	if err := r.disclose(&e.res); err != nil {
		return under(err, "resource")
	}
	return nil
}
