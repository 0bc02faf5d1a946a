package policy

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"

	"github.com/wardmesh/ward/proxy/fhir"
)

// Schema is the Cedar schema of all that policies can speak of, in Cedar's human-readable format, with the meaning of
// each name as a comment. Policies are checked against it when they are loaded.
func Schema() string { return newModel().schema(fhir.Types()) }

// schema writes the schema for these resource types.
func (m *model) schema(resourceTypes []string) string {
	var b strings.Builder
	b.WriteString("// What Ward's policies can speak of.\n\n")
	b.WriteString("// A process that called, by the path of its SPIFFE ID: Workload::\"/app/portal\". A workload of another trust\n" +
		"// domain bears its full ID: Workload::\"spiffe://partner.example/app/x\". It is in each folder of its path:\n" +
		"// principal in Workload::\"/bridge\" holds for /bridge/icu.\n")
	fmt.Fprintf(&b, "entity %s in [%s] = {\n%s};\n\n", workloadType, workloadType, fields(m.principal, nil))
	b.WriteString("// What the call is about. The id in FHIR::Patient::\"example\" is empty when the request names none.\n" +
		"// FHIR::System is the resource of calls that concern no one type.\n")
	fmt.Fprintf(&b, "namespace FHIR {\n%s = {\n%s  };\n}\n\n", wrap("  entity ", systemType, resourceTypes, ""),
		strings.ReplaceAll(fields(m.resource, nil), "  ", "    "))
	records(&b, m.context)
	b.WriteString("// What else is known of a call.\ntype Call = {\n" + fields(m.context, func(a *attribute) bool { return !a.writes }) + "};\n\n")
	b.WriteString("// The same for a call that brings a resource.\ntype Write = {\n" + fields(m.context, nil) + "};\n\n")
	for _, a := range actions() {
		a.write(&b, resourceTypes)
	}
	return b.String()
}

// records declares the record types among table's attributes.
func records(b *strings.Builder, table []attribute) {
	for i := range table {
		if a := &table[i]; a.fields != nil {
			records(b, a.fields)
			fmt.Fprintf(b, "type %s = {\n%s};\n\n", a.typ, fields(a.fields, nil))
		}
	}
}

// fields writes the attributes that keep accepts; nil accepts all.
func fields(table []attribute, keep func(*attribute) bool) string {
	var b strings.Builder
	for i := range table {
		a := &table[i]
		if keep != nil && !keep(a) {
			continue
		}
		mark := ""
		if a.optional {
			mark = "?"
		}
		fmt.Fprintf(&b, "  // %s\n  %s%s: %s,\n", a.doc, a.name, mark, a.typ)
	}
	return b.String()
}

func (a *action) write(b *strings.Builder, resourceTypes []string) {
	fmt.Fprintf(b, "// %s\naction %q", a.doc, a.name)
	if len(a.in) > 0 {
		fmt.Fprintf(b, ` in ["%s"]`, strings.Join(a.in, `", "`))
	}
	if !a.typed && !a.system {
		b.WriteString(";\n\n")
		return
	}
	var on []string
	first := ""
	if a.system {
		first = fhirPrefix + systemType
	}
	if a.typed {
		for _, t := range resourceTypes {
			on = append(on, fhirPrefix+t)
		}
	}
	context := "Call"
	if a.body {
		context = "Write"
	}
	fmt.Fprintf(b, " appliesTo {\n  principal: %s,\n%s,\n  context: %s,\n};\n\n", workloadType, wrap("  resource: [", first, on, "]"), context)
}

// wrap lists first (if any) and the rest between head and tail, in lines of at most 118 columns.
func wrap(head, first string, rest []string, tail string) string {
	if first != "" {
		rest = append([]string{first}, rest...)
	}
	var b strings.Builder
	b.WriteString(head)
	column := len(head)
	for i, s := range rest {
		switch {
		case i > 0 && column+len(s) > 115:
			b.WriteString(",\n    ")
			column = 4
		case i > 0:
			b.WriteString(", ")
			column += 2
		}
		b.WriteString(s)
		column += len(s)
	}
	b.WriteString(tail)
	return b.String()
}

// resolve makes the schema for these types ready for checking.
func (m *model) resolve(resourceTypes []string) (*resolved.Schema, error) {
	var s schema.Schema
	s.SetFilename("ward.cedarschema")
	if err := s.UnmarshalCedar([]byte(m.schema(resourceTypes))); err != nil {
		return nil, err
	}
	return s.Resolve()
}

// isResource reports whether t is a resource type of the model, and its FHIR name.
func isResource(t types.EntityType) (string, bool) {
	name, ok := strings.CutPrefix(string(t), fhirPrefix)
	return name, ok && (name == systemType || fhir.IsType(name))
}
