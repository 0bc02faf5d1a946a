package token

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/wardmesh/ward/proxy"
)

// Bounds of what a claim path yields.
const (
	maxPathSteps  = 8
	maxPathValues = 64
)

// claimPath leads to a claim. The empty path leads nowhere.
type claimPath struct {
	text  string
	steps []pathStep
}

type pathStep struct {
	name string
	each bool // the value is an array; go on in each of its elements
}

// parsePath reads a path as Claims describes it.
func parsePath(s string) (claimPath, error) {
	switch {
	case s == "":
		return claimPath{}, nil
	case strings.Contains(s, "://"):
		return claimPath{text: s, steps: []pathStep{{name: s}}}, nil
	}
	p := claimPath{text: s}
	for part := range strings.SplitSeq(s, ".") {
		name, each := strings.CutSuffix(part, "[]")
		if name == "" || strings.ContainsAny(name, "[]") || len(p.steps) == maxPathSteps {
			return claimPath{}, fmt.Errorf("%q is not a path to a claim", s)
		}
		p.steps = append(p.steps, pathStep{name, each})
	}
	return p, nil
}

// values returns the strings that the path leads to: at its end stands a string or an array of them. What is not
// there, or null, gives none; what is there but of another shape is an error.
func (p claimPath) values(c claims) ([]string, error) {
	if len(p.steps) == 0 {
		return nil, nil
	}
	out, ok := p.walk(c.members, p.steps, nil)
	if !ok {
		return nil, proxy.Refuse(proxy.CauseTokenClaims, "claim %s does not have the shape that is configured", p.text)
	}
	return out, nil
}

func (p claimPath) walk(members map[string]jsontext.Value, steps []pathStep, out []string) ([]string, bool) {
	step, rest := steps[0], steps[1:]
	v, found := members[step.name]
	if !found || v.Kind() == 'n' {
		return out, true
	}
	values := []jsontext.Value{v}
	if step.each || len(rest) == 0 && v.Kind() == '[' {
		if v.Kind() != '[' || json.Unmarshal(v, &values) != nil {
			return nil, false
		}
	}
	if len(values) > maxPathValues {
		return nil, false
	}
	for _, v := range values {
		if len(rest) == 0 {
			var s string
			if v.Kind() != '"' || json.Unmarshal(v, &s) != nil || len(out) == maxPathValues {
				return nil, false
			}
			out = append(out, s)
			continue
		}
		inner, err := object(v)
		if err != nil {
			return nil, false
		}
		var ok bool
		if out, ok = p.walk(inner, rest, out); !ok {
			return nil, false
		}
	}
	return out, true
}

// one returns the single string that the path leads to, "" when there is none.
func (p claimPath) one(c claims) (string, error) {
	all, err := p.values(c)
	if err != nil || len(all) == 0 {
		return "", err
	}
	if len(all) > 1 {
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claim %s has several values", p.text)
	}
	return all[0], nil
}
