package fhir

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits bounds what one JSON text may cost. A zero field means its default.
type Limits struct {
	Bytes   int // length of the text; 8 MiB
	Depth   int // objects and arrays within each other; 64
	Values  int // objects, arrays and scalars together; 1,000,000
	Entries int // entries of a Bundle; 10,000
}

func (l Limits) orDefaults() Limits {
	set := func(field *int, value int) {
		if *field <= 0 {
			*field = value
		}
	}
	set(&l.Bytes, 8<<20)
	set(&l.Depth, 64)
	set(&l.Values, 1_000_000)
	set(&l.Entries, 10_000)
	return l
}

// reader goes once through a JSON text that it holds whole. It refuses all that two parsers could read
// differently: what jsontext refuses (duplicate names, invalid UTF-8, lone surrogates, a byte order mark,
// comments, trailing data; RFC 8259, RFC 7493), and names that are not spelled as FHIR spells them.
//
// Errors tell a byte offset and the kind of fault, nothing of the text.
type reader struct {
	dec    *jsontext.Decoder
	src    []byte
	limits Limits
	depth  int
	values int
	opened int // offset just after the bracket that was entered last
}

func newReader(src []byte, limits Limits) (*reader, error) {
	limits = limits.orDefaults()
	if len(src) > limits.Bytes {
		return nil, &Error{Class: TooLarge, Text: "the body is longer than " + strconv.Itoa(limits.Bytes) + " bytes"}
	}
	if bytes.HasPrefix(src, []byte("\xef\xbb\xbf")) { // RFC 8259 §8.1
		return nil, &Error{Class: Malformed, Text: "the body begins with a byte order mark"}
	}
	dec := decoders.Get().(*jsontext.Decoder)
	dec.Reset(bytes.NewBuffer(src))
	return &reader{dec: dec, src: src, limits: limits}, nil
}

// decoders keeps the decoders' own tables for the next text: making these is most of the cost of a small one.
var decoders = sync.Pool{New: func() any { return jsontext.NewDecoder(new(bytes.Buffer)) }}

// close gives the decoder back, and lets go of the text.
func (r *reader) close() {
	r.dec.Reset(new(bytes.Buffer))
	decoders.Put(r.dec)
	r.dec = nil
}

// kind is the kind of the next token; 0 when there is none or it is not JSON.
func (r *reader) kind() jsontext.Kind { return r.dec.PeekKind() }

// object calls member after each name of the object that comes next; member must consume the value.
func (r *reader) object(member func(name []byte) error) error {
	if err := r.enter(jsontext.KindBeginObject); err != nil {
		return err
	}
	for r.kind() != jsontext.KindEndObject {
		name, err := r.name()
		if err != nil {
			return err
		}
		if err := member(name); err != nil {
			return err
		}
	}
	return r.leave()
}

// array calls element before each element of the array that comes next; element must consume it.
func (r *reader) array(element func(i int) error) error {
	if err := r.enter(jsontext.KindBeginArray); err != nil {
		return err
	}
	for i := 0; r.kind() != jsontext.KindEndArray; i++ {
		if err := element(i); err != nil {
			return err
		}
	}
	return r.leave()
}

// name reads a member's name. FHIR's element names are letters and digits beginning with a small letter; an
// underscore in front marks the companion of a primitive (json.html#primitive). Nothing else is let
// through, so that no server can take an escaped or look-alike spelling for a name that was not checked.
func (r *reader) name() ([]byte, error) {
	v, err := r.dec.ReadValue()
	if err != nil {
		return nil, r.fault(err)
	}
	name := r.last(v)
	name = name[1 : len(name)-1]
	if isElementName(name) {
		return name, nil
	}
	if bytes.IndexByte(name, '\\') >= 0 {
		return nil, r.refuse(Malformed, "a member's name is written with an escape")
	}
	return nil, r.refuse(Invalid, "a member's name is not one that FHIR has")
}

func isElementName(name []byte) bool {
	if len(name) > 0 && name[0] == '_' {
		name = name[1:]
	}
	if len(name) == 0 || name[0] < 'a' || name[0] > 'z' {
		return false
	}
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			return false
		}
	}
	return true
}

// text reads a string and undoes its escapes. The bytes stay valid as long as the text.
func (r *reader) text() ([]byte, error) {
	if err := r.expect(jsontext.KindString, "must be a string"); err != nil {
		return nil, err
	}
	v, err := r.scalar()
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return v[1 : len(v)-1], nil
	}
	out, err := jsontext.AppendUnquote(make([]byte, 0, len(v)), v)
	if err != nil {
		return nil, r.fault(err)
	}
	return out, nil
}

// number reads a count: a number without sign, fraction and exponent.
func (r *reader) number() (int, error) {
	if err := r.expect(jsontext.KindNumber, "must be a number"); err != nil {
		return 0, err
	}
	v, err := r.scalar()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(v), 10, 31) // unsignedInt: 0 to 2,147,483,647
	if err != nil {
		return 0, r.refuse(Invalid, "must be a whole number")
	}
	return int(n), nil
}

// scalar reads a value that is neither object nor array.
func (r *reader) scalar() ([]byte, error) {
	if err := r.count(); err != nil {
		return nil, err
	}
	v, err := r.dec.ReadValue()
	if err != nil {
		return nil, r.fault(err)
	}
	return r.last(v), nil
}

// expect refuses the next value unless it is of kind k. What is not JSON at all is left to the read that
// follows, which says so.
func (r *reader) expect(k jsontext.Kind, text string) error {
	if got := r.kind(); got != k && got != jsontext.KindInvalid {
		return r.refuse(Invalid, text)
	}
	return nil
}

func (r *reader) enter(k jsontext.Kind) error {
	text := "must be an object"
	if k == jsontext.KindBeginArray {
		text = "must be an array"
	}
	if err := r.expect(k, text); err != nil {
		return err
	}
	if err := r.count(); err != nil {
		return err
	}
	if r.depth++; r.depth > r.limits.Depth {
		return r.refuse(TooLarge, "nested deeper than "+strconv.Itoa(r.limits.Depth))
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return r.fault(err)
	}
	r.opened = int(r.dec.InputOffset())
	return nil
}

func (r *reader) leave() error {
	r.depth--
	if _, err := r.dec.ReadToken(); err != nil {
		return r.fault(err)
	}
	return nil
}

func (r *reader) count() error {
	if r.values++; r.values > r.limits.Values {
		return r.refuse(TooLarge, "more than "+strconv.Itoa(r.limits.Values)+" values")
	}
	return nil
}

// end refuses anything but white space after the text.
func (r *reader) end() error {
	switch _, err := r.dec.ReadToken(); {
	case err == io.EOF:
		return nil
	case err == nil:
		return r.refuse(Malformed, "something follows the resource")
	default:
		return r.fault(err)
	}
}

// last is v, the value read last, as a part of src: the decoder's own view of it does not outlive the next read.
func (r *reader) last(v jsontext.Value) []byte {
	end := int(r.dec.InputOffset())
	return r.src[end-len(v) : end : end]
}

func (r *reader) refuse(c Class, text string) *Error {
	return &Error{Class: c, Text: text + ", near byte " + strconv.FormatInt(r.dec.InputOffset(), 10)}
}

// fault turns a decoder's error into one that repeats nothing of the text: jsontext's own messages quote it.
func (r *reader) fault(err error) *Error {
	text := "not JSON in UTF-8"
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		text = "a member's name occurs twice"
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		text = "the JSON ends too early"
	}
	e := r.refuse(Malformed, text)
	if at := (*jsontext.SyntacticError)(nil); errors.As(err, &at) {
		e.Text = text + ", near byte " + strconv.FormatInt(at.ByteOffset, 10)
	}
	return e
}

// under says that err happened below the named element, or below `[i]`: it puts that in front of the place.
func under(err error, name string) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	switch {
	case e.Expression == "" || e.Expression[0] == '[':
		e.Expression = name + e.Expression
	default:
		e.Expression = name + "." + e.Expression
	}
	return e
}

func index(i int) string { return "[" + strconv.Itoa(i) + "]" }
