package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy/fhir"
)

// literals refuses entities that no call can ever have: a policy about them would be silently without effect.
func (c *checker) literals(d *draft) {
	uids(d.ast, func(uid types.EntityUID) {
		switch {
		case uid.Type == workloadType:
			if err := checkWorkload(string(uid.ID)); err != nil {
				c.complain(d, uid.String(), fmt.Sprintf("%s is no workload: %v", uid, err),
					`write the path of its SPIFFE ID, Workload::"/app/portal", or for another trust domain the whole ID`)
			}
		case strings.HasPrefix(string(uid.Type), fhirPrefix):
			if uid.ID != "" && !fhir.IsID(string(uid.ID)) {
				c.complain(d, uid.String(), fmt.Sprintf("%s can be no resource: its id is no FHIR id", uid), `write FHIR::Patient::"example"`)
			}
		}
	})
}

func checkWorkload(name string) error {
	if strings.HasPrefix(name, "spiffe://") {
		if strings.Count(name, "/") == 2 {
			_, err := spiffeid.TrustDomainFromString(name)
			return err
		}
		_, err := spiffeid.FromString(name)
		return err
	}
	if name == "" {
		return fmt.Errorf("the name is empty")
	}
	return spiffeid.ValidatePath(name)
}

// guards refuses `resource has patients` and the like. Every resource has patients and labels, and Ward may not know
// them; the guard would read not knowing as not having, and turn a forbid into nothing.
func (c *checker) guards(d *draft) {
	inspect(d.ast, func(n ast.IsNode) bool {
		has, ok := n.(ast.NodeTypeHas)
		if !ok {
			return true
		}
		a := find(c.model.resource, string(has.Value))
		if root, _ := chain(has.Arg); a != nil && a.image && root != "context" && root != "principal" {
			c.complain(d, "has "+a.name, fmt.Sprintf("every resource has %s, known or not", a.name),
				"drop the guard: Ward refuses the call when a policy needs what nobody has looked up")
		}
		return true
	})
}

// chain takes `context.user.roles` apart into its variable and its attributes. The variable is "" for anything else.
func chain(n ast.IsNode) (variable string, names []string) {
	switch n := n.(type) {
	case ast.NodeTypeVariable:
		return string(n.Name), nil
	case ast.NodeTypeAccess:
		variable, names = chain(n.Arg)
		return variable, append(names, string(n.Value))
	}
	return "", nil
}

// reads is every attribute that evaluating p can look at. Where an expression is too clever to follow, it is all.
func (m *model) reads(p *ast.Policy) mask {
	var reads mask
	inspect(p, func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeHas:
			variable, names := chain(n.Arg)
			reads |= m.read(variable, append(names, string(n.Value)), true)
			return variable == ""
		case ast.NodeTypeAccess:
			variable, names := chain(n)
			reads |= m.read(variable, names, false)
			return variable == ""
		case ast.NodeTypeVariable: // on its own: an entity is only a name, but the context is a record
			if n.Name == "context" {
				reads |= m.everything
			}
		}
		return true
	})
	return reads
}

// read is what looking at one attribute means: having it, with presence alone; else all that is in it.
func (m *model) read(variable string, names []string, presence bool) mask {
	table, ok := map[string][]attribute{"principal": m.principal, "resource": m.resource, "context": m.context}[variable]
	if !ok {
		return m.everything
	}
	var path mask
	for i, name := range names {
		a := find(table, name)
		switch {
		case a == nil && presence:
			return path // no such attribute, whatever the call
		case a == nil:
			return m.everything
		case i < len(names)-1:
			path |= a.bit
			table = a.fields
		case presence:
			path |= a.bit
		default:
			path |= a.all
		}
	}
	return path
}

// scope gives the actions and the resource types to which p can apply at all; nil stands for all.
func (m *model) scope(p *ast.Policy) (acts, resourceTypes []string) {
	switch s := p.Action.(type) {
	case ast.ScopeTypeEq:
		acts = []string{string(s.Entity.ID)}
	case ast.ScopeTypeIn:
		acts = m.members(s.Entity)
	case ast.ScopeTypeInSet:
		acts = []string{}
		for _, e := range s.Entities {
			acts = append(acts, m.members(e)...)
		}
	}
	switch s := p.Resource.(type) {
	case ast.ScopeTypeEq:
		resourceTypes = resourceNames(s.Entity.Type)
	case ast.ScopeTypeIn: // resources have no parents, so this is ==
		resourceTypes = resourceNames(s.Entity.Type)
	case ast.ScopeTypeIs:
		resourceTypes = resourceNames(s.Type)
	case ast.ScopeTypeIsIn:
		resourceTypes = resourceNames(s.Type)
	case ast.ScopeTypeAll:
		// `when { resource is A || resource is B … }` at the very beginning is how policies list several types. Behind
		// another conjunct it would not do: that one could fail with an error, which must not go unnoticed.
		if len(p.Conditions) > 0 && p.Conditions[0].Condition == ast.ConditionWhen {
			resourceTypes = alternatives(conjuncts(p.Conditions[0].Body)[0])
		}
	}
	return acts, resourceTypes
}

// sliced is p without the parts that are true of every call in its slices: its actions, and its resource types where it
// says nothing more of the resource. Whether the index and this agree with Cedar is the property test's to show.
func sliced(p *ast.Policy, resourceTypes []string) *cedar.Policy {
	out := *p
	out.Action = ast.ScopeTypeAll{}
	switch p.Resource.(type) {
	case ast.ScopeTypeIs:
		out.Resource = ast.ScopeTypeAll{}
	case ast.ScopeTypeAll:
		if resourceTypes != nil {
			parts := conjuncts(p.Conditions[0].Body)[1:]
			out.Conditions = slices.Clone(p.Conditions[1:])
			for i := len(parts) - 1; i >= 0; i-- {
				out.Conditions = slices.Insert(out.Conditions, 0, ast.ConditionType{Condition: ast.ConditionWhen, Body: parts[i]})
			}
		}
	}
	converted := publicast.Policy(out)
	return cedar.NewPolicyFromAST(&converted)
}

// members are the actions that are e or in e.
func (m *model) members(e types.EntityUID) []string {
	names := []string{string(e.ID)}
	for name, a := range m.actions {
		if slices.Contains(a.in, string(e.ID)) {
			names = append(names, name)
		}
	}
	return names
}

func resourceNames(t types.EntityType) []string {
	if name, ok := isResource(t); ok {
		return []string{name}
	}
	return []string{}
}

// alternatives are the types in `resource is A || resource is B`, nil for any other expression.
func alternatives(n ast.IsNode) []string {
	switch n := n.(type) {
	case ast.NodeTypeIs:
		if v, ok := n.Left.(ast.NodeTypeVariable); ok && v.Name == "resource" {
			return resourceNames(n.EntityType)
		}
	case ast.NodeTypeOr:
		if left, right := alternatives(n.Left), alternatives(n.Right); left != nil && right != nil {
			return append(left, right...)
		}
	}
	return nil
}

// conjuncts are the parts of `a && b && c`, in the order of evaluation.
func conjuncts(n ast.IsNode) []ast.IsNode {
	if and, ok := n.(ast.NodeTypeAnd); ok {
		return append(conjuncts(and.Left), conjuncts(and.Right)...)
	}
	return []ast.IsNode{n}
}

// translate turns the validator's findings about one policy into problems: at their places, each said once however
// many kinds of call it concerns, with what to do.
func (c *checker) translate(d *draft, err error) {
	all := flatten(err)
	for _, e := range all {
		msg := e.Error()
		quoted := strings.Split(msg, "`")
		subject := ""
		if len(quoted) > 2 {
			subject = quoted[1]
		}
		last := subject[strings.LastIndexByte(subject, '.')+1:]
		switch {
		case strings.HasPrefix(msg, "attribute "):
			c.complain(d, "."+last, fmt.Sprintf("there is no attribute %q here", last), c.attributeAdvice(msg, last))
		case strings.HasPrefix(msg, "unable to guarantee safety"):
			root := "resource"
			if strings.Contains(msg, " in context ") || strings.Contains(subject, ".") {
				root = "context"
			}
			c.complain(d, "."+last, fmt.Sprintf("%q can be absent", last), fmt.Sprintf("write `%s has %s &&` before it", root, strings.TrimPrefix(subject, "context.")))
		case strings.HasPrefix(msg, "unrecognized entity type"):
			c.complain(d, subject, fmt.Sprintf("there is no entity type %q", subject), entityAdvice(subject))
		case strings.HasPrefix(msg, "unrecognized action"):
			c.complain(d, subject, fmt.Sprintf("there is no %s", subject), c.actionAdvice(subject))
		case strings.HasPrefix(msg, "unable to find an applicable action"):
			if len(all) == 1 { // else it only follows from the others
				c.complain(d, "", "no call can ever match this policy's scope",
					`action == takes one action and action in a group ("reads", "writes", "history"); capabilities and history-system concern FHIR::System alone`)
			}
		default:
			c.complain(d, "", msg, "the policy schema says what each name is")
		}
	}
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

func (c *checker) attributeAdvice(msg, name string) string {
	table := c.model.context
	if strings.Contains(msg, "entity type") {
		table = c.model.resource
		if strings.Contains(msg, string(workloadType)) {
			table = c.model.principal
		}
	} else if a := find(table, name); a != nil && a.writes {
		return "only create and update bring a body: limit the policy's action to them, or write `context has body &&` before it"
	}
	var names []string
	whole := map[string]string{} // by the last part
	for _, a := range table {
		names = append(names, a.name)
		whole[a.name] = a.name
		for _, f := range a.fields {
			if names = append(names, a.name+"."+f.name); whole[f.name] == "" {
				whole[f.name] = a.name + "." + f.name
			}
		}
	}
	if near := nearest(name, slices.Sorted(maps.Keys(whole))); near != "" && whole[near] != name {
		return fmt.Sprintf("did you mean %q?", whole[near])
	}
	return "there are: " + strings.Join(names, ", ")
}

func entityAdvice(t string) string {
	candidates := []string{string(workloadType), string(actionType), fhirPrefix + systemType}
	for _, name := range fhir.Types() {
		if t == name {
			return fmt.Sprintf("write %s%s", fhirPrefix, name)
		}
		candidates = append(candidates, fhirPrefix+name)
	}
	if near := nearest(t, candidates); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	return "resource types are R4's: FHIR::Patient, FHIR::Observation, …"
}

func (c *checker) actionAdvice(uid string) string {
	names := slices.Sorted(maps.Keys(c.model.actions))
	parts := strings.Split(uid, `"`)
	if len(parts) == 3 {
		if near := nearest(parts[1], names); near != "" {
			return fmt.Sprintf(`did you mean Action::"%s"?`, near)
		}
	}
	return "there are: " + strings.Join(names, ", ")
}
