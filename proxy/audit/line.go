package audit

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"

	"github.com/wardmesh/ward/proxy"
)

// LineOptions says how Line shows a record. The zero value masks patients and gives the time of day in UTC.
type LineOptions struct {
	ShowPatients bool           // show patients' ids; whoever asks for it must have a reason, and be recorded
	TimeFormat   string         // of package time; `15:04:05`
	Location     *time.Location // nil is UTC
}

// Line gives r as one line of text for an operator: time, verdict, caller, user, interaction, reason, duration and
// decision id. Whatever the record holds, the line has no control or bidirectional characters. Ids are not shortened.
func Line(r proxy.Record, o LineOptions) string {
	if o.TimeFormat == "" {
		o.TimeFormat = time.TimeOnly
	}
	if o.Location == nil {
		o.Location = time.UTC
	}
	if line, ok := foldedLine(r, o); ok {
		return line
	}
	columns := []struct {
		text  string
		width int
	}{
		{r.Time.In(o.Location).Format(o.TimeFormat), 8},
		{Verdict(r), 6},
		{caller(r), 12},
		{firstOf(r.User, "-"), 7},
		{acted(r, o.ShowPatients), 24},
		{reason(r), 14},
		{took(r.Micros), 5},
		{firstOf(r.Decision, "-"), 0},
	}
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteByte(' ')
		}
		text := Escape(c.text)
		b.WriteString(text)
		if pad := c.width - displaywidth.String(text); pad > 0 {
			b.WriteString(strings.Repeat(" ", pad))
		}
	}
	return b.String()
}

// LostLine says that a follower could not keep up.
func LostLine(e Entry) string {
	return fmt.Sprintf("-- %d records lost: they were removed from the log before they could be shown --", e.Lost)
}

// Verdict is r in a word: ALLOW, REFUSE, WOULD (allowed, because its service is only observed), ERROR (not refused, but
// not served), INTENT, EVENT.
func Verdict(r proxy.Record) string {
	switch {
	case r.Stage == proxy.StageEvent:
		return "EVENT"
	case r.Stage == proxy.StageIntent:
		return "INTENT"
	case r.Effect == proxy.EffectError:
		return "ERROR"
	case foretold(r):
		return "WOULD"
	case r.Effect == proxy.Allow.String():
		return "ALLOW"
	}
	return "REFUSE"
}

// foretold reports whether enforcing would have taken away from a call that was let through.
func foretold(r proxy.Record) bool {
	return r.Effect == proxy.Allow.String() && r.Would != nil && r.Would.Cause != ""
}

// caller is the path of the SPIFFE ID, which names the workload within its trust domain; without one, what is known.
func caller(r proxy.Record) string {
	if r.Caller == "" {
		return firstOf(r.Process, r.Remote, "-")
	}
	if u, err := url.Parse(r.Caller); err == nil && u.Scheme == "spiffe" && u.Path != "" {
		return u.Path
	}
	return r.Caller
}

func acted(r proxy.Record, showPatients bool) string {
	if len(r.Interactions) == 0 {
		return firstOf(r.Method, "-")
	}
	first := r.Interactions[0]
	text := first.Kind
	if n := len(r.Interactions); n > 1 {
		for _, a := range r.Interactions {
			if a.Kind != first.Kind || a.Type != first.Type {
				return strings.TrimSpace(text+" "+target(first, r.Patients, showPatients)) + " +" + strconv.Itoa(n-1)
			}
		}
		return strings.TrimSpace(text+" "+first.Type) + " ×" + strconv.Itoa(n)
	}
	return strings.TrimSpace(text + " " + target(first, r.Patients, showPatients))
}

// target is `Type/id`. The id of a patient, and any id that holds one, is masked.
func target(a proxy.Acted, patients []string, showPatients bool) string {
	if a.ID == "" {
		return a.Type
	}
	id := a.ID
	if !showPatients {
		secret := a.Type == "Patient"
		for _, p := range patients {
			secret = secret || p != "" && strings.Contains(id, p)
		}
		if secret {
			id = mask(id)
		}
	}
	if a.Version != "" {
		id += "/_history/" + a.Version
	}
	return a.Type + "/" + id
}

// mask leaves the last three characters of an id that is long enough to stay unknown.
func mask(id string) string {
	runes := []rune(id)
	if len(runes) < 6 {
		return "•••"
	}
	return "•••" + string(runes[len(runes)-3:])
}

func reason(r proxy.Record) string {
	if foretold(r) {
		return strings.Trim(string(r.Would.Cause)+": "+r.Would.Detail, ": ")
	}
	switch {
	case r.Cause != "" && r.Detail != "":
		return string(r.Cause) + ": " + r.Detail
	case r.Cause != "":
		return string(r.Cause)
	case r.Stage == proxy.StageEvent:
		return firstOf(strings.Trim(r.Event+": "+r.Detail, ": "), "-")
	case r.Stage == proxy.StageOutcome && !r.Complete:
		return "not delivered whole"
	case len(r.Policies) > 0:
		return strings.Join(r.Policies, ",")
	}
	return firstOf(r.Detail, string(r.Hop), "-")
}

func took(micros int64) string {
	switch {
	case micros <= 0:
		return "-"
	case micros < 10_000_000:
		return fmt.Sprintf("%.1fms", float64(micros)/1e3)
	}
	return fmt.Sprintf("%.1fs", float64(micros)/1e6)
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// Escape makes s safe to show on a terminal: what is not a printable character, bidirectional marks and bytes that
// are not UTF-8 included, is written as an escape.
func Escape(s string) string {
	clean := true
	for _, r := range s {
		clean = clean && r != utf8.RuneError && unicode.IsPrint(r)
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += size
	}
	return b.String()
}
