package proxy

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy/fhir"
)

// Facts is what Ward has verified about one call, and all that a decision may rest on. A field is set by the
// step of the journey that verified it and by nothing else; an unverified value never gets in.
type Facts struct {
	Decision string    // the decision id, a ULID
	Received time.Time // when the request's head had been read

	Self    spiffeid.ID // the ingress ward's own identity for this service
	Caller  spiffeid.ID // the workload, from its verified SVID
	Service string      // the mesh name, from config

	Client Client // the OAuth client to which the token was issued
	User   *User  // nil when the client acts for itself
	Scopes fhir.Scopes
	Grant  fhir.Grant // what Scopes allow of these Interactions

	Interactions []fhir.Interaction
	// Content is what the strictly parsed request body says of itself; nil when the call has no body.
	Content *fhir.Content
	Purpose string // HL7 v3 ActReason code, "" when the token asserts none
	Risk    Risk
}

// Client is an OAuth client: ids are unique only within their issuer.
type Client struct{ Issuer, ID string }

// User is the person for whom the call is made, as the verified token says.
type User struct {
	Issuer, Subject string
	FHIRUser        fhir.Reference // the fhirUser claim when it is on our own base, else zero
	Patient         string         // the launch patient's id, "" without a launch context
	Roles           []string       // from the claim that config names
	Name            string         // a display name for operators; never used to decide
}

// Token is a verified access token. Only token verification makes one.
type Token struct {
	Client   Client
	User     *User
	Scopes   fhir.Scopes
	Purpose  string
	ID       string // jti, "" when absent
	IssuedAt time.Time
	Expires  time.Time
}

// Risk is what monitoring thinks of the call: 0 (nothing unusual) to 100.
type Risk struct{ Score int }

// Effect is the outcome of a decision.
type Effect uint8

// The effects. The zero Effect is Deny.
const (
	Deny Effect = iota
	Allow
	// NeedsImage: a policy asks for the resource as it is now, which this kind of call does not look up.
	NeedsImage
)

// String is the word in records and metrics.
func (e Effect) String() string {
	switch e {
	case Allow:
		return "allow"
	case NeedsImage:
		return "needs-image"
	}
	return "deny"
}

// Decision is what policy says of one call.
type Decision struct {
	Effect   Effect
	Policies []string // ids of the policies that determined the effect, sorted
	Errors   []error  // evaluation errors; any makes the effect Deny
	Set      string   // the policy set's hash (first 12 hex digits), as kept for explanation
	Inputs   []byte   // the facts as the policy saw them: a JSON object, so that it can be explained later
}
