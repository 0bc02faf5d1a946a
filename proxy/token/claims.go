package token

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// Bounds of claims.
const (
	maxAudience = 64
	maxText     = 255 // OpenID Connect Core §2: sub is at most 255 ASCII characters
)

// lastDate is the last second of the year 9999: no NumericDate lies beyond.
const lastDate = 253402300799

// claims is a token's payload. Before the signature has been checked it is only what somebody says.
type claims struct {
	issuer  string
	members map[string]jsontext.Value
}

// parseClaims reads a payload as a JSON object (RFC 7519 §7.2) and who is said to have issued it.
func parseClaims(b []byte) (claims, error) {
	members, err := object(b)
	if err != nil {
		return claims{}, proxy.Refuse(proxy.CauseTokenMalformed, "its claims are not a JSON object without duplicate names")
	}
	c := claims{members: members}
	var ok bool
	if c.issuer, ok = text(members["iss"], 1024); !ok { // RFC 9068 §2.2
		return claims{}, proxy.Refuse(proxy.CauseTokenClaims, "claim iss is missing or not a usable string")
	}
	return c, nil
}

// accept checks the claims of a token whose signature is good, and says what they mean.
func (is *issuer) accept(h header, c claims, now time.Time) (*verified, error) {
	audience, err := c.audience()
	if err != nil {
		return nil, err
	}
	if err := is.checkAudience(audience); err != nil {
		return nil, err
	}
	e := &verified{issuer: is, audience: audience, token: &proxy.Token{}}
	if err := is.acceptTimes(h, c, e, now); err != nil {
		return nil, err
	}
	t := e.token
	subject, err := c.required("sub") // RFC 9068 §2.2
	if err != nil {
		return nil, err
	}
	client, err := c.client(h)
	if err != nil {
		return nil, err
	}
	t.Client = proxy.Client{Issuer: is.Issuer.Issuer, ID: client}
	if t.ID, err = c.optional("jti"); err != nil {
		return nil, err
	}
	if t.ID == "" && h.typ == TypeAccessToken {
		return nil, missing("jti") // RFC 9068 §2.2
	}
	if err := c.checkKind(h, audience, client); err != nil {
		return nil, err
	}
	scope, err := c.scope()
	if err != nil {
		return nil, err
	}
	if t.Scopes, err = fhir.ParseScopes(scope); err != nil {
		return nil, proxy.Refuse(proxy.CauseTokenClaims, "claim scope: %w", err)
	}
	if t.Purpose, err = is.purpose(c); err != nil {
		return nil, err
	}
	if t.User, err = is.user(c, subject, client); err != nil {
		return nil, err
	}
	return e, nil
}

// acceptTimes reads exp, nbf and iat and checks them against now and each other.
func (is *issuer) acceptTimes(h header, c claims, e *verified, now time.Time) error {
	var err error
	if e.token.Expires, err = c.date("exp"); err != nil {
		return err
	}
	if e.notBefore, err = c.date("nbf"); err != nil {
		return err
	}
	if e.token.IssuedAt, err = c.date("iat"); err != nil {
		return err
	}
	expires, issued := e.token.Expires, e.token.IssuedAt
	switch {
	case expires.IsZero():
		return missing("exp") // RFC 9068 §2.2: no token is for ever
	case issued.IsZero() && h.typ == TypeAccessToken:
		return missing("iat") // RFC 9068 §2.2
	}
	if err := is.checkTimes(expires, e.notBefore, now); err != nil {
		return err
	}
	// RFC 7519 §4.1.6 leaves open what to make of iat; one ahead of us tells of a wrong clock, on which nothing
	// can be built.
	if early := issued.Sub(now); early > is.Leeway {
		return proxy.Refuse(proxy.CauseTokenClaims, "claim iat is %s ahead of this host's clock", early.Truncate(time.Second))
	}
	since := issued
	if since.IsZero() {
		since = now
	}
	switch {
	case !expires.After(issued), !expires.After(e.notBefore):
		return proxy.Refuse(proxy.CauseTokenClaims, "claim exp is not after iat and nbf")
	case expires.Sub(since) > is.MaxLifetime:
		return proxy.Refuse(proxy.CauseTokenClaims, "it is valid for %s; %s is the most that is accepted", expires.Sub(since).Truncate(time.Second), is.MaxLifetime)
	}
	return nil
}

// client is the OAuth client that the token was issued to: client_id (RFC 9068 §2.2), for plain JWTs also azp
// (OpenID Connect Core §2). Where both are there they must agree, or it is open who may carry the token.
func (c claims) client(h header) (string, error) {
	id, err := c.optional("client_id")
	if err != nil {
		return "", err
	}
	azp, err := c.optional("azp")
	if err != nil {
		return "", err
	}
	switch {
	case id != "" && azp != "" && id != azp:
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claims client_id and azp contradict each other")
	case id == "" && (h.typ == TypeAccessToken || azp == ""):
		return "", missing("client_id")
	case id == "":
		return azp, nil
	}
	return id, nil
}

// notAccess are claims of other tokens than access tokens: ID Tokens (OpenID Connect Core §2 and §3.3.2.11) and
// security events such as logout tokens (RFC 8417 §2.2).
var notAccess = [...]string{"nonce", "at_hash", "c_hash", "s_hash", "events"}

// checkKind makes sure that this is an access token, and a bearer token.
func (c claims) checkKind(h header, audience []string, client string) error {
	// RFC 9449 §7.1, RFC 8705 §3: such a token is of no use without proof of its key, which is not checked here.
	if _, found := c.members["cnf"]; found {
		return proxy.Refuse(proxy.CauseTokenClaims, "claim cnf binds it to a key, and bound tokens are not accepted yet")
	}
	if h.typ == TypeAccessToken {
		return nil // RFC 9068 §4 and RFC 8725 §3.11: the type has said so
	}
	// RFC 8725 §3.12: without a type, the rules for kinds of tokens must exclude each other.
	for _, name := range notAccess {
		if _, found := c.members[name]; found {
			return proxy.Refuse(proxy.CauseTokenClaims, "claim %s belongs to another kind of token than access tokens", name)
		}
	}
	// Issuers that leave the header's typ at JWT say it in a claim.
	if v, found := c.members["typ"]; found {
		if s, _ := text(v, maxText); !strings.EqualFold(s, "Bearer") {
			return proxy.Refuse(proxy.CauseTokenClaims, "claim typ does not say that it is a bearer token")
		}
	}
	if _, found := c.members["scope"]; !found {
		return proxy.Refuse(proxy.CauseTokenClaims, "claim scope is missing: it may be an ID Token")
	}
	// OpenID Connect Core §2: an ID Token's audience is the client.
	if slices.Contains(audience, client) {
		return proxy.Refuse(proxy.CauseTokenClaims, "claim aud names the client itself: it may be an ID Token")
	}
	return nil
}

// scope is the scope claim. RFC 9068 §2.2.3, RFC 8693 §4.2: a string of scopes between spaces. Arrays, which some issuers
// send, have no standard and are refused.
func (c claims) scope() (string, error) {
	v, found := c.members["scope"]
	if !found {
		return "", nil
	}
	var s string
	if v.Kind() != '"' || json.Unmarshal(v, &s) != nil {
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claim scope is not a string")
	}
	return s, nil
}

// audience reads aud: a string or an array of strings (RFC 7519 §4.1.3).
func (c claims) audience() ([]string, error) {
	v, found := c.members["aud"]
	if !found {
		return nil, missing("aud") // RFC 9068 §2.2, RFC 8725 §3.9
	}
	if one, ok := text(v, 2048); ok {
		return []string{one}, nil
	}
	var values []jsontext.Value
	if v.Kind() != '[' || json.Unmarshal(v, &values) != nil || len(values) == 0 || len(values) > maxAudience {
		return nil, proxy.Refuse(proxy.CauseTokenClaims, "claim aud is not a usable string or array of strings")
	}
	out := make([]string, 0, len(values))
	for _, v := range values {
		s, ok := text(v, 2048)
		if !ok {
			return nil, proxy.Refuse(proxy.CauseTokenClaims, "claim aud is not a usable string or array of strings")
		}
		out = append(out, s)
	}
	return out, nil
}

// date reads a NumericDate (RFC 7519 §2), the zero Time when there is none. Fractions of a second are cut off.
func (c claims) date(name string) (time.Time, error) {
	v, found := c.members[name]
	if !found {
		return time.Time{}, nil
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if v.Kind() != '0' || err != nil || !(f > 0 && f <= lastDate) {
		return time.Time{}, proxy.Refuse(proxy.CauseTokenClaims, "claim %s is not a date", name)
	}
	return time.Unix(int64(math.Floor(f)), 0), nil
}

// required reads a string claim that must be there.
func (c claims) required(name string) (string, error) {
	s, err := c.optional(name)
	if err == nil && s == "" {
		return "", missing(name)
	}
	return s, err
}

// optional reads a string claim of printable ASCII, "" when it is not there.
func (c claims) optional(name string) (string, error) {
	v, found := c.members[name]
	if !found {
		return "", nil
	}
	s, ok := text(v, maxText)
	if !ok {
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claim %s is not a usable string", name)
	}
	return s, nil
}

func missing(name string) error {
	return proxy.Refuse(proxy.CauseTokenClaims, "claim %s is missing", name)
}
