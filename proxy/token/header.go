package token

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/wardmesh/ward/proxy"
)

// parts are the decoded first two segments of a compact JWS.
type parts struct{ header, payload []byte }

// split takes a compact JWS apart: exactly three base64url segments (RFC 7515 §3.1), each in its one canonical
// spelling, so that a token cannot be respelled (RFC 7515 §2: no padding, line breaks or white space).
func split(raw string) (parts, error) {
	var decoded [3][]byte
	n := 0
	for s := range strings.SplitSeq(raw, ".") {
		if n == len(decoded) {
			return parts{}, proxy.Refuse(proxy.CauseTokenMalformed, "not a JWT of three parts")
		}
		for i := range len(s) {
			if !isBase64URL(s[i]) { // the decoder would pass over line breaks
				return parts{}, proxy.Refuse(proxy.CauseTokenMalformed, "not base64url")
			}
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(s)
		if err != nil || len(b) == 0 {
			return parts{}, proxy.Refuse(proxy.CauseTokenMalformed, "not a signed JWT in base64url")
		}
		decoded[n] = b
		n++
	}
	if n != len(decoded) {
		return parts{}, proxy.Refuse(proxy.CauseTokenMalformed, "not a JWT of three parts")
	}
	return parts{header: decoded[0], payload: decoded[1]}, nil
}

// header is what matters of a JOSE header.
type header struct {
	alg jose.SignatureAlgorithm
	typ string // lower case, without "application/"; TypeAbsent when there is none
	kid string // "" when there is none
}

// unusable are header parameters with which a token is refused. The first four let a token bring its own key
// (RFC 8725 §3.10); crit and b64 change how it is to be read (RFC 7515 §4.1.11, RFC 7797); zip and enc belong to encryption.
var unusable = [...]string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"}

func parseHeader(b []byte) (header, error) {
	members, err := object(b)
	if err != nil {
		return header{}, proxy.Refuse(proxy.CauseTokenMalformed, "its header is not a JSON object without duplicate names")
	}
	for _, name := range unusable {
		if _, found := members[name]; found {
			return header{}, proxy.Refuse(proxy.CauseTokenMalformed, "header parameter %s is not accepted", name)
		}
	}
	alg, ok := text(members["alg"], 16)
	if !ok {
		return header{}, proxy.Refuse(proxy.CauseTokenMalformed, "no algorithm in the header") // RFC 7515 §4.1.1
	}
	h := header{alg: jose.SignatureAlgorithm(alg), typ: TypeAbsent}
	if v, found := members["kid"]; found {
		if h.kid, ok = text(v, 256); !ok {
			return header{}, proxy.Refuse(proxy.CauseTokenMalformed, "header parameter kid is not a usable string")
		}
	}
	if v, found := members["typ"]; found {
		typ, ok := text(v, 128)
		if h.typ = mediaType(typ); !ok || h.typ == TypeAbsent { // our own word for none
			return header{}, proxy.Refuse(proxy.CauseTokenMalformed, "header parameter typ is not a usable string")
		}
	}
	return h, nil
}

// mediaType is the form in which typ is compared. RFC 7515 §4.1.9: application/ may be left out; media types
// are compared without regard to case.
func mediaType(typ string) string { return strings.TrimPrefix(strings.ToLower(typ), "application/") }

// checkHeader holds the header against what the issuer is configured to send.
func (is *issuer) checkHeader(h header) error {
	// RFC 8725 §3.1 and §3.2: only algorithms that were chosen beforehand; RFC 9068 §4: never none
	if !slices.Contains(is.algorithms, h.alg) {
		return proxy.Refuse(proxy.CauseTokenSignature, "its algorithm is not among this issuer's")
	}
	// RFC 9068 §4: any other typ is refused; RFC 8725 §3.11: explicit typing
	if !slices.Contains(is.Types, h.typ) {
		return proxy.Refuse(proxy.CauseTokenMalformed, "header parameter typ does not say that it is an access token")
	}
	return nil
}

// object reads a JSON object strictly: UTF-8, no duplicate names at any depth, nothing after it (RFC 8725 §3.7,
// RFC 7515 §4: duplicate names must be refused).
func object(b []byte) (map[string]jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(b, &members); err != nil {
		return nil, err
	}
	if members == nil {
		return nil, errNotObject
	}
	return members, nil
}

// text reads a JSON string of 1 to limit printable ASCII characters.
func text(v jsontext.Value, limit int) (string, bool) {
	var s string
	if v.Kind() != '"' || json.Unmarshal(v, &s) != nil || !isPrintable(s, limit) {
		return "", false
	}
	return s, true
}

func isPrintable(s string, limit int) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return s != "" && len(s) <= limit
}
