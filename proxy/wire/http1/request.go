package http1

import "bytes"

// maxMethod bounds a method: all registered ones are shorter by far (RFC 9110 §16.1).
const maxMethod = 32

// RequestHead is a request's head. Spans are places in Bytes.
type RequestHead struct {
	Head
	Method Span
	Target Span // raw, in the form in which it came
	// Host is the authority of a target in absolute-form or authority-form, else the value of the Host field; HasHost:
	// there is one.
	Host     Span
	HasHost  bool
	Length   int64 // of the body; -1: chunked
	Minor    int   // of the version: 1 or 0
	Close    bool  // the connection ends with this exchange
	Continue bool  // the client waits for 100 (Continue) before it sends the body

	hosts     int
	expects   bool
	named     bool // the target has an authority
	http      bool // port 80 may be left out of it
	authority Span
	host      Span
}

// What is wrong with a request's head.
var (
	errMethod      = &Error{400, "the method is no token with a space behind it"}                      // RFC 9112 §3.1
	errMethodSize  = &Error{501, "the method is longer than any that is known"}                        // RFC 9112 §3
	errTarget      = &Error{400, "the request target has a byte that may not be there"}                // RFC 9112 §3.2
	errTargetForm  = &Error{400, "the request target has no form that fits the method"}                // RFC 9112 §3.2
	errTargetSize  = &Error{431, "the request target is too long"}                                     // see line
	errEscape      = &Error{400, "the request target has a % that escapes nothing"}                    // RFC 3986 §2.1
	errNoHost      = &Error{400, "there is no Host"}                                                   // RFC 9112 §3.2
	errHosts       = &Error{400, "there is more than one Host"}                                        // RFC 9112 §3.2
	errOtherHost   = &Error{400, "the Host is not that of the request target"}                         // RFC 9112 §3.2.2
	errAuthority   = &Error{400, "the request target's authority is not a name or address and a port"} // RFC 9110 §4.2.1, §4.2.4
	errExpectation = &Error{417, "there is an expectation, or there are several, that is unmet"}       // RFC 9110 §10.1.1
)

// Reset forgets a head that has been read, refused or read in part. It must be called before a RequestHead that was left
// half-way is used for another message.
func (r *RequestHead) Reset() {
	h := r.Head
	h.reset()
	*r = RequestHead{Head: h}
}

// Parse reads a head that begins at b[0]. It says how many bytes the head has; 0 without an error: it has not come
// whole, call again with the same bytes and more behind them. An error is an *Error, and stands until Reset.
func (r *RequestHead) Parse(b []byte, l *Limits) (n int, err error) {
	if r.state == atFirst || r.state == atDone {
		r.Reset()
		r.state = atMethod
	}
	if r.err == nil {
		n, r.err = r.parse(b[:min(len(b), l.head())], l)
	}
	if r.err != nil {
		return 0, r.err
	}
	if n > 0 {
		r.b = b[:n:n]
	}
	return n, nil
}

func (r *RequestHead) parse(b []byte, l *Limits) (n int, err *Error) {
	if r.state < atLine {
		if err := r.line(b, l); err != nil {
			return 0, err
		}
	}
	for r.state >= atLine {
		step, err := r.next(b, l)
		switch {
		case err != nil:
			return 0, err
		case step == ended:
			return r.at, r.end(b)
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

// line reads method SP target SP version CRLF, and nothing else (RFC 9112 §3).
func (r *RequestHead) line(b []byte, l *Limits) *Error {
	for r.at < len(b) && r.state < atLine {
		switch r.state {
		case atMethod:
			// RFC 9112 §2.2: an empty line before a request may be passed over. It is not: it is what a body that was
			// longer than announced leaves behind.
			r.at = skip(b, r.at, token)
			if r.at > maxMethod {
				return errMethodSize
			}
			if r.at == len(b) {
				return nil
			}
			if b[r.at] != ' ' || r.at == 0 {
				return errMethod
			}
			r.Method = span(0, r.at)
			r.at++
			r.start, r.state = r.at, atTarget
		case atTarget:
			// RFC 9112 §3 has 414 for this. Whoever answers knows one status for a head that is too large, whatever
			// part of it is.
			r.at = skip(b[:min(len(b), r.start+l.target())], r.at, reqTarget)
			if r.at == r.start+l.target() {
				return errTargetSize
			}
			if r.at == len(b) {
				return nil
			}
			if b[r.at] != ' ' || r.at == r.start {
				return errTarget
			}
			r.Target = span(r.start, r.at)
			if err := r.form(b); err != nil {
				return err
			}
			r.at++
			r.start, r.state = r.at, atVersion
		case atVersion:
			if b[r.at] == '\r' && r.at-r.start == len("HTTP/1.1") {
				r.at++
				r.state = atFirstLF
				continue
			}
			if r.at-r.start == len("HTTP/1.1") {
				return errLine
			}
			if _, err := r.version(b); err != nil {
				return err
			}
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

// form judges the target's form: which forms are served is decided elsewhere.
func (r *RequestHead) form(b []byte) *Error {
	t := r.Target.Of(b)
	if !escapes(t) {
		return errEscape
	}
	start, rest := int(r.Target.Start), t
	switch method := r.Method.Of(b); {
	case string(method) == "CONNECT": // RFC 9112 §3.2.3: an authority and nothing else
		if skip(t, 0, authority) < len(t) {
			return errAuthority
		}
		r.http = true // a name alone stands for whatever port
	case t[0] == '/': // RFC 9112 §3.2.1
		return nil
	case string(t) == "*" && string(method) == "OPTIONS": // RFC 9112 §3.2.4
		return nil
	default: // RFC 9112 §3.2.2: scheme "://" authority, and what follows
		scheme, after, ok := bytes.Cut(t, []byte("://"))
		if !ok || !isScheme(scheme) {
			return errTargetForm
		}
		start += len(scheme) + len("://")
		rest = after
		if end := bytes.IndexAny(rest, "/?"); end >= 0 {
			rest = rest[:end]
		}
		if len(rest) == 0 || skip(rest, 0, authority) < len(rest) {
			return errAuthority
		}
		r.http = is(scheme, "http")
	}
	r.named, r.authority = true, span(start, start+len(rest))
	return nil
}

// isScheme: RFC 3986 §3.1.
func isScheme(b []byte) bool {
	for i, c := range b {
		switch c = lower(c); {
		case c >= 'a' && c <= 'z':
		case i > 0 && (c >= '0' && c <= '9' || c == '+' || c == '-' || c == '.'):
		default:
			return false
		}
	}
	return len(b) > 0
}

// judge looks at the field that was read last.
func (r *RequestHead) judge(b []byte) *Error {
	f := &r.fields[len(r.fields)-1]
	switch f.name.End - f.name.Start {
	case int32(len("host")):
		if is(f.name.Of(b), "host") {
			if r.hosts++; r.hosts > 1 {
				return errHosts
			}
			r.host = f.value
		}
	case int32(len("expect")):
		if is(f.name.Of(b), "expect") {
			if r.expects || !is(f.value.Of(b), "100-continue") {
				return errExpectation
			}
			r.expects = true
		}
	case int32(len("connection")), int32(len("content-length")), int32(len("transfer-encoding")):
		return r.framing(b)
	}
	return nil
}

// end judges the head as a whole.
func (r *RequestHead) end(b []byte) *Error {
	r.Minor = r.minor
	switch {
	case r.hosts == 0 && r.minor == 1: // RFC 9112 §3.2
		return errNoHost
	case r.named && r.hosts > 0 && !r.sameHost(b):
		return errOtherHost
	case r.named:
		r.Host, r.HasHost = r.authority, true
	default:
		r.Host, r.HasHost = r.host, r.hosts > 0
	}
	// RFC 9112 §6.3, rules 4, 6 and 7.
	if r.Length = max(r.length, 0); r.chunked {
		r.Length = -1
	}
	// RFC 9112 §9.3: a proxy must not keep a connection of an HTTP/1.0 client, whatever that says.
	r.Close = r.sayClose || r.minor == 0
	// RFC 9110 §10.1.1: not in HTTP/1.0, and not where no body comes.
	r.Continue = r.expects && r.minor == 1 && r.Length != 0
	return nil
}

// sameHost: RFC 9112 §3.2.2: Host is that of the target. Who decides by the one must not send on the other. Ports are
// part of it, but for the one that http has where none is named.
func (r *RequestHead) sameHost(b []byte) bool {
	authority, host := r.authority.Of(b), r.host.Of(b)
	if r.http {
		authority, host = bytes.TrimSuffix(authority, []byte(":80")), bytes.TrimSuffix(host, []byte(":80"))
	}
	return equalFold(authority, host)
}
