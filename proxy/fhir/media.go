package fhir

import (
	"mime"
	"strings"
)

// JSONMedia reports whether a Content-Type promises FHIR R4 in JSON: application/fhir+json or
// application/json, in UTF-8, and for no other FHIR version. The error is an *Error of class Media.
func JSONMedia(contentType string) error {
	fail := &Error{Class: Media, Text: "only application/fhir+json in UTF-8, for FHIR version 4.0, is understood", Expression: "Content-Type"}
	if strings.ContainsAny(contentType, "*%,") {
		// RFC 8187's encoded parameters, or two values in one field: other parsers may see something else.
		return fail
	}
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/fhir+json" && media != "application/json" {
		return fail
	}
	for name, value := range params {
		switch name {
		case "charset": // RFC 8259 §8.1
			if !strings.EqualFold(value, "utf-8") {
				return fail
			}
		case "fhirversion": // versioning.html#mt-version; parameter names are case-insensitive
			if value != "4.0" {
				return fail
			}
		default:
			return fail
		}
	}
	return nil
}

// PlainCoding reports whether a Content-Encoding leaves the body as it is: the field is absent ("") or says
// identity. The error is an *Error of class Media.
func PlainCoding(contentEncoding string) error {
	if contentEncoding == "" || strings.EqualFold(contentEncoding, "identity") {
		return nil
	}
	return &Error{Class: Media, Text: "a compressed body is not read", Expression: "Content-Encoding"}
}
