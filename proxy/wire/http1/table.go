package http1

import "encoding/binary"

// The classes of bytes, one bit each.
const (
	token     = 1 << iota // tchar, RFC 9110 §5.6.2
	text                  // what may stand in a field's value, RFC 9110 §5.5: VCHAR, SP, HTAB, obs-text
	reqTarget             // what may stand in a request target: VCHAR without "#", which begins no part of any form (RFC 9112 §3.2)
	hexdig
	authority // what may stand in a target's authority: names, addresses and ports (RFC 3986 §3.2.2), without a user, escapes and sub-delims
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			t[c] |= token | hexdig | authority
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			t[c] |= token | authority
		}
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= text
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= reqTarget
		}
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] |= token
	}
	for _, c := range []byte("-._~:[]") {
		t[c] |= authority
	}
	return t
}()

// skip says where from i on the first byte stands that is not of the class; len(b) if there is none.
func skip(b []byte, i int, class uint8) int {
	for i < len(b) && classes[b[i]]&class != 0 {
		i++
	}
	return i
}

// skipText is skip for text, eight bytes at a time: values are most of a head's bytes.
func skipText(b []byte, i int) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for i+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[i:])
		del := x ^ 0x7f*ones
		// A byte below SP, or DEL, sets its high bit here. HTAB does too, and passes in the table's look at these eight.
		if ((x-' '*ones)&^x|(del-ones)&^del)&high != 0 {
			for end := i + 8; i < end; i++ {
				if classes[b[i]]&text == 0 {
					return i
				}
			}
			continue
		}
		i += 8
	}
	return skip(b, i, text)
}

// escapes reports whether every % in a target has two hexadecimal digits behind it (RFC 3986 §2.1).
func escapes[T string | []byte](t T) bool {
	for i := 0; i < len(t); i++ {
		if t[i] == '%' && (i+2 >= len(t) || classes[t[i+1]]&classes[t[i+2]]&hexdig == 0) {
			return false
		}
	}
	return true
}

// is reports whether b and s, s being in lower case, are the same but for the case of ASCII letters. Unicode's
// folding would take other bytes for letters.
func is(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if lower(c) != s[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func equalFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// decimal reads up to 18 digits, and nothing but digits: -1 where there is anything else, or nothing.
func decimal(b []byte) (n int64) {
	if len(b) == 0 || len(b) > 18 {
		return -1
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
