package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Schema is a JSON Schema (draft 2020-12) of a config file, for editors.
func Schema() []byte {
	root := object{new(Config).keys()}.schema()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Ward config"
	delete(root, "required") // what one file leaves out, another file under conf.d/ may hold
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic(err) // the table holds nothing that JSON cannot; a test calls this
	}
	return append(out, '\n')
}

func (o object) schema() map[string]any {
	props := make(map[string]any, len(o.keys.list))
	var required []string
	for _, k := range o.keys.list {
		p := maps.Clone(k.value.schema())
		p["description"] = k.doc
		if k.def != "" {
			p["default"] = asJSON(k.def)
		}
		p["examples"] = []any{asJSON(k.example)}
		props[k.name] = p
		if k.required {
			required = append(required, k.name)
		}
	}
	s := map[string]any{"type": "object", "additionalProperties": false, "properties": props}
	if required != nil {
		s["required"] = required
	}
	return s
}

func (l list[T]) schema() map[string]any {
	each := l.item(new(T)).schema()
	many := map[string]any{"type": "array", "items": each}
	if l.least > 0 {
		many["minItems"] = l.least
	}
	if l.lone {
		return map[string]any{"anyOf": []any{each, many}}
	}
	return many
}

func (s scalar[T]) schema() map[string]any { return s.form.props }

func (s selector) schema() map[string]any {
	if s.many {
		return map[string]any{"anyOf": []any{s.form.props, map[string]any{"type": "array", "items": s.form.props, "minItems": 1}}}
	}
	return s.form.props
}

// asJSON is a value of the table, written in YAML, as JSON has it.
func asJSON(text string) any {
	var n yaml.Node
	if err := yaml.Load([]byte(text), &n); err != nil || len(n.Content) != 1 {
		panic(fmt.Sprintf("config table: %q is not one YAML value", text)) // a test calls this for each
	}
	return nodeJSON(n.Content[0])
}

func nodeJSON(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = nodeJSON(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		s := make([]any, len(n.Content))
		for i, c := range n.Content {
			s[i] = nodeJSON(c)
		}
		return s
	}
	if n.Tag == "!!int" || n.Tag == "!!bool" {
		return json.RawMessage(n.Value)
	}
	return n.Value
}

// Describe explains one key, given by its path without indexes: `bindings.mode`, or "" for the top. It reports
// whether there is such a key.
func Describe(path string) (string, bool) {
	at := object{new(Config).keys()}
	rest, k := path, key{doc: "A config file.", value: at}
	for rest != "" {
		inner, ok := mapping(k.value)
		if !ok {
			return "", false
		}
		// Selectors have dots in their names, so the longest name that fits is taken.
		var next key
		for _, candidate := range inner.list {
			if rest == candidate.name || strings.HasPrefix(rest, candidate.name+".") {
				next = candidate
			}
		}
		if next.name == "" {
			return "", false
		}
		rest, k = strings.TrimPrefix(strings.TrimPrefix(rest, next.name), "."), next
	}

	var b strings.Builder
	if path != "" {
		fmt.Fprintf(&b, "%s: %s\n", path, k.value.words())
	}
	for _, line := range wrap(k.doc, 96) {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	switch {
	case path == "":
	case k.required:
		b.WriteString("  required\n")
	case k.def != "":
		fmt.Fprintf(&b, "  default: %s\n", k.def)
	}
	if path != "" {
		fmt.Fprintf(&b, "  example: %s: %s\n", k.name, k.example)
	}
	if inner, ok := mapping(k.value); ok {
		width := 0
		for _, sub := range inner.list {
			width = max(width, len(sub.name))
		}
		b.WriteString("  keys:\n")
		for _, sub := range inner.list {
			first, _, _ := strings.Cut(sub.doc, ". ")
			fmt.Fprintf(&b, "    %-*s  %s\n", width, sub.name, strings.TrimSuffix(first, "."))
		}
	}
	return b.String(), true
}

// mapping is the table of the keys inside a value, looking through a list.
func mapping(v value) (keys, bool) {
	if l, ok := v.(interface{ each() value }); ok {
		v = l.each()
	}
	o, ok := v.(object)
	return o.keys, ok
}

func (l list[T]) each() value { return l.item(new(T)) }

// wrap breaks text into lines of at most width characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
