package daemon

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

// buildBroker makes the door by which this host's egress, in a process of its own, gets its callers' identities.
func (d *Daemon) buildBroker(attestors []attest.Attestor) (err error) {
	d.broker, err = broker.New(broker.Options{
		Lender: d.identities, Pin: pin, Attestors: attestors, Registerer: d.registry,
		Resolve: func(ctx context.Context, r attest.Reference) (workload.Process, error) {
			p, err := d.pinner.Resolve(ctx, r)
			if err != nil {
				return nil, err // not p, which as an interface would not be nil
			}
			return p, nil
		},
		Brokers: func() ([]attest.Selectors, <-chan struct{}) {
			changed := d.changed() // first: what changes from here on closes it
			return []attest.Selectors{selectors(d.config().Agent.Wards.Egress)}, changed
		},
	})
	return err
}

func (d *Daemon) openBroker(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	socket := d.config().Agent.Broker
	if d.broker == nil || socket == "" {
		return nil, nil
	}
	l, err := d.pinned(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("broker api: %w", err)
	}
	g.Go(func() error { return d.broker.Serve(l) })
	d.broker.SetReady()
	return d.broker.Shutdown, nil
}
