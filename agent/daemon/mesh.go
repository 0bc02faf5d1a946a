package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/sandbox"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/intercept"
	"github.com/wardmesh/ward/proxy/mesh"
	"github.com/wardmesh/ward/proxy/resolver"
)

// MeshOptions is what `ward mesh` needs beside its config. Version and Log must be set.
type MeshOptions struct {
	Version string
	Log     *zap.Logger
	// Load reads the config anew, on SIGHUP and when its folders change. Nil: it cannot change.
	Load func() (*config.Config, error)
	// Listeners and UDP are sockets that the service manager holds: for mesh.dns and, by its path, the operator's.
	// Without them they are opened.
	Listeners map[string]net.Listener
	UDP       []net.PacketConn
	// Confine gives up, for good, what the mesh does not need of the host's files and ports.
	Confine bool
	// Owners and Dialers are the uids of egress and of ingress. Without them they are those of agent.wards, or else of
	// the users that the packages make.
	Owners, Dialers []uint32
	// Root and Bus are where the host keeps its resolver's files and its D-Bus; "" for their usual places.
	Root, Bus string
	// Ready, when it is set, is called once the names are answered and the host knows of them; Reloading and Reloaded
	// around each change of config.
	Ready, Reloading, Reloaded func()
}

// meshRole is a running `ward mesh`.
type meshRole struct {
	o         MeshOptions
	log       *zap.Logger
	started   time.Time
	registry  *prometheus.Registry
	table     *intercept.Table
	addresses *mesh.Addresses // nil where names lead to egress itself
	services  meshServices

	sandbox  sandbox.Report
	mu       sync.Mutex
	cfg      *config.Config
	kind     resolver.Kind
	wiring   error // why the host may not know of the zone
	reloaded error // why the last config was refused
}

// meshServices are the services of the mesh, replaced at once.
type meshServices struct {
	byName atomic.Pointer[map[string]*proxy.Service]
}

func (m *meshServices) set(cfg *config.Config) {
	byName := map[string]*proxy.Service{}
	for _, s := range services(cfg) {
		byName[s.Name] = s
	}
	m.byName.Store(&byName)
}

func (m *meshServices) Service(name string) *proxy.Service { return (*m.byName.Load())[name] }

func (m *meshServices) Names() []string {
	var names []string
	for n := range *m.byName.Load() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// RunMesh keeps the host's packet rules and answers for the mesh's names until ctx ends.
//
// The order is the safety argument: the rules stand before any name leads to an address that they protect, an address
// is written down before it is told, and the host is sent to the responder when it answers. At the end the rules and
// the addresses stay; only [ClearMesh] removes them.
func RunMesh(ctx context.Context, cfg *config.Config, o MeshOptions) (err error) {
	m := &meshRole{o: o, log: o.Log, started: time.Now(), registry: prometheus.NewRegistry(), cfg: cfg, kind: resolver.None}
	m.services.set(cfg)
	mount, err := attest.Cgroup2Mount()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if m.table, err = intercept.New(intercept.Options{Cgroups: mount, Log: o.Log.Named("rules"), Metrics: m.registry}); err != nil {
		return err
	}
	rules, err := m.rules(cfg)
	if err != nil {
		return err
	}
	if err := m.table.Apply(rules); err != nil {
		return err
	}
	if virtual(cfg) {
		if m.addresses, err = mesh.OpenAddresses(cfg.Mesh.State, cfg.Mesh.Range, time.Now); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.addresses.Close()) }()
		if err := m.addresses.Assign(m.services.Names()); err != nil {
			return err
		}
	}
	g, work := errgroup.WithContext(ctx)
	g.Go(func() error { return m.table.Run(work) })
	for _, open := range []func(context.Context, *errgroup.Group) error{m.openAdmin, m.openDNS, m.wire} {
		if err := open(work, g); err != nil {
			g.Go(func() error { return err })
			return g.Wait()
		}
	}
	if o.Confine {
		report, err := sandbox.Enter(config.RoleMesh, cfg)
		if err != nil {
			g.Go(func() error { return err })
			return g.Wait()
		}
		m.sandbox = report
		m.log.Info(report.String())
	}
	if o.Load != nil {
		f := watch{log: m.log, load: o.Load, current: m.config, apply: m.take, refuse: m.unread}
		g.Go(func() error { return f.run(work) })
	}
	m.log.Info("ready", zap.Int("services", len(cfg.Services)), zap.Stringer("range", cfg.Mesh.Range), zap.String("resolver", string(m.kind)))
	if o.Ready != nil {
		o.Ready()
	}
	err = g.Wait()
	// Where the service manager holds the sockets, a look-up starts a responder again, and nothing must change.
	if len(o.UDP) == 0 {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		err = errors.Join(err, resolver.Stopped(stop, m.host(), m.kind))
	}
	return err
}

// ClearMesh removes all that `ward mesh` has made of the host's rules, links and files, whether one runs or not, and
// lists what it removed. The table of addresses stays: it is data, not a rule.
func ClearMesh(ctx context.Context, o MeshOptions) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, wireTime)
	defer cancel()
	removed, err := resolver.Clear(ctx, resolver.Options{Root: o.Root, Bus: o.Bus, Log: o.Log})
	done, rerr := intercept.Clear()
	if done {
		removed = append(removed, "the packet rules (table inet ward)")
	}
	return removed, errors.Join(err, rerr)
}

// virtual reports whether names lead to addresses of their own.
func virtual(cfg *config.Config) bool { return cfg.Mesh.Range.IsValid() && cfg.Mesh.Listen.IsValid() }

func (m *meshRole) host() resolver.Options {
	return resolver.Options{Root: m.o.Root, Bus: m.o.Bus, Log: m.log.Named("resolver")}
}

// rules is what cfg asks of the packet rules.
func (m *meshRole) rules(cfg *config.Config) (intercept.Rules, error) {
	r := intercept.Rules{Egress: cfg.Mesh.Listen}
	var err error
	if r.Owners, r.Dialers, err = m.wards(cfg); err != nil {
		return r, err
	}
	if virtual(cfg) {
		r.Range = cfg.Mesh.Range
	}
	for _, n := range cfg.Mesh.Intercept {
		f := intercept.Flow{Ports: n.Ports}
		switch s := n.Select[0]; s.Type {
		case "unix.uid":
			uid, err := strconv.ParseUint(s.Value, 10, 32)
			if err != nil {
				return r, fmt.Errorf("mesh.intercept: %w", err)
			}
			f.User = uint32(uid)
		case "systemd.unit":
			f.Unit = s.Value
		default:
			return r, fmt.Errorf("mesh.intercept: traffic cannot be told apart by %s", s.Type)
		}
		r.Flows = append(r.Flows, f)
	}
	if !cfg.Mesh.Guard {
		return r, nil
	}
	for _, s := range cfg.Services {
		if s.Upstream.Network != "tcp" {
			continue
		}
		host, port, err := net.SplitHostPort(s.Upstream.Address)
		if err != nil {
			return r, fmt.Errorf("mesh.guard: the upstream of %s: %w", s.Name, err)
		}
		if host == "localhost" {
			host = "127.0.0.1"
		}
		at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
		if err != nil {
			return r, fmt.Errorf("mesh.guard: the upstream of %s: %w", s.Name, err)
		}
		r.Guarded = append(r.Guarded, at)
	}
	return r, nil
}

// The users that the packages make. ward is that of `ward run`, which is both.
const (
	egressUser  = "ward-egress"
	ingressUser = "ward-ingress"
	runUser     = "ward"
)

// wards finds the uids of Ward's own processes: owners may answer in egress's place and are not intercepted, dialers
// may dial upstreams.
func (m *meshRole) wards(cfg *config.Config) (owners, dialers []uint32, err error) {
	owners, dialers = slices.Clone(m.o.Owners), slices.Clone(m.o.Dialers)
	for _, w := range []struct {
		into   *[]uint32
		key    string
		choice []config.Selector
		name   string
	}{{&owners, "agent.wards.egress", cfg.Agent.Wards.Egress, egressUser}, {&dialers, "agent.wards.ingress", cfg.Agent.Wards.Ingress, ingressUser}} {
		if len(*w.into) > 0 {
			continue
		}
		for _, s := range w.choice {
			if s.Type == "unix.uid" {
				uid, err := strconv.ParseUint(s.Value, 10, 32)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", w.key, err)
				}
				*w.into = append(*w.into, uint32(uid))
			}
		}
		for _, name := range []string{w.name, runUser} {
			if len(*w.into) > 0 && name == w.name { // config has said it
				break
			}
			u, err := user.Lookup(name)
			var unknown user.UnknownUserError
			if errors.As(err, &unknown) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", w.key, err)
			}
			uid, err := strconv.ParseUint(u.Uid, 10, 32)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", w.key, err)
			}
			*w.into = append(*w.into, uint32(uid))
		}
		if len(*w.into) == 0 {
			return nil, nil, fmt.Errorf("neither a user %s nor a user %s exists, and whose processes are Ward's must be known; add %s: {unix.uid: N} to the config", w.name, runUser, w.key)
		}
	}
	for _, uid := range dialers { // what ingress sends is never led to egress
		if !slices.Contains(owners, uid) {
			owners = append(owners, uid)
		}
	}
	return owners, dialers, nil
}

func (m *meshRole) openAdmin(ctx context.Context, g *errgroup.Group) error {
	socket := m.cfg.AdminSocket(config.RoleMesh)
	held := m.o.Listeners[socket]
	if held == nil {
		if err := guardFolder(socket); err != nil {
			return err
		}
	}
	s, err := admin.Listen(admin.Options{Socket: socket, Listener: held, Source: m, Certifier: admin.NoCertifier{}, Metrics: m.registry, Log: m.log.Named("admin")})
	if err != nil {
		return err
	}
	g.Go(func() error { return s.Serve(ctx) })
	return nil
}

func (m *meshRole) openDNS(ctx context.Context, g *errgroup.Group) error {
	if !m.cfg.Mesh.DNS.IsValid() {
		return nil
	}
	o := mesh.Options{Zone: m.cfg.Mesh.Zone, Egress: m.cfg.Mesh.Listen, Services: &m.services, Log: m.log.Named("dns"), Metrics: m.registry}
	if m.addresses != nil {
		o.Virtual = m.addresses
	}
	r, err := mesh.New(o)
	if err != nil {
		return err
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	g.Go(func() error {
		var err error
		if len(m.o.UDP) > 0 {
			err = r.ServeOn(ctx, m.o.UDP, listensAt(m.o.Listeners, m.cfg.Mesh.DNS), func() { close(ready) })
		} else {
			err = r.Serve(ctx, m.cfg.Mesh.DNS.String(), func(net.Addr) { close(ready) })
		}
		failed <- err
		return err
	})
	select {
	case <-ready:
		return nil
	case err := <-failed:
		return err
	}
}

// wireTime is how long the services of the host may take to answer.
const wireTime = 15 * time.Second

// wire tells the host of the zone. A host that cannot be told is reported and left as it is: applications that send to
// Unix sockets, or that are intercepted, are served all the same.
func (m *meshRole) wire(ctx context.Context, g *errgroup.Group) error {
	if !m.cfg.Mesh.DNS.IsValid() || m.cfg.Mesh.Resolver == config.ResolverNone {
		return nil
	}
	kind := resolver.Kind(m.cfg.Mesh.Resolver)
	var err error
	soon, cancel := context.WithTimeout(ctx, wireTime)
	defer cancel()
	if m.cfg.Mesh.Resolver == config.ResolverAuto {
		kind, err = resolver.Detect(soon, m.host())
	}
	zone := resolver.Zone{Name: m.cfg.Mesh.Zone, Server: m.cfg.Mesh.DNS}
	if err == nil {
		err = resolver.Apply(soon, m.host(), kind, zone)
	}
	m.mu.Lock()
	m.kind, m.wiring = kind, err
	m.mu.Unlock()
	if err != nil {
		m.log.Error("the host does not know of the zone: its names are not found", zap.Error(err))
		return nil
	}
	g.Go(func() error {
		if err := resolver.Watch(ctx, m.host(), kind, zone); err != nil {
			m.mu.Lock()
			m.wiring = err
			m.mu.Unlock()
			m.log.Error("the host's resolver is not watched any more", zap.Error(err))
		}
		return nil
	})
	return nil
}

func (m *meshRole) config() *config.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg
}

// take makes cfg the config that holds, or says why not.
func (m *meshRole) take(cfg *config.Config) error {
	if m.o.Reloading != nil {
		m.o.Reloading()
	}
	if m.o.Reloaded != nil {
		defer m.o.Reloaded()
	}
	err := m.reload(cfg)
	m.keep(err)
	if err == nil {
		m.log.Info("config changed", zap.String("config", cfg.Digest()), zap.Int("services", len(cfg.Services)))
	}
	return err
}

// unread is told of a config that is not whole. Who asked for the change is told that it is over.
func (m *meshRole) unread(err error) {
	if m.o.Reloading != nil {
		m.o.Reloading()
	}
	if m.o.Reloaded != nil {
		defer m.o.Reloaded()
	}
	m.keep(err)
}

// keep remembers why the config on disk is not the one in force; nil when it is.
func (m *meshRole) keep(err error) {
	m.mu.Lock()
	m.reloaded = err
	m.mu.Unlock()
	if err != nil {
		m.log.Error("the config on disk is refused; the one in force stays", zap.Error(err))
	}
}

// reload takes cfg whole or not at all. What sockets and addresses depend on needs a new start.
func (m *meshRole) reload(cfg *config.Config) error {
	if missing := m.sandbox.Missing(cfg); len(missing) > 0 {
		return fmt.Errorf("this process has given up the right %s; a restart takes it up again", strings.Join(missing, ", "))
	}
	old, now := m.cfg.Mesh, cfg.Mesh
	if old.Zone != now.Zone || old.DNS != now.DNS || old.Range != now.Range || old.State != now.State || old.Resolver != now.Resolver ||
		old.Listen.IsValid() != now.Listen.IsValid() || m.cfg.AdminSocket(config.RoleMesh) != cfg.AdminSocket(config.RoleMesh) {
		return errors.New("mesh.zone, mesh.dns, mesh.range, mesh.state, mesh.resolver and admin.mesh change with a restart of ward mesh only, which breaks no call; restart it")
	}
	if old.Listen != now.Listen {
		return errors.New("mesh.listen changes with a restart of egress and of ward mesh only; restart them")
	}
	rules, err := m.rules(cfg)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range cfg.Services {
		names = append(names, s.Name)
	}
	// Addresses first: they are told only when the names are exchanged, and nothing is lost with those that are not.
	if m.addresses != nil {
		if err := m.addresses.Assign(names); err != nil {
			return err
		}
	}
	if err := m.table.Apply(rules); err != nil {
		if m.addresses != nil {
			err = errors.Join(err, m.addresses.Assign(m.services.Names()))
		}
		return err
	}
	m.services.set(cfg)
	m.mu.Lock()
	m.cfg = cfg
	m.mu.Unlock()
	return nil
}

// Status implements admin.Source.
func (m *meshRole) Status(context.Context) admin.Status {
	m.mu.Lock()
	cfg, wiring, reloaded, kind := m.cfg, m.wiring, m.reloaded, m.kind
	m.mu.Unlock()
	host, _ := os.Hostname()
	s := admin.Status{Schema: admin.StatusSchema, Host: host, Role: string(config.RoleMesh), Config: cfg.Digest(), TrustDomain: cfg.TrustDomain.Name(), Version: m.o.Version, Started: m.started,
		Mode: "mesh, names told to " + string(kind), Problems: []string{}}
	for _, name := range m.services.Names() {
		service := admin.Service{Name: name}
		switch {
		case m.addresses != nil:
			service.Listen = m.addresses.Address(name).String()
		case cfg.Mesh.Listen.IsValid():
			service.Listen = cfg.Mesh.Listen.Addr().String()
		}
		s.Services = append(s.Services, service)
	}
	rules := m.table.Status()
	for _, err := range []error{rules.Err, wiring} {
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	if reloaded != nil {
		s.Problems = append(s.Problems, "the config on disk is not in force: "+reloaded.Error())
	}
	return s
}

// Entries implements admin.Source: this role knows of no workload.
func (*meshRole) Entries(context.Context) admin.Entries {
	return admin.Entries{Schema: admin.EntriesSchema, Entries: []admin.Entry{}}
}
