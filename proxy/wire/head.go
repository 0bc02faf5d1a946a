package wire

import (
	"bytes"
	"net/http"
	"sync/atomic"
)

const (
	maxFields    = 100 // of a request's head, and of its trailer
	maxExtension = 256 // bytes of a chunk's extensions
)

// poison is what the engine is given in place of the rest of a head that is not acceptable: at any place of a head,
// NUL makes it refuse the whole.
const poison = "\x00\r\n\r\n"

// heads reads along as a client's bytes go to the engine, and holds each request's head to RFC 9112's grammar before
// the engine has seen its end, and a body's chunks, whose end tells where the next head begins. The engine is laxer where it can be without misreading: it takes lines that end in LF
// alone, joins folded ones, and passes over a Content-Length beside a Transfer-Encoding. Another hop may read
// these otherwise, so none of them goes any further. It keeps nothing but a line that has not come whole.
type heads struct {
	line   []byte // the beginning of a line whose end has not come
	skip   int64  // bytes of a body that are still to pass
	part   part   // what the next line belongs to
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

// part is a part of a message that is made of lines.
type part int

const (
	atRequest part = iota // the request line
	atFields              // the head's fields
	atSize                // the line before a chunk
	atData                // the line's end behind a chunk
	atTrailer             // fields behind the last chunk
)

// scan says how many of the bytes may go on to the engine. What follows them, if anything, must not: verdict says why.
func (h *heads) scan(p []byte) int {
	for at := 0; at < len(p); {
		switch {
		case h.failed:
			return at
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
	switch h.part {
	case atRequest:
		h.part = atFields
		return h.requestLine(line)
	case atFields:
		if len(line) > 0 {
			return h.field(line)
		}
		return h.end()
	case atSize:
		return h.size(line)
	case atData:
		h.part = atSize
		if len(line) > 0 {
			return http.StatusBadRequest
		}
	case atTrailer:
		if len(line) > 0 {
			return h.trailer(line)
		}
		h.part, h.fields = atRequest, 0
	}
	return 0
}

// size reads the line before a chunk (RFC 9112 §7.1): hexadecimal digits, and extensions, which mean nothing here.
func (h *heads) size(line []byte) (status int) {
	digits, extension, _ := bytes.Cut(line, []byte(";"))
	if len(digits) == 0 || len(digits) > 15 || len(extension) > maxExtension || !isText(extension) {
		return http.StatusBadRequest
	}
	h.skip, h.part = 0, atData
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return http.StatusBadRequest
		}
		h.skip = h.skip<<4 | int64(c)
	}
	if h.skip == 0 {
		h.part = atTrailer
	}
	return 0
}

// trailer judges a field behind the last chunk; it goes no further than the engine.
func (h *heads) trailer(line []byte) (status int) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if h.fields++; h.fields > maxFields || !ok || !isToken(name) || !isText(value) {
		return http.StatusBadRequest
	}
	return 0
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
	if !ok || !isToken(name) || !isText(value) {
		return http.StatusBadRequest
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
	if h.skip, h.part = h.length, atRequest; h.codings > 0 {
		h.part = atSize
	}
	h.fields, h.hosts, h.lengths, h.codings, h.length, h.authority, h.host = 0, 0, 0, 0, 0, nil, nil
	h.passed.Add(1)
	return 0
}

// plain is an authority without http's own port.
func plain(authority []byte) []byte { return bytes.TrimSuffix(authority, []byte(":80")) }

// isText reports whether b can stand in a field's value (RFC 9110 §5.5).
func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// is compares a field's name, name being in lower case.
func is(got []byte, name string) bool {
	return len(got) == len(name) && bytes.EqualFold(got, []byte(name))
}
