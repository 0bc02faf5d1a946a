package http1

import "bytes"

// Limits bounds what a peer may make us read. The zero value holds the defaults.
type Limits struct {
	// Head bounds a head in bytes, and a trailer section; 0 stands for 64 KiB.
	Head int
	// Target bounds a request target: one of that many bytes is too long; 0 stands for 16 KiB.
	Target int
	// Fields bounds the fields of a head, and those of a trailer section; 0 stands for 100.
	Fields int
	// Extension bounds the chunk extensions of a body in bytes, all chunks together; 0 stands for 256.
	Extension int
}

func bound(n, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return min(n, 1<<30) // spans are of 32 bits
}

func (l *Limits) head() int      { return bound(l.Head, 64<<10) }
func (l *Limits) target() int    { return bound(l.Target, 16<<10) }
func (l *Limits) fields() int    { return bound(l.Fields, 100) }
func (l *Limits) extension() int { return bound(l.Extension, 256) }

// Error is why bytes were refused. Why is one of this package's sentences and never holds bytes of a peer's.
type Error struct {
	Status int // for the answer: 400, 417, 431 or 501; 502 for a reply
	Why    string
}

func (e *Error) Error() string { return "http1: " + e.Why }

// Span is a part of a head: offsets into its bytes.
type Span struct{ Start, End int32 }

// Of gives the part itself. b are the head's bytes, or a copy of them.
func (s Span) Of(b []byte) []byte { return b[s.Start:s.End:s.End] }

func span(start, end int) Span { return Span{int32(start), int32(end)} } //nolint:gosec // a head is bounded by 1<<30

// Head is an index over the bytes of a head, which it does not own. It is made to be used again.
type Head struct {
	b      []byte // of a head that has been read whole
	fields []field

	state state
	at    int // how far the bytes have been looked at
	start int // of the element that is being read
	name  Span
	err   *Error

	minor    int
	length   int64 // Content-Length; -1: none
	chunked  bool
	sayClose bool // Connection: close
}

type field struct{ name, value Span }

// state is what the next byte belongs to.
type state uint8

const (
	atFirst   state = iota // a message's first byte
	atMethod               // request line
	atTarget               // "
	atVersion              // request line or status line
	atStatus               // status line
	atReason               // "
	atFirstLF              // behind the CR of either
	atLine                 // a field line's first byte, or the CR that ends the head
	atName
	atValue
	atLF    // behind the CR of a field line
	atEndLF // behind the CR of the empty line
	atDone  // behind a whole head
)

// Bytes gives the whole head, with the empty line that ends it.
func (h *Head) Bytes() []byte { return h.b }

// Len says how many fields there are.
func (h *Head) Len() int { return len(h.fields) }

// Name gives the name of field i as it was spelled.
func (h *Head) Name(i int) []byte { return h.fields[i].name.Of(h.b) }

// Value gives the value of field i, without the white space around it.
func (h *Head) Value(i int) []byte { return h.fields[i].value.Of(h.b) }

// Field gives the places of both.
func (h *Head) Field(i int) (name, value Span) { return h.fields[i].name, h.fields[i].value }

func (h *Head) reset() { *h = Head{fields: h.fields[:0], length: -1} }

// What is wrong with a head.
var (
	errHeadSize  = &Error{431, "the head is too large"}                                 // RFC 6585 §5
	errFields    = &Error{431, "the head has too many fields"}                          // RFC 6585 §5
	errLine      = &Error{400, "the first line does not end in CRLF"}                   // RFC 9112 §2.2
	errVersion   = &Error{400, "the version is neither HTTP/1.1 nor HTTP/1.0"}          // RFC 9112 §2.3
	errName      = &Error{400, "a field's name is no token with a colon behind it"}     // RFC 9112 §5.1, §5.2
	errValue     = &Error{400, "a field's value has a byte that may not be there"}      // RFC 9110 §5.5
	errLF        = &Error{400, "a field line does not end in CRLF"}                     // RFC 9112 §2.2
	errEnd       = &Error{400, "the head does not end in CRLF"}                         // RFC 9112 §2.1
	errLength    = &Error{400, "Content-Length is not a number of 1 to 18 digits"}      // RFC 9110 §8.6
	errLengths   = &Error{400, "there is more than one Content-Length"}                 // RFC 9112 §6.3
	errBoth      = &Error{400, "there are both Transfer-Encoding and Content-Length"}   // RFC 9112 §6.1
	errCoding    = &Error{501, "Transfer-Encoding is not exactly chunked"}              // RFC 9112 §6.1
	errCodings   = &Error{501, "there is more than one Transfer-Encoding"}              // RFC 9112 §6.1
	errOldCoding = &Error{400, "there is a Transfer-Encoding in a message of HTTP/1.0"} // RFC 9112 §6.1
)

// version reads "HTTP/1.", and 0 or 1 (RFC 9112 §2.3: the name is case-sensitive). ok: it is whole.
func (h *Head) version(b []byte) (ok bool, err *Error) {
	const name = "HTTP/1."
	for ; h.at < len(b); h.at++ {
		c := b[h.at]
		if i := h.at - h.start; i < len(name) {
			if c != name[i] {
				return false, errVersion
			}
			continue
		}
		if c != '0' && c != '1' {
			return false, errVersion
		}
		h.minor = int(c - '0')
		h.at++
		return true, nil
	}
	return false, nil
}

// step is how far next came.
type step uint8

const (
	more  step = iota // it needs more bytes
	found             // behind a field line; the field is the last
	ended             // behind the head's end
)

// next reads on through field lines, and stops behind each.
func (h *Head) next(b []byte, l *Limits) (step, *Error) {
	for h.at < len(b) {
		c := b[h.at]
		switch h.state {
		case atLine:
			if c == '\r' {
				h.state = atEndLF
				h.at++
				continue
			}
			if len(h.fields) >= l.fields() {
				return more, errFields
			}
			h.start, h.state = h.at, atName
		case atName:
			// RFC 9112 §5.1: no space before the colon. §5.2: a line that begins with one would be folded to the last.
			if h.at = skip(b, h.at, token); h.at == len(b) {
				return more, nil
			}
			if b[h.at] != ':' || h.at == h.start {
				return more, errName
			}
			h.name = span(h.start, h.at)
			h.at++
			h.start, h.state = h.at, atValue
		case atValue:
			if h.at = skipText(b, h.at); h.at == len(b) {
				return more, nil
			}
			if b[h.at] != '\r' {
				return more, errValue
			}
			h.at++
			h.state = atLF
		case atLF:
			if c != '\n' { // RFC 9112 §2.2: no CR but before an LF
				return more, errLF
			}
			h.fields = append(h.fields, field{h.name, trim(b, h.start, h.at-1)})
			h.at++
			h.state = atLine
			return found, nil
		default: // atEndLF
			if c != '\n' {
				return more, errEnd
			}
			h.at++
			h.state = atDone
			return ended, nil
		}
	}
	return more, nil
}

// trim leaves out the white space around a value (RFC 9112 §5.1).
func trim(b []byte, start, end int) Span {
	for start < end && (b[start] == ' ' || b[start] == '\t') {
		start++
	}
	for start < end && (b[end-1] == ' ' || b[end-1] == '\t') {
		end--
	}
	return span(start, end)
}

// framing judges the field that was read last, where it says how a message ends or whether its connection goes on.
// Its length has been looked at by the caller.
func (h *Head) framing(b []byte) *Error {
	f := h.fields[len(h.fields)-1]
	name, value := f.name.Of(b), f.value.Of(b)
	switch {
	case is(name, "connection"):
		h.sayClose = h.sayClose || lists(value, "close")
	case is(name, "content-length"):
		switch n := decimal(value); {
		case h.chunked:
			return errBoth
		case n < 0:
			return errLength
		case h.length >= 0:
			return errLengths
		default:
			h.length = n
		}
	case is(name, "transfer-encoding"):
		// Padding is what another reader may not see through: exactly one space, or none.
		raw := b[f.name.End+1 : h.at-2]
		switch {
		case h.minor == 0:
			return errOldCoding
		case h.chunked:
			return errCodings
		case string(bytes.TrimPrefix(raw, []byte(" "))) != "chunked":
			return errCoding
		case h.length >= 0:
			return errBoth
		}
		h.chunked = true
	}
	return nil
}

// lists reports whether a comma-separated list has the member s, s being in lower case (RFC 9110 §5.6.1).
func lists(value []byte, s string) bool {
	for more := true; more; {
		var member []byte
		member, value, more = bytes.Cut(value, []byte(","))
		if is(bytes.Trim(member, " \t"), s) {
			return true
		}
	}
	return false
}
