package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxFile is how large one config file may be, in bytes.
const maxFile = 1 << 20

// source is one config file: its text, for excerpts, and its tree.
type source struct {
	name   string
	order  int
	lines  []string
	root   *yaml.Node // the top-level mapping; nil when the file holds nothing
	broken bool       // not all that it holds is in root
}

// span is a place in a source with the number of characters that are meant.
type span struct {
	src                 *source
	line, column, width int
}

func (s span) pos() Pos { return Pos{s.src.name, s.line, s.column} }

// top is the place of an error that concerns the file as a whole.
func (s *source) top() span { return span{s, 1, 1, 1} }

// line is the text of line n, counted from 1.
func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

// at is the place of a node, as narrow as the source shows it.
func (s *source) at(n *yaml.Node) span {
	if n.Line < 1 {
		return s.top()
	}
	width := 1
	rest := []rune(s.line(n.Line))
	rest = rest[min(max(n.Column-1, 0), len(rest)):]
	switch {
	case n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle == 0 && len(n.Content) > 0:
		return s.at(n.Content[0]) // a block has no bracket to point at; its first key stands for it
	case n.Kind != yaml.ScalarNode || len(rest) == 0:
	case rest[0] == '"' || rest[0] == '\'':
		width = quoted(rest)
	case strings.HasPrefix(string(rest), n.Value):
		width = utf8.RuneCountInString(n.Value)
	}
	return span{s, n.Line, max(n.Column, 1), max(width, 1)}
}

// quoted is the length of the quoted text at the head of rest, quotes included, up to the end of the line.
func quoted(rest []rune) int {
	for i := 1; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && rest[0] == '"':
			i++
		case rest[i] == rest[0] && rest[0] == '\'' && i+1 < len(rest) && rest[i+1] == '\'':
			i++
		case rest[i] == rest[0]:
			return i + 1
		}
	}
	return len(rest)
}

// parse reads one file's text. It reports what is wrong with the text as such; what the keys mean is not its
// concern. The source is returned even then, for its lines.
func (d *decoder) parse(name string, text []byte) *source {
	src := &source{name: name, order: len(d.sources)}
	d.sources = append(d.sources, src)
	errs := len(d.errs)
	defer func() { src.broken = len(d.errs) > errs }()
	if len(text) > maxFile {
		d.fail(src.top(), "", fault{codeTooLarge, fmt.Sprintf("the file has %d bytes; %d are allowed", len(text), maxFile),
			"split it into files under conf.d/"})
		return src
	}
	src.lines = strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	if !d.characters(src) {
		return src
	}
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		d.syntax(src, err)
		return src
	}
	var doc yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return src
	case err != nil:
		d.syntax(src, err)
		return src
	}
	var second yaml.Node
	switch err := loader.Load(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(src, err)
		return src
	default:
		d.fail(src.at(&second), "", fault{codeDocuments, "a second document begins here", "remove the --- line above, or use a file under conf.d/"})
		return src
	}
	if len(doc.Content) != 1 {
		return src
	}
	if !d.plain(src, doc.Content[0]) {
		return src
	}
	switch root := doc.Content[0]; {
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
	case root.Kind != yaml.MappingNode:
		d.fail(src.at(root), "", fault{codeType, "the file holds " + kindOf(root) + " where keys belong", "begin with trust_domain: and your trust domain's name"})
	default:
		src.root = root
	}
	return src
}

// characters refuses text that an editor, a reviewer and a YAML parser could see differently: what is not UTF-8,
// tabs (YAML allows them in some places and not in others), and everything that is not printable, which takes
// in the Unicode line separators that YAML counts as line ends, and the characters that reorder text.
func (d *decoder) characters(src *source) bool {
	fine := true
	for i, line := range src.lines {
		if i == 0 {
			line = strings.TrimPrefix(line, "\ufeff") // a byte order mark is harmless at the very beginning
		}
		column := 0
		for rest := line; rest != ""; {
			r, size := utf8.DecodeRuneInString(rest)
			rest = rest[size:]
			column++
			var f fault
			switch {
			case r == utf8.RuneError && size == 1:
				f = fault{codeCharacter, "this byte is not UTF-8", "save the file as UTF-8"}
			case r == '\t':
				f = fault{codeTab, "a tab", "use spaces"}
			case !strconv.IsPrint(r):
				f = fault{codeCharacter, fmt.Sprintf("the character U+%04X cannot be seen", r), "delete it, or write it as an escape in double quotes"}
			default:
				continue
			}
			d.fail(span{src, i + 1, column, 1}, "", f)
			fine = false
			break // one for each line is enough
		}
	}
	return fine
}

// plain refuses the parts of YAML that make a file say something other than what stands there.
func (d *decoder) plain(src *source, n *yaml.Node) bool {
	fine := true
	switch {
	case n.Kind == yaml.AliasNode, n.Anchor != "":
		d.fail(src.at(n), "", fault{codeAlias, "anchors and aliases are not allowed", "write the value out in each place"})
		fine = false
	case n.Tag == "!!merge":
		d.fail(src.at(n), "", fault{codeAlias, "merge keys are not allowed", "write the keys out in each place"})
		fine = false
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(src.at(n), "", fault{codeTag, "YAML tags are not allowed", "remove " + quote(n.Tag)})
		fine = false
	}
	for _, c := range n.Content {
		fine = d.plain(src, c) && fine
	}
	return fine
}

// syntax reports what the YAML parser found. It stops at the first error.
func (d *decoder) syntax(src *source, err error) {
	at, problem := src.top(), err.Error()
	if le, ok := errors.AsType[*yaml.LoadError](err); ok {
		problem = le.Message
		if le.ContextMsg != "" {
			problem = le.ContextMsg + ": " + problem
		}
		if le.Mark.Line > 0 {
			at.line, at.column = min(le.Mark.Line, len(src.lines)), max(le.Mark.Column, 1)
			// The end of the file is the end of its last line that has text.
			for at.line > 1 && at.line >= le.Mark.Line && strings.TrimSpace(src.line(at.line)) == "" {
				at.line--
				at.column = utf8.RuneCountInString(src.line(at.line)) + 1
			}
		}
	}
	d.fail(at, "", fault{codeSyntax, "this is not YAML: " + printable(problem), "check indentation, brackets, quotes and colons here and just above"})
}

// kindOf names what a node is, in words for a message.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}
