package fhir

// Content is what a strictly parsed resource says of itself.
type Content struct{}
