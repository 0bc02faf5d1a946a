package audit

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// Records of another version are passed over by who asks for it, and by nobody else; what is no record at all, by nobody.
func TestScanKnown(t *testing.T) {
	for name, c := range map[string]struct {
		schema string
		passed bool
	}{
		"another version": {`"schema":"ward.audit/2"`, true},
		"another thing":   {`"schema":"other.audit/2"`, false},
		"no schema":       {`"scheme":"ward.audit/2"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			ids := fill(t, o, 6)
			s := lastSegment(t, o.Dir)
			content, err := os.ReadFile(s.path)
			if err != nil {
				t.Fatal(err)
			}
			lines := jsonOf(t, string(content))
			for _, i := range []int{2, 5} { // the first line is the segment's header
				lines[i] = strings.Replace(lines[i], `"schema":"ward.audit/1"`, c.schema, 1)
			}
			if err := os.WriteFile(s.path, []byte(reframe(t, s.first, lines)), 0o600); err != nil {
				t.Fatal(err)
			}
			var last error
			for _, last = range Scan(context.Background(), o.Dir, 0) {
			}
			if !errors.Is(last, ErrCorrupt) {
				t.Errorf("Scan: %v", last)
			}
			var got, others []string
			for e, err := range ScanKnown(context.Background(), o.Dir, 0, func(schema string) { others = append(others, schema) }) {
				if last = err; err == nil {
					got = append(got, e.Record.Decision)
				}
			}
			want := []string{ids[0], ids[2], ids[3], ids[5]}
			if !c.passed {
				if !errors.Is(last, ErrCorrupt) {
					t.Errorf("%v after %v", last, got)
				}
				return
			}
			if last != nil || !slices.Equal(got, want) || !slices.Equal(others, []string{"ward.audit/2", "ward.audit/2"}) {
				t.Errorf("%v %v %v, want %v", got, others, last, want)
			}
		})
	}
}
