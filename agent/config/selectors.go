package config

import (
	"encoding/hex"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// selector is one fact of an entry's `select:`, or several of one type.
type selector struct {
	into *[]Selector
	kind string
	form form[string]
	many bool
}

// selectors is the table of what can be attested of a process.
func selectors(into *[]Selector) keys {
	one := func(kind string, f form[string]) value { return selector{into: into, kind: kind, form: f} }
	return keys{
		noun: "selector", unknown: codeUnknownSelector,
		list: []key{
			{name: "unix.uid", value: one("unix.uid", numericID()), example: "991",
				doc: "The effective user. A boundary: no process can take it on unaided."},
			{name: "unix.gid", value: one("unix.gid", numericID()), example: "991",
				doc: "The effective group."},
			{name: "unix.group", value: selector{into: into, kind: "unix.group", form: numericID(), many: true}, example: "[27]",
				doc: "Supplementary groups, all of which the process must have."},
			{name: "systemd.unit", value: one("systemd.unit", unitName()), example: "portal.service",
				doc: "The unit of the system's own service manager. A boundary: only root can put a process there."},
			{name: "systemd.user_unit", value: one("systemd.user_unit", unitName()), example: "portal.service",
				doc: "The unit of a user's own manager. That user can name it freely, so it is weak, and needs unix.uid beside it."},
			{name: "exe.path", value: one("exe.path", exePath()), example: "/usr/bin/portal",
				doc: "The path of the executable. An interpreter is itself, not its script."},
			{name: "exe.sha256", value: one("exe.sha256", digest()), example: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
				doc: "The SHA-256 of the executable, in hex. It must be changed with each update of the program."},
		},
		refused: map[string]fault{
			"launch": {codeLaunch, `the selector "launch" cannot be used in config: it is for children that Ward itself has started`, "select by unix.uid or systemd.unit"},
		},
	}
}

// serving is the table of what can be attested of the process that serves an upstream: what the kernel tells anybody
// who connects to it.
func serving(into *[]Selector) keys {
	return keys{list: []key{
		{name: "uid", value: selector{into: into, kind: "unix.uid", form: numericID()}, example: "992",
			doc: "The user who opened the listening socket."},
		{name: "unit", value: selector{into: into, kind: "systemd.unit", form: unitName()}, example: "hapi.service",
			doc: "The unit of the system's own service manager in which the server runs."},
	}}
}

// boundaries is the table of what tells processes apart for good: no process can take these on unaided.
func boundaries(into *[]Selector) keys {
	k := selectors(into)
	all := k.list
	k.list = nil
	for _, one := range all {
		if one.name == "unix.uid" || one.name == "systemd.unit" {
			k.list = append(k.list, one)
		}
	}
	return k
}

func (s selector) decode(d *decoder, n *yaml.Node, path string) {
	if !s.many || n.Kind != yaml.SequenceNode {
		s.one(d, n, path)
		return
	}
	if len(n.Content) == 0 {
		d.failNode(n, path, fault{codeMissing, "the list " + quote(s.kind) + " is empty", "name at least one, or remove the key"})
	}
	for _, item := range n.Content {
		s.one(d, item, path)
	}
}

func (s selector) one(d *decoder, n *yaml.Node, path string) {
	var v string
	errs := len(d.errs)
	scalar[string]{&v, s.form}.decode(d, n, path)
	if len(d.errs) > errs {
		return
	}
	sel := Selector{s.kind, v}
	for _, other := range *s.into {
		if other == sel {
			d.failNode(n, path, fault{codeRepeated, quote(v) + " is listed twice", "remove one"})
			return
		}
	}
	*s.into = append(*s.into, sel)
}

func (s selector) complete(*decoder, string) {}

func (s selector) words() string {
	if s.many {
		return s.form.what + ", or a list of such"
	}
	return s.form.what
}

// The forms of selectors' values. Each gives the canonical spelling, which attestation compares byte by byte.

func numericID() form[string] {
	return form[string]{
		what: "a number from 0 to 4294967294",
		tags: []string{"!!int"},
		parse: func(_ *decoder, s string) (string, *fault) {
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil || strconv.FormatUint(n, 10) != s || n == math.MaxUint32 {
				advice := "write the decimal number"
				if s != "" && (s[0] < '-' || s[0] > '9') {
					advice += ": a name can be given to another number later; id -u NAME or id -g NAME shows it"
				}
				return "", &fault{codeSelector, quote(s) + " is not a numeric user or group", advice}
			}
			return s, nil
		},
		props: map[string]any{"type": []string{"integer", "string"}, "minimum": 0, "maximum": uint32(math.MaxUint32 - 1), "pattern": "^(0|[1-9][0-9]*)$"},
	}
}

// unitName is the name of a unit that can hold processes. Its syntax is systemd's (systemd.unit(5)).
func unitName() form[string] {
	const re = `^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]+)?\.(service|scope)$`
	return form[string]{
		what: "a .service or .scope unit",
		parse: func(_ *decoder, s string) (string, *fault) {
			valid := regexp.MustCompile(re)
			base := strings.TrimSuffix(strings.TrimSuffix(s, ".service"), ".scope")
			switch {
			case valid.MatchString(s) && len(s) <= 255:
				return s, nil
			case strings.HasSuffix(base, "@") && base != s:
				return "", &fault{codeSelector, quote(s) + " is a template; no process runs in it", "name the instance, as in " + base + "1" + strings.TrimPrefix(s, base)}
			case !strings.Contains(s, ".") && valid.MatchString(s+".service"):
				return "", &fault{codeSelector, quote(s) + " is not the full name of a unit", "did you mean " + quote(s+".service") + "?"}
			}
			return "", &fault{codeSelector, quote(s) + " is not the name of a .service or .scope unit", "systemctl status PID shows the unit of a process"}
		},
		props: map[string]any{"type": "string", "pattern": re, "maxLength": 255},
	}
}

func exePath() form[string] {
	return form[string]{
		what: "an absolute path",
		parse: func(_ *decoder, s string) (string, *fault) {
			if !isClean(s) {
				return "", &fault{codePath, quote(s) + " is not an absolute path in its plain form", "write the path that readlink /proc/PID/exe shows"}
			}
			return s, nil
		},
		props: map[string]any{"type": "string", "pattern": "^/"},
	}
}

func digest() form[string] {
	return form[string]{
		what: "64 hex digits",
		tags: []string{"!!int", "!!float"}, // YAML takes 64 digits for a number, with one e among them, too
		parse: func(_ *decoder, s string) (string, *fault) {
			if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
				return "", &fault{codeSelector, fmt.Sprintf("a SHA-256 has 64 hex digits; this is %d characters", len([]rune(s))), "copy what sha256sum FILE prints"}
			}
			return strings.ToLower(s), nil
		},
		props: map[string]any{"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"},
	}
}
