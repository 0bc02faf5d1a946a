package workload

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/wardmesh/ward/attest"
)

var (
	// ErrNoIdentity: the process is known for what it is, and no entry (that is not denied) is meant for it.
	ErrNoIdentity = errors.New("no entry matches the process")
	// ErrUnavailable: the process has an identity, but no valid SVID or no bundle can be had at this moment.
	ErrUnavailable = errors.New("no valid SVID or bundle can be had at this moment")
	// ErrClosed: the service has been closed.
	ErrClosed = errors.New("the identity service has been closed")
	// ErrDenied: the ID is on the deny list. A process that would otherwise have an identity gets an error that is both
	// this and ErrNoIdentity.
	ErrDenied = errors.New("the SPIFFE ID is on the deny list")

	// ErrNotBroker: the process asks for the identities of others and is not one that may.
	ErrNotBroker = errors.New("the process may not borrow the identities of others")

	errDenied = fmt.Errorf("%w; otherwise %w", ErrDenied, ErrNoIdentity)
)

// Refusal is why a process gets nothing, or nothing any more. Err wraps ErrNoIdentity, ErrUnavailable,
// ErrClosed, or what attest.Run returned; only the operator should read it whole. The process itself may be
// told its own selectors and the reference, under which Observer.Refused has seen the rest.
type Refusal struct {
	Reference   string // a ULID
	Attestation attest.Attestation
	Err         error
}

// Error is for the operator's eyes.
func (r *Refusal) Error() string { return fmt.Sprintf("%v (reference %s)", r.Err, r.Reference) }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

func newReference() string { return ulid.MustNew(ulid.Now(), rand.Reader).String() }
