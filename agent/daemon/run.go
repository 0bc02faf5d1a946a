package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/mesh"
	"github.com/wardmesh/ward/proxy/wire"
	"github.com/wardmesh/ward/workload"
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
		stopAll(stops)
		return errors.Join(err, g.Wait())
	}
	for _, open := range []func(context.Context, *errgroup.Group) (func(context.Context), error){
		d.openWorkloadAPI, d.openAdmin, d.openMetrics, d.openIngress, d.openEgress, d.openMesh,
	} {
		stop, err := open(work, g)
		if err != nil {
			return failed(err)
		}
		if stop != nil {
			stops = append(stops, stop)
		}
	}
	d.event(d.lifecycle("started"))
	d.log.Info("ready", zap.String("trust_domain", d.cfg.TrustDomain.Name()), zap.Int("workloads", len(d.cfg.Workloads)),
		zap.Int("services", len(d.cfg.Services)))
	if d.o.Ready != nil {
		d.o.Ready()
	}
	select {
	case <-ctx.Done():
		d.log.Info("draining: calls that run may end", zap.Duration("at_most", drainTime))
	case <-work.Done():
		return failed(errors.New("a part of the daemon has stopped"))
	}
	stopAll(stops)
	d.event(d.lifecycle("stopped"))
	cancel()
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func stopAll(stops []func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i](ctx)
	}
}

// event records something that is not a call.
func (d *Daemon) event(r *proxy.Record) {
	r.Schema, r.Stage, r.Time = proxy.RecordSchema, proxy.StageEvent, time.Now()
	r.Decision = proxy.NewDecisionID(r.Time)
	if _, err := d.recorder.Append(r); err != nil {
		d.log.Error("an event could not be recorded", zap.String("event", r.Event), zap.Error(err))
	}
}

// lifecycle is the record of a start or stop.
func (d *Daemon) lifecycle(what string) *proxy.Record {
	r := &proxy.Record{Event: what, Detail: "ward " + d.o.Version}
	if d.policies != nil {
		r.PolicySet = d.policies.Hash()
	}
	return r
}

// listen opens address, or takes the socket that was handed in for it.
func (d *Daemon) listen(ctx context.Context, network, address string) (net.Listener, error) {
	if l, ok := d.o.Listeners[address]; ok {
		return l, nil
	}
	if network == "unix" {
		if err := guardFolder(address); err != nil {
			return nil, err
		}
		// Anyone may connect: who it is decides what it gets.
		return admin.ListenUnix(address, 0o666)
	}
	lc := net.ListenConfig{Control: peer.Control}
	return lc.Listen(ctx, network, address)
}

// guardFolder makes the folder of a socket where it is missing, and refuses one in which others could put a socket of
// their own in its place: applications would get their identities from it, and send it their users' tokens.
func guardFolder(socket string) error {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // every user's applications go through it
		return err
	}
	err := config.GuardDir(dir, config.Options{})
	var unsafe *config.UnsafeError
	if errors.As(err, &unsafe) {
		return fmt.Errorf("the socket %s: %w; %s", socket, err, unsafe.Mend())
	}
	return err
}

// pinned opens address for local callers, each of which is pinned before a byte is read from it.
func (d *Daemon) pinned(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := d.listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p, err := d.pinner.Listen(l, func(err error) {
		d.log.Info("a local connection was cut off: its process cannot be pinned", zap.String("socket", address), zap.Error(err))
	})
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return p, nil
}

// pin gives the process that the listener has pinned.
func pin(c net.Conn) (workload.Process, error) {
	pinned, ok := c.(interface{ Process() (*peer.Process, error) })
	if !ok {
		return nil, fmt.Errorf("a %T cannot be attested", c)
	}
	return pinned.Process()
}

func (d *Daemon) openWorkloadAPI(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	l, err := d.pinned(ctx, "unix", d.cfg.Agent.Socket)
	if err != nil {
		return nil, fmt.Errorf("workload api: %w", err)
	}
	g.Go(func() error { return d.workloads.Serve(l) })
	d.workloads.SetReady()
	return d.workloads.Shutdown, nil
}

func (d *Daemon) openAdmin(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	if err := guardFolder(d.cfg.Admin.Socket); err != nil {
		return nil, err
	}
	s, err := admin.Listen(admin.Options{Socket: d.cfg.Admin.Socket, Source: d, Metrics: d.registry, Log: d.log.Named("admin")})
	if err != nil {
		return nil, err
	}
	g.Go(func() error { return s.Serve(ctx) })
	return nil, nil
}

func (d *Daemon) openMetrics(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	if !d.cfg.Monitor.Metrics.IsValid() {
		return nil, nil
	}
	l, err := d.listen(ctx, "tcp", d.cfg.Monitor.Metrics.String())
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return func(ctx context.Context) { _ = s.Shutdown(ctx) }, nil
}

// openIngress opens the services that this host serves, each with an identity of its own.
func (d *Daemon) openIngress(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	var servers []*wire.Server
	var holdings []*workload.Holding
	for _, s := range services(d.cfg) {
		if s.Listen == "" {
			continue
		}
		self, err := d.selves.Hold(ctx, itself{s.Name}, workload.X509SVIDs)
		if err != nil {
			return nil, fmt.Errorf("service %s: no SVID for %s: %w", s.Name, s.ID, err)
		}
		l, err := d.listen(ctx, "tcp", s.Listen)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		server := proxy.NewIngress(proxy.IngressOptions{Service: s, Self: self, Denials: d.directory, Tokens: d.tokens, Binder: d.bindings,
			Limits: proxy.NoLimits{}, Risk: proxy.NoRisk{}, Policy: d.policies, Audit: d.recorder, Observe: d.calls,
			Upstream: upstream(s.Upstream), Now: time.Now}).Server()
		servers, holdings = append(servers, server), append(holdings, self)
		g.Go(func() error { return server.Serve(ctx, l) })
	}
	if d.tokens != nil {
		g.Go(func() error { return d.tokens.Run(ctx) })
	}
	return func(ctx context.Context) {
		shutdown(ctx, servers)
		for _, h := range holdings {
			_ = h.Close()
		}
	}, nil
}

// upstreamIdle is how long a connection to a FHIR server is kept unused: less than what servers allow themselves
// (Node closes after 5 s). A write on a connection that is being closed has an unknown fate, and is not retried.
const upstreamIdle = 4 * time.Second

// upstream sends requests to a FHIR server.
func upstream(u proxy.Upstream) *wire.Client {
	return wire.NewClient(wire.ClientOptions{IdleTimeout: upstreamIdle, Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, u.Network, u.Address)
	}})
}

// openEgress opens the shared loopback listener and a socket for each service.
func (d *Daemon) openEgress(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	pool := proxy.NewPool(func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}, time.Now)
	egress := proxy.NewEgress(proxy.EgressOptions{Callers: callers{d.identities}, Services: d.routes, Pool: pool,
		Audit: d.recorder, Observe: d.calls, Now: time.Now})
	var servers []*wire.Server
	open := func(network, address string, s *proxy.Service) error {
		l, err := d.pinned(ctx, network, address)
		if err != nil {
			return fmt.Errorf("egress: %w", err)
		}
		server := egress.Server(s)
		servers = append(servers, server)
		g.Go(func() error { return server.Serve(ctx, l) })
		return nil
	}
	if d.cfg.Mesh.Listen.IsValid() {
		if err := open("tcp", d.cfg.Mesh.Listen.String(), nil); err != nil {
			return nil, err
		}
	}
	if dir := d.cfg.Mesh.Sockets; dir != "" {
		for _, s := range services(d.cfg) {
			if err := open("unix", filepath.Join(dir, s.Name+".sock"), s); err != nil {
				return nil, err
			}
		}
	}
	return func(ctx context.Context) {
		shutdown(ctx, servers)
		pool.Close()
	}, nil
}

func shutdown(ctx context.Context, servers []*wire.Server) {
	var g errgroup.Group
	for _, s := range servers {
		g.Go(func() error { return s.Shutdown(ctx) })
	}
	_ = g.Wait() // what did not end in time was cut, and its intents say so
}

func (d *Daemon) openMesh(ctx context.Context, g *errgroup.Group) (func(context.Context), error) {
	if !d.cfg.Mesh.DNS.IsValid() {
		return nil, nil
	}
	r, err := mesh.New(mesh.Options{Zone: d.cfg.Mesh.Zone, Egress: d.cfg.Mesh.Listen, Services: d.routes, Log: d.log.Named("dns"), Metrics: d.registry})
	if err != nil {
		return nil, err
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	g.Go(func() error {
		err := r.Serve(ctx, d.cfg.Mesh.DNS.String(), func(net.Addr) { close(ready) })
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
