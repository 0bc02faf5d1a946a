package fhir

import "strings"

// acceptsJSON reports whether Accept fields admit FHIR in JSON; no field at all admits everything (RFC 9110
// §12.5.1). It looks for a range that does, not for the best one: Ward has nothing else to offer.
func acceptsJSON(fields []string) bool {
	for _, f := range fields {
		if f == "application/fhir+json" || f == "*/*" {
			return true // what most clients send
		}
		for r := range strings.SplitSeq(f, ",") {
			media, params, _ := strings.Cut(r, ";")
			if jsonRange(strings.ToLower(strings.TrimSpace(media))) && acceptable(params) {
				return true
			}
		}
	}
	return len(fields) == 0
}

func jsonRange(media string) bool {
	switch media {
	case "application/fhir+json", "application/json", "application/*", "*/*":
		return true
	}
	return false
}

// acceptable reports whether a media range's parameters leave R4 acceptable: no weight of 0, no other version.
func acceptable(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		switch strings.ToLower(name) {
		case "q": // RFC 9110 §12.4.2: a weight of 0 means not acceptable
			if strings.Trim(value, "0.") == "" {
				return false
			}
		case "fhirversion": // R4 http.html#version-parameter
			if strings.Trim(value, `"`) != "4.0" {
				return false
			}
		}
	}
	return true
}

// isJSONFormat reports whether a value of _format stands for JSON (R4 http.html#parameters). A `+` that a client
// forgot to escape has become a space; FHIR asks servers to understand that.
func isJSONFormat(v string) bool {
	media, params, _ := strings.Cut(v, ";")
	switch strings.ToLower(strings.TrimSpace(media)) {
	case "json", "application/json", "application/fhir+json", "application/fhir json":
		return acceptable(params)
	}
	return false
}
