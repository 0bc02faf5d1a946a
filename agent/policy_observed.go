package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

type observedCommand struct {
	recordedFlags
	JSON bool `help:"One JSON object, schema ward.observe/1."`
}

// Run says what enforcing would have refused, and for each service whether it can be enforced.
func (cmd observedCommand) Run(c *console) error {
	report := proxy.NewObserveReport()
	if err := cmd.each(c, report.Add, report.Skip); err != nil {
		return err
	}
	report.Finish()
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(report)
	}
	return writeObserved(c.out, report)
}

func writeObserved(w io.Writer, r *proxy.ObserveReport) error {
	if len(r.Services) == 0 {
		_, err := fmt.Fprintln(w, "no observed call is recorded; a service is observed with `mode: observe` and `observe_until`")
		return err
	}
	if r.Unreadable > 0 {
		if _, err := fmt.Fprintf(w, "%d records of another version of Ward are left out\n", r.Unreadable); err != nil {
			return err
		}
	}
	for i, s := range r.Services {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(w, "%s  %d calls observed from %s to %s\n%d would be refused; of these %d were served\n", audit.Escape(s.Service), s.Calls,
			instant(s.First), instant(s.Last), s.Would, s.Harmed)
		if err != nil {
			return err
		}
		if len(s.Findings) > 0 {
			rows := [][]string{{"WORKLOAD", "CAUSE", "CALLS", "SERVED", "USERS", "FIRST", "LAST", "EXAMPLE"}}
			for _, f := range s.Findings {
				rows = append(rows, observedRow(f))
			}
			if err := writeTable(w, rows); err != nil {
				return err
			}
		}
		verdict := "enforce: no application would lose a call\n"
		if !s.Enforce {
			verdict = "not yet: mend these, or enforcing takes calls away that work today; ward policy explain EXAMPLE says why\n"
		}
		if _, err := io.WriteString(w, verdict); err != nil {
			return err
		}
	}
	return nil
}

func observedRow(f *proxy.ObservedFinding) []string {
	who := f.Workload
	if _, path, ok := strings.Cut(strings.TrimPrefix(who, "spiffe://"), "/"); ok {
		who = "/" + path
	}
	if who == "" {
		who = "(others)"
	}
	cause := string(f.Cause)
	if f.Effect == proxy.EffectNarrow {
		cause += " (narrowed)"
	}
	calls := strconv.FormatInt(f.Calls, 10)
	if f.Behind > 0 {
		calls += fmt.Sprintf(" (%d behind another)", f.Behind)
	}
	users := strconv.Itoa(f.Users)
	if f.AtLeast {
		users += "+"
	}
	return []string{who, cause, calls, strconv.FormatInt(f.Served, 10), users, instant(f.First), instant(f.Last), f.Example}
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }
