package policy

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/wardmesh/ward/proxy"
)

// Replay decides recorded calls again, by another policy set than decided them: a rehearsal on what really happened. It
// reads one record at a time and keeps counts, one example for each kind of change, and who was concerned, so its
// memory does not grow with the trail.
//
// What it rests on are the inputs that each decision recorded, and nothing else: a call that was refused before policy
// was asked left none, and one whose stored resource nobody had looked up cannot be decided by a set that reads it.
type Replay struct {
	set    *Set
	report ReplayReport
	kinds  map[ReplayKind]*tally
	people crowd
}

// ReplayReport is what a policy set would have changed. Refused and Allowed are ordered by how many calls they concern.
type ReplayReport struct {
	Schema string    `json:"schema"` // ReplaySchema
	Set    string    `json:"policy_set"`
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
	Calls  int64     `json:"calls"` // that were decided again: the sum of the next four

	Unchanged int64 `json:"unchanged"`
	// Lacking are those that the new set answers only if it knows the stored resource. As things are, it refuses them.
	Lacking      int64 `json:"lacking_facts"`
	NewlyRefused int64 `json:"newly_refused"`
	NewlyAllowed int64 `json:"newly_allowed"`

	Failed     int64 `json:"policy_errors"` // of Calls: those on which a policy of the new set cannot be evaluated
	Undecided  int64 `json:"undecided"`     // calls that never reached policy
	Folded     int64 `json:"folded"`        // refusals that were recorded as a sum only
	Unreadable int64 `json:"unreadable"`    // records that another version of Ward wrote

	Refused []ReplayChange `json:"refused,omitempty"`
	Allowed []ReplayChange `json:"allowed,omitempty"`
}

// ReplaySchema names the shape of ReplayReport; fields are only ever added.
const ReplaySchema = "ward.replay/1"

// ReplayKind is a kind of call.
type ReplayKind struct {
	Allowed     bool   `json:"-"`           // by the new set
	Caller      string `json:"caller"`      // SPIFFE ID; "" where many kinds are folded into one
	Interaction string `json:"interaction"` // as FHIR names it
	Type        string `json:"type"`        // of resource
}

// ReplayChange is one kind of call that the new set decides otherwise.
type ReplayChange struct {
	ReplayKind
	Calls     int64 `json:"calls"`
	Users     int   `json:"users"`     // different ones
	Workloads int   `json:"workloads"` // different ones; more than one only where kinds are folded
	// AtLeast: there were more users or workloads than can be told apart in bounded memory.
	AtLeast bool   `json:"at_least,omitempty"`
	Example string `json:"example"` // a decision's id, for ward policy explain
}

// Bounds of what a replay remembers.
const (
	maxKinds  = 4096
	maxPeople = 1 << 18 // users and workloads, over all kinds
)

type tally struct {
	calls            int64
	example          string
	users, workloads map[uint64]struct{}
	atLeast          bool
}

// NewReplay makes a replay by set.
func NewReplay(set *Set) *Replay {
	return &Replay{set: set, report: ReplayReport{Schema: ReplaySchema, Set: set.Hash()}, kinds: map[ReplayKind]*tally{},
		people: crowd{seed: maphash.MakeSeed(), left: maxPeople}}
}

// Add decides the call again that r records, if r is where a decision was recorded.
func (p *Replay) Add(r *proxy.Record) {
	if r.Hop != proxy.HopIngress || r.Stage != proxy.StageIntent && r.Stage != proxy.StageRefusal {
		return
	}
	if len(r.Inputs) == 0 {
		p.report.Undecided++
		return
	}
	in, err := p.set.model.parseInputs(r.Inputs)
	if err != nil {
		p.report.Unreadable++
		return
	}
	t := &p.report
	t.Calls++
	if t.First.IsZero() || r.Time.Before(t.First) {
		t.First = r.Time
	}
	if r.Time.After(t.Last) {
		t.Last = r.Time
	}
	effect, at, failed := p.set.decideAll(in)
	if failed {
		t.Failed++
	}
	was := decided(r)
	switch {
	case effect == proxy.NeedsImage && was != proxy.NeedsImage:
		t.Lacking++
	case (effect == proxy.Allow) == (was == proxy.Allow):
		t.Unchanged++
	case effect == proxy.Allow:
		t.NewlyAllowed++
		p.change(r, in, at, true)
	default:
		t.NewlyRefused++
		p.change(r, in, at, false)
	}
}

// Skip counts a record that another version of Ward wrote.
func (p *Replay) Skip() { p.report.Unreadable++ }

// Fold counts refusals that were recorded as a sum only.
func (p *Replay) Fold(n int64) { p.report.Folded += n }

// decideAll decides a whole call, as Decide does, and says which interaction it was that decided.
func (s *Set) decideAll(in *inputs) (effect proxy.Effect, at int, failed bool) {
	effect = proxy.Allow
	for i := range in.Requests {
		v := s.decide(in, &in.Requests[i])
		if severity(v.effect) > severity(effect) {
			effect, at = v.effect, i
		}
		failed = failed || len(v.errors) > 0
	}
	return effect, at, failed
}

// decided is what policy said when the call was made. A call may have been refused for another reason since, or have
// been let through in spite of it by a service that was only observed.
func decided(r *proxy.Record) proxy.Effect {
	causes := []proxy.Cause{r.Cause}
	if r.Would != nil {
		causes = append(append(causes, r.Would.Cause), r.Would.Also...)
	}
	for _, c := range causes {
		switch c {
		case proxy.CausePolicy, proxy.CausePolicyError:
			return proxy.Deny
		case proxy.CauseNeedsImage:
			return proxy.NeedsImage
		}
	}
	return proxy.Allow
}

// change counts a call that fares otherwise. at is the interaction by which it is known.
func (p *Replay) change(r *proxy.Record, in *inputs, at int, allowed bool) {
	kind := ReplayKind{Allowed: allowed, Caller: in.Principal.ID, Interaction: in.Requests[at].Action, Type: in.Requests[at].Type}
	t := p.kinds[kind]
	if t == nil && len(p.kinds) >= maxKinds {
		kind = ReplayKind{Allowed: allowed}
		t = p.kinds[kind]
	}
	if t == nil {
		t = &tally{example: r.Decision, users: map[uint64]struct{}{}, workloads: map[uint64]struct{}{}}
		p.kinds[kind] = t
	}
	t.calls++
	whole := p.people.add(t.workloads, in.Principal.ID, "")
	if u := in.Context.User; u != nil {
		whole = p.people.add(t.users, u.Issuer, u.Subject) && whole
	}
	t.atLeast = t.atLeast || !whole
}

// crowd tells people apart by hashes, as long as there is room.
type crowd struct {
	seed maphash.Seed
	left int
}

// add reports whether the person is counted.
func (c *crowd) add(in map[uint64]struct{}, issuer, subject string) bool {
	var h maphash.Hash
	h.SetSeed(c.seed)
	_, _ = h.WriteString(issuer)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(subject)
	sum := h.Sum64()
	if _, ok := in[sum]; ok {
		return true
	}
	if c.left == 0 {
		return false
	}
	c.left--
	in[sum] = struct{}{}
	return true
}

// Report says what has changed so far.
func (p *Replay) Report() *ReplayReport {
	out := p.report
	for kind, t := range p.kinds {
		c := ReplayChange{ReplayKind: kind, Calls: t.calls, Users: len(t.users), Workloads: len(t.workloads), AtLeast: t.atLeast, Example: t.example}
		if kind.Allowed {
			out.Allowed = append(out.Allowed, c)
		} else {
			out.Refused = append(out.Refused, c)
		}
	}
	slices.SortFunc(out.Allowed, ReplayChange.compare)
	slices.SortFunc(out.Refused, ReplayChange.compare)
	return &out
}

// Calls is how many calls have been decided again so far.
func (p *Replay) Calls() int64 { return p.report.Calls }

func (c ReplayChange) compare(o ReplayChange) int {
	return cmp.Or(cmp.Compare(o.Calls, c.Calls), strings.Compare(c.Caller, o.Caller), strings.Compare(c.Interaction, o.Interaction),
		strings.Compare(c.Type, o.Type))
}

// Widened reports whether the new set lets a call through that was refused.
func (r *ReplayReport) Widened() bool { return r.NewlyAllowed > 0 }
