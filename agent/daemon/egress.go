package daemon

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// egress is the calling side of this host: the shared loopback listener, and a socket for each service.
type egress struct {
	d       *Daemon
	ward    *proxy.Egress
	pool    *proxy.Pool
	callers borrower
	shared  *wire.Server
	sockets map[string]*socket // by service
	work    context.Context
	group   *errgroup.Group
}

// socket is where one service is called.
type socket struct {
	server   *wire.Server
	listener *announced
}

// borrower says who calls, and lends that caller's identity. It opens the sockets on which it can tell.
type borrower interface {
	proxy.Callers
	// doubt is called when config has changed: who calls from now on is judged by what holds from now on.
	doubt()
	listen(ctx context.Context, network, address string) (net.Listener, error)
	close()
}

func (d *Daemon) buildEgress(context.Context) (err error) {
	e := &egress{d: d, sockets: map[string]*socket{}}
	d.egress = e
	if e.callers, err = d.newCallers(); err != nil {
		return err
	}
	e.pool = proxy.NewPool(proxy.PoolOptions{Now: time.Now, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}})
	e.ward = proxy.NewEgress(proxy.EgressOptions{Callers: e.callers, Services: d.routes, Pool: e.pool,
		Audit: d.recorder, Observe: d.calls, Now: time.Now})
	return nil
}

func (e *egress) close() {
	if e.callers != nil {
		e.callers.close()
	}
}

func (d *Daemon) openEgress(_, work context.Context, g *errgroup.Group) (func(context.Context), error) {
	e := d.egress
	e.work, e.group = work, g
	if at := d.config().Mesh.Listen; at.IsValid() {
		l, err := e.callers.listen(work, "tcp", at.String())
		if err != nil {
			return nil, fmt.Errorf("egress: %w", err)
		}
		e.shared = e.serve(l, nil)
	}
	opened, err := e.prepare(d.config())
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		e.drain(ctx)
		return nil, err
	}
	e.apply(d.config(), opened)
	return e.drain, nil
}

func (e *egress) drain(ctx context.Context) {
	var servers []*wire.Server
	for _, s := range e.sockets {
		servers = append(servers, s.server)
	}
	if e.shared != nil {
		servers = append(servers, e.shared)
	}
	shutdown(ctx, servers)
	e.pool.Close()
}

func (e *egress) serve(l net.Listener, s *proxy.Service) *wire.Server {
	server := e.ward.Server(s)
	e.group.Go(func() error {
		if !e.d.open(e.work) {
			return l.Close()
		}
		return server.Serve(e.work, l)
	})
	return server
}

// prepare opens the sockets of services that have none yet: all of them, or none and an error.
func (e *egress) prepare(cfg *config.Config) (map[*proxy.Service]net.Listener, error) {
	opened := map[*proxy.Service]net.Listener{}
	if cfg.Mesh.Sockets == "" {
		return opened, nil
	}
	for i, s := range services(cfg) {
		if e.sockets[s.Name] != nil {
			continue
		}
		l, err := e.callers.listen(e.work, "unix", filepath.Join(cfg.Mesh.Sockets, s.Name+".sock"))
		if err != nil {
			discard(opened)
			return nil, fmt.Errorf("%s: egress: service %s: %w", cfg.At(fmt.Sprintf("services[%d]", i)), s.Name, err)
		}
		opened[s] = l
	}
	return opened, nil
}

func discard(opened map[*proxy.Service]net.Listener) {
	for _, l := range opened {
		_ = l.Close()
	}
}

// apply serves the opened sockets, and lets those of services that are gone end, with the connections to them.
func (e *egress) apply(cfg *config.Config, opened map[*proxy.Service]net.Listener) {
	for s, l := range opened {
		a := announce(l)
		e.sockets[s.Name] = &socket{e.serve(a, s), a}
	}
	for name, on := range e.sockets {
		if slices.ContainsFunc(cfg.Services, func(s config.Service) bool { return s.Name == name }) {
			continue
		}
		delete(e.sockets, name)
		e.group.Go(func() error {
			ctx, cancel := context.WithTimeout(e.work, drainTime)
			defer cancel()
			_ = on.server.Shutdown(ctx)
			return nil
		})
		defer func() { <-on.listener.closed }() // the next change may open the socket again
	}
	e.callers.doubt()
	e.pool.Retain(e.d.routes)
}
