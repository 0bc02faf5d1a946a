package proxy

import (
	"errors"
	"strings"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

// fault is what a caller is told about a cause: enough to mend what it can mend, nothing about policies, other
// patients, thresholds or what exists.
type fault struct {
	status    int
	issue     fhir.IssueCode
	text      string
	hint      string // for the honest; appended to the decision id
	challenge string // WWW-Authenticate
}

const (
	noRetry     = "Retrying will not help. Your operator can run: ward policy explain "
	newToken    = `Bearer error="invalid_token"`
	askOperator = "Your operator can run: ward policy explain "
	thisProcess = "In this process, run: ward svid x509. " + askOperator
)

// faults is the one mapping from causes to the wire. A cause that is missing here is answered as a defect.
var faults = map[Cause]fault{
	CauseNoIdentity:     {401, fhir.IssueLogin, "This process has no identity here.", thisProcess, "SPIFFE"},
	CausePeerChanged:    {401, fhir.IssueLogin, "This process is no longer the one that connected.", "Connect again. " + askOperator, "SPIFFE"},
	CauseIdentityEnding: {503, fhir.IssueTransient, "This application's identity is about to end and has not been renewed.", "Try again in a few seconds. Your operator can run: ward status. ", ""},
	CauseDenyList:       {403, fhir.IssueForbidden, "This application may not make calls.", noRetry, ""},
	CauseUnknownService: {404, fhir.IssueNotFound, "No service of that name is known here.", "Check the host name of the request. " + askOperator, ""},
	CauseNotACaller:     {403, fhir.IssueForbidden, "This application may not call this service.", noRetry, ""},
	CauseMalformed:      {400, fhir.IssueStructure, "The request is not a FHIR request.", "", ""},
	CauseMethod:         {405, fhir.IssueNotSupported, "FHIR has no such method here.", "", ""},
	CauseUnsupported:    {501, fhir.IssueNotSupported, "This FHIR request cannot be decided on here.", "", ""},
	CauseMedia:          {415, fhir.IssueNotSupported, "Only FHIR JSON in UTF-8 is read here.", "", ""},
	CauseHeadTooLarge:   {431, fhir.IssueTooLong, "The request's head is too large.", "", ""},
	CauseTooLarge:       {413, fhir.IssueTooLong, "The body is too large.", "", ""},
	CauseInvalid:        {422, fhir.IssueInvalid, "The body is not a valid resource.", "", ""},
	CauseHeaders:        {400, fhir.IssueStructure, "A header field must not be there.", "", ""},
	CauseTokenMissing:   {401, fhir.IssueLogin, "An access token is needed.", "Send one Authorization field: Bearer and the token. ", "Bearer"},
	CauseTokenMalformed: {401, fhir.IssueLogin, "The access token cannot be read.", "Send exactly one Authorization field: Bearer and the token. ", newToken},
	CauseTokenSignature: {401, fhir.IssueLogin, "The access token is not valid.", "Ask for a new token. " + askOperator, newToken},
	CauseTokenIssuer:    {401, fhir.IssueLogin, "The access token is not valid.", "Ask for a new token. " + askOperator, newToken},
	CauseTokenAudience:  {401, fhir.IssueLogin, "The access token is meant for another service.", "Ask for a token with this service as its audience. " + askOperator, newToken},
	CauseTokenExpired:   {401, fhir.IssueExpired, "The access token has expired.", "Ask for a new token. ", newToken},
	CauseTokenClaims:    {401, fhir.IssueLogin, "The access token is not valid.", "Ask for a new token. " + askOperator, newToken},
	CauseTokenBinding:   {403, fhir.IssueForbidden, "This application may not use this access token.", noRetry, ""},
	CauseIssuerDown:     {503, fhir.IssueTransient, "Access tokens cannot be checked at the moment.", "Try again in a few seconds. " + askOperator, ""},
	CauseScope:          {403, fhir.IssueForbidden, "The access token's scopes do not allow this request.", "Ask for a token with more scopes. " + askOperator, `Bearer error="insufficient_scope"`},
	CausePatient:        {403, fhir.IssueForbidden, "This application may not make this request for this user.", noRetry, ""},
	CauseLimit:          {429, fhir.IssueThrottled, "Too many requests.", "Slow down. " + askOperator, ""},
	CausePolicy:         {403, fhir.IssueForbidden, "This application may not make this request for this user.", noRetry, ""},
	CausePolicyError:    {403, fhir.IssueForbidden, "This application may not make this request for this user.", noRetry, ""},
	CauseNeedsImage:     {501, fhir.IssueNotSupported, "This request cannot be decided on here.", askOperator, ""},
	CauseAudit:          {503, fhir.IssueTransient, "The call cannot be recorded at the moment, so it is not made.", "Try again in a few seconds. Your operator can run: ward status. ", ""},

	CauseUpstream:        {502, fhir.IssueTransient, "The FHIR server cannot be reached.", "Try again in a few seconds. " + askOperator, ""},
	CauseUpstreamDown:    {503, fhir.IssueTransient, "This service has failed several times in a row and is given a moment.", "Try again in a few seconds. " + askOperator, ""},
	CauseUpstreamPeer:    {502, fhir.IssueTransient, "The FHIR server cannot be reached.", "Try again in a few seconds. " + askOperator, ""},
	CauseUpstreamTimeout: {504, fhir.IssueTimeout, "The FHIR server did not answer in time.", askOperator, ""},
	CauseUpstreamReply:   {502, fhir.IssueProcessing, "The FHIR server's reply cannot be vouched for.", askOperator, ""},
	// Whether something exists that the caller may not see is nobody's business: the words of an honest 404.
	CauseReplyOutside: {404, fhir.IssueNotFound, "Not found.", "", ""},
	CauseTimeout:      {408, fhir.IssueTimeout, "The request did not arrive in time.", "", ""},
	CauseRestarting:   {503, fhir.IssueTransient, "This ward is stopping.", "Try again in a few seconds. ", ""},
	CauseInternal:     {500, fhir.IssueException, "Ward has failed.", askOperator, ""},
}

// Fault turns a refusal into the bytes that the caller gets: an OperationOutcome with the decision's id. It is the
// only place where an error becomes an answer.
func Fault(err error, decision string) *wire.Response {
	var r *Refusal
	if !errors.As(err, &r) {
		r = Refuse(CauseInternal, "%w", err)
	}
	cause := r.Cause
	f, ok := faults[cause]
	if !ok {
		cause, f = CauseInternal, faults[CauseInternal]
	}
	text, hint := f.text, f.hint
	// What is wrong with the form of a request is the client's own, and it can mend it: package fhir's texts name
	// places, never content.
	var fe *fhir.Error
	if errors.As(err, &fe) && fe.Class != fhir.Outside && cause != CauseInternal {
		text += " " + sentence(fe.Error())
	}
	if strings.HasSuffix(hint, "explain ") {
		hint += decision
	}
	h := wire.Header{
		{Name: "Content-Type", Value: "application/fhir+json"},
		{Name: "Cache-Control", Value: "no-store"},
		{Name: HeaderDecision, Value: decision},
	}
	if f.challenge != "" {
		h = append(h, wire.Field{Name: "WWW-Authenticate", Value: f.challenge})
	}
	switch f.status {
	case 429, 503:
		h = append(h, wire.Field{Name: "Retry-After", Value: "5"})
	case 405:
		h = append(h, wire.Field{Name: "Allow", Value: "GET, HEAD, POST, PUT, DELETE"}) // RFC 9110 §15.5.6
	}
	body := fhir.Outcome(fhir.SeverityError, f.issue, text, strings.TrimSpace("Decision "+decision+". "+hint))
	return &wire.Response{Status: f.status, Header: h, Body: newBytes(body), Length: int64(len(body)), Close: ends(cause, f.status)}
}

// ends reports whether a connection goes no further after this refusal: where what follows on it may not be what it
// seems, where it no longer belongs to the process that opened it, and where the next one may fare better (whether a
// process gets an identity is decided when it connects).
func ends(c Cause, status int) bool {
	switch status {
	case 400, 405, 408, 413, 431:
		return true
	}
	switch c {
	case CausePeerChanged, CauseRestarting, CauseUnknownService, CauseTokenMalformed, CauseTokenSignature:
		return true
	}
	return false
}

// statusCause is the cause behind an engine's verdict on bytes that are not acceptable HTTP.
func statusCause(status int) Cause {
	switch status {
	case 408:
		return CauseTimeout
	case 413:
		return CauseTooLarge
	case 429: // more of it than one connection may have
		return CauseLimit
	case 431:
		return CauseHeadTooLarge
	case 501: // a transfer coding or a method that the engine does not know
		return CauseUnsupported
	}
	return CauseMalformed
}

// sentence makes s end as one.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}
