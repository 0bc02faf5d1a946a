package policy

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	cedar "github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/clipperhouse/displaywidth"
)

// WriteTo implements io.WriterTo: the lines that `ward policy explain` prints below its header.
func (e *Explanation) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	for i := range e.Requests {
		r := &e.Requests[i]
		if len(e.Requests) > 1 {
			fmt.Fprintf(&b, "interaction %d of %d: %s %s\n", i+1, len(e.Requests), r.Action, printable(r.Resource))
		}
		r.write(&b)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func (r *RequestExplanation) write(b *strings.Builder) {
	b.WriteString(count(len(r.Permits), "permit", "permits") + " matched; " + count(len(r.Forbids), "forbid", "forbids") + " matched")
	if len(r.Failed) > 0 {
		b.WriteString("; " + count(len(r.Failed), "policy", "policies") + " could not be evaluated, and that refuses")
	}
	if len(r.Open) > 0 {
		b.WriteString("; " + count(len(r.Open), "policy needs", "policies need") + " the resource as it is now")
	}
	b.WriteString("\n")
	for _, part := range [...]struct {
		word     string
		findings []Finding
	}{{"error", r.Failed}, {"forbid", r.Forbids}, {"needs image", r.Open}, {"permit", r.Permits}} {
		for i := range part.findings {
			part.findings[i].write(b, part.word)
		}
	}
	if r.Nearest != nil {
		r.Nearest.write(b, "nearest")
	} else if len(r.Permits)+len(r.Forbids)+len(r.Failed)+len(r.Open) == 0 {
		b.WriteString("nearest: none; the policy set has no permit\n")
	}
}

func count(n int, one, many string) string {
	switch n {
	case 0:
		return "no " + one
	case 1:
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func (f *Finding) write(b *strings.Builder, word string) {
	fmt.Fprintf(b, "%s: %s  %s:%d\n", word, f.Policy, printable(f.File), f.Line)
	width := 0
	for _, c := range f.Clauses {
		if c.Note != "" {
			width = max(width, displaywidth.String(c.Text))
		}
	}
	for _, c := range f.Clauses {
		fmt.Fprintf(b, "  %-5s  %s", c.State, c.Text)
		if c.Note != "" {
			b.WriteString(strings.Repeat(" ", width-displaywidth.String(c.Text)+3) + printable(c.Note))
		}
		b.WriteString("\n")
	}
}

// text is the clause as Cedar formats it, on one line.
func (c clause) text() string {
	n, prefix := c.node, ""
	if c.unless {
		n, prefix = n.(ast.NodeTypeNot).Arg, "unless "
	}
	p := publicast.Policy(*ast.Permit().When(ast.NewNode(n)))
	s := string(cedar.NewPolicyFromAST(&p).MarshalCedar())
	_, s, _ = strings.Cut(s, "when { ")
	return prefix + printable(strings.TrimSuffix(s, " };"))
}

// maxElements is how many elements of a set are shown.
const maxElements = 6

// showValue gives v as Cedar writes it, sets sorted and shortened.
func showValue(v types.Value) string {
	s, ok := v.(types.Set)
	if !ok {
		return string(v.MarshalCedar())
	}
	parts := make([]string, 0, s.Len())
	for e := range s.All() {
		parts = append(parts, showValue(e))
	}
	slices.Sort(parts)
	if len(parts) > maxElements {
		parts = append(parts[:maxElements], fmt.Sprintf("… %d more", len(parts)-maxElements))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// printable keeps control and bidirectional characters away from the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != ' ' && !unicode.IsGraphic(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
