package daemon

import (
	"context"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// itself is this process, as the workload tree sees the ward's own identities: it is alive as long as it can ask.
type itself struct {
	service string
	id      spiffeid.ID
}

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
		return []attest.Selector{{Type: attest.Launch, Value: wardName(me.service, me.id)}}, nil
	}
	return nil, nil
}

// wardName is the launch name of the ward that serves a service under an ID: while the ID changes, there are two of
// them. Launched workloads cannot have it: their names hold no space.
func wardName(service string, id spiffeid.ID) string { return "ward " + service + " as " + id.Path() }

// wardEntry enrols this process as the ward that serves s.
func wardEntry(s *proxy.Service) *workload.Entry {
	name := wardName(s.Name, s.ID)
	return &workload.Entry{Name: name, ID: s.ID, MinStrength: attest.Strong,
		Selectors: attest.NewSelectors(attest.Selector{Type: attest.Launch, Value: name})}
}
