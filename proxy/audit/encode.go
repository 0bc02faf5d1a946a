package audit

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/wardmesh/ward/proxy"
)

// appendRecord appends r as one line of JSON without its newline, the schema first. It is encoding/json's form, field by
// field (a test holds them equal), written by hand because it stands in the path of every call. Beyond JSON's own
// needs every rune that a terminal would not show as itself is escaped, control and bidirectional characters above
// all: the file can be read with grep and tail. Bytes that are not UTF-8 become U+FFFD.
func appendRecord(b []byte, r *proxy.Record, now func() time.Time) ([]byte, error) {
	if r.Schema != "" && r.Schema != proxy.RecordSchema {
		return b, fmt.Errorf("%w: schema %q, this log holds %s", ErrRecord, r.Schema, proxy.RecordSchema)
	}
	at, ok := r.Time, true
	if at.IsZero() {
		at = now()
	}
	b = append(b, `{"schema":"`+proxy.RecordSchema+`","stage":`...)
	b = appendString(b, string(r.Stage))
	b = appendField(b, `,"hop":`, string(r.Hop))
	b = append(b, `,"time":"`...)
	if y := at.UTC().Year(); y < 0 || y > 9999 { // RFC 3339 §1
		return b, fmt.Errorf("%w: its time is in the year %d", ErrRecord, y)
	}
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendField(b, `,"decision":`, r.Decision)
	b = appendField(b, `,"peer":`, r.Peer)
	b = appendField(b, `,"service":`, r.Service)
	b = appendField(b, `,"caller":`, r.Caller)
	b = appendField(b, `,"process":`, r.Process)
	b = appendField(b, `,"remote":`, r.Remote)
	b = appendField(b, `,"issuer":`, r.Issuer)
	b = appendField(b, `,"client":`, r.Client)
	b = appendField(b, `,"user":`, r.User)
	b = appendField(b, `,"name":`, r.Name)
	b = appendField(b, `,"token_id":`, r.TokenID)
	b = appendField(b, `,"purpose":`, r.Purpose)
	b = appendField(b, `,"method":`, r.Method)
	b = appendActed(b, r.Interactions)
	b = appendList(b, `,"patients":`, r.Patients)
	b = appendField(b, `,"effect":`, r.Effect)
	b = appendField(b, `,"cause":`, string(r.Cause))
	b = appendField(b, `,"detail":`, r.Detail)
	b = appendList(b, `,"policies":`, r.Policies)
	b = appendField(b, `,"policy_set":`, r.PolicySet)
	if b, ok = appendValue(b, `,"inputs":`, r.Inputs); !ok {
		return b, fmt.Errorf("%w: its inputs are not valid JSON", ErrRecord)
	}
	if r.Observed {
		b = append(b, `,"observed":true`...)
	}
	b = appendWould(b, r.Would)
	b = appendField(b, `,"event":`, r.Event)
	if b, ok = appendValue(b, `,"data":`, r.Data); !ok {
		return b, fmt.Errorf("%w: its data is not valid JSON", ErrRecord)
	}
	b = appendInt(b, `,"status":`, int64(r.Status))
	b = appendInt(b, `,"bytes":`, r.Bytes)
	b = appendInt(b, `,"micros":`, r.Micros)
	if r.Complete {
		b = append(b, `,"complete":true`...)
	}
	return append(b, '}'), nil
}

// appendValue appends a field that holds JSON, unless it is empty; false says that it is not valid.
func appendValue(b []byte, name string, value json.RawMessage) ([]byte, bool) {
	if len(value) == 0 {
		return b, true
	}
	if !jsontext.Value(value).IsValid() {
		return b, false
	}
	return appendRaw(append(b, name...), value), true
}

// appendField appends a field that is not empty; name comes with its comma, quotes and colon.
func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(b, name...), value)
}

func appendInt(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendInt(append(b, name...), value, 10)
}

func appendList[T ~string](b []byte, name string, values []T) []byte {
	if len(values) == 0 {
		return b
	}
	b = append(append(b, name...), '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, string(v))
	}
	return append(b, ']')
}

func appendActed(b []byte, acts []proxy.Acted) []byte {
	if len(acts) == 0 {
		return b
	}
	b = append(b, `,"interactions":[`...)
	for i := range acts {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"kind":`...)
		b = appendString(b, acts[i].Kind)
		b = appendField(b, `,"type":`, acts[i].Type)
		b = appendField(b, `,"id":`, acts[i].ID)
		b = appendField(b, `,"version":`, acts[i].Version)
		b = appendList(b, `,"params":`, acts[i].Params)
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendWould(b []byte, w *proxy.Would) []byte {
	if w == nil {
		return b
	}
	b = append(b, `,"would":{"effect":`...)
	b = appendString(b, w.Effect)
	b = appendField(b, `,"cause":`, string(w.Cause))
	b = appendInt(b, `,"status":`, int64(w.Status))
	b = appendField(b, `,"detail":`, w.Detail)
	b = appendList(b, `,"policies":`, w.Policies)
	b = appendList(b, `,"also":`, w.Also)
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) && plain8(s[i:i+8]) {
			i += 8
			continue
		}
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[from:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = appendUnicode(b, rune(c))
			}
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) {
			b = appendUnicode(append(b, s[from:i]...), r)
			from = i + size
		}
		i += size
	}
	return append(append(b, s[from:]...), '"')
}

// plain8 reports whether the eight bytes of s are ASCII that stands for itself in a JSON string, all at once: each term
// sets the high bit of a byte that is not (Hacker's Delight §6-1). It may say no for one that is.
func plain8(s string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	_ = s[7]
	x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
	quote, slash, del := x^ones*'"', x^ones*'\\', x^ones*0x7f
	return (x|(x-ones*' ')|(quote-ones)|(slash-ones)|(del-ones))&highs == 0
}

// appendRaw appends valid JSON so that it stays on one line. Outside strings JSON is ASCII, and inside them any rune
// may be written as an escape: both can be done without knowing where strings begin.
func appendRaw(b []byte, raw json.RawMessage) []byte {
	from := 0
	for i := 0; i < len(raw); {
		if i+8 <= len(raw) {
			const ones, highs = 0x0101010101010101, 0x8080808080808080
			if x := binary.LittleEndian.Uint64(raw[i:]); (x|(x-ones*' ')|((x^ones*0x7f)-ones))&highs == 0 { // as in plain8
				i += 8
				continue
			}
		}
		c := raw[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				b = append(b, raw[from:i]...)
				if c == 0x7f {
					b = appendUnicode(b, rune(c))
				} // else white space between tokens: RFC 8259 §7 allows no control characters in strings
				from = i + 1
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(raw[i:])
		if !unicode.IsPrint(r) {
			b = appendUnicode(append(b, raw[from:i]...), r)
			from = i + size
		}
		i += size
	}
	return append(b, raw[from:]...)
}

// appendUnicode appends r as an escape, beyond the first plane as a surrogate pair (RFC 8259 §7).
func appendUnicode(b []byte, r rune) []byte {
	if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
		return appendHex4(appendHex4(b, r1), r2)
	}
	return appendHex4(b, r)
}

func appendHex4(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
