package workload

import (
	"cmp"
	"context"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/wardmesh/ward/attest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process stands for what the kernel pins. Its facts are what the test says.
type process struct {
	facts    attest.Selectors
	strength attest.Strength
	done     chan struct{}

	mu    sync.Mutex
	state error
	fail  error // of attesting it
}

func newProcess(pairs ...string) *process {
	return &process{facts: sel(pairs...), strength: attest.Strong, done: make(chan struct{})}
}

func (p *process) PID() int                  { return 4711 }
func (p *process) UID() uint32               { return 1000 }
func (p *process) GID() uint32               { return 1000 }
func (p *process) Proc() *os.File            { return nil }
func (p *process) Strength() attest.Strength { return p.strength }
func (p *process) Done() <-chan struct{}     { return p.done }

func (p *process) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *process) exit() {
	p.become(attest.ErrExited)
	close(p.done)
}

// become changes what Alive says, without any event.
func (p *process) become(state error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
}

// turn changes what is read of the process from now on.
func (p *process) turn(fail error, pairs ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail, p.facts = fail, sel(pairs...)
}

// teller attests the facts that a process of this file has, or fails.
type teller struct{ fail error }

func (teller) Name() string { return "teller" }

func (a *teller) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	q := p.(*process)
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.facts, cmp.Or(a.fail, q.fail)
}
