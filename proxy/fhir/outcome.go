package fhir

import "github.com/go-json-experiment/json/jsontext"

// Severity is how bad an issue is: http://hl7.org/fhir/ValueSet/issue-severity.
type Severity string

// The severities.
const (
	SeverityFatal       Severity = "fatal"
	SeverityError       Severity = "error"
	SeverityWarning     Severity = "warning"
	SeverityInformation Severity = "information"
)

// IssueCode is what kind of issue it is: those codes of http://hl7.org/fhir/ValueSet/issue-type that Ward uses.
type IssueCode string

// The issue codes.
const (
	IssueInvalid      IssueCode = "invalid"       // the content is not valid
	IssueStructure    IssueCode = "structure"     // it is not even well-formed
	IssueSecurity     IssueCode = "security"      // an authentication or authorisation problem
	IssueLogin        IssueCode = "login"         // the caller must authenticate
	IssueUnknown      IssueCode = "unknown"       // the user or system could not be authenticated
	IssueExpired      IssueCode = "expired"       // the session or token has ended
	IssueForbidden    IssueCode = "forbidden"     // not allowed
	IssueSuppressed   IssueCode = "suppressed"    // something is withheld
	IssueProcessing   IssueCode = "processing"    // processing failed
	IssueNotSupported IssueCode = "not-supported" // not understood by this server
	IssueNotFound     IssueCode = "not-found"     // no such thing
	IssueTooLong      IssueCode = "too-long"      // larger than accepted
	IssueTransient    IssueCode = "transient"     // may succeed later
	IssueTimeout      IssueCode = "timeout"       // took too long
	IssueThrottled    IssueCode = "throttled"     // too many requests
	IssueException    IssueCode = "exception"     // an unexpected internal fault
)

// OutcomeMedia is the media type of what Outcome returns.
const OutcomeMedia = "application/fhir+json"

// Outcome builds an OperationOutcome with one issue. text is for people (issue.details.text), diagnostics for
// the developer or operator; each may be "". expressions are the places at fault, as in Error.Expression.
// Invalid UTF-8 is replaced.
func Outcome(severity Severity, code IssueCode, text, diagnostics string, expressions ...string) []byte {
	b := make([]byte, 0, 160+len(text)+len(diagnostics))
	b = append(b, `{"resourceType":"OperationOutcome","issue":[{"severity":`...)
	b = quoted(b, string(severity))
	b = append(b, `,"code":`...)
	b = quoted(b, string(code))
	if text != "" {
		b = append(b, `,"details":{"text":`...)
		b = quoted(b, text)
		b = append(b, '}')
	}
	if diagnostics != "" {
		b = append(b, `,"diagnostics":`...)
		b = quoted(b, diagnostics)
	}
	open := byte('[')
	for _, e := range expressions {
		if e == "" {
			continue
		}
		if open == '[' {
			b = append(b, `,"expression":`...)
		}
		b = quoted(append(b, open), e)
		open = ','
	}
	if open == ',' {
		b = append(b, ']')
	}
	return append(b, `}]}`...)
}

// quoted appends s as a JSON string. The error says only that invalid UTF-8 was replaced, as it should be.
func quoted(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
