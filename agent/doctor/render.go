package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// Write prints a report for people: what is wrong with how to mend it, then what was skipped by its reasons, then the
// counts. Verbose lists every check.
func (r *Report) Write(w io.Writer, verbose bool) error {
	var b strings.Builder
	for _, level := range []Level{Fail, Warn} {
		for _, res := range r.Results {
			for _, f := range res.Findings {
				if f.Level == level {
					fmt.Fprintf(&b, "%-4s  %s [%s]\n      %s\n      mend: %s\n", level, plain(f.What), res.Code, plain(f.Means), plain(f.Mend))
				}
			}
		}
	}
	var reasons []string
	count := map[string]int{}
	for _, res := range r.Results {
		switch {
		case res.Level == Skip && verbose:
			fmt.Fprintf(&b, "SKIP  %s [%s]: %s\n", res.Name, res.Code, plain("it "+singular(res.Reason)))
		case res.Level == Skip:
			if count[res.Reason]++; !slices.Contains(reasons, res.Reason) {
				reasons = append(reasons, res.Reason)
			}
		case res.Level == OK && verbose:
			fmt.Fprintf(&b, "ok    %s [%s]\n", res.Name, res.Code)
		}
	}
	for _, reason := range reasons {
		fmt.Fprintf(&b, "SKIP  %s\n", plain(sentence(count[reason], reason)))
	}
	parts := []string{fmt.Sprintf("%d ok", r.OK)}
	if r.Failures > 0 {
		parts = append(parts, plural(r.Failures, "failure"))
	}
	if r.Warnings > 0 {
		parts = append(parts, plural(r.Warnings, "warning"))
	}
	b.WriteString(strings.Join(parts, " · "))
	if !verbose {
		b.WriteString("   (-v lists all)")
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// sentence is a reason after its count: "1 check needs root", "3 checks need root".
func sentence(n int, reason string) string {
	if n == 1 {
		reason = singular(reason)
	}
	return plural(n, "check") + " " + reason
}

// singular is a reason as one check would say it: it needs, waits, asks, finds, has, cannot.
func singular(reason string) string {
	verb, rest, ok := strings.Cut(reason, " ")
	switch {
	case !ok, verb == "cannot":
		return reason
	case verb == "have":
		return "has " + rest
	}
	return verb + "s " + rest
}

// plain makes a line of text of what others may have written: nothing in it can end the line, move the cursor or turn
// the order of the characters.
func plain(s string) string {
	var b strings.Builder
	for _, c := range s {
		if unicode.IsPrint(c) && c != unicode.ReplacementChar {
			b.WriteRune(c)
		} else {
			fmt.Fprintf(&b, `\u%04x`, c)
		}
	}
	return b.String()
}
