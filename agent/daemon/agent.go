package daemon

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

// The agent's side: who is this process, and what is it entitled to?

func (d *Daemon) buildIdentities(context.Context) (err error) {
	d.hashes.Store(asksForHash(d.config()))
	attestors, err := hostAttestors(d.units, d.hashes.Load)
	if err != nil {
		return err
	}
	o := workload.Options{Registry: d.entries, Attestors: append(attestors, d.o.Attestors...), Issuer: d.authority,
		Bundles: d.authority, Denials: d.directory, Kept: d.kept, Observer: newWitness(d.registry, d.log.Named("identity"), d.event), Log: d.log.Named("identity")}
	if d.identities, err = workload.NewService(o); err != nil {
		return err
	}
	if d.attestsAlone() {
		o.Attestors, o.Observer = []attest.Attestor{itself{}}, workload.NoObserver{}
		if d.selves, err = workload.NewService(o); err != nil {
			return err
		}
	}
	if d.workloads, err = api.New(api.Options{Watcher: d.identities, Pin: pin, Registerer: d.registry}); err != nil {
		return err
	}
	if d.attestsAlone() {
		return nil
	}
	return d.buildBroker(attestors)
}

// asksForHash reports whether an entry names an executable's hash.
func asksForHash(cfg *config.Config) bool {
	for _, w := range cfg.Workloads {
		for _, s := range w.Select {
			if s.Type == attest.ExeSHA256 {
				return true
			}
		}
	}
	return false
}

func (d *Daemon) openWorkloadAPI(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	l, err := d.pinned(ctx, "unix", d.config().Agent.Socket)
	if err != nil {
		return nil, fmt.Errorf("workload api: %w", err)
	}
	g.Go(func() error { return d.workloads.Serve(l) })
	d.workloads.SetReady()
	return d.workloads.Shutdown, nil
}

// enrolled are the entries that no config file writes: those that were handed in, and this host's own wards. In one
// process with the agent a ward is itself; in a process of its own it is whoever runs as its unit or user.
func (d *Daemon) enrolled(cfg *config.Config) []*workload.Entry {
	extra := append([]*workload.Entry(nil), d.o.Entries...)
	for _, s := range services(cfg) {
		switch {
		case s.Listen == "":
		case d.attestsAlone():
			extra = append(extra, wardEntry(s))
		default:
			e := wardEntry(s)
			e.Selectors, e.MinStrength = selectors(cfg.Agent.Wards.Ingress), attest.Weak
			extra = append(extra, e)
		}
	}
	return extra
}

// selectors turns config's words into the attestors'.
func selectors(words []config.Selector) attest.Selectors {
	var out []attest.Selector
	for _, w := range words {
		out = append(out, attest.Selector{Type: w.Type, Value: w.Value})
	}
	return attest.NewSelectors(out...)
}
