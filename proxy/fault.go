package proxy

import (
	"errors"
	"fmt"

	"github.com/wardmesh/ward/proxy/fhir"
)

// Cause is why a call was refused, in a word that is stable: audit records, metrics and `ward` commands
// name it, scripts may depend on it.
type Cause string

// Refusal is a call that will not be served. Everything below the journeys refuses by returning one
// (possibly wrapped); Fault turns it into bytes in this file and nowhere else.
type Refusal struct {
	Cause Cause
	// Detail is for the operator's eyes: the audit trail and the log. It may name clients, claims and
	// policies, never patients' data, tokens or keys.
	Detail string
	Err    error
}

// Refuse makes a Refusal; format and args give its Detail. An error among args can be wrapped with %w.
func Refuse(c Cause, format string, args ...any) *Refusal {
	err := fmt.Errorf(format, args...)
	return &Refusal{Cause: c, Detail: err.Error(), Err: errors.Unwrap(err)}
}

func (r *Refusal) Error() string { return string(r.Cause) + ": " + r.Detail }
func (r *Refusal) Unwrap() error { return r.Err }

// OfProcess says which local process err is about, in the words that Record.Process has for it: a call without an
// identity is counted by its process's user, so that one user's refused calls do not use up what is recorded of
// another's. What err is (a *Refusal, or something else) does not change. Nil stays nil.
func OfProcess(process string, err error) error {
	if err == nil || process == "" {
		return err
	}
	return &processError{process, err}
}

type processError struct {
	process string
	error
}

func (e *processError) Unwrap() error { return e.error }

// The causes. faults (below) says what the caller is told for each.
const (
	CauseNoIdentity      Cause = "no-identity"      // the local process matches no entry
	CausePeerChanged     Cause = "peer-changed"     // the process exited or replaced itself
	CauseIdentityEnding  Cause = "identity-ending"  // the caller's SVID ends too soon for a call to begin
	CauseDenyList        Cause = "deny-list"        // the operator has denied this identity
	CauseUnknownService  Cause = "unknown-service"  // no service has that mesh name
	CauseNotACaller      Cause = "not-a-caller"     // the workload may not call the service
	CauseMalformed       Cause = "malformed"        // not HTTP or not FHIR
	CauseMethod          Cause = "method"           // FHIR has no such method here
	CauseUnsupported     Cause = "unsupported"      // FHIR that Ward cannot decide on
	CauseMedia           Cause = "media-type"       // a format that Ward does not read
	CauseHeadTooLarge    Cause = "head-too-large"   // the request's head exceeds the limit
	CauseTooLarge        Cause = "too-large"        // the body exceeds the limit
	CauseInvalid         Cause = "invalid"          // the body is not a valid resource
	CauseHeaders         Cause = "headers"          // a header field that must not be there
	CauseTokenMissing    Cause = "token-missing"    // no access token
	CauseTokenMalformed  Cause = "token-malformed"  // several Authorization fields, or not a JWT
	CauseTokenSignature  Cause = "token-signature"  // not signed by its issuer
	CauseTokenIssuer     Cause = "token-issuer"     // an issuer that is not configured
	CauseTokenAudience   Cause = "token-audience"   // meant for someone else
	CauseTokenExpired    Cause = "token-expired"    // past exp, or before nbf
	CauseTokenClaims     Cause = "token-claims"     // a claim is missing or contradicts another
	CauseTokenBinding    Cause = "token-binding"    // this workload may not carry it
	CauseIssuerDown      Cause = "issuer-down"      // the issuer's keys cannot be had
	CauseScope           Cause = "scope"            // the token's scopes do not allow it
	CausePatient         Cause = "patient"          // another patient than the token is for
	CauseLimit           Cause = "limit"            // the caller's budget is spent
	CausePolicy          Cause = "policy"           // no permit, or a forbid
	CausePolicyError     Cause = "policy-error"     // a policy could not be evaluated
	CauseNeedsImage      Cause = "needs-image"      // scope or policy needs the resource as it is now
	CauseAudit           Cause = "audit"            // the trail cannot take the record
	CauseUpstream        Cause = "upstream"         // the FHIR server cannot be reached
	CauseUpstreamDown    Cause = "upstream-down"    // the service has failed time and again, and is spared for a moment
	CauseUpstreamPeer    Cause = "upstream-peer"    // another process than the FHIR server serves at its address
	CauseUpstreamTimeout Cause = "upstream-timeout" // the FHIR server did not answer in time
	CauseUpstreamReply   Cause = "upstream-reply"   // the FHIR server's reply cannot be vouched for
	CauseReplyOutside    Cause = "reply-outside"    // the reply holds what the caller may not see
	CauseTimeout         Cause = "timeout"          // the caller was too slow
	CauseRestarting      Cause = "restarting"       // the ward is shutting down
	CauseInternal        Cause = "internal"         // a defect in Ward
)

// FromFHIR gives the refusal for an error of package fhir.
func FromFHIR(err error) *Refusal {
	var e *fhir.Error
	if !errors.As(err, &e) {
		return Refuse(CauseInternal, "%w", err)
	}
	return &Refusal{Cause: fhirCause(e), Detail: e.Error(), Err: err}
}

func fhirCause(e *fhir.Error) Cause {
	switch e.Class {
	case fhir.Malformed:
		if e.Expression == "access_token" { // RFC 6750 §2.3: a token in the query
			return CauseTokenMalformed
		}
		return CauseMalformed
	case fhir.Unsupported:
		return CauseUnsupported
	case fhir.Media:
		return CauseMedia
	case fhir.TooLarge:
		return CauseTooLarge
	case fhir.Invalid:
		return CauseInvalid
	case fhir.Outside:
		return CausePatient
	case fhir.Method:
		return CauseMethod
	}
	return CauseInternal
}
