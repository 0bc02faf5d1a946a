// Package proxy lets a FHIR call through only when workload, user, request and behaviour are verified.
//
// A call passes two wards, and each is one function of verbs in this package:
//
//   - [Egress.Serve], on the caller's host: which process is this, may it call that service, then over mTLS with the
//     caller's own SVID to exactly that service.
//   - [Ingress.Serve], before the FHIR server: who calls, what is asked, for whom, with what content, and what policy
//     says of it; then the trail; then the FHIR server; then the reply.
//
// # What is where
//
//	facts.go      what has been verified about a call; a decision rests on nothing else
//	fault.go      why a call is refused (Cause, Refusal); answer.go: what its caller is told
//	observe.go    what is judged, but not refused, while a service is only observed
//	record.go     a line of the audit trail; trail.go: how the journeys write it
//	contracts.go  what the journeys need of others: callers, tokens, bindings, policy, trail
//	headers.go    what passes from hop to hop, and what only a ward may say
//	tls.go        mTLS between wards; pool.go: its connections, never shared between identities
//
// Beneath it, each alone and knowing only this package: wire (bytes), fhir (what a request means), token, bind,
// policy, audit, mesh (names). agent/daemon joins them.
//
// # What it promises
//
// The request that reaches the FHIR server is rebuilt from what was decided on; no byte of it is the caller's that was
// not understood, and no field of it speaks of identity that a ward has not verified. What was answered is in the
// trail: before a change is made, and before a byte is disclosed. Everything else is refused with a status, a decision
// id and a record; the caller learns what it can mend, the operator learns why.
//
// # What it does not
//
// It does not stop an allowed workload and an allowed user from misusing what they may see, nor traffic that goes
// around it. Limits and behaviour stand in the journey as explicit null implementations (NoLimits, NoRisk).
package proxy
