package fhir

import (
	"errors"
	"strings"
)

// Limits of a scope claim. A real one has a few dozen scopes; the rest is somebody spending our time.
const (
	maxScopeClaim  = 8 << 10 // bytes of the whole claim
	maxScopeTokens = 256
	maxScopeToken  = 512 // bytes of one resource scope; a longer one grants nothing
	maxScopeParams = 16
	maxIgnored     = 16
	maxIgnoredText = 64 // bytes of one entry of Ignored
)

// Level is whose access a scope speaks of (SMART App Launch 2.2, Scopes for requesting FHIR Resources).
type Level uint8

// The levels. The zero Level is none: it stands in the Grant of an interaction that needs no scope.
const (
	PatientLevel Level = iota + 1 // what concerns the launch patient
	UserLevel                     // what the user may see
	SystemLevel                   // what the client may see in its own right
)

// String is the word before the slash of a scope.
func (l Level) String() string {
	switch l {
	case PatientLevel:
		return "patient"
	case UserLevel:
		return "user"
	case SystemLevel:
		return "system"
	}
	return ""
}

// Verdict is whether a token's scopes allow an interaction.
type Verdict uint8

// The verdicts. The zero Verdict refuses.
const (
	NotGranted Verdict = iota
	Granted
	// NeedsNarrowing means that only scopes with search parameters (`patient/Observation.rs?category=…`)
	// would allow the interaction. They allow a part of it, and nothing here can cut the call down to it.
	NeedsNarrowing
)

// Grant is what Scopes allow of one interaction.
type Grant struct {
	// Level is the level at which the interaction is allowed, zero when it needs no scope. UserLevel holds
	// only for a token that names a user and PatientLevel only for one that also names a launch patient:
	// whoever reads a Grant must check that. SystemLevel asks for neither. When several levels allow the
	// call, it is the one that asks least of the token.
	Level Level
	// Confined is set when only patient/ scopes allow the interaction: it must stay in the compartment of
	// the launch patient.
	Confined bool
}

// scopePerms is a set of the permissions c, r, u, d and s.
type scopePerms uint8

const scopeLetters = "cruds" // in the order that SMART prescribes

const (
	scopeCreate scopePerms = 1 << iota
	scopeRead
	scopeUpdate
	scopeDelete
	scopeSearch
	scopeEvery = scopeCreate | scopeRead | scopeUpdate | scopeDelete | scopeSearch
)

// Scopes is a token's SMART scopes, parsed. The zero Scopes allow nothing. Values are never changed, so they
// may be shared.
type Scopes struct {
	rules   []scopeRule
	ignored []string
}

// scopeRule is all that a token's scopes say of one type at one level.
type scopeRule struct {
	level   Level
	typ     string // "" for *
	perms   scopePerms
	partial scopePerms // allowed by scopes with parameters only in part
}

// ParseScopes reads a scope claim. Scopes that are not SMART resource scopes (openid, launch/patient,
// offline_access) mean nothing here and are passed over; a resource scope that breaks the grammar grants
// nothing and is listed by Ignored. The error says that s as a whole is no scope claim or is beyond bounds.
func ParseScopes(s string) (Scopes, error) {
	if s == "" {
		return Scopes{}, nil
	}
	if len(s) > maxScopeClaim {
		return Scopes{}, errors.New("the scope claim is too long")
	}
	var out Scopes
	n := 0
	for token := range strings.SplitSeq(s, " ") {
		if n++; n > maxScopeTokens {
			return Scopes{}, errors.New("the scope claim holds too many scopes")
		}
		// RFC 6749 §3.3: scope-token *( SP scope-token ), scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
		if !isScopeToken(token) {
			return Scopes{}, errors.New("the scope claim breaks the grammar of RFC 6749 section 3.3")
		}
		level, rest := cutLevel(token)
		if level == 0 {
			continue
		}
		rule, ok := parseScopeRule(level, rest)
		if !ok || len(token) > maxScopeToken {
			out.ignore(token)
			continue
		}
		out.add(rule)
	}
	return out, nil
}

// Ignored lists the scopes that look like SMART resource scopes but break the grammar, without their
// parameters and shortened: for operators, who will wonder why a call is refused.
func (s Scopes) Ignored() []string { return append([]string(nil), s.ignored...) }

// Permit says whether these scopes allow in. Scopes add up: a user/ or system/ scope that allows it lifts the
// confinement that a patient/ scope would bring.
func (s Scopes) Permit(in Interaction) (Grant, Verdict) {
	if in.Kind == Capabilities {
		return Grant{}, Granted
	}
	need := scopeFor(in)
	if need == 0 {
		return Grant{}, NotGranted
	}
	var full, part [SystemLevel + 1]bool
	for i := range s.rules {
		r := &s.rules[i]
		// A whole-system interaction concerns every type, so only the wildcard covers it.
		if r.typ != "" && r.typ != in.Type {
			continue
		}
		full[r.level] = full[r.level] || r.perms&need != 0
		part[r.level] = part[r.level] || r.partial&need != 0
	}
	switch {
	case full[SystemLevel]:
		return Grant{Level: SystemLevel}, Granted
	case full[UserLevel]:
		return Grant{Level: UserLevel}, Granted
	case full[PatientLevel]:
		return Grant{Level: PatientLevel, Confined: true}, Granted
	case part[SystemLevel] || part[UserLevel] || part[PatientLevel]:
		return Grant{}, NeedsNarrowing
	}
	return Grant{}, NotGranted
}

// scopeFor is the permission that in needs, 0 when no scope allows such an interaction.
// SMART App Launch 2.2, "Scopes for requesting FHIR Resources": r is read, vread and history of an instance,
// s is search and history of a type or of the system.
func scopeFor(in Interaction) scopePerms {
	if in.Type == "" {
		if in.Kind == Search || in.Kind == HistorySystem {
			return scopeSearch
		}
		return 0
	}
	switch in.Kind {
	case Read, VRead, HistoryInstance:
		return scopeRead
	case Search, HistoryType:
		return scopeSearch
	case Create:
		return scopeCreate
	case Update:
		return scopeUpdate
	case Delete:
		return scopeDelete
	}
	return 0
}

// add merges rule into s, so that repeated scopes cost nothing afterwards.
func (s *Scopes) add(rule scopeRule) {
	for i := range s.rules {
		if r := &s.rules[i]; r.level == rule.level && r.typ == rule.typ {
			r.perms |= rule.perms
			r.partial |= rule.partial
			return
		}
	}
	s.rules = append(s.rules, rule)
}

func (s *Scopes) ignore(token string) {
	if len(s.ignored) == maxIgnored {
		return
	}
	token, _, _ = strings.Cut(token, "?") // a parameter's value may be about a person
	if len(token) > maxIgnoredText {
		token = token[:maxIgnoredText] + "..."
	}
	s.ignored = append(s.ignored, token)
}

func isScopeToken(t string) bool {
	for i := range len(t) {
		if c := t[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return t != ""
}

// cutLevel splits a scope at its level; the level is 0 when this is no resource scope.
func cutLevel(token string) (Level, string) {
	before, rest, found := strings.Cut(token, "/")
	if found {
		switch before {
		case "patient":
			return PatientLevel, rest
		case "user":
			return UserLevel, rest
		case "system":
			return SystemLevel, rest
		}
	}
	return 0, token
}

// parseScopeRule reads what follows the level: (Type|*).perms[?p=v(&p=v)*].
func parseScopeRule(level Level, s string) (scopeRule, bool) {
	s, query, narrowed := strings.Cut(s, "?")
	typ, perms, found := strings.Cut(s, ".")
	if !found || typ != "*" && !IsType(typ) {
		return scopeRule{}, false
	}
	set, v1 := scopeV1(perms)
	if !v1 {
		set = scopeV2(perms)
	}
	if set == 0 || narrowed && (v1 || !isScopeQuery(query)) {
		return scopeRule{}, false
	}
	if typ == "*" {
		typ = ""
	}
	if narrowed {
		return scopeRule{level: level, typ: typ, partial: set}, true
	}
	return scopeRule{level: level, typ: typ, perms: set}, true
}

// scopeV1 reads a permission as SMART 1.0 wrote it. SMART App Launch 2.2, "Scope Equivalence Across SMART
// Versions": .read is .rs, .write is .cud, .* is .cruds.
func scopeV1(perms string) (scopePerms, bool) {
	switch perms {
	case "read":
		return scopeRead | scopeSearch, true
	case "write":
		return scopeCreate | scopeUpdate | scopeDelete, true
	case "*":
		return scopeEvery, true
	}
	return 0, false
}

// scopeV2 reads a non-empty subset of "cruds" in that order, 0 for anything else: `.dus` must not be taken for
// a scope (SMART App Launch 2.2).
func scopeV2(perms string) scopePerms {
	var set scopePerms
	next := 0
	for i := range len(perms) {
		at := strings.IndexByte(scopeLetters[next:], perms[i])
		if at < 0 {
			return 0
		}
		set |= 1 << (next + at)
		next += at + 1
	}
	return set
}

// isScopeQuery accepts plain search parameters: no modifier, no chain, no _filter (which could say anything).
func isScopeQuery(q string) bool {
	n := 0
	for pair := range strings.SplitSeq(q, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if n++; n > maxScopeParams || name == "" || value == "" || name == "_filter" {
			return false
		}
		for i := range len(name) {
			c := name[i]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
