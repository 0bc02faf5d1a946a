// Gen compiles HL7's FHIR R4 definitions into the tables of package fhir.
//
// The definitions are HL7's own, from the npm package hl7.fhir.r4.examples 4.0.1 (CC0). To make the tables again:
//
//	npm pack hl7.fhir.r4.examples@4.0.1
//	go run ./proxy/fhir/gen -package hl7.fhir.r4.examples-4.0.1.tgz
//
// Or set WARD_HL7_PACKAGE to the package's path and run `go generate ./proxy/fhir`. The same package gives the
// same bytes. Any other package is refused by its hash: a compartment is only as good as the definition it was
// compiled from. An expression that gen does not fully understand stops it, rather than leaving a path out.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	pkg := flag.String("package", os.Getenv("WARD_HL7_PACKAGE"), "the package hl7.fhir.r4.examples-4.0.1.tgz")
	out := flag.String("out", "proxy/fhir/tables.go", "the Go file to write")
	flag.Parse()
	if err := run(*pkg, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(pkg, out string) error {
	if pkg == "" {
		return errors.New("no package: npm pack hl7.fhir.r4.examples@4.0.1, then give its path by -package or WARD_HL7_PACKAGE")
	}
	src, err := generate(pkg)
	if err != nil {
		return err
	}
	return os.WriteFile(out, src, 0o644)
}

// generate gives the source of the tables that follow from the package at path pkg.
func generate(pkg string) ([]byte, error) {
	defs, err := readPackage(pkg)
	if err != nil {
		return nil, err
	}
	m, err := compile(defs)
	if err != nil {
		return nil, err
	}
	return m.source()
}
