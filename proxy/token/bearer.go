package token

import (
	"strings"

	"github.com/wardmesh/ward/proxy"
)

// Bearer returns the token in the values of a request's Authorization fields. There must be exactly one field,
// and it must hold nothing but a bearer token (RFC 6750 §2.1). The other two ways to send one, in a form body or in the
// query (§2.2, §2.3), are not supported: both leak.
func Bearer(values []string) (string, error) {
	switch {
	case len(values) == 0:
		return "", proxy.Refuse(proxy.CauseTokenMissing, "no Authorization field")
	case len(values) > 1:
		// RFC 9110 §5.3: only fields that are lists may come more than once, and this one is not.
		return "", proxy.Refuse(proxy.CauseTokenMalformed, "%d Authorization fields", len(values))
	case len(values[0]) > len("Bearer ")+MaxSize:
		return "", proxy.Refuse(proxy.CauseTokenMalformed, "longer than %d bytes", MaxSize)
	}
	// RFC 6750 §2.1: credentials = "Bearer" 1*SP b64token; RFC 9110 §11.1: the scheme in any case
	scheme, raw, found := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", proxy.Refuse(proxy.CauseTokenMalformed, "the Authorization scheme is not Bearer")
	}
	raw = strings.TrimLeft(raw, " ")
	if !found || !isB64Token(raw) {
		return "", proxy.Refuse(proxy.CauseTokenMalformed, "the Authorization field holds no bearer token")
	}
	return raw, nil
}

// isB64Token checks the grammar 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"=".
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		c := s[i]
		if !(isBase64URL(c) || c == '.' || c == '~' || c == '+' || c == '/') {
			return false
		}
	}
	return s != ""
}

func isBase64URL(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}
