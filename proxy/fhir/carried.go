package fhir

// carried reads a resource within res.
func (w *walk) carried(res *resource, at place) error {
	if w.nested == maxNested {
		return w.refuse(TooLarge, "too many resources within each other")
	}
	w.nested++
	var inner resource
	if err := w.resource(&inner, at); err != nil {
		return err
	}
	w.nested--
	res.inner += 1 + inner.inner
	res.carries = append(append(res.carries, inner.patients...), inner.carries...)
	res.labels = append(res.labels, inner.labels...)
	if at == own {
		res.foreign = true
	}
	return nil
}

// carriedEntry reads one element of Bundle.entry for the resources in it.
func (w *walk) carriedEntry(res *resource) error {
	return w.object(func(name []byte) error {
		switch string(name) {
		case "resource":
			if err := w.carried(res, own); err != nil {
				return under(err, "resource")
			}
			return nil
		case "response":
			if err := w.response(func() error { return w.carried(res, own) }); err != nil {
				return under(err, "response")
			}
			return nil
		}
		return w.ignore(name, "resource", "response")
	})
}

// response reads a Bundle.entry.response, whose only resource is the outcome.
func (w *walk) response(outcome func() error) error {
	return w.object(func(name []byte) error {
		if string(name) != "outcome" {
			return w.ignore(name, "outcome")
		}
		if err := outcome(); err != nil {
			return under(err, "outcome")
		}
		return nil
	})
}

// parameters reads Parameters.parameter, or its part, for the resources in it.
func (w *walk) parameters(res *resource) error {
	return w.array(func(i int) error {
		err := w.object(func(name []byte) (err error) {
			switch string(name) {
			case "resource":
				err = w.carried(res, own)
			case "part":
				err = w.parameters(res)
			default:
				return w.ignore(name, "resource", "part")
			}
			if err != nil {
				return under(err, string(name))
			}
			return nil
		})
		if err != nil {
			return under(err, index(i))
		}
		return nil
	})
}
