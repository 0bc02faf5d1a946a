package workload

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
)

// Entry says which processes are a workload and what they get. Entries come from config and are never
// changed once loaded: an edit makes a new one.
type Entry struct {
	Name        string // the entry's own name in config, unique; the ID's path when config gives none
	ID          spiffeid.ID
	Selectors   attest.Selectors // all must be attested
	DNSNames    []string
	X509TTL     time.Duration // 0 stands for the authority's default, 1 h
	Hint        string
	Proxy       bool            // its SVIDs may be lent to the local proxy
	MinStrength attest.Strength // 0 stands for attest.Weak
	MaxAge      time.Duration   // how old an attestation may grow before it is repeated; at least MinAge, or 0 for no bound
}

// MinAge is the shortest MaxAge: attesting again and again is work that others of the host pay for.
const MinAge = time.Second

// Device is a wearable or sensor that reaches Ward through a bridge.
type Device struct {
	ID          spiffeid.ID
	Identifiers []DeviceIdentifier
	Via         []spiffeid.ID // the bridges that may speak for it
	Assurance   string        // attested, bonded or declared
	Patients    []Window      // who wears it when; windows do not overlap
}

// Window is a time during which a device belongs to one patient.
type Window struct {
	Patient     string    // relative reference, `Patient/123`
	From, Until time.Time // Until is exclusive; zero is open
}

// DeviceIdentifier is a FHIR Identifier of a Device resource.
type DeviceIdentifier struct{ Type, System, Value string }
