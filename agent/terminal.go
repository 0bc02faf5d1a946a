package main

import (
	"io"
	"os"
	"strings"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/term"

	"github.com/wardmesh/ward/proxy/audit"
)

// printable makes text safe to show on a terminal: of what is not printable, line ends alone are kept. Text that comes
// from elsewhere is escaped where it is put in, so that it cannot make lines of its own; this catches the rest.
func printable(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = audit.Escape(l)
	}
	return strings.Join(lines, "\n")
}

// writeTable prints rows in columns as wide as their widest cell; the last column is left ragged.
func writeTable(w io.Writer, rows [][]string) error {
	widths := map[int]int{}
	for _, r := range rows {
		for i, cell := range r {
			widths[i] = max(widths[i], displaywidth.String(audit.Escape(cell)))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, cell := range r {
			b.WriteString(audit.Escape(cell))
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-displaywidth.String(audit.Escape(cell))+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// isTerminal reports whether w is a terminal, for excerpts and colour.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
}
