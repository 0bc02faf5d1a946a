package broker

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

var (
	_ x509svid.Source   = (*Loan)(nil)
	_ x509bundle.Source = (*Loan)(nil)
)

// Loan is the identity of one local process, lent by the agent and kept up to date until the process or its entitlement
// ends, or Close. It stays with the ID that it began with. While the agent is away it keeps the SVID that it has, and
// never longer than that is valid.
type Loan struct {
	line   *line
	closed atomic.Bool
}

// ID is the identity lent; it never changes.
func (l *Loan) ID() spiffeid.ID { return l.line.ID() }

// GetX509SVID returns the current SVID, which has not expired. It implements x509svid.Source.
func (l *Loan) GetX509SVID() (*x509svid.SVID, error) {
	if l.closed.Load() {
		return nil, &workload.Refusal{Err: workload.ErrClosed}
	}
	held, err := l.line.now()
	if err != nil {
		return nil, err
	}
	return held.svid, nil
}

// GetX509BundleForTrustDomain returns the current bundle, of the process's own trust domain only. It implements
// x509bundle.Source.
func (l *Loan) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if l.closed.Load() {
		return nil, &workload.Refusal{Err: workload.ErrClosed}
	}
	held, err := l.line.now()
	if err != nil {
		return nil, err
	}
	return held.bundle.GetX509BundleForTrustDomain(td)
}

// Changed returns a channel that is closed when the SVID, the bundle or the entitlement has changed since the call.
func (l *Loan) Changed() <-chan struct{} {
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	return l.line.changed
}

// Done is closed as soon as the loan is over, for a reason that Err then gives: the process has exited or replaced its
// program, its entry is gone, or its ID is denied. It is not closed by Close.
func (l *Loan) Done() <-chan struct{} { return l.line.done }

// Err is nil while the identity may be used. After Done it says why not, as Borrow does; before, an error that is
// workload.ErrUnavailable says that the SVID has expired while the agent is away, and may pass.
func (l *Loan) Err() error {
	if l.closed.Load() {
		return &workload.Refusal{Err: workload.ErrClosed}
	}
	return l.line.Err()
}

// Confirm asks the agent whether the reference still names a process with this identity, and returns nil on its word
// only. It costs a round trip; Borrow has just done it.
func (l *Loan) Confirm(ctx context.Context) error {
	if l.closed.Load() {
		return &workload.Refusal{Err: workload.ErrClosed}
	}
	err := l.line.confirm(ctx, attest.Standing{})
	if errors.Is(err, errStale) { // by default it is another now; whether it is still this one too is what counts
		return l.line.Err()
	}
	return err
}

// Close gives the identity back.
func (l *Loan) Close() error {
	if l.closed.CompareAndSwap(false, true) {
		l.line.c.release(l.line)
	}
	return nil
}
