// Package clinic is a starter policy set for a clinic. The policies are in the folder policy, and README.md says what
// they allow; this file only makes them available to the demonstration.
package clinic

import (
	"embed"
	"io/fs"
)

//go:embed policy/*.cedar
var files embed.FS

// Policy is the folder of policies.
func Policy() (fs.FS, error) { return fs.Sub(files, "policy") }
