package policy

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
)

// shownChanges is how many kinds of change are shown each way; the JSON has them all.
const shownChanges = 20

// WriteTo implements io.WriterTo: what `ward policy replay` prints.
func (r *ReplayReport) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	b.WriteString(plural(r.Calls, "call", "calls"))
	if r.Calls > 0 {
		b.WriteString(", " + span(r.Last.Sub(r.First)))
	}
	fmt.Fprintf(&b, "; %s unchanged", grouped(r.Unchanged))
	if r.Lacking > 0 {
		fmt.Fprintf(&b, "; %s lacked facts the new policy reads (it would refuse them)", grouped(r.Lacking))
	}
	b.WriteByte('\n')
	writeChanges(&b, "newly refused", r.NewlyRefused, r.Refused, "")
	writeChanges(&b, "newly allowed", r.NewlyAllowed, r.Allowed, "  <- review")
	if r.Failed > 0 {
		fmt.Fprintf(&b, "policy errors  %s: a policy cannot be evaluated, and that refuses\n", grouped(r.Failed))
	}
	if r.Undecided > 0 {
		fmt.Fprintf(&b, "not replayed: %s refused before policy was asked\n", plural(r.Undecided, "call", "calls"))
	}
	if r.Folded > 0 {
		fmt.Fprintf(&b, "not replayed: %s recorded as a sum only\n", plural(r.Folded, "refusal", "refusals"))
	}
	if r.Unreadable > 0 {
		fmt.Fprintf(&b, "not replayed: %s of another version of Ward\n", plural(r.Unreadable, "record", "records"))
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func writeChanges(b *strings.Builder, title string, total int64, changes []ReplayChange, mark string) {
	if total == 0 {
		return
	}
	fmt.Fprintf(b, "%s  %s\n", title, plural(total, "call", "calls"))
	rows := make([][4]string, min(len(changes), shownChanges))
	var width [3]int
	for i := range rows {
		c := &changes[i]
		what := printable(path(c.Caller) + " " + c.Interaction + " " + c.Type)
		if c.Caller == "" {
			what = "other kinds of call"
		}
		people := "no user"
		if c.Users > 0 {
			people = plural(int64(c.Users), "user", "users")
		}
		if c.Workloads > 1 {
			people += ", " + plural(int64(c.Workloads), "workload", "workloads")
		}
		if c.AtLeast {
			people = "at least " + people
		}
		rows[i] = [4]string{grouped(c.Calls), what, people, c.Example}
		for j := range width {
			width[j] = max(width[j], displaywidth.String(rows[i][j]))
		}
	}
	for _, r := range rows {
		fmt.Fprintf(b, "  %*s  %s  %s  e.g. %s%s\n", width[0], r[0], padded(r[1], width[1]), padded(r[2], width[2]), printable(r[3]), mark)
	}
	if n := len(changes) - len(rows); n > 0 {
		fmt.Fprintf(b, "  and %s (--json lists all)\n", plural(int64(n), "kind more", "kinds more"))
	}
}

func padded(s string, width int) string {
	return s + strings.Repeat(" ", width-displaywidth.String(s))
}

// path is the path of a SPIFFE ID, as policies and records show it.
func path(id string) string {
	if _, path, ok := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/"); ok {
		return "/" + path
	}
	return id
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return grouped(n) + " " + many
}

// grouped writes n with commas: 41,203.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// span says how long d is, roughly.
func span(d time.Duration) string {
	for _, u := range [...]struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= u.d {
			return plural(int64(d.Round(u.d)/u.d), u.name, u.name+"s")
		}
	}
	return "within a minute"
}
