package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/mesh"
	"github.com/wardmesh/ward/proxy/wire"
)

// Run opens the sockets and serves until ctx ends; then it drains. It closes what New opened.
//
// The order of the sockets is the order in which their users depend on each other: identities first, then the
// ingress that needs one, then the egress that needs an ingress, then the names that lead there. They close in the
// opposite order, but for the two hops: the ingress has finished its calls before the egress refuses any, because a FHIR
// server may have to call others before it can answer (linkerd2#10379).
func (d *Daemon) Run(ctx context.Context) error {
	defer d.close()
	// Everything runs under a context of its own: ctx ends the taking of new work, not the work.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, work := errgroup.WithContext(work)
	var stops []func(context.Context)
	failed := func(err error) error {
		cancel()
		d.halt()
		last, over := context.WithTimeout(context.Background(), drainTime)
		defer over()
		stopAll(last, stops)
		return errors.Join(err, g.Wait())
	}
	start, ready := d.readying(ctx)
	defer ready()
	for _, open := range d.openers() {
		stop, err := open(start, work, g)
		if err != nil {
			return failed(err)
		}
		if stop != nil {
			stops = append(stops, stop)
		}
	}
	if err := d.takeOver(start, work, g); err != nil {
		return failed(err)
	}
	ready()
	if d.o.Predecessor != nil {
		stops = slices.Insert(stops, 0, d.o.Predecessor.await)
	}
	d.reloading.Lock()
	d.running = true
	d.reloading.Unlock()
	if d.o.Load != nil {
		f := watch{log: d.log, load: d.o.Load, current: d.config, refuse: d.unread,
			apply: func(next *config.Config) error { return d.Reload(ctx, next) }}
		g.Go(func() error { return f.run(work) })
	}
	cfg := d.config()
	d.event(d.lifecycle("started"))
	d.log.Info("ready", zap.String("role", string(d.o.Role)), zap.String("trust_domain", cfg.TrustDomain.Name()),
		zap.Int("workloads", len(cfg.Workloads)), zap.Int("services", len(cfg.Services)))
	if d.o.Ready != nil {
		d.o.Ready()
	}
	if stop := d.openGiver(ctx, work, g); stop != nil {
		stops = append(stops, stop)
	}
	g.Go(func() error { return d.rest(work) })
	select {
	case <-ctx.Done():
	case <-d.given:
	case <-work.Done():
		return failed(errStopped)
	}
	d.halt()
	last, over := d.lastCalls(ctx)
	defer over()
	stopAll(last, stops)
	d.event(d.lifecycle("stopped"))
	cancel()
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// halt ends the taking of new configs, and waits for one that is being taken.
func (d *Daemon) halt() {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.running = false
}

// opener opens one part. start ends the waiting for what is not there yet, work ends what runs in g. It returns how to
// stop, or nil.
type opener func(start, work context.Context, g *errgroup.Group) (func(context.Context), error)

// openers are the parts of this role, in order.
func (d *Daemon) openers() []opener {
	var parts []opener
	if d.attests() {
		parts = append(parts, d.openAuthority, d.openWorkloadAPI, d.openBroker)
	}
	parts = append(parts, d.openAdmin, d.openMetrics)
	parts = append(parts, d.openHops)
	if d.attestsAlone() {
		parts = append(parts, d.openDNS)
	}
	return parts
}

// openHops opens what this role has of the two hops. Both drain in the order in which they open.
func (d *Daemon) openHops(start, work context.Context, g *errgroup.Group) (func(context.Context), error) {
	var hops []opener
	if d.serving() {
		hops = append(hops, d.openIngress)
	}
	if d.calling() {
		hops = append(hops, d.openEgress)
	}
	var drains []func(context.Context)
	drain := func(ctx context.Context) {
		for i, drain := range drains {
			if i > 0 { // the hop before may have used up all of its time
				var cancel context.CancelFunc
				ctx, cancel = atLeast(ctx, lastHop)
				defer cancel()
			}
			drain(ctx)
		}
	}
	for _, open := range hops {
		stop, err := open(start, work, g)
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), drainTime)
			defer cancel()
			drain(ctx)
			return nil, err
		}
		drains = append(drains, stop)
	}
	return drain, nil
}

// lastHop is what the egress gets for its own calls once the ingress has ended, however long that took.
const lastHop = 3 * time.Second

// atLeast is ctx, or one that lasts that long where ctx ends sooner.
func atLeast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Until(end) > d) {
		return ctx, func() {}
	}
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}

func stopAll(ctx context.Context, stops []func(context.Context)) {
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i](ctx)
	}
}

func shutdown(ctx context.Context, servers []*wire.Server) {
	var g errgroup.Group
	for _, s := range servers {
		g.Go(func() error { return s.Shutdown(ctx) })
	}
	_ = g.Wait() // what did not end in time was cut, and its intents say so
}

func (d *Daemon) openAdmin(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	socket := d.config().AdminSocket(d.o.Role)
	l, handed := d.o.Listeners[socket]
	if !handed {
		if err := guardFolder(socket); err != nil {
			return nil, err
		}
		var err error
		if l, err = d.opened(socket, func() (net.Listener, error) { return admin.Open(socket) }); err != nil {
			return nil, err
		}
	}
	s, err := admin.Listen(admin.Options{Socket: socket, Listener: l, Source: d, Certifier: d.cas(), Metrics: d.registry, Log: d.log.Named("admin")})
	if err != nil {
		return nil, err
	}
	g.Go(func() error {
		if !d.open(ctx) {
			return s.Close()
		}
		return s.Serve(ctx)
	})
	g.Go(func() error { // whoever has taken this process's place answers instead of it
		select {
		case <-d.given:
			_ = s.Close()
		case <-ctx.Done():
		}
		return nil
	})
	return func(ctx context.Context) { // otherwise it answers up to the end
		if d.successor.Load() != nil {
			_ = s.Shutdown(ctx)
		}
	}, nil
}

func (d *Daemon) openMetrics(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	address := d.config().Monitor.Metrics
	if !address.IsValid() || !d.attests() {
		return nil, nil // one address is one process's: the others' are on their admin sockets
	}
	l, err := d.listen(ctx, "tcp", address.String())
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{}))
	// Any local process can connect. It must not take the descriptors by which processes are attested.
	s := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	g.Go(func() error {
		if err := s.Serve(newFew(l, scrapers)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return func(ctx context.Context) { _ = s.Shutdown(ctx) }, nil
}

// openDNS answers for the mesh's zone from the one process that is all of Ward; elsewhere ward mesh does.
func (d *Daemon) openDNS(_, ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	m := d.config().Mesh
	if !m.DNS.IsValid() {
		return nil, nil
	}
	r, err := mesh.New(mesh.Options{Zone: m.Zone, Egress: m.Listen, Services: d.routes, Log: d.log.Named("dns"), Metrics: d.registry})
	if err != nil {
		return nil, err
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	g.Go(func() error {
		var err error
		if len(d.o.Datagrams) > 0 {
			err = r.ServeOn(ctx, d.o.Datagrams, listensAt(d.o.Listeners, m.DNS), func() { close(ready) })
		} else {
			err = r.Serve(ctx, m.DNS.String(), func(net.Addr) { close(ready) })
		}
		failed <- err
		return err
	})
	select {
	case <-ready:
		return nil, nil
	case err := <-failed:
		return nil, err
	}
}
