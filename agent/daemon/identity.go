package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// issuer hands the embedded authority to the workload tree, which knows only its own interfaces.
type issuer struct{ *authority.Authority }

// IssueX509 implements workload.Issuer.
func (i issuer) IssueX509(ctx context.Context, r workload.X509Request) ([]*x509.Certificate, error) {
	return i.Authority.IssueX509(ctx, authority.X509Request(r))
}

// X509Bundle implements workload.Bundles.
func (i issuer) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	changed := i.BundleChanged() // first: a change in between is noticed at the next look
	return i.Authority.X509Bundle(), changed
}

// callers tells egress who is at the other end of a local connection, and borrows that workload's SVID.
type callers struct{ identities *workload.Service }

// Caller implements proxy.Callers.
func (c callers) Caller(ctx context.Context, conn net.Conn) (proxy.Caller, error) {
	pinned, ok := conn.(interface{ Process() (*peer.Process, error) })
	if !ok {
		return nil, fmt.Errorf("a %T cannot be attested", conn)
	}
	p, err := pinned.Process()
	if err != nil {
		return nil, err
	}
	h, err := c.identities.Hold(ctx, p, workload.LentSVIDs)
	var r *workload.Refusal
	switch {
	case err == nil:
		return &caller{Holding: h, process: fmt.Sprintf("pid %d, uid %d", p.PID(), p.UID())}, nil
	case errors.As(err, &r):
		return nil, refusal(r)
	}
	return nil, err
}

// refusal says to the caller and to the trail why a process has no identity to lend.
func refusal(r *workload.Refusal) error {
	switch {
	case errors.Is(r, workload.ErrDenied):
		return proxy.Refuse(proxy.CauseDenyList, "%w", r)
	case errors.Is(r, workload.ErrNoIdentity):
		return proxy.Refuse(proxy.CauseNoIdentity, "process matches no entry with proxy: true (%s)", r.Attestation.Selectors)
	case errors.Is(r, workload.ErrUnavailable), errors.Is(r, workload.ErrClosed):
		return proxy.Refuse(proxy.CauseRestarting, "%w", r)
	}
	return r
}

// caller is a workload.Holding as egress sees it: why it ended is said in egress's words.
type caller struct {
	*workload.Holding
	process string
}

// Process names the process for the trail.
func (c *caller) Process() string { return c.process }

// Err implements proxy.Caller.
func (c *caller) Err() error {
	err := c.Holding.Err()
	var r *workload.Refusal
	if errors.As(err, &r) {
		return refusal(r)
	}
	return err
}

// itself is this process, as the workload tree sees the ward's own identities: it is alive as long as it can ask.
type itself struct{ service string }

func (itself) PID() int                  { return os.Getpid() }
func (itself) UID() uint32               { return uint32(os.Getuid()) } //nolint:gosec // a uid fits
func (itself) GID() uint32               { return uint32(os.Getgid()) } //nolint:gosec // a gid fits
func (itself) Proc() *os.File            { return nil }
func (itself) Strength() attest.Strength { return attest.Strong }
func (itself) Alive() error              { return nil }
func (itself) Done() <-chan struct{}     { return nil }

// Name implements attest.Attestor.
func (itself) Name() string { return "itself" }

// Attest implements attest.Attestor: only this process, asking through its own identity service, is a ward.
func (itself) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	if me, ok := p.(itself); ok {
		return []attest.Selector{{Type: attest.Launch, Value: wardName(me.service)}}, nil
	}
	return nil, nil
}

// wardName is the launch name of the ward that serves a service. Launched workloads cannot have it: their names hold
// no space.
func wardName(service string) string { return "ward " + service }

// wardEntry enrols this process as the ward that serves s.
func wardEntry(s *proxy.Service) *workload.Entry {
	return &workload.Entry{Name: wardName(s.Name), ID: s.ID, MinStrength: attest.Strong,
		Selectors: attest.NewSelectors(attest.Selector{Type: attest.Launch, Value: wardName(s.Name)})}
}
