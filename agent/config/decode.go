package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v4"
)

// decoder fills a Config from the trees of one or more files, one after the other, and collects what is wrong.
type decoder struct {
	sources []*source
	src     *source              // the one being decoded; nil while a default is
	dir     string               // relative paths start here
	domain  spiffeid.TrustDomain // known before anything else is decoded; zero when the files do not say

	errs   Errors
	places map[string]span // path of a key → its value
	failed map[string]bool // paths at which, or below which, something is wrong
}

// fault is what is wrong with a value, before it is known where the value stands.
type fault struct{ code, problem, advice string }

// fail records an error at a place. path is the key concerned, or "".
func (d *decoder) fail(at span, path string, f fault) {
	d.errs = append(d.errs, Error{
		File: at.src.name, Line: at.line, Column: at.column, Width: at.width,
		Code: f.code, Problem: f.problem, Advice: f.advice,
		order: at.src.order, text: at.src.line(at.line),
	})
	for ; path != ""; path = parent(path) {
		d.failed[path] = true
	}
}

// failAt records an error at the value of path.
func (d *decoder) failAt(path string, f fault) { d.fail(d.place(path), path, f) }

// failNode records an error at a node of the file being decoded.
func (d *decoder) failNode(n *yaml.Node, path string, f fault) {
	at := d.place(parent(path))
	if d.src != nil {
		at = d.src.at(n)
	}
	d.fail(at, path, f)
}

// ok reports whether nothing is wrong at or below path, so that a rule may build on it.
func (d *decoder) ok(path string) bool { return !d.failed[path] }

// set reports whether path stands in a file, as opposed to having its default.
func (d *decoder) set(path string) bool { _, ok := d.places[path]; return ok }

// place is where path stands, or the nearest key above it that stands somewhere.
func (d *decoder) place(path string) span { return place(d.places, d.sources[0], path) }

func place(places map[string]span, first *source, path string) span {
	for ; path != ""; path = parent(path) {
		if at, ok := places[path]; ok {
			return at
		}
	}
	return first.top()
}

// parent is the path without its last key or index: `workloads[0].id` → `workloads[0]` → `workloads` → "".
func parent(path string) string {
	i := strings.LastIndexAny(path, ".[")
	if i < 0 {
		return ""
	}
	return path[:i]
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// value is one kind of value in config: it decodes itself and says what may be written. Implemented by scalar,
// list, object and selector.
type value interface {
	// decode reads n into the value. Errors go to d.
	decode(d *decoder, n *yaml.Node, path string)
	// complete fills in what the files did not say, once they have all been decoded.
	complete(d *decoder, path string)
	// words says what may be written, for people: `a duration such as 90s`.
	words() string
	// schema says it for editors: a JSON Schema.
	schema() map[string]any
}

// key is one key that may be written, with its documentation.
type key struct {
	name     string
	value    value
	required bool
	def      string // the default, in YAML; "" when there is none
	example  string // in YAML
	doc      string
}

// keys is what may be written in one mapping.
type keys struct {
	list    []key
	refused map[string]fault // keys that are known and not accepted, and why
	noun    string           // what a key is called here; "key" when empty
	unknown string           // the code of the error for an unknown one; codeUnknownKey when empty
}

func (k keys) find(name string) (key, bool) {
	i := slices.IndexFunc(k.list, func(k key) bool { return k.name == name })
	if i < 0 {
		return key{}, false
	}
	return k.list[i], true
}

// object is a mapping with the given keys.
type object struct{ keys keys }

func (o object) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.failNode(n, path, wrongType(path, o.words(), n))
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, content := n.Content[i], n.Content[i+1]
		if name.Kind != yaml.ScalarNode {
			d.failNode(name, path, fault{codeType, kindOf(name) + " cannot be a key", "write a key's name before the colon"})
			continue
		}
		sub := join(path, name.Value)
		if line, twice := seen[name.Value]; twice {
			d.failNode(name, sub, fault{codeDuplicateKey, quote(name.Value) + " is written twice", fmt.Sprintf("remove it here or in line %d", line)})
			continue
		}
		seen[name.Value] = name.Line
		k, known := o.keys.find(name.Value)
		if !known {
			d.failNode(name, path, o.keys.strange(name.Value))
			// The key that was probably meant counts as written, or it would be reported as missing, too.
			if meant := nearest(name.Value, o.keys.names()); meant != "" && d.src != nil && !d.set(join(path, meant)) {
				d.places[join(path, meant)] = d.src.at(content)
				d.failed[join(path, meant)] = true
			}
			continue
		}
		if earlier, again := d.places[sub]; again && !adds(k.value) {
			d.failNode(name, sub, fault{codeSetTwice, quote(name.Value) + " is already set at " + earlier.pos().String(), "set it in one file only"})
			continue
		} else if !again && d.src != nil {
			d.places[sub] = d.src.at(content)
		}
		k.value.decode(d, content, sub)
	}
}

// adds reports whether a value may be continued in another file.
func adds(v value) bool {
	switch v := v.(type) {
	case object:
		return true
	case interface{ adds() bool }:
		return v.adds()
	}
	return false
}

// strange is the fault of a key that may not be written here.
func (k keys) strange(name string) fault {
	if f, ok := k.refused[name]; ok {
		return f
	}
	noun, code := k.noun, k.unknown
	if noun == "" {
		noun, code = "key", codeUnknownKey
	}
	return fault{code, fmt.Sprintf("unknown %s %s", noun, quote(name)), suggest(name, k.names(), fmt.Sprintf("the %ss here are ", noun))}
}

func (k keys) names() []string {
	names := make([]string, len(k.list))
	for i, k := range k.list {
		names[i] = k.name
	}
	return names
}

func (o object) complete(d *decoder, path string) {
	for _, k := range o.keys.list {
		sub := join(path, k.name)
		switch {
		case d.set(sub):
		case k.required && (path == "" || d.set(path)): // an optional mapping that is absent lacks nothing
			d.failAt(sub, fault{codeMissing, "the key " + quote(k.name) + " is missing", "add, for example, " + k.name + ": " + k.example})
		case k.def != "":
			d.fill(k, sub)
		}
		k.value.complete(d, sub)
	}
}

// fill decodes a key's default. It goes the same way as what an operator writes, so that the default that is
// documented is the one that counts.
func (d *decoder) fill(k key, path string) {
	var doc yaml.Node
	src := d.src
	d.src = nil
	defer func() { d.src = src }()
	if err := yaml.Load([]byte(k.def), &doc); err != nil {
		d.failAt(path, fault{codeSyntax, "the default of " + quote(k.name) + " cannot be read", "set the key"})
		return
	}
	k.value.decode(d, doc.Content[0], path)
}

func (o object) words() string { return "a mapping" }

// list is a list of values of one kind.
type list[T any] struct {
	into  *[]T
	item  func(*T) value
	least int  // how many there must be
	lone  bool // a single item may stand without the list around it
}

func (l list[T]) decode(d *decoder, n *yaml.Node, path string) {
	items := n.Content
	if n.Kind != yaml.SequenceNode {
		if !l.lone || isNull(n) {
			d.failNode(n, path, wrongType(path, "a list", n))
			return
		}
		items = []*yaml.Node{n}
	}
	if len(items) < l.least {
		d.failNode(n, path, fault{codeMissing, "the list " + quote(last(path)) + " is empty", "name at least one"})
		return
	}
	first := len(*l.into)
	*l.into = append(*l.into, make([]T, len(items))...)
	for i, item := range items {
		sub := fmt.Sprintf("%s[%d]", path, first+i)
		if d.src != nil {
			d.places[sub] = d.src.at(item)
		}
		v := l.item(&(*l.into)[first+i])
		v.decode(d, item, sub)
		if item.Kind == yaml.MappingNode {
			v.complete(d, sub) // a list element stands in one file, so it is whole now
		}
	}
}

func (l list[T]) complete(*decoder, string) {}
func (l list[T]) adds() bool                { return true }

func (l list[T]) words() string {
	each := l.item(new(T)).words()
	if l.lone {
		return each + ", or a list of such"
	}
	return "a list, each item " + each
}

// scalar is a single value of one form.
type scalar[T any] struct {
	into *T
	form form[T]
}

// form says how one kind of single value is written.
type form[T any] struct {
	what  string   // in words, with its article: `a duration such as 90s`
	tags  []string // what YAML may take it for, beside text
	parse func(d *decoder, text string) (T, *fault)
	props map[string]any // of its JSON Schema
}

func (s scalar[T]) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.failNode(n, path, wrongType(path, s.form.what, n))
		return
	}
	v, f := s.form.parse(d, n.Value)
	if f == nil && n.Tag != "!!str" && !slices.Contains(s.form.tags, n.Tag) {
		// Right if it were text: `client_id: 42`. YAML has read it as 42 here, and as 42 it would read 0x2a.
		f = &fault{codeType, fmt.Sprintf("%s is %s to YAML", n.Value, kindOf(n)), "put it in quotes: " + quote(n.Value)}
	}
	if f != nil {
		d.failNode(n, path, *f)
		return
	}
	*s.into = v
}

func (s scalar[T]) complete(*decoder, string) {}
func (s scalar[T]) words() string             { return s.form.what }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// wrongType is the fault of a value of the wrong YAML type.
func wrongType(path, want string, n *yaml.Node) fault {
	name := quote(last(path))
	if strings.HasSuffix(path, "]") {
		name = "an item of " + name
	}
	if isNull(n) {
		return fault{codeNoValue, name + " has no value", "write " + want + ", or remove it"}
	}
	return fault{codeType, fmt.Sprintf("%s is %s; it takes %s", name, kindOf(n), want), "ward schema " + pattern(path) + " shows how to write it"}
}

// last is the last key of a path, without an index.
func last(path string) string {
	path = pattern(path)
	if i := strings.LastIndex(path, ".select."); i >= 0 {
		return path[i+len(".select."):] // a selector's name has a dot of its own
	}
	return path[strings.LastIndexByte(path, '.')+1:]
}

// pattern is a path without its indexes, as Describe takes it.
func pattern(path string) string {
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch {
		case r == '[':
			inside = true
		case r == ']':
			inside = false
		case !inside:
			b.WriteRune(r)
		}
	}
	return b.String()
}
