package audit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wardmesh/ward/proxy"
)

// EventFolded is the Event of a record that stands for refusals that have none of their own. Its Data is a Folded; its
// Caller, Process or Remote says whose they were.
const EventFolded = "refusals folded"

// Folded is what is known of refusals without records of their own.
type Folded struct {
	Count  int64                 `json:"count"`
	First  time.Time             `json:"first"` // of them
	Last   time.Time             `json:"last"`
	Causes map[proxy.Cause]int64 `json:"causes"`
	// Others is how many identities or sources share the record; 0 when it is about one.
	Others int64 `json:"others,omitempty"`
	// Kind is `verified` (by caller), `source` (by uid or address) or `glass` (break-glass, by caller).
	Kind string `json:"kind"`
}

// fold gathers refusals.
type fold struct{ Folded }

// mostCauses bounds the causes that are told apart; there are fewer, but nothing here depends on that.
const mostCauses = 64

const otherCause proxy.Cause = "other"

func (f *fold) add(cause proxy.Cause, at time.Time) {
	if f.Causes == nil {
		f.Causes, f.First, f.Last = map[proxy.Cause]int64{}, at, at
	}
	f.span(at, at)
	f.Count++
	f.cause(cause, 1)
}

func (f *fold) join(g *fold) {
	if f.Causes == nil {
		f.Causes, f.First, f.Last = map[proxy.Cause]int64{}, g.First, g.Last
	}
	f.span(g.First, g.Last)
	f.Count += g.Count
	f.Others += g.Others
	for c, n := range g.Causes {
		f.cause(c, n)
	}
}

func (f *fold) span(first, last time.Time) {
	if first.Before(f.First) {
		f.First = first
	}
	if last.After(f.Last) {
		f.Last = last
	}
}

func (f *fold) cause(c proxy.Cause, n int64) {
	if _, ok := f.Causes[c]; !ok && len(f.Causes) >= mostCauses {
		c = otherCause
	}
	f.Causes[c] += n
}

// whose says by what a refusal is counted. Values are cut: one that is long is the caller's choice, not an identity.
func whose(r *proxy.Record) (kind int, w whom) {
	switch {
	case r.Caller != "":
		if r.Purpose == purposeBreakGlass {
			return glass, whom{caller: cut(r.Caller)}
		}
		return verified, whom{caller: cut(r.Caller)}
	case r.Process != "":
		return source, whom{process: cut(processUser(r.Process))}
	}
	return source, whom{remote: cut(network(r.Remote))}
}

const mostKey = 256

func cut(s string) string { return s[:min(len(s), mostKey)] }

// processUser is the `uid N` in egress's words for a process, or all of them: a new pid is no new source.
func processUser(process string) string {
	for part := range strings.SplitSeq(process, ", ") {
		for _, form := range []string{"uid ", "unix.uid: ", "unix.uid:"} {
			if n, ok := strings.CutPrefix(part, form); ok {
				if _, err := strconv.ParseUint(n, 10, 32); err == nil {
					return "uid " + n
				}
			}
		}
	}
	return process
}

// network is the host of an address without its port; of IPv6 the /64, in which one host can have any number.
func network(remote string) string {
	var ip netip.Addr
	if ap, err := netip.ParseAddrPort(remote); err == nil {
		ip = ap.Addr()
	} else if ip, err = netip.ParseAddr(remote); err != nil {
		return firstOf(remote, "unknown")
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}

// summary is one record to write.
type summary struct {
	whom whom
	fold fold
}

// summaries gives what was counted, the largest first, in at most that many parts: the last is for all that remain.
func summaries(keys map[whom]*tally, most int) []summary {
	all := make([]summary, 0, len(keys))
	for w, t := range keys {
		if t.fold.Count > 0 {
			all = append(all, summary{w, t.fold})
		}
	}
	slices.SortFunc(all, func(a, b summary) int {
		return cmp.Or(cmp.Compare(b.fold.Count, a.fold.Count), cmp.Compare(a.whom.String(), b.whom.String()))
	})
	if len(all) <= most {
		return all
	}
	rest := summary{}
	for _, s := range all[most-1:] {
		if s.fold.Others == 0 {
			s.fold.Others = 1
		}
		rest.fold.join(&s.fold)
	}
	return append(all[:most-1], rest)
}

func (s summary) record(kind int, now time.Time) *proxy.Record {
	f := s.fold.Folded
	f.Kind = [kinds]string{"verified", "source", "glass"}[kind]
	data, err := json.Marshal(f)
	if err != nil {
		data = nil // times of a year that JSON cannot say; the count stands in the detail
	}
	return &proxy.Record{Schema: proxy.RecordSchema, Stage: proxy.StageEvent, Time: now, Caller: s.whom.caller, Process: s.whom.process,
		Remote: s.whom.remote, Event: EventFolded, Detail: f.String(), Data: data}
}

// String says how many and why: `99940: policy 99900, scope 40`.
func (f Folded) String() string {
	causes := slices.SortedFunc(maps.Keys(f.Causes), func(a, b proxy.Cause) int {
		return cmp.Or(cmp.Compare(f.Causes[b], f.Causes[a]), cmp.Compare(a, b))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%d", f.Count)
	for i, c := range causes {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s %d", sep, firstOf(string(c), "no cause"), f.Causes[c])
	}
	return b.String()
}

// foldedLine shows a record of folded refusals to an operator.
func foldedLine(r proxy.Record, o LineOptions) (string, bool) {
	var f Folded
	if r.Stage != proxy.StageEvent || r.Event != EventFolded || json.Unmarshal(r.Data, &f) != nil || f.Count == 0 {
		return "", false
	}
	who := caller(r)
	switch {
	case f.Others > 0:
		who = fmt.Sprintf("%d others", f.Others)
	case who == "-":
		who = "others"
	}
	if f.Kind == "glass" {
		who += " breaking glass"
	}
	_, why, _ := strings.Cut(f.String(), ": ")
	return Escape(fmt.Sprintf("-- %d refusals of %s not shown one by one, %s to %s: %s --", f.Count, who,
		f.First.In(o.Location).Format(o.TimeFormat), f.Last.In(o.Location).Format(o.TimeFormat), why)), true
}
