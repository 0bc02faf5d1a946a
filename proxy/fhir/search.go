package fhir

import "strings"

// refine checks every parameter against what R4 knows for this interaction, brings its value into canonical
// form, and keeps the result in in.Params. It may use the slice. json is set when _format asked for JSON.
//
// Nothing is passed on for the server to ignore: a server that does not know a parameter answers as if it were
// not there, with more than was asked for.
func (in *Interaction) refine(params []Param) (json bool, err error) {
	kept := params[:0]
	var once uint16
	for _, p := range params {
		if !isParamName(p.Name) {
			return false, malformed("a parameter's name is none that FHIR could have", "")
		}
		base, modifier, modified := strings.Cut(p.Name, ":")
		if bit, known := resultParams(in.Kind, base); known {
			if modified {
				return false, malformed("this parameter has no modifiers", base)
			}
			if once&bit != 0 {
				return false, malformed("the parameter may be given once only", base)
			}
			once |= bit
			if err := in.checkResultParam(p); err != nil {
				return false, err
			}
			switch base {
			case "_format":
				json = true // there is no other format: Ward itself asks for it, by Accept
				continue
			case "_total":
				continue // a hint only, and a total counts what the reply does not show
			}
			kept = append(kept, p)
			continue
		}
		if err := refusedParam(base); err != nil {
			return false, err
		}
		if in.Kind != Search {
			return false, malformed("FHIR knows no such parameter for this interaction", p.Name)
		}
		if p, err = searchParam(in.Type, p, base, modifier, modified); err != nil {
			return false, err
		}
		kept = append(kept, p)
	}
	if len(kept) == 0 {
		kept = nil
	}
	in.Params = kept
	return json, in.fits()
}

// fits refuses what would be too long in canonical form: escapes can treble a text.
func (in *Interaction) fits() error {
	if len(in.Params) > maxParams {
		return malformed("there are more than 64 parameters", "")
	}
	n := 0
	for _, p := range in.Params {
		n += escapedLen(p.Name) + escapedLen(p.Value) + 2
	}
	if in.Form && n > maxForm {
		return &Error{Class: TooLarge, Text: "the search parameters are longer than 64 KiB when escaped"}
	}
	if !in.Form && n+len(in.path) > maxTarget {
		return malformed("the request target is longer than 8192 bytes when escaped", "")
	}
	return nil
}

// resultParams knows the parameters that shape a reply and do not search, by interaction; bit tells them apart.
func resultParams(k Kind, name string) (bit uint16, known bool) {
	reads := !k.Writes()
	history := k == HistoryInstance || k == HistoryType || k == HistorySystem
	switch name {
	case "_format":
		return 1 << 0, true
	case "_pretty":
		return 1 << 1, true
	case "_summary":
		return 1 << 2, reads
	case "_elements":
		return 1 << 3, reads
	case "_count":
		return 1 << 4, k == Search || history
	case "_sort":
		return 1 << 5, k == Search
	case "_total":
		return 1 << 6, k == Search
	case "_since":
		return 1 << 7, history
	case "_at":
		return 1 << 8, history
	case "mode":
		return 1 << 9, k == Capabilities
	}
	return 0, false
}

func (in *Interaction) checkResultParam(p Param) error {
	ok := true
	switch p.Name {
	case "_format":
		if !isJSONFormat(p.Value) {
			return &Error{Class: Media, Text: "Ward serves FHIR as application/fhir+json only", Expression: "_format"}
		}
	case "_pretty":
		ok = p.Value == "true" || p.Value == "false"
	case "_summary":
		if p.Value == "count" {
			return uncheckable("_summary")
		}
		ok = p.Value == "true" || p.Value == "false" || p.Value == "text" || p.Value == "data"
	case "_elements":
		ok = eachItem(p.Value, isRootElement)
	case "_count":
		if strings.Trim(p.Value, "0") == "" {
			return uncheckable("_count")
		}
		ok = len(p.Value) <= 6 && p.Value[0] != '0' && strings.Trim(p.Value, "0123456789") == ""
	case "_sort":
		for key := range strings.SplitSeq(p.Value, ",") {
			if err := checkSortKey(in.Type, strings.TrimPrefix(key, "-")); err != nil {
				return err
			}
		}
	case "_total":
		ok = p.Value == "none" || p.Value == "estimate" || p.Value == "accurate"
	case "_since", "_at":
		ok = strings.Trim(p.Value, "0123456789-:.TZ+") == ""
	case "mode":
		ok = p.Value == "full" || p.Value == "normative" || p.Value == "terminology"
	}
	if !ok {
		return malformed("the parameter has a value that it cannot have", p.Name)
	}
	return nil
}

// uncheckable refuses what is answered by a number alone: a count tells of resources that no check has seen.
func uncheckable(name string) error {
	return &Error{Class: Unsupported, Text: "Ward cannot decide on a search that only counts", Expression: name}
}

func checkSortKey(typ, key string) error {
	if err := refusedParam(key); err != nil {
		return err
	}
	if strings.Contains(key, ".") {
		return &Error{Class: Unsupported, Text: "Ward cannot decide on a chain through other resources", Expression: "_sort"}
	}
	info, ok := SearchParam(typ, key)
	if !ok || info.Type == ParamSpecial || info.Type == ParamComposite {
		return malformed("the sort key is no search parameter of this type", "_sort")
	}
	return nil
}

// refusedParam refuses parameters that reach beyond the resources of the searched type, or into what Ward does
// not see, and those that other gateways and servers act on.
func refusedParam(name string) error {
	what := ""
	switch name {
	case "_method":
		return malformed("a parameter cannot change the method", name)
	case "access_token":
		// RFC 9700 §2.4: clients must not put tokens into URLs, where logs keep them.
		return malformed("a token is taken from the Authorization header only", name)
	case "_include", "_revinclude":
		what = "resources included with a search"
	case "_has":
		what = "a reverse chain"
	case "_contained", "_containedType":
		what = "a search of contained resources"
	case "_filter", "_query":
		what = "a search expression or a named query"
	case "_text", "_content":
		what = "a search of whole texts"
	case "_list":
		what = "a search by list"
	case "_type":
		what = "a search of several types"
	case "_security":
		what = "a search by security label, which would tell of labels on what is withheld"
	case "_source":
		what = "a search by source"
	case "_score":
		what = "an order by relevance"
	case "_getpages", "_getpagesoffset", "_bundletype", "_pageId", "_page", "_offset", "_cursor", "_skip", "ct":
		what = "a page of a search by the server's own link"
	default:
		return nil
	}
	return &Error{Class: Unsupported, Text: "Ward cannot decide on " + what, Expression: name}
}

// searchParam checks one search parameter of type typ, and gives it in canonical form.
func searchParam(typ string, p Param, base, modifier string, modified bool) (Param, error) {
	if strings.Contains(p.Name, ".") {
		return p, &Error{Class: Unsupported, Text: "Ward cannot decide on a chain through other resources", Expression: p.Name}
	}
	info, ok := SearchParam(typ, base)
	if !ok {
		return p, malformed("R4 knows no such search parameter for this type", p.Name)
	}
	if modified {
		if err := checkModifier(info, modifier, p); err != nil {
			return p, err
		}
	}
	if info.Type != ParamReference || modifier == "missing" {
		return p, nil
	}
	value, err := canonicalReferences(info, modifier, p.Value)
	if err != nil {
		return p, err
	}
	return Param{base, value}, nil
}

// checkModifier lets the modifiers through that stay with the searched type's own elements. Those that make the
// server look elsewhere (value sets, hierarchies, the targets' identifiers) could tell of what is there.
func checkModifier(info ParamInfo, modifier string, p Param) error {
	ok := false
	switch modifier {
	case "missing":
		if p.Value != "true" && p.Value != "false" {
			return malformed(":missing is true or false", p.Name)
		}
		ok = info.Type != ParamComposite && info.Type != ParamSpecial
	case "exact", "contains":
		ok = info.Type == ParamString
	case "not", "text", "of-type":
		ok = info.Type == ParamToken
	case "in", "not-in", "above", "below", "identifier":
		return &Error{Class: Unsupported, Text: "Ward cannot decide on this modifier", Expression: p.Name}
	default: // a type: R4 search.html#reference
		ok = info.Type == ParamReference && info.Targets(modifier)
	}
	if !ok {
		return malformed("the parameter has no such modifier", p.Name)
	}
	return nil
}

// isParamName reports whether s can be a parameter's name, with modifier and chain. Only what passes is ever
// repeated in an error.
func isParamName(s string) bool {
	if len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !unreserved[c] && c != ':' || c == '~' {
			return false
		}
	}
	return s != ""
}

func isRootElement(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= 'A' && c <= 'Z' || c >= '0' && c <= '9')) {
			return false
		}
	}
	return s != ""
}

func eachItem(list string, ok func(string) bool) bool {
	for item := range strings.SplitSeq(list, ",") {
		if !ok(item) {
			return false
		}
	}
	return true
}

func escapedLen(s string) int {
	n := len(s)
	for i := range len(s) {
		if !unreserved[s[i]] {
			n += 2
		}
	}
	return n
}
