package policy

import (
	"cmp"
	"slices"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"github.com/wardmesh/ward/proxy"
)

// Explanation says why a recorded call was decided as it was.
type Explanation struct {
	Requests []RequestExplanation `json:"requests"` // one for each interaction of the call
}

// RequestExplanation is the explanation of one interaction. It quotes the recorded values, patients' ids among them:
// it is for the operator's eyes.
type RequestExplanation struct {
	Action   string    `json:"action"`
	Resource string    `json:"resource"` // Type or Type/id
	Effect   string    `json:"effect"`   // as proxy.Effect spells it
	Permits  []Finding `json:"permits,omitempty"`
	Forbids  []Finding `json:"forbids,omitempty"`
	Open     []Finding `json:"open,omitempty"`   // those that need the resource as it is now
	Failed   []Finding `json:"failed,omitempty"` // those that cannot be evaluated
	// Nearest is the permit that lacks least, when no policy holds and none is open or failed. Nil without permits.
	Nearest *Finding `json:"nearest,omitempty"`
}

// Finding is one policy and how each of its clauses fared.
type Finding struct {
	Policy      string   `json:"policy"`
	Description string   `json:"description,omitempty"`
	File        string   `json:"file"`
	Line        int      `json:"line"`
	Clauses     []Clause `json:"clauses,omitempty"`
}

// Clause is one part of a policy's scope or conditions that must be true.
type Clause struct {
	State State  `json:"state"`
	Text  string `json:"text"`           // as Cedar formats it
	Note  string `json:"note,omitempty"` // the values that made it fail

	scope bool
}

// State is how a clause fared.
type State string

// The states. What stands behind the first clause that is not ok was not evaluated when the call was decided.
const (
	OK         State = "ok"
	Fails      State = "FAILS"
	Unknown    State = "?"
	NotReached State = "-"
)

// Explain decides again on the recorded inputs of a decision and shows the working. The set must be the one that
// decided: see Set.Hash. An error means that inputs are not what a decision recorded.
func Explain(set *Set, inputs []byte) (*Explanation, error) {
	in, err := set.model.parseInputs(inputs)
	if err != nil {
		return nil, err
	}
	e := &Explanation{}
	for i := range in.Requests {
		e.Requests = append(e.Requests, set.explain(in, &in.Requests[i]))
	}
	return e, nil
}

func (s *Set) explain(in *inputs, r *request) RequestExplanation {
	out := RequestExplanation{Action: r.Action, Resource: r.Type, Effect: s.decide(in, r).effect.String()}
	if r.ID != "" {
		out.Resource += "/" + r.ID
	}
	x := explainer{call: s.model.call(in, r, s.model.everything)}
	request := x.call.request()
	x.env = eval.Env{Principal: request.Principal, Action: request.Action, Resource: request.Resource, Context: request.Context, Entities: x.call}
	var permits []candidate
	for _, p := range s.policies {
		c := x.examine(p)
		permit := p.cedar.Effect() == cedar.Permit
		switch {
		case c.failed:
			out.Failed = append(out.Failed, c.finding)
		case c.open:
			out.Open = append(out.Open, c.finding)
		case c.holds() && permit:
			out.Permits = append(out.Permits, c.finding)
		case c.holds():
			out.Forbids = append(out.Forbids, c.finding)
		case permit:
			permits = append(permits, c)
		}
	}
	if out.Effect == proxy.Deny.String() && len(out.Permits)+len(out.Forbids)+len(out.Failed) == 0 && len(permits) > 0 {
		near := slices.MinFunc(permits, candidate.compare)
		out.Nearest = &near.finding
	}
	return out
}

// candidate is a policy that was examined for one call.
type candidate struct {
	finding      Finding
	scope        int  // how many of principal, action and resource do not match
	missing      int  // how many clauses are not true
	open, failed bool // evaluation ended so
}

func (c candidate) holds() bool { return c.missing == 0 }

// compare orders by what is lacking. A scope that does not match weighs more than any condition: a policy about
// something else is not near. Of equals the one that has more to say comes first, then the order of the files.
func (c candidate) compare(o candidate) int {
	return cmp.Or(cmp.Compare(c.scope, o.scope), cmp.Compare(c.missing, o.missing),
		cmp.Compare(len(o.finding.Clauses), len(c.finding.Clauses)))
}

type explainer struct {
	call *call
	env  eval.Env
}

// examine evaluates every clause of p by itself, and shows them up to the first that is not true as they were reached.
func (x *explainer) examine(p *policy) candidate {
	c := candidate{finding: Finding{Policy: p.id, Description: p.description, File: p.file, Line: p.line}}
	for _, cl := range clauses(p.ast) {
		shown := Clause{Text: cl.text(), scope: cl.scope}
		reached := c.missing == 0
		v, err := eval.Eval(cl.node, x.env)
		switch {
		case err == nil && v.Equal(types.True):
			shown.State = OK
		case err == nil:
			shown.State, shown.Note = Fails, x.note(cl.operand())
		case p.reads.has(x.call.unknown()): // as decide sees it
			shown.State, shown.Note = Unknown, "needs the resource as it is now"
			c.open = c.open || reached
		default:
			shown.State, shown.Note = Fails, "cannot be evaluated: "+err.Error()
			c.failed = c.failed || reached
		}
		if shown.State != OK {
			c.missing++
			if cl.scope || cl.types {
				c.scope++
			}
		}
		if !reached {
			shown.State, shown.Note = NotReached, "not reached"
		}
		c.finding.Clauses = append(c.finding.Clauses, shown)
	}
	// A scope that matches goes without saying.
	c.finding.Clauses = slices.DeleteFunc(c.finding.Clauses, func(cl Clause) bool { return cl.scope && cl.State == OK })
	return c
}

// clause is one part of a policy that must be true for it to hold.
type clause struct {
	node   ast.IsNode
	scope  bool // from the policy's head
	types  bool // lists the resource types right at the beginning, as a head would if it could
	unless bool // node is `!` and what the policy says must not be
}

// clauses takes a policy apart. `when { a && b }` is two clauses, and so is `unless { a || b }`: neither may hold.
func clauses(p *ast.Policy) []clause {
	var out []clause
	for _, s := range [...]struct {
		variable ast.Node
		scope    ast.IsScopeNode
	}{{ast.Principal(), p.Principal}, {ast.Action(), p.Action}, {ast.Resource(), p.Resource}} {
		if n, ok := scopeNode(s.variable, s.scope); ok {
			out = append(out, clause{node: n.AsIsNode(), scope: true})
		}
	}
	for i, c := range p.Conditions {
		if c.Condition == ast.ConditionWhen {
			for j, n := range conjuncts(c.Body) {
				out = append(out, clause{node: n, types: i+j == 0 && alternatives(n) != nil})
			}
			continue
		}
		for _, n := range disjuncts(c.Body) {
			out = append(out, clause{node: ast.Not(ast.NewNode(n)).AsIsNode(), unless: true})
		}
	}
	return out
}

func scopeNode(v ast.Node, s ast.IsScopeNode) (ast.Node, bool) {
	switch s := s.(type) {
	case ast.ScopeTypeEq:
		return v.Equal(ast.Value(s.Entity)), true
	case ast.ScopeTypeIn:
		return v.In(ast.Value(s.Entity)), true
	case ast.ScopeTypeInSet:
		list := make([]ast.Node, len(s.Entities))
		for i, e := range s.Entities {
			list[i] = ast.Value(e)
		}
		return v.In(ast.Set(list...)), true
	case ast.ScopeTypeIs:
		return v.Is(s.Type), true
	case ast.ScopeTypeIsIn:
		return v.IsIn(s.Type, ast.Value(s.Entity)), true
	}
	return ast.Node{}, false
}

// disjuncts are the parts of `a || b || c`, in the order of evaluation.
func disjuncts(n ast.IsNode) []ast.IsNode {
	if or, ok := n.(ast.NodeTypeOr); ok {
		return append(disjuncts(or.Left), disjuncts(or.Right)...)
	}
	return []ast.IsNode{n}
}

// operand is the clause without the negations around it: what its note is about.
func (c clause) operand() ast.IsNode {
	n := c.node
	for {
		not, ok := n.(ast.NodeTypeNot)
		if !ok {
			return n
		}
		n = not.Arg
	}
}

// note gives the values that decided an expression.
func (x *explainer) note(n ast.IsNode) string {
	switch n := n.(type) {
	case ast.NodeTypeEquals:
		return x.both(n.BinaryNode)
	case ast.NodeTypeNotEquals:
		return x.both(n.BinaryNode)
	case ast.NodeTypeLessThan:
		return x.both(n.BinaryNode)
	case ast.NodeTypeLessThanOrEqual:
		return x.both(n.BinaryNode)
	case ast.NodeTypeGreaterThan:
		return x.both(n.BinaryNode)
	case ast.NodeTypeGreaterThanOrEqual:
		return x.both(n.BinaryNode)
	case ast.NodeTypeIn:
		return x.both(n.BinaryNode)
	case ast.NodeTypeContains:
		return x.both(n.BinaryNode)
	case ast.NodeTypeContainsAll:
		return x.both(n.BinaryNode)
	case ast.NodeTypeContainsAny:
		return x.both(n.BinaryNode)
	case ast.NodeTypeIsEmpty:
		return x.value(n.Arg)
	case ast.NodeTypeLike:
		return x.value(n.Arg)
	case ast.NodeTypeIs:
		return x.value(n.Left)
	case ast.NodeTypeIsIn:
		return x.value(n.Left)
	case ast.NodeTypeHas:
		if v, err := eval.Eval(n, x.env); err == nil && v.Equal(types.True) {
			return "it is there"
		}
		return "it is absent"
	case ast.NodeTypeOr:
		return x.alternatives(n)
	case ast.NodeTypeAccess:
		return x.value(n)
	}
	return ""
}

func (x *explainer) both(n ast.BinaryNode) string { return x.value(n.Left) + " vs " + x.value(n.Right) }

// alternatives gives what was compared in `a == 1 || a == 2`, when it is the same on every side.
func (x *explainer) alternatives(n ast.NodeTypeOr) string {
	var subject ast.IsNode
	for _, d := range disjuncts(n) {
		s := subjectOf(d)
		if s == nil || subject != nil && !ast.Equal(ast.NewNode(s), ast.NewNode(subject)) {
			return "none of them holds"
		}
		subject = s
	}
	return x.value(subject)
}

// subjectOf is the left side of a comparison, nil for any other expression.
func subjectOf(n ast.IsNode) ast.IsNode {
	switch n := n.(type) {
	case ast.NodeTypeEquals:
		return n.Left
	case ast.NodeTypeIs:
		return n.Left
	case ast.NodeTypeIn:
		return n.Left
	case ast.NodeTypeLike:
		return n.Arg
	case ast.NodeTypeContains:
		return n.Left
	}
	return nil
}

func (x *explainer) value(n ast.IsNode) string {
	v, err := eval.Eval(n, x.env)
	if err != nil {
		return "?"
	}
	return showValue(v)
}
