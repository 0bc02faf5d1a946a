package http1

// Body is the framing of one message's body: a machine that is handed a connection's bytes and tells payload from
// framing. The zero value is a body that has ended.
type Body struct {
	state     part
	err       *Error
	left      int64 // of the body, or of the chunk
	digits    int   // of the chunk's size
	extension int   // bytes that chunk extensions may still have
	fields    int   // that the trailer section may still have
	trailer   int   // bytes that it may still have
}

// part is what the next byte belongs to.
type part uint8

const (
	inNothing   part = iota // behind the body's end
	inPlain                 // payload of a known length
	inRest                  // payload until the connection ends
	inSize                  // a chunk's size
	inExtension             // behind the size
	inSizeLF                // behind the CR of either
	inChunk                 // payload of a chunk
	inChunkCR               // behind it
	inChunkLF
	inTrailer // a trailer line's first byte, or the CR that ends the section
	inName
	inValue
	inTrailerLF
	inEndLF
)

// What is wrong with a body.
var (
	errSize        = &Error{400, "a chunk's size is not 1 to 15 hexadecimal digits"}           // RFC 9112 §7.1
	errSizeLF      = &Error{400, "a chunk's size does not end in CRLF"}                        // RFC 9112 §7.1
	errExtension   = &Error{400, "a chunk extension has a byte that may not be there"}         // RFC 9112 §7.1.1
	errExtensions  = &Error{400, "the chunk extensions are too long"}                          // RFC 9112 §7.1.1
	errChunkEnd    = &Error{400, "a chunk's data does not end in CRLF where it should"}        // RFC 9112 §7.1
	errTrailer     = &Error{400, "a trailer field is not a token, a colon and a value"}        // RFC 9112 §7.1.2
	errTrailerLF   = &Error{400, "a trailer line does not end in CRLF"}                        // RFC 9112 §7.1.2
	errTrailerSize = &Error{400, "the trailer section is too large"}                           // RFC 9112 §7.1.2
	errUnfinished  = &Error{400, "the connection ended before the body did"}                   // RFC 9112 §8
	errNoLength    = &Error{400, "the body's length is neither a number nor chunked nor open"} // never of a head's
)

// Start begins a body of that many bytes; -1: chunked, -2: up to the connection's end.
func (b *Body) Start(length int64, l *Limits) {
	*b = Body{left: length}
	switch {
	case length > 0:
		b.state = inPlain
	case length == 0:
	case length == -1:
		b.state, b.left = inSize, 0
		b.extension, b.fields, b.trailer = l.extension(), l.fields(), l.head()
	case length == -2:
		b.state = inRest
	default:
		b.state, b.err = inRest, errNoLength
	}
}

// Done reports whether the body has ended: the bytes behind those that Next used up are none of it.
func (b *Body) Done() bool { return b.state == inNothing }

// EOF is told that the connection has ended, and says whether that is the body's end.
func (b *Body) EOF() error {
	switch {
	case b.err != nil:
		return b.err
	case b.state == inRest:
		b.state = inNothing
	case b.state != inNothing:
		b.err = errUnfinished
		return b.err
	}
	return nil
}

// Next takes the connection's next bytes. It uses up n of them; data, a part of p that may be empty, is the payload
// among these. Call it again with what is left of p until n is 0. A trailer section is read as strictly as a head, and
// dropped. An error is an *Error and stands.
func (b *Body) Next(p []byte) (data []byte, n int, err error) {
	switch {
	case b.err != nil:
		return nil, 0, b.err
	case b.state == inRest:
		return p, len(p), nil
	case b.state == inPlain:
		n = int(min(int64(len(p)), b.left))
		if b.left -= int64(n); b.left == 0 {
			b.state = inNothing
		}
		return p[:n:n], n, nil
	}
	for n < len(p) && b.state != inNothing {
		if b.state == inChunk {
			if len(data) > 0 {
				return data, n, nil
			}
			m := int(min(int64(len(p)-n), b.left))
			data = p[n : n+m : n+m]
			n += m
			if b.left -= int64(m); b.left == 0 {
				b.state = inChunkCR
			}
			continue
		}
		used, bad := b.frame(p[n:])
		if n += used; bad != nil {
			if len(data) > 0 {
				return data, n, nil // what is good goes first: the bad byte is still there
			}
			b.err = bad
			return nil, n, bad
		}
	}
	return data, n, nil
}

// frame takes bytes of one part of the framing: one at least, or it says what is wrong with the first.
func (b *Body) frame(p []byte) (used int, err *Error) {
	c := p[0]
	switch b.state {
	case inSize:
		switch {
		case classes[c]&hexdig != 0 && b.digits < 15:
			b.left = b.left<<4 | int64(unhex(c))
			b.digits++
		case b.digits == 0 || classes[c]&hexdig != 0:
			return 0, errSize
		case c == ';':
			b.state = inExtension
			return b.spend(1)
		case c == '\r':
			b.state = inSizeLF
		default: // white space is bad too (RFC 9112 §7.1.1)
			return 0, errSize
		}
	case inExtension: // RFC 9112 §7.1.1: what is not understood is ignored. Nothing is understood.
		if c == '\r' {
			b.state = inSizeLF
			break
		}
		if classes[c]&text == 0 {
			return 0, errExtension
		}
		return b.spend(1)
	case inSizeLF:
		if c != '\n' {
			return 0, errSizeLF
		}
		if b.state = inChunk; b.left == 0 {
			b.state = inTrailer
		}
	case inChunkCR:
		if c != '\r' {
			return 0, errChunkEnd
		}
		b.state = inChunkLF
	case inChunkLF:
		if c != '\n' {
			return 0, errChunkEnd
		}
		b.state, b.digits = inSize, 0
	default:
		if b.trailer == 0 {
			return 0, errTrailerSize
		}
		if err := b.trail(c); err != nil {
			return 0, err
		}
		b.trailer--
	}
	return 1, nil
}

func (b *Body) spend(n int) (int, *Error) {
	if b.extension < n {
		return 0, errExtensions
	}
	b.extension -= n
	return n, nil
}

// trail takes a byte of the trailer section.
func (b *Body) trail(c byte) *Error {
	switch b.state {
	case inTrailer:
		if c == '\r' {
			b.state = inEndLF
			break
		}
		if b.fields == 0 {
			return errTrailerSize
		}
		if classes[c]&token == 0 {
			return errTrailer
		}
		b.fields--
		b.state = inName
	case inName:
		if c == ':' {
			b.state = inValue
		} else if classes[c]&token == 0 {
			return errTrailer
		}
	case inValue:
		if c == '\r' {
			b.state = inTrailerLF
		} else if classes[c]&text == 0 {
			return errTrailer
		}
	case inTrailerLF:
		if c != '\n' {
			return errTrailerLF
		}
		b.state = inTrailer
	default: // inEndLF
		if c != '\n' {
			return errTrailerLF
		}
		b.state = inNothing
	}
	return nil
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
