package workload

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
)

// Observer is told what happens, for audit and metrics. Its methods are called in line and from many
// goroutines: they must be quick, safe for concurrent use, and bounded in what they keep, since any local
// process can cause Refused as often as it likes. Implemented by agent/daemon; NoObserver is the absence.
type Observer interface {
	// Attested is called each time a process was attested and matched at least one entry, before anything
	// is sent: once when it asks, and again after every change that could concern it.
	Attested(Visit)
	// Issued is called after each attempt to issue an SVID, failed ones included.
	Issued(Issuance)
	// Refused is called when a process gets nothing, or nothing any more. One that exits after it was served
	// is not refused.
	Refused(Visit, *Refusal)
}

// Visit is one process asking once.
type Visit struct {
	PID         int
	UID         uint32
	Want        Want
	Broker      *Broker            // who asks on the process's behalf; nil when it asks itself
	Attestation attest.Attestation // zero when the attestation itself failed
	Entries     []*Entry           // those that it is granted, the default first
	Took        time.Duration      // attestation and matching
}

// Broker is an attested process that borrows the SVIDs of others. It is never changed once handed in.
type Broker struct {
	PID         int
	UID         uint32
	Attestation attest.Attestation
}

// Issuance is one attempt to issue an SVID.
type Issuance struct {
	Entry    *Entry
	ID       spiffeid.ID
	Lent     bool
	Serial   string // hexadecimal; "" when Err is set
	NotAfter time.Time
	Took     time.Duration
	Err      error
}

// NoObserver ignores everything.
type NoObserver struct{}

// Attested ignores v.
func (NoObserver) Attested(Visit) {}

// Issued ignores i.
func (NoObserver) Issued(Issuance) {}

// Refused ignores v and r.
func (NoObserver) Refused(Visit, *Refusal) {}
