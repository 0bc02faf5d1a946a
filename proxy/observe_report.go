package proxy

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"time"
)

// ObserveReport is what observing has found: for each service, which workloads would have been refused, and why. It is
// made from a trail, record by record; what it remembers is bounded.
type ObserveReport struct {
	Schema   string           `json:"schema"` // ObserveSchema
	Services []*ObservedCalls `json:"services"`
	// Unreadable is how many records another version of Ward wrote.
	Unreadable int64 `json:"unreadable,omitempty"`

	index  map[string]*ObservedCalls
	seed   maphash.Seed
	people int // that can still be told apart
}

// ObserveSchema names the shape of ObserveReport; fields are only ever added.
const ObserveSchema = "ward.observe/1"

// ObservedCalls is one service's part.
type ObservedCalls struct {
	Service string    `json:"service"`
	Calls   int64     `json:"calls"` // while it was observed
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// Would is how many of them enforcing would have refused, or would have narrowed with effect.
	Would int64 `json:"would_refuse"`
	// Harmed is how many of these were served: what applications would have lost.
	Harmed int64 `json:"would_lose"`
	// Enforce: calls were observed, and no application would have lost anything.
	Enforce  bool               `json:"enforce"`
	Findings []*ObservedFinding `json:"findings,omitempty"` // the ones that concern most calls first

	index map[findingKey]*ObservedFinding
}

// ObservedFinding is one workload's calls that would have been refused for one cause.
type ObservedFinding struct {
	Workload string `json:"workload"` // SPIFFE ID; "" where many are folded into one
	Effect   string `json:"effect"`   // deny, error or narrow
	Cause    Cause  `json:"cause"`
	Calls    int64  `json:"calls"`            // for which it is the first finding
	Behind   int64  `json:"behind,omitempty"` // for which it stands behind another: it shows once that is mended
	Served   int64  `json:"served"`           // of both, those that were answered with data
	Users    int    `json:"users"`            // different ones, as far as a token told
	// AtLeast: there were more users than can be told apart in bounded memory.
	AtLeast bool      `json:"at_least,omitempty"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Example string    `json:"example"` // the latest decision's id, for ward policy explain

	users map[uint64]struct{}
}

type findingKey struct {
	workload string
	effect   string
	cause    Cause
}

// Bounds of what a report remembers.
const (
	maxFindings      = 4096 // of a service
	maxObservedUsers = 1 << 18
)

// NewObserveReport makes an empty report.
func NewObserveReport() *ObserveReport {
	return &ObserveReport{Schema: ObserveSchema, Services: []*ObservedCalls{}, index: map[string]*ObservedCalls{}, seed: maphash.MakeSeed(), people: maxObservedUsers}
}

// Add takes one record of a trail. Of a call that was observed it counts the last one: how it ended.
func (o *ObserveReport) Add(r *Record) {
	if r.Hop != HopIngress || !r.Observed || r.Stage != StageOutcome && r.Stage != StageRefusal {
		return
	}
	s := o.index[r.Service]
	if s == nil {
		s = &ObservedCalls{Service: r.Service, First: r.Time, index: map[findingKey]*ObservedFinding{}}
		o.index[r.Service] = s
		o.Services = append(o.Services, s)
	}
	s.Calls++
	s.First, s.Last = earlier(s.First, r.Time), later(s.Last, r.Time)
	if w := r.Would; w != nil && w.Cause != "" {
		served := r.Cause == "" && r.Status < 400
		s.Would++
		if served {
			s.Harmed++
		}
		o.find(s, r, findingKey{r.Caller, w.Effect, w.Cause}, served).Calls++
		for _, c := range w.Also {
			o.find(s, r, findingKey{r.Caller, effect(faults[c].status), c}, served).Behind++
		}
	}
}

// Skip counts a record that another version of Ward wrote.
func (o *ObserveReport) Skip() { o.Unreadable++ }

func (o *ObserveReport) find(s *ObservedCalls, r *Record, key findingKey, served bool) *ObservedFinding {
	f := s.index[key]
	if f == nil && len(s.index) >= maxFindings {
		key.workload = ""
		f = s.index[key]
	}
	if f == nil {
		f = &ObservedFinding{Workload: key.workload, Effect: key.effect, Cause: key.cause, First: r.Time, users: map[uint64]struct{}{}}
		s.index[key] = f
		s.Findings = append(s.Findings, f)
	}
	if served {
		f.Served++
	}
	f.First = earlier(f.First, r.Time)
	if !r.Time.Before(f.Last) {
		f.Last, f.Example = r.Time, r.Decision
	}
	if r.User != "" {
		o.tell(f, r)
	}
	return f
}

// tell counts the user, if it is a new one and can still be told from others.
func (o *ObserveReport) tell(f *ObservedFinding, r *Record) {
	sum := maphash.String(o.seed, r.Issuer+"\x00"+r.User)
	if _, ok := f.users[sum]; ok {
		return
	}
	if o.people == 0 {
		f.AtLeast = true
		return
	}
	o.people--
	f.users[sum] = struct{}{}
	f.Users++
}

// Finish sorts what was found and draws the conclusions. Records may be added afterwards, and it be called again.
func (o *ObserveReport) Finish() *ObserveReport {
	slices.SortFunc(o.Services, func(a, b *ObservedCalls) int { return strings.Compare(a.Service, b.Service) })
	for _, s := range o.Services {
		s.Enforce = s.Harmed == 0
		slices.SortFunc(s.Findings, func(a, b *ObservedFinding) int {
			return cmp.Or(cmp.Compare(b.Calls+b.Behind, a.Calls+a.Behind), strings.Compare(a.Workload, b.Workload),
				cmp.Compare(a.Cause, b.Cause), strings.Compare(a.Effect, b.Effect))
		})
	}
	return o
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
