package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// ingress is the serving side of this host: a ward for each service, under rules that they share.
type ingress struct {
	d       *Daemon
	rules   atomic.Pointer[rules]
	serving map[place]*serving
	work    context.Context
	group   *errgroup.Group
}

// place is what makes a service the same one across a change of config: a ward keeps its socket and its identity as
// long as these stay.
type place struct{ name, id, listen string }

func placeOf(s *proxy.Service) place { return place{s.Name, s.ID.String(), s.Listen} }

// serving is one service's ward.
type serving struct {
	live     *proxy.LiveIngress
	server   *wire.Server
	listener *announced
	id       spiffeid.ID
	self     self
	upstream config.Upstream
	client   *wire.Client
	gone     chan struct{} // closed once the last call of a service that has left the config has ended
}

func (d *Daemon) buildIngress(context.Context) error {
	if d.own == nil {
		d.own = d.newOwn()
	}
	d.ingress = &ingress{d: d, serving: map[place]*serving{}}
	r, err := d.newRules(d.config(), nil)
	if err == nil {
		d.ingress.rules.Store(r)
	}
	return err
}

func (in *ingress) close() {
	if r := in.rules.Load(); r != nil {
		r.close()
	}
}

func (in *ingress) policySet() string {
	if r := in.rules.Load(); r != nil {
		return r.hash()
	}
	return ""
}

// openIngress opens the services that this host serves, each with an identity of its own.
func (d *Daemon) openIngress(start, work context.Context, g *errgroup.Group) (func(context.Context), error) {
	in := d.ingress
	in.work, in.group = work, g
	g.Go(func() error { return d.own.run(work) })
	opened, err := in.prepare(start, d.config(), in.rules.Load(), true)
	if err != nil {
		return nil, err
	}
	in.rules.Load().start(work, g)
	for _, s := range opened {
		in.serve(s)
	}
	return in.drain, nil
}

func (in *ingress) drain(ctx context.Context) {
	var servers []*wire.Server
	for _, s := range in.serving {
		servers = append(servers, s.server)
	}
	shutdown(ctx, servers)
	for _, s := range in.serving {
		s.client.CloseIdle()
		_ = s.self.Close()
	}
}

// opening is a service that is about to be served.
type opening struct {
	place place
	*serving
}

// prepare opens whatever services of cfg are not served yet: all of them, or none and an error.
func (in *ingress) prepare(ctx context.Context, cfg *config.Config, r *rules, wait bool) (opened []opening, err error) {
	defer func() {
		if err != nil {
			abandon(opened)
			opened = nil
		}
	}()
	for i, s := range services(cfg) {
		if s.Listen == "" || in.serving[placeOf(s)] != nil {
			continue
		}
		self, err := in.d.own.hold(ctx, s, wait)
		if err != nil {
			return opened, fmt.Errorf("%s: service %s: no SVID for %s: %w", cfg.At(fmt.Sprintf("services[%d]", i)), s.Name, s.ID, err)
		}
		l, err := in.listen(ctx, s.Listen)
		if err != nil {
			_ = self.Close()
			return opened, fmt.Errorf("%s: service %s: %w", cfg.At(fmt.Sprintf("services[%d].listen", i)), s.Name, err)
		}
		o := opening{placeOf(s), &serving{self: self, id: s.ID, listener: announce(l), upstream: cfg.Services[i].Upstream, client: in.d.upstream(cfg.Services[i].Upstream),
			gone: make(chan struct{})}}
		o.live = proxy.NewLiveIngress(in.ward(s, o.serving, r))
		o.server = o.live.Server()
		opened = append(opened, o)
	}
	return opened, nil
}

// listen opens an address, or shares its socket with the service that has it now and is to make room.
func (in *ingress) listen(ctx context.Context, address string) (net.Listener, error) {
	for p, on := range in.serving {
		if p.listen == address {
			return another(on.listener.Listener)
		}
	}
	return in.d.listen(ctx, "tcp", address)
}

// abandon closes what was prepared and is not to be served.
func abandon(opened []opening) {
	for _, o := range opened {
		_ = o.listener.Close()
		_ = o.self.Close()
	}
}

// ward is the ingress ward of s under r.
func (in *ingress) ward(s *proxy.Service, on *serving, r *rules) *proxy.Ingress {
	d := in.d
	return proxy.NewIngress(proxy.IngressOptions{Service: s, Self: on.self, Denials: d.directory, Tokens: r.tokens, Binder: r.bindings,
		Limits: proxy.NoLimits{}, Risk: proxy.NoRisk{}, Policy: r.policies, Audit: d.recorder, Observe: d.calls,
		Upstream: on.client, Now: time.Now})
}

// serve lets a prepared service take calls.
func (in *ingress) serve(o opening) {
	in.serving[o.place] = o.serving
	in.group.Go(func() error {
		if !in.d.open(in.work) {
			return o.listener.Close()
		}
		err := o.server.Serve(in.work, o.listener)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
	in.group.Go(func() error { // a new bundle may no longer vouch for those who are connected
		for {
			changed := o.self.Changed()
			// Without an identity of its own a ward begins no calls. Those that run may end, where config has dropped
			// the service; where the ward is denied, they end now.
			if _, err := o.self.GetX509SVID(); err == nil || in.d.directory.Denied(o.id) {
				o.live.Recheck()
			}
			select {
			case <-changed:
			case <-o.self.Ended():
				return nil
			case <-o.gone:
				return nil
			case <-in.work.Done():
				return nil
			}
		}
	})
}

// apply makes the services of cfg, under r, those that are served. Nothing in it can fail: prepare came first.
func (in *ingress) apply(cfg *config.Config, r *rules, opened []opening) {
	old := in.rules.Swap(r)
	stays := map[place]bool{}
	for i, s := range services(cfg) {
		if s.Listen == "" {
			continue
		}
		stays[placeOf(s)] = true
		if on := in.serving[placeOf(s)]; on != nil {
			if u := cfg.Services[i].Upstream; !reflect.DeepEqual(u, on.upstream) {
				on.client.CloseIdle()
				on.upstream, on.client = u, in.d.upstream(u)
			}
			on.live.Replace(in.ward(s, on, r))
		}
	}
	for _, o := range opened {
		in.serve(o)
	}
	for p, on := range in.serving {
		if stays[p] {
			continue
		}
		delete(in.serving, p)
		defer func() { <-on.listener.closed }() // the next change may open the address again
		in.group.Go(func() error {              // calls that run may end
			ctx, cancel := context.WithTimeout(in.work, drainTime)
			defer cancel()
			_ = on.server.Shutdown(ctx)
			close(on.gone)
			on.client.CloseIdle()
			return on.self.Close()
		})
	}
	old.retire(in.work, in.group, r)
	r.start(in.work, in.group)
}

// upstreamIdle is how long a connection to a FHIR server is kept unused: less than what servers allow themselves
// (Node closes after 5 s). A write on a connection that is being closed has an unknown fate, and is not retried.
const upstreamIdle = 4 * time.Second

// upstream sends requests to a FHIR server. On each new connection the process that serves there is attested before a
// byte is sent: living on this host is no reason to be trusted with patients' data.
func (d *Daemon) upstream(u config.Upstream) *wire.Client {
	want := selectors(u.Process)
	return wire.NewClient(wire.ClientOptions{IdleTimeout: upstreamIdle, Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, u.Network, u.Address)
		if err != nil || len(want) == 0 {
			return c, err
		}
		have, err := d.pinner.Serving(ctx, c, d.units)
		if err == nil && !have.Selectors.Contains(want) {
			err = fmt.Errorf("%s is served by a process with %s, and config asks for %s", u.Address, have.Selectors, want)
		}
		if err != nil {
			_ = c.Close()
			return nil, proxy.Refuse(proxy.CauseUpstreamPeer, "%w", err)
		}
		return c, nil
	}})
}
