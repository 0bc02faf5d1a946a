package http1

// ReplyHead is a reply's head.
type ReplyHead struct {
	Head
	Status int // 100 to 599, and not 101
	// Length is that of the body: -1: chunked, -2: the connection's end is the body's. It is 0 where a reply has no body,
	// as to HEAD or with 1xx, 204 and 304, whatever its fields say.
	Length int64
	// Declared is what Content-Length says; -1: there is none. It is the Length that a reply to GET would have had.
	Declared int64
	Minor    int  // of the version: 1 or 0
	Close    bool // the connection ends with this reply
}

// What is wrong with a reply's head, beside what can be wrong with either.
var (
	errStatusLine = &Error{502, "the status line is not version, status and reason"}           // RFC 9112 §4
	errStatus     = &Error{502, "the status is not between 100 and 599"}                       // RFC 9110 §15
	errReason     = &Error{502, "the reason has a byte that may not be there"}                 // RFC 9112 §4
	errSwitched   = &Error{502, "the peer switches protocols, which nobody asked for"}         // RFC 9110 §7.8
	errTunnel     = &Error{502, "the peer opens a tunnel, which is not supported"}             // RFC 9110 §9.3.6
	errNoContent  = &Error{502, "a reply that cannot have a body says how its body is framed"} // RFC 9112 §6.1, RFC 9110 §8.6
)

// Reset forgets a head that has been read, refused or read in part. It must be called before a ReplyHead that was left
// half-way is used for another message.
func (r *ReplyHead) Reset() {
	h := r.Head
	h.reset()
	*r = ReplyHead{Head: h}
}

// Parse reads the head of a reply to a request of that method; see RequestHead.Parse. An interim reply (1xx) is a reply
// here: another head follows it. Every Error's status is 502.
func (r *ReplyHead) Parse(b []byte, method string, l *Limits) (n int, err error) {
	if r.state == atFirst || r.state == atDone {
		r.Reset()
		r.state = atVersion
	}
	if r.err == nil {
		if n, r.err = r.parse(b[:min(len(b), l.head())], method, l); r.err != nil {
			r.err = &Error{502, r.err.Why}
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	if n > 0 {
		r.b = b[:n:n]
	}
	return n, nil
}

func (r *ReplyHead) parse(b []byte, method string, l *Limits) (n int, err *Error) {
	if r.state < atLine {
		if err := r.line(b); err != nil {
			return 0, err
		}
	}
	for r.state >= atLine {
		step, err := r.next(b, l)
		switch {
		case err != nil:
			return 0, err
		case step == ended:
			return r.at, r.end(method)
		case step == found:
			if err := r.judge(b); err != nil {
				return 0, err
			}
			continue
		}
		break
	}
	if len(b) >= l.head() {
		return 0, errHeadSize
	}
	return 0, nil
}

// line reads version SP status SP reason CRLF (RFC 9112 §4; the reason may be empty, the space before it may not miss).
func (r *ReplyHead) line(b []byte) *Error {
	for r.at < len(b) && r.state < atLine {
		switch r.state {
		case atVersion:
			ok, err := r.version(b)
			if err != nil {
				return err
			}
			if ok {
				r.start, r.state = r.at, atStatus
			}
		case atStatus: // SP, three digits, SP
			c := b[r.at]
			switch i := r.at - r.start; {
			case i == 0 || i == 4:
				if c != ' ' {
					return errStatusLine
				}
				if i == 4 {
					r.state = atReason
				}
			case c < '0' || c > '9':
				return errStatusLine
			case i == 1 && (c < '1' || c > '5'):
				return errStatus
			default:
				r.Status = r.Status*10 + int(c-'0')
			}
			r.at++
		case atReason:
			if r.at = skipText(b, r.at); r.at == len(b) {
				return nil
			}
			if b[r.at] != '\r' {
				return errReason
			}
			r.at++
			r.state = atFirstLF
		default: // atFirstLF
			if b[r.at] != '\n' {
				return errLine
			}
			r.at++
			r.state = atLine
		}
	}
	return nil
}

func (r *ReplyHead) judge(b []byte) *Error {
	f := &r.fields[len(r.fields)-1]
	switch f.name.End - f.name.Start {
	case int32(len("connection")), int32(len("content-length")), int32(len("transfer-encoding")):
		return r.framing(b)
	}
	return nil
}

// end says how the body is framed (RFC 9112 §6.3), and whether the connection can be used again.
func (r *ReplyHead) end(method string) *Error {
	r.Minor, r.Declared = r.minor, r.length
	bare := r.Status < 200 || r.Status == 204
	switch {
	case r.Status == 101:
		return errSwitched
	case method == "CONNECT" && r.Status >= 200 && r.Status < 300: // rule 2
		return errTunnel
	case bare && (r.chunked || r.length > 0):
		return errNoContent
	case bare, method == "HEAD", r.Status == 304: // rule 1
		r.Length = 0
	case r.chunked: // rule 4
		r.Length = -1
	case r.length >= 0: // rule 6
		r.Length = r.length
	default: // rule 8
		r.Length = -2
	}
	// RFC 9112 §9.3: HTTP/1.0 has no connection that goes on, but by an extension, which is not taken up.
	r.Close = r.sayClose || r.minor == 0 || r.Length == -2
	return nil
}
