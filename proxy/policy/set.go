package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"

	"github.com/wardmesh/ward/proxy"
)

// hashDigits is how much of a set's hash is shown and recorded.
const hashDigits = 12

// Set is a checked set of policies. It never changes and may be shared.
type Set struct {
	model    *model
	policies []*policy // in the order of the files
	files    []File
	hash     string
	slices   map[string]*actionSlices // by action
	memory   *memory
}

// Hash names the set: the first 12 hex digits of the SHA-256 over the names and contents of its files.
func (s *Set) Hash() string { return s.hash }

// Source is the set's files, sorted by name, so that a copy can be kept by its hash: Parse makes the same set of it.
// The contents must not be changed.
func (s *Set) Source() []File { return slices.Clone(s.files) }

// Len is the number of policies.
func (s *Set) Len() int { return len(s.policies) }

// actionSlices are the policies that can apply to one action, by resource type. Types that no policy names share one
// slice.
type actionSlices struct {
	byType map[string]*slice
	others *slice
}

// slice is the policies that can apply to calls of one kind, sorted by id: all others are false for such calls, by
// their scope alone.
type slice struct {
	policies []*policy
	reads    mask
	each     iter.Seq2[cedar.PolicyID, *cedar.Policy] // made once
}

// All implements cedar.PolicyIterator.
func (s *slice) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] { return s.each }

// policy finds one of the slice by its id, which must be there.
func (s *slice) policy(id cedar.PolicyID) *policy {
	i, _ := slices.BinarySearchFunc(s.policies, string(id), func(p *policy, id string) int { return strings.Compare(p.id, id) })
	return s.policies[i]
}

// index sorts the policies into slices.
func (s *Set) index() {
	s.slices = map[string]*actionSlices{}
	sorted := slices.Clone(s.policies)
	slices.SortFunc(sorted, func(a, b *policy) int { return strings.Compare(a.id, b.id) })
	for name := range s.model.actions {
		of := &actionSlices{byType: map[string]*slice{}}
		var on []*policy
		for _, p := range sorted {
			if p.actions == nil || slices.Contains(p.actions, name) {
				on = append(on, p)
				for _, t := range p.types {
					of.byType[t] = nil
				}
			}
		}
		of.others = sliceOf(on, "")
		for t := range of.byType {
			of.byType[t] = sliceOf(on, t)
		}
		s.slices[name] = of
	}
}

// sliceOf keeps the policies that can apply to resourceType; "" stands for any type that none of them names.
func sliceOf(policies []*policy, resourceType string) *slice {
	s := &slice{}
	s.each = func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, p := range s.policies {
			if !yield(cedar.PolicyID(p.id), p.sliced) {
				return
			}
		}
	}
	for _, p := range policies {
		if p.types == nil || resourceType != "" && slices.Contains(p.types, resourceType) {
			s.policies = append(s.policies, p)
			s.reads |= p.reads
		}
	}
	return s
}

// slice is the policies that can apply to r.
func (s *Set) slice(r *request) *slice {
	of := s.slices[r.Action]
	if in, ok := of.byType[r.Type]; ok {
		return in
	}
	return of.others
}

// Decide implements proxy.Decider. A call is allowed when each of its interactions is.
func (s *Set) Decide(f *proxy.Facts) proxy.Decision {
	d := proxy.Decision{Set: s.hash}
	v := &view{}
	err := s.model.see(f, v)
	if err != nil {
		d.Errors = []error{fmt.Errorf("policy cannot see this call: %w", err)}
		return d
	}
	if d.Inputs, err = v.append(make([]byte, 0, 512)); err != nil {
		d.Inputs, d.Errors = nil, []error{err}
		return d
	}
	if len(v.Requests) == 1 {
		one := s.decideOn(&v.call, &v.inputs, &v.Requests[0])
		d.Effect, d.Policies, d.Errors = one.effect, one.policies, one.errors
		return d
	}
	d.Effect = proxy.Allow
	for i := range v.Requests {
		one := s.decideOn(&v.call, &v.inputs, &v.Requests[i])
		if severity(one.effect) > severity(d.Effect) {
			d.Effect, d.Policies = one.effect, nil
		}
		if one.effect == d.Effect {
			d.Policies = append(d.Policies, one.policies...)
		}
		d.Errors = append(d.Errors, one.errors...)
	}
	slices.Sort(d.Policies)
	d.Policies = slices.Compact(d.Policies)
	return d
}

// severity orders effects: of several interactions, the one that fares worst decides for the call.
func severity(e proxy.Effect) int {
	switch e {
	case proxy.Allow:
		return 0
	case proxy.NeedsImage:
		return 1
	}
	return 2
}
