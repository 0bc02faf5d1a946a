package policy

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// policy is one checked policy.
type policy struct {
	id, description string
	file            string // as in File.Name
	line            int
	cedar           *cedar.Policy
	sliced          *cedar.Policy // the same without what its slices have decided already
	ast             *ast.Policy
	actions         []string // names of the actions that its scope admits; nil admits all
	types           []string // FHIR names of the resource types that it can apply to; nil stands for all
	reads           mask     // every attribute that evaluating it can look at
}

// parse makes a Set of files, unless there are problems already; folder is put before the files' names in problems.
func parse(files []File, folder string, problems Problems) (*Set, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	c := checker{model: newModel(), ids: map[string]*Problem{}, problems: problems}
	for _, f := range files {
		c.file(f, filepath.Join(folder, f.Name))
	}
	if len(c.policies) == 0 && len(c.problems) == 0 {
		c.problems = append(c.problems, &Problem{File: cmp.Or(folder, "policies"), Text: "there is no policy here, so every call would be refused",
			Advice: `write policies in *.cedar files; if refusing everything is meant, write: @id("nothing") forbid (principal, action, resource);`})
	}
	c.validate()
	if err := c.problems.orNil(); err != nil {
		return nil, err
	}
	set := &Set{model: c.model, policies: make([]*policy, len(c.policies)), files: files, hash: digest(files)[:hashDigits], memory: newMemory()}
	for i, d := range c.policies {
		set.policies[i] = d.policy
	}
	set.index()
	return set, nil
}

// checker collects policies and all that is wrong with them.
type checker struct {
	model    *model
	policies []draft
	ids      map[string]*Problem // the place of each @id
	problems Problems
}

// draft is a policy with its place.
type draft struct {
	*policy
	src        *source
	start, end int
}

func (c *checker) file(f File, place string) {
	src, problem := newSource(place, f.Content)
	if problem != nil {
		c.problems = append(c.problems, problem)
		return
	}
	list, problems := src.policies()
	c.problems = append(c.problems, problems...)
	for i, p := range list {
		pos := p.Position()
		end := len(f.Content)
		if i < len(src.ends) {
			end = src.ends[i]
		}
		p.SetFilename(f.Name)
		d := draft{src: src, start: min(pos.Offset, end), end: end,
			policy: &policy{file: f.Name, line: pos.Line, cedar: p, ast: (*ast.Policy)(p.AST())}}
		c.annotations(&d)
		c.literals(&d)
		c.guards(&d)
		d.actions, d.types = c.model.scope(d.ast)
		d.reads = c.model.reads(d.ast)
		d.sliced = sliced(d.ast, d.types)
		c.policies = append(c.policies, d)
	}
}

func (c *checker) complain(d *draft, needle, text, advice string) {
	c.problems = append(c.problems, d.src.at(d.src.locate(d.start, d.end, needle), text, advice))
}

// annotations reads @id, which every policy must have, and @description.
func (c *checker) annotations(d *draft) {
	a := d.cedar.Annotations()
	d.id, d.description = string(a["id"]), string(a["description"])
	if _, ok := a["id"]; !ok {
		c.complain(d, "", "this policy has no @id", `write @id("…") before it: decisions, records and explanations name it so`)
		return
	}
	if !isPolicyID(d.id) {
		c.complain(d, "@id", fmt.Sprintf("%q is no policy id", d.id), "use up to 64 letters, digits, dots, dashes and underscores")
		return
	}
	place := d.src.at(d.src.locate(d.start, d.end, "@id"), "", "")
	if first, ok := c.ids[d.id]; ok {
		c.complain(d, "@id", fmt.Sprintf("the id %q is taken by the policy at %s:%d", d.id, first.File, first.Line), "give each policy an id of its own")
		return
	}
	c.ids[d.id] = place
}

func isPolicyID(s string) bool {
	for i := range len(s) {
		if !nameByte(s[i]) && s[i] != '-' && s[i] != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// validate checks every policy against the schema. All resource types have the same attributes, so a schema of those
// that the policies name, System and one other gives the same verdicts as that of all R4 types, in a tenth of the time.
func (c *checker) validate() {
	named := []string{"Basic"}
	for _, d := range c.policies {
		entities(d.ast, func(t types.EntityType) {
			if name, ok := isResource(t); ok && name != systemType && !slices.Contains(named, name) {
				named = append(named, name)
			}
		})
	}
	schema, err := c.model.resolve(named)
	if err != nil {
		c.problems = append(c.problems, &Problem{File: "ward.cedarschema", Text: err.Error(), Advice: "this is a defect in Ward"})
		return
	}
	v := validate.New(schema)
	for i := range c.policies {
		d := &c.policies[i]
		if err := v.Policy("", merged(d.ast)); err != nil {
			c.translate(d, err)
		}
	}
}

// merged is p with one condition in place of several: what `when { context has user }` guards is then known to be
// guarded in the `unless` behind it, as it is when p is evaluated.
func merged(p *ast.Policy) *ast.Policy {
	if len(p.Conditions) < 2 {
		return p
	}
	one := *p
	all := ast.Node{}
	for i, c := range p.Conditions {
		n := ast.NewNode(c.Body)
		if c.Condition == ast.ConditionUnless {
			n = ast.Not(n)
		}
		if i == 0 {
			all = n
		} else {
			all = all.And(n)
		}
	}
	one.Conditions = []ast.ConditionType{{Condition: ast.ConditionWhen, Body: all.AsIsNode()}}
	return &one
}

// entities calls f with each entity type that p names.
func entities(p *ast.Policy, f func(types.EntityType)) {
	uids(p, func(uid types.EntityUID) { f(uid.Type) })
	for _, s := range [...]ast.IsScopeNode{p.Principal, p.Resource} {
		switch s := s.(type) {
		case ast.ScopeTypeIs:
			f(s.Type)
		case ast.ScopeTypeIsIn:
			f(s.Type)
		}
	}
	inspect(p, func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeIs:
			f(n.EntityType)
		case ast.NodeTypeIsIn:
			f(n.EntityType)
		}
		return true
	})
}

// uids calls f with each entity that p names.
func uids(p *ast.Policy, f func(types.EntityUID)) {
	for _, s := range [...]ast.IsScopeNode{p.Principal, p.Action, p.Resource} {
		switch s := s.(type) {
		case ast.ScopeTypeEq:
			f(s.Entity)
		case ast.ScopeTypeIn:
			f(s.Entity)
		case ast.ScopeTypeInSet:
			for _, e := range s.Entities {
				f(e)
			}
		case ast.ScopeTypeIsIn:
			f(s.Entity)
		}
	}
	inspect(p, func(n ast.IsNode) bool {
		if v, ok := n.(ast.NodeValue); ok {
			if uid, ok := v.Value.(types.EntityUID); ok {
				f(uid)
			}
		}
		return true
	})
}

// inspect visits every node of p's conditions.
func inspect(p *ast.Policy, f func(ast.IsNode) bool) {
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), f)
	}
}
