package doctor

import (
	_ "embed"
	"strings"
)

//go:embed codes.md
var pages string

// Explain is the page of a code: its cause, an example and how to mend it. It reports whether the doctor has that code.
func Explain(code string) (string, bool) {
	for _, page := range strings.Split("\n"+pages, "\n## ")[1:] {
		if name, _, _ := strings.Cut(page, " "); name == code {
			return strings.TrimSpace(page) + "\n", true
		}
	}
	return "", false
}

// Codes lists every check's code, in the order of the checks.
func Codes() []string {
	var codes []string
	for _, c := range checks() {
		codes = append(codes, c.code)
	}
	return codes
}
