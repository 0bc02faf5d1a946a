package fhir

import "strings"

// WithForm adds the form body of a search by POST. R4 takes the parameters of URL and body together
// (http.html#search); from here on all of them travel in the body. The error is an *Error.
func (in Interaction) WithForm(body []byte, contentType string) (Interaction, error) {
	if !in.Form || in.merged {
		return Interaction{}, malformed("the interaction has no form body to come", "")
	}
	if !isForm(contentType) {
		return Interaction{}, &Error{Class: Media, Text: "a search by POST has a body of application/x-www-form-urlencoded", Expression: "Content-Type"}
	}
	if len(body) > maxForm {
		return Interaction{}, &Error{Class: TooLarge, Text: "the form is larger than 64 KiB"}
	}
	params, err := parseQuery(string(body))
	if err != nil {
		return Interaction{}, err
	}
	in.merged = true
	_, err = in.refine(append(append(make([]Param, 0, len(in.Params)+len(params)), in.Params...), params...))
	if err != nil {
		return Interaction{}, err
	}
	return in, nil
}

// FormBody is the canonical body of a search by POST, nil for every other interaction.
func (in Interaction) FormBody() []byte {
	if !in.Form {
		return nil
	}
	return appendQuery([]byte{}, in.Params)
}

// isForm reports whether a Content-Type is that of a form in UTF-8.
func isForm(contentType string) bool {
	media, params, _ := strings.Cut(contentType, ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/x-www-form-urlencoded") {
		return false
	}
	params = strings.TrimSpace(params)
	return params == "" || strings.EqualFold(params, "charset=utf-8") || strings.EqualFold(params, `charset="utf-8"`)
}
