package fhir

// Scopes is a token's SMART scopes, parsed.
type Scopes struct{}

// Grant is what Scopes allow of one interaction.
type Grant struct{}
