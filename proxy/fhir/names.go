package fhir

// IsType reports whether s is an R4 resource type.
func IsType(s string) bool { return s != "" && s[0] >= 'A' && s[0] <= 'Z' }

// IsID reports whether s is a FHIR id: [A-Za-z0-9\-.]{1,64}.
func IsID(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}
