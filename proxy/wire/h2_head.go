package wire

import (
	"net/http"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// h2Fields is how many fields a head, or a trailer, may have, pseudo-header fields not counted.
const h2Fields = 100

// streamHead is the head of a request that came by HTTP/2.
type streamHead struct {
	Request
	verdict int  // the status for a head that is not acceptable; 0 is good
	expect  bool // 100-continue
	ended   bool // no body follows
	size    int  // as RFC 9113 §6.5.2 counts
}

// fieldList takes a block's fields as they are decoded, and holds them to RFC 9113. It keeps nothing of a block that is
// not acceptable.
type fieldList struct {
	max     int // bytes, as RFC 9113 §6.5.2 counts them
	trailer bool

	verdict, size, fields int
	regular               bool // pseudo-header fields may come no more
	method, scheme        string
	path, authority       string
	saw                   pseudo
	hosts, lengths, wants int
	host                  string
	length                int64
	header                Header
	cookies               []string
}

// pseudo is a set of pseudo-header fields.
type pseudo uint8

const (
	pseudoMethod pseudo = 1 << iota
	pseudoScheme
	pseudoPath
	pseudoAuthority
)

func (l *fieldList) refuse(status int) {
	if l.verdict == 0 {
		l.verdict = status
	}
	l.header, l.cookies = nil, nil
}

// add takes the next field.
func (l *fieldList) add(name, value string) {
	l.size += len(name) + len(value) + 32
	if l.size > l.max {
		l.refuse(http.StatusRequestHeaderFieldsTooLarge)
	}
	if l.verdict != 0 {
		return
	}
	if strings.HasPrefix(name, ":") {
		l.pseudo(name, value)
		return
	}
	l.regular = true
	if l.fields++; l.fields > h2Fields {
		l.refuse(http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	// RFC 9113 §8.2: names are in lower case. §8.2.1: what a name and a value may hold; here no control character at all.
	if !isLowerToken(name) || !isFieldValue(value) {
		l.refuse(http.StatusBadRequest)
		return
	}
	if !l.trailer {
		l.field(name, value)
	}
}

// pseudo takes a pseudo-header field: RFC 9113 §8.3, §8.3.1.
func (l *fieldList) pseudo(name, value string) {
	var is pseudo
	var to *string
	switch name {
	case ":method":
		is, to = pseudoMethod, &l.method
	case ":scheme":
		is, to = pseudoScheme, &l.scheme
	case ":path":
		is, to = pseudoPath, &l.path
	case ":authority":
		is, to = pseudoAuthority, &l.authority
	}
	// Others are malformed, :protocol too: extended CONNECT (RFC 8441 §3) has not been offered. None comes twice, after a
	// field, or in a trailer (§8.1).
	if to == nil || l.saw&is != 0 || l.regular || l.trailer {
		l.refuse(http.StatusBadRequest)
		return
	}
	l.saw |= is
	*to = value
}

// field takes a field that is well formed.
func (l *fieldList) field(name, value string) {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		l.refuse(http.StatusBadRequest) // RFC 9113 §8.2.2
	case "te":
		if value != "trailers" { // RFC 9113 §8.2.2
			l.refuse(http.StatusBadRequest)
		}
	case "host":
		l.hosts++
		l.host = value
	case "content-length":
		var ok bool
		if l.length, ok = digits(value); !ok || l.lengths > 0 {
			l.refuse(http.StatusBadRequest)
		}
		l.lengths++
	case "expect":
		if l.wants++; !strings.EqualFold(value, "100-continue") || l.wants > 1 {
			l.refuse(http.StatusExpectationFailed) // RFC 9110 §10.1.1
		}
	case "cookie":
		l.cookies = append(l.cookies, value)
	default:
		l.header = append(l.header, Field{name, value})
	}
}

// head is the request whose fields have all been added; ended says that it has no body.
func (l *fieldList) head(ended bool) *streamHead {
	h := &streamHead{verdict: l.verdict, ended: ended, expect: l.wants > 0, size: l.size}
	h.Request = Request{Method: l.method, Target: l.path, Host: l.authority, Header: l.header, Length: -1}
	if l.verdict == 0 {
		h.verdict = l.whole(&h.Request, ended)
	}
	if h.verdict != 0 {
		h.Request = Request{Method: safeMethod(l.method), Length: -1}
	}
	if ended {
		h.Length = 0
	} else if l.lengths > 0 {
		h.Length = l.length
	}
	if len(l.cookies) > 0 { // RFC 9113 §8.2.3: one field for whoever does not speak HTTP/2
		h.Header = append(h.Header, Field{"cookie", strings.Join(l.cookies, "; ")})
	}
	return h
}

// whole judges the fields together.
func (l *fieldList) whole(r *Request, ended bool) (status int) {
	switch {
	case !isToken(l.method):
		return http.StatusBadRequest
	case l.method == http.MethodConnect:
		// RFC 9113 §8.5: :authority alone says where to.
		if l.saw != pseudoMethod|pseudoAuthority {
			return http.StatusBadRequest
		}
		r.Target = l.authority
	case l.saw&(pseudoScheme|pseudoPath) != pseudoScheme|pseudoPath, // RFC 9113 §8.3.1
		l.scheme != "https" && l.scheme != "http", !isTarget(l.path):
		return http.StatusBadRequest
	}
	switch {
	case l.hosts > 1, l.saw&pseudoAuthority == 0 && l.hosts == 0:
		return http.StatusBadRequest
	case l.saw&pseudoAuthority == 0:
		r.Host = l.host
	case l.hosts > 0 && !strings.EqualFold(l.host, l.authority):
		// RFC 9113 §8.3.1: Host is not to differ from :authority. Who decides by the one must not send on the other.
		return http.StatusBadRequest
	}
	if ended && l.length > 0 { // RFC 9113 §8.1.1
		return http.StatusBadRequest
	}
	return 0
}

// safeMethod keeps what decides how an answer is framed.
func safeMethod(m string) string {
	if m == http.MethodHead {
		return m
	}
	return http.MethodGet
}

// digits reads a length (RFC 9110 §8.6), and no list of them.
func digits(s string) (n int64, ok bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// isLowerToken reports whether s is a field name without upper case.
func isLowerToken(s string) bool {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' {
			return false
		}
	}
	return isToken(s)
}

// isFieldValue reports whether s can stand in a field's value: RFC 9113 §8.2.1, and RFC 9110 §5.5 for the rest.
func isFieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " \t") == s
}

// isTarget reports whether s can be a request's target; the journey judges what it means.
func isTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}

// neutral is the header block that the engine gets for request id: HPACK without a table (RFC 7541 §6.1, §6.2.2), so
// that what the peer's encoder and the engine's decoder keep is never the same state.
func neutral(dst []byte, id string, head bool, expect bool) []byte {
	method := byte(0x82) // :method GET
	literal := func(index byte, value string) {
		dst = append(append(dst, index, byte(len(value))), value...) // shorter than 127 bytes
	}
	if head {
		literal(0x02, http.MethodHead)
	} else {
		dst = append(dst, method)
	}
	dst = append(dst, 0x87) // :scheme https
	literal(0x04, "/"+id)   // :path
	literal(0x01, "ward")   // :authority
	if expect {
		dst = append(dst, 0x0f) // a name of the table beyond 14: 35, expect
		literal(35-15, "100-continue")
	}
	return dst
}

// decoder reads header blocks, whose fields go to whatever list is current.
func (f *frames) decoder() *hpack.Decoder {
	d := hpack.NewDecoder(h2Table, func(h hpack.HeaderField) {
		f.list.add(h.Name, h.Value)
		if f.list.verdict != 0 {
			f.hpack.SetEmitEnabled(false) // the table is kept, and nothing else
		}
	})
	d.SetMaxStringLength(f.headBytes)
	return d
}

// isToken reports whether s is a token (RFC 9110 §5.6.2).
func isToken[T string | []byte](s T) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return len(s) > 0
}
