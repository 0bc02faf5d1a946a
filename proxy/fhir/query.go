package fhir

import (
	"strings"
	"unicode/utf8"
)

// The bounds of a query. A form body may be larger than a target, because it is there for long lists of values.
const (
	maxParams = 64
	maxForm   = 64 << 10 // bytes
)

// parseQuery is the only reader of queries and form bodies. It reads what the URL standard calls
// application/x-www-form-urlencoded, of which it takes the strict part:
//
//   - pairs are divided by & alone; ; is refused, because some servers divide there;
//   - every pair has a name, a = and a value, none of them empty: servers ignore a parameter without a value, and
//     so would answer more than was asked for;
//   - + is a space, as every form decoder has it, and a % is followed by two hex digits;
//   - the decoded text is UTF-8 without control characters.
//
// What it returns is written again by appendQuery, in a spelling that leaves nothing to decide.
func parseQuery(raw string) ([]Param, error) {
	if raw == "" {
		return nil, nil
	}
	n := strings.Count(raw, "&") + 1
	if n > maxParams {
		return nil, malformed("there are more than 64 parameters", "")
	}
	params := make([]Param, 0, n)
	for more := true; more; {
		var pair string
		pair, raw, more = strings.Cut(raw, "&")
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := unescape(rawName)
		if err != nil {
			return nil, err
		}
		if name == "" || rawValue == "" {
			return nil, malformed("a parameter has no name or no value", "")
		}
		value, err := unescape(rawValue)
		if err != nil {
			return nil, err
		}
		params = append(params, Param{name, value})
	}
	return params, nil
}

// queryBytes are the bytes that may stand in a query unescaped: those of RFC 3986 §3.4 without `;`, and `|`,
// which many clients do not escape.
var queryBytes = byteSet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$'()*,:@/?=|")

// unescape decodes s; a string without escapes is returned as it is.
func unescape(s string) (string, error) {
	i := 0
	for i < len(s) && queryBytes[s[i]] {
		i++
	}
	if i == len(s) {
		return s, nil
	}
	out := make([]byte, i, len(s))
	copy(out, s)
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case queryBytes[c]:
			out = append(out, c)
		case c == '+':
			out = append(out, ' ')
		case c == '%':
			if i+2 >= len(s) || unhex(s[i+1]) < 0 || unhex(s[i+2]) < 0 {
				return "", malformed("a % in the query is not followed by two hex digits", "")
			}
			out = append(out, byte(unhex(s[i+1])<<4|unhex(s[i+2])))
			i += 2
		case c == ';':
			return "", malformed("the query holds a semicolon; write %3B", "")
		default:
			return "", malformed("the query holds a byte that has to be escaped", "")
		}
	}
	if !utf8.Valid(out) {
		return "", malformed("the query is not UTF-8", "")
	}
	if hasControl(out) {
		return "", malformed("the query holds a control character", "")
	}
	return string(out), nil
}

// hasControl reports whether text, which is UTF-8, holds a control character of Unicode: U+0000 to U+001F,
// U+007F to U+009F.
func hasControl(text []byte) bool {
	for i, c := range text {
		if c < 0x20 || c == 0x7f || c == 0xc2 && text[i+1] < 0xa0 {
			return true
		}
	}
	return false
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// unreserved are the bytes that mean the same escaped or not (RFC 3986 §2.3).
var unreserved = byteSet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

// appendQuery writes params in the one spelling that is ever forwarded: everything but unreserved bytes escaped.
func appendQuery(b []byte, params []Param) []byte {
	for i, p := range params {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(appendEscaped(b, p.Name), '=')
		b = appendEscaped(b, p.Value)
	}
	return b
}

func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; unreserved[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}
