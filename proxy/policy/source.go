package policy

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	cedar "github.com/cedar-policy/cedar-go"
)

const (
	maxPolicy  = 16 << 10 // bytes of one policy
	maxDepth   = 64       // brackets within brackets, negations of negations
	maxPerFile = 20       // syntax errors reported of one file
)

// source is one policy file while it is being checked. Cedar's parser knows the place of each policy and stops at its
// first error; source finds the places within policies and goes on after an error.
type source struct {
	file string // as problems name it
	text []byte
	bare []byte // text with comments and the insides of strings blanked: places are the same
	code []byte // text with comments blanked
	ends []int  // offsets just behind each policy's semicolon
}

// newSource splits a file into policies; depth limits keep recursive parsers from running out of stack.
func newSource(file string, content []byte) (*source, *Problem) {
	s := &source{file: file, text: content, bare: bytes.Clone(content), code: bytes.Clone(content)}
	if len(content) > maxFile {
		return nil, &Problem{File: file, Text: "the file is larger than " + strconv.Itoa(maxFile>>10) + " KiB", Advice: "split it"}
	}
	if !utf8.Valid(content) || bytes.IndexByte(content, 0) >= 0 || bytes.HasPrefix(content, []byte("\ufeff")) {
		return nil, &Problem{File: file, Text: "the file is not plain UTF-8", Advice: "save it as UTF-8 without a byte order mark"}
	}
	depth, nested, run, start := 0, 0, 0, 0
	for i := 0; i < len(content); i++ {
		switch c := content[i]; c {
		case '/':
			if i+1 < len(content) && content[i+1] == '/' {
				for ; i < len(content) && content[i] != '\n'; i++ {
					s.bare[i], s.code[i] = ' ', ' '
				}
			}
		case '"':
			for i++; i < len(content) && content[i] != '"' && content[i] != '\n'; i++ {
				s.bare[i] = ' '
				if content[i] == '\\' && i+1 < len(content) && content[i+1] != '\n' {
					i++
					s.bare[i] = ' '
				}
			}
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			depth--
		case 'f':
			// `if` nests without brackets.
			if i > 0 && content[i-1] == 'i' && s.word(i-1, i+1) {
				nested++
			}
		case ';':
			depth, nested, start = 0, 0, i+1
			s.ends = append(s.ends, i+1)
		}
		if i < len(content) && (content[i] == '!' || content[i] == '-') {
			run++
		} else if i < len(content) && !space(content[i]) {
			run = 0
		}
		if depth+nested+run > maxDepth || i-start > maxPolicy {
			p := s.at(min(i, len(content)-1), "this policy is too long or nested too deeply", "split it into several policies")
			return nil, p
		}
	}
	return s, nil
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// word reports whether bare[from:to] is not part of a longer name.
func (s *source) word(from, to int) bool {
	return (from == 0 || !nameByte(s.bare[from-1])) && (to >= len(s.bare) || !nameByte(s.bare[to]))
}

func nameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// at makes a problem of the place at offset.
func (s *source) at(offset int, text, advice string) *Problem {
	before := s.text[:offset]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	return &Problem{File: s.file, Line: line, Column: column, Text: text, Advice: advice}
}

// offset is the inverse of at.
func (s *source) offset(line, column int) int {
	i := 0
	for ; line > 1; line-- {
		n := bytes.IndexByte(s.text[i:], '\n')
		if n < 0 {
			return len(s.text)
		}
		i += n + 1
	}
	for ; column > 1 && i < len(s.text); column-- {
		_, n := utf8.DecodeRune(s.text[i:])
		i += n
	}
	return i
}

// policies parses the file. When that fails, each policy is tried by itself, so that all that is wrong is found.
func (s *source) policies() (cedar.PolicyList, Problems) {
	list, err := cedar.NewPolicyListFromBytes(s.file, s.text)
	if err == nil {
		return list, nil
	}
	var problems Problems
	start := 0
	for _, end := range append(s.ends, len(s.text)) {
		if len(problems) == maxPerFile {
			break
		}
		if end == len(s.text) && len(bytes.TrimSpace(s.bare[start:])) == 0 {
			continue // only comments and space after the last policy
		}
		if p := s.syntax(start, end); p != nil {
			problems = append(problems, p)
		}
		start = end
	}
	if problems == nil { // what is wrong is not within one policy
		problems = Problems{s.syntaxError(0, err)}
	}
	return nil, problems
}

// syntax parses what stands between start and end alone.
func (s *source) syntax(start, end int) *Problem {
	_, err := cedar.NewPolicyListFromBytes("", s.text[start:end])
	if err == nil {
		return nil
	}
	return s.syntaxError(start, err)
}

// syntaxError turns an error of Cedar's parser, which was given the text from start on, into a problem at its place.
func (s *source) syntaxError(start int, err error) *Problem {
	msg := strings.TrimPrefix(err.Error(), "parser error: ")
	msg = strings.TrimPrefix(msg, "parse error at ")
	rest, ok := strings.CutPrefix(msg, "<input>:")
	line, rest, ok2 := strings.Cut(rest, ":")
	digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
	l, err1 := strconv.Atoi(line)
	c, err2 := strconv.Atoi(rest[:digits])
	if !ok || !ok2 || err1 != nil || err2 != nil {
		return s.at(start, msg, "")
	}
	part := &source{text: s.text[start:]}
	offset := min(start+part.offset(l, c), len(s.text))
	rest = strings.TrimLeft(rest[digits:], ": ")
	if i := strings.LastIndex(rest, `": `); i >= 0 {
		rest = rest[i+3:]
	}
	const grammar = "see docs.cedarpolicy.com for the grammar"
	if rest == "invalid primary" {
		return s.at(offset, "a value is expected here", grammar)
	}
	got, unexpected := strings.CutPrefix(rest, "unexpected effect: ")
	want := "permit or forbid"
	if !unexpected {
		if got, unexpected = strings.CutPrefix(rest, "exact got "); unexpected {
			got, want, unexpected = strings.Cut(got, " want ")
		}
	}
	switch {
	case !unexpected:
		return s.at(offset, rest, grammar)
	case got == "":
		return s.at(offset, "the file ends where "+want+" is expected", "finish the policy")
	}
	// The parser names the token behind the one it does not like.
	if i := bytes.LastIndex(s.code[start:offset], []byte(got)); i >= 0 {
		offset = start + i
	}
	return s.at(offset, "found "+got+" where "+want+" is expected", grammar)
}

// locate finds needle as code (not in a comment) between from and to, and gives from when it is not there. A name is
// found only as a whole word and outside of strings; `.name` is the name as an attribute.
func (s *source) locate(from, to int, needle string) int {
	name, attribute := strings.CutPrefix(needle, ".")
	in := s.bare
	if strings.Contains(needle, `"`) {
		in = s.code
	}
	for i := from; needle != "" && i < to; {
		n := bytes.Index(in[i:to], []byte(needle))
		if n < 0 {
			break
		}
		i += n
		switch {
		case attribute && s.word(i+1, i+1+len(name)):
			return i + 1
		case !attribute && (!nameByte(needle[0]) || s.word(i, i+len(needle))):
			return i
		}
		i++
	}
	return from
}
