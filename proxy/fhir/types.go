package fhir

import "slices"

// Types are the R4 resource types that have instances, sorted.
func Types() []string { return slices.Clone(typeNames[1:]) }
