package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
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
// opposite order.
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
		stopAll(stops)
		return errors.Join(err, g.Wait())
	}
	for _, open := range d.openers() {
		stop, err := open(ctx, work, g)
		if err != nil {
			return failed(err)
		}
		if stop != nil {
			stops = append(stops, stop)
		}
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
	g.Go(func() error { return d.rest(work) })
	select {
	case <-ctx.Done():
		d.log.Info("draining: calls that run may end", zap.Duration("at_most", drainTime))
	case <-work.Done():
		return failed(errStopped)
	}
	d.halt()
	stopAll(stops)
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
	if d.serving() {
		parts = append(parts, d.openIngress)
	}
	if d.calling() {
		parts = append(parts, d.openEgress)
	}
	if d.attestsAlone() {
		parts = append(parts, d.openDNS)
	}
	return parts
}

func stopAll(stops []func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
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
	}
	s, err := admin.Listen(admin.Options{Socket: socket, Listener: l, Source: d, Certifier: d.cas(), Metrics: d.registry, Log: d.log.Named("admin")})
	if err != nil {
		return nil, err
	}
	g.Go(func() error { return s.Serve(ctx) })
	return nil, nil
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
