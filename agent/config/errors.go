package config

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/clipperhouse/displaywidth"
)

// Pos is a place in a config file. Line and Column count from 1; a column is a character, not a byte.
type Pos struct {
	File         string
	Line, Column int
}

// String gives the place as editors and terminals understand it.
func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// Error is one thing that is wrong, and what to do about it.
type Error struct {
	File         string
	Line, Column int
	Width        int    // characters that are meant, from Column on; at least 1
	Code         string // stable, see Explain
	Problem      string // lower case, no full stop
	Advice       string // what to do; never empty

	order int    // of the file among those read
	text  string // the line itself
}

// Pos is where the error is.
func (e Error) Pos() Pos { return Pos{e.File, e.Line, e.Column} }

// Error gives the error on one line: `file:line:column: problem [code]; advice`.
func (e Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s [%s]; %s", printable(e.File), e.Line, e.Column, e.Problem, e.Code, e.Advice)
}

// Errors is every error found, in the order of the files and lines.
type Errors []Error

// Error lists the errors, one on each line.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Error.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

func (es Errors) sort() {
	slices.SortStableFunc(es, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// hideSecrets keeps lines that hold a secret out of excerpts, whatever the error that would show them.
func (es Errors) hideSecrets() {
	type line struct{ file, number int }
	secret := make(map[line]bool)
	for _, e := range es {
		if e.Code == codeSecret {
			secret[line{e.order, e.Line}] = true
		}
	}
	for i := range es {
		if secret[line{es[i].order, es[i].Line}] {
			es[i].text = ""
		}
	}
}

// Style is how errors are rendered for people. The zero value is plain text without excerpts.
type Style struct {
	Excerpt bool // show the line and mark the place
	Color   bool
}

// Render writes the errors, one on each line, in the given style.
func (es Errors) Render(w io.Writer, s Style) error {
	paint := func(sgr, text string) string {
		if !s.Color {
			return text
		}
		return "\x1b[" + sgr + "m" + text + "\x1b[0m"
	}
	var b strings.Builder
	for _, e := range es {
		fmt.Fprintf(&b, "%s %s %s; %s\n",
			paint("1", fmt.Sprintf("%s:%d:%d:", printable(e.File), e.Line, e.Column)),
			paint("31", e.Problem), paint("2", "["+e.Code+"]"), e.Advice)
		if !s.Excerpt || strings.TrimSpace(e.text) == "" {
			continue
		}
		line, before, marked := excerpt(e.text, e.Column, e.Width)
		fmt.Fprintf(&b, "%5d | %s\n", e.Line, line)
		fmt.Fprintf(&b, "      | %s%s\n", strings.Repeat(" ", before), paint("31", strings.Repeat("^", marked)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// excerptLimit is how many characters of a line are shown; more would wrap, and the mark would miss its place.
const excerptLimit = 100

// excerpt gives the line as it may be shown on a terminal, and how many cells stand before and under the mark.
// A file that fails to load may hold escape sequences or characters that reorder text: none may reach a terminal.
func excerpt(line string, column, width int) (shown string, before, marked int) {
	runes := []rune(strings.TrimRight(line, "\r\n"))
	for i, r := range runes {
		if r != ' ' && !strconv.IsPrint(r) {
			runes[i] = '·'
		}
	}
	start := min(max(column-1, 0), len(runes))
	end := min(max(start+width, start+1), len(runes))
	// A long line is shown from shortly before the mark.
	head := 0
	if len(runes) > excerptLimit && end > excerptLimit {
		head = max(start-20, 0)
	}
	tail := min(len(runes), head+excerptLimit)
	end = min(max(end, start), max(tail, start))
	before = displaywidth.String(string(runes[head:start]))
	marked = max(displaywidth.String(string(runes[start:end])), 1)
	return string(runes[head:tail]), before, marked
}

// printable is s, escaped when a terminal could misread it.
func printable(s string) string {
	for _, r := range s {
		if r == unicode.ReplacementChar || !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// quote shows a value from the file inside a message: escaped, and cut when it is long.
func quote(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return strconv.Quote(s)
}
