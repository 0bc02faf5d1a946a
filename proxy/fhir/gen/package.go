package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// The package that the tables come from, and its SHA-256.
const (
	packageVersion = "4.0.1"
	packageSHA256  = "dce87f1b5b9341867033f7d1f544fa1b5232503f6d62813887ac6b8a8b6cb682"
)

// definitions are the parts of HL7's package that gen reads.
type definitions struct {
	structures  map[string]*structure // by type name; base definitions only, no profiles
	params      []searchParameter     // in the package's order
	compartment compartment           // the patient's
}

type structure struct {
	Type       string
	Kind       string
	Abstract   bool
	Derivation string
	Snapshot   struct{ Element []element }
}

type element struct {
	Path             string
	ContentReference string
	Type             []elementType
}

type elementType struct {
	Code          string
	TargetProfile []string
}

type searchParameter struct {
	Version    string
	Code       string
	Base       []string
	Type       string
	Expression string
	Target     []string
}

type compartment struct {
	Resource []struct {
		Code  string
		Param []string
	}
}

// readPackage reads the definitions from an npm package in its .tgz form.
func readPackage(name string) (*definitions, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != packageSHA256 {
		return nil, fmt.Errorf("%s is not hl7.fhir.r4.examples %s: its SHA-256 is %x", name, packageVersion, sum)
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d := &definitions{structures: map[string]*structure{}}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := d.read(path.Base(h.Name), tr); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", name, h.Name, err)
		}
	}
	if len(d.structures) == 0 || len(d.params) == 0 || len(d.compartment.Resource) == 0 {
		return nil, fmt.Errorf("%s: definitions are missing", name)
	}
	return d, nil
}

// read takes one file of the package; a file that is no definition is passed over.
func (d *definitions) read(file string, r io.Reader) error {
	switch {
	case strings.HasPrefix(file, "StructureDefinition-"):
		s := new(structure)
		if err := json.NewDecoder(r).Decode(s); err != nil {
			return err
		}
		if s.Derivation == "constraint" {
			return nil // a profile
		}
		if d.structures[s.Type] != nil {
			return fmt.Errorf("a second definition of %s", s.Type)
		}
		d.structures[s.Type] = s
	case strings.HasPrefix(file, "SearchParameter-"):
		var p searchParameter
		if err := json.NewDecoder(r).Decode(&p); err != nil {
			return err
		}
		// The standard's own parameters bear its version; what else is there are examples of how to define
		// one. Those without a base (of the extensions to CodeSystem and ValueSet) apply to no type.
		if p.Version == packageVersion && len(p.Base) > 0 {
			d.params = append(d.params, p)
		}
	case file == "CompartmentDefinition-patient.json":
		return json.NewDecoder(r).Decode(&d.compartment)
	}
	return nil
}
