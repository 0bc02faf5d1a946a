package wire

import (
	"bytes"
	"net/http"
	"sync/atomic"
)

// maxFields bounds the fields of a request's head.
const maxFields = 100

// poison is what the engine is given in place of the rest of a head that is not acceptable: at any place of a head,
// NUL makes it refuse the whole.
const poison = "\x00\r\n\r\n"

// heads reads along as a client's bytes go to the engine, and holds each request's head to RFC 9112's grammar before
// the engine has seen its end. The engine is laxer where it can be without misreading: it takes lines that end in LF
// alone, joins folded ones, and passes over a Content-Length beside a Transfer-Encoding. Another hop may read
// these otherwise, so none of them goes any further. It keeps nothing but a line that has not come whole.
type heads struct {
	line   []byte // the beginning of a line whose end has not come
	skip   int64  // bytes of a body that are still to pass
	open   bool   // a body by chunks goes on to the connection's end: no other request may follow it
	within bool   // the request line has passed
	failed bool

	fields, hosts, lengths, codings int
	length                          int64
	old                             bool   // HTTP/1.0
	authority, host                 []byte // of an absolute target; and the Host field beside one

	// passed counts the heads that were held to be good.
	passed atomic.Int64
	// verdict is the status for the head that was not; 0 while there is none.
	verdict atomic.Int32
}

// scan says how many of the bytes may go on to the engine. What follows them, if anything, must not: verdict says why.
func (h *heads) scan(p []byte) int {
	for at := 0; at < len(p); {
		switch {
		case h.failed:
			return at
		case h.open:
			return len(p)
		case h.skip > 0:
			n := min(h.skip, int64(len(p)-at))
			h.skip -= n
			at += int(n)
			continue
		}
		end := bytes.IndexByte(p[at:], '\n')
		if end < 0 {
			h.line = append(h.line, p[at:]...)
			return len(p) // how long a line may get is the engine's to bound
		}
		line := p[at : at+end+1]
		if len(h.line) > 0 {
			h.line = append(h.line, line...)
			line = h.line
		}
		status := h.take(line)
		h.line = nil
		if status != 0 {
			h.failed = true
			h.verdict.Store(int32(status)) //nolint:gosec // three digits
			return at
		}
		at += end + 1
	}
	return len(p)
}

// take judges a line, with the end that it came with; 0 is good.
func (h *heads) take(line []byte) (status int) {
	// RFC 9112 §2.2: a lone LF may be taken for a line's end, and a lone CR must not be; neither is here.
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || bytes.IndexByte(line, '\r') >= 0 {
		return http.StatusBadRequest
	}
	switch {
	case !h.within:
		h.within = true
		return h.requestLine(line)
	case len(line) > 0:
		return h.field(line)
	}
	return h.end()
}

// requestLine wants method SP target SP version, and nothing else (RFC 9112 §3).
func (h *heads) requestLine(line []byte) (status int) {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	h.old = string(version) == "HTTP/1.0"
	if !isToken(method) || len(target) == 0 || !h.old && string(version) != "HTTP/1.1" {
		return http.StatusBadRequest
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f {
			return http.StatusBadRequest
		}
	}
	if _, after, ok := bytes.Cut(target, []byte("://")); ok && target[0] != '/' {
		end := bytes.IndexAny(after, "/?#")
		if end < 0 {
			end = len(after)
		}
		h.authority = bytes.Clone(after[:end])
	}
	return 0
}

// field judges a field line (RFC 9112 §5).
func (h *heads) field(line []byte) (status int) {
	if h.fields++; h.fields > maxFields {
		return http.StatusRequestHeaderFieldsTooLarge
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	// RFC 9112 §5.1: no space before the colon. §5.2: a line that begins with one would be folded to the last.
	if !ok || !isToken(name) {
		return http.StatusBadRequest
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f { // RFC 9110 §5.5
			return http.StatusBadRequest
		}
	}
	switch {
	case is(name, "host"):
		if h.hosts++; h.authority != nil {
			h.host = bytes.Clone(bytes.Trim(value, " \t"))
		}
	case is(name, "content-length"):
		h.lengths++
		return h.contentLength(bytes.Trim(value, " \t"))
	case is(name, "transfer-encoding"):
		// RFC 9112 §6.1: a coding that is not understood is answered with 501.
		if h.codings++; h.codings > 1 || string(bytes.TrimPrefix(value, []byte(" "))) != "chunked" {
			return http.StatusNotImplemented
		}
	}
	return 0
}

// contentLength wants digits, and no list of them (RFC 9112 §6.3, rule 5: a list of equal ones may be taken for one).
func (h *heads) contentLength(value []byte) (status int) {
	if len(value) == 0 || len(value) > 18 {
		return http.StatusBadRequest
	}
	h.length = 0
	for _, c := range value {
		if c < '0' || c > '9' {
			return http.StatusBadRequest
		}
		h.length = h.length*10 + int64(c-'0')
	}
	return 0
}

// end judges the head as a whole, and makes ready for what follows it.
func (h *heads) end() (status int) {
	switch {
	case h.lengths > 1,
		h.codings > 0 && (h.lengths > 0 || h.old), // RFC 9112 §6.1: both is an error, or an attack
		h.hosts > 1, h.hosts == 0 && !h.old: // RFC 9112 §3.2
		return http.StatusBadRequest
	case h.authority != nil && h.hosts > 0 && !bytes.EqualFold(plain(h.authority), plain(h.host)):
		// RFC 9112 §3.2.2: Host is that of the target. Who decides by the one must not send on the other.
		return http.StatusBadRequest
	}
	h.skip, h.open = h.length, h.codings > 0
	h.within, h.fields, h.hosts, h.lengths, h.codings, h.length, h.authority, h.host = false, 0, 0, 0, 0, 0, nil, nil
	h.passed.Add(1)
	return 0
}

// plain is an authority without http's own port.
func plain(authority []byte) []byte { return bytes.TrimSuffix(authority, []byte(":80")) }

// is compares a field's name, name being in lower case.
func is(got []byte, name string) bool {
	return len(got) == len(name) && bytes.EqualFold(got, []byte(name))
}
