package policy

import (
	"fmt"

	cedar "github.com/cedar-policy/cedar-go"

	"github.com/wardmesh/ward/proxy"
)

// verdict is the decision on one interaction.
type verdict struct {
	effect   proxy.Effect
	policies []string // that determined it, sorted
	errors   []error
}

// decide is Ward's rule over Cedar's. Cedar says which policies hold; these are the differences:
//
//   - A policy that cannot be evaluated denies, whatever the others say. (Cedar passes over it, and a forbid that is
//     passed over is a permission.)
//   - A policy that looks at an attribute which nobody has looked up is open: it may hold or not. While one is open
//     nothing is allowed. The call is denied where every answer would deny it: a forbid holds, or no permit holds and
//     none is open. Else the image is needed.
func (s *Set) decide(in *inputs, r *request) verdict { return s.decideOn(&call{}, in, r) }

// decideOn is decide in c's memory.
func (s *Set) decideOn(c *call, in *inputs, r *request) verdict {
	slice := s.slice(r)
	c.set(s.model, in, r, slice.reads)
	c.memory = s.memory
	decision, diag := cedar.Authorize(slice, c, c.request())
	if len(diag.Errors) == 0 {
		v := verdict{effect: proxy.Deny, policies: reasons(diag)}
		if decision == cedar.Allow {
			v.effect = proxy.Allow
		}
		return v
	}
	failed, open, permits := c.sort(slice, diag)
	switch {
	case len(failed) > 0:
		return verdict{proxy.Deny, ids(failed), evaluationErrors(failed)}
	case decision == cedar.Deny && len(diag.Reasons) > 0: // a forbid holds
		return verdict{proxy.Deny, reasons(diag), nil}
	case decision == cedar.Deny && !permits: // no permit holds, and none can
		return verdict{proxy.Deny, nil, nil}
	}
	return verdict{proxy.NeedsImage, ids(open), nil}
}

// sort tells the policies that failed from those that are open, and says whether a permit is open. An open policy is
// known by its error: the attribute is not in the record, because nobody has looked it up.
func (c *call) sort(s *slice, diag cedar.Diagnostic) (failed, open []*policy, permits bool) {
	for _, e := range diag.Errors {
		p := s.policy(e.PolicyID)
		if !p.reads.has(c.unknown()) {
			failed = append(failed, p)
			continue
		}
		open = append(open, p)
		permits = permits || p.cedar.Effect() == cedar.Permit
	}
	return failed, open, permits
}

func reasons(diag cedar.Diagnostic) []string {
	if len(diag.Reasons) == 0 {
		return nil
	}
	out := make([]string, len(diag.Reasons))
	for i, r := range diag.Reasons {
		out[i] = string(r.PolicyID)
	}
	return out
}

func ids(policies []*policy) []string {
	out := make([]string, len(policies))
	for i, p := range policies {
		out[i] = p.id
	}
	return out
}

// evaluationErrors names the policies that failed. Cedar's own words stay out: they quote the call's values.
func evaluationErrors(failed []*policy) []error {
	out := make([]error, len(failed))
	for i, p := range failed {
		out[i] = fmt.Errorf("policy %s (%s:%d) cannot be evaluated on this call", p.id, p.file, p.line)
	}
	return out
}
