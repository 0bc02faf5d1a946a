// Package daemon joins the trees: it turns a Config into a running Ward. It is the only package that sees attest,
// workload, proxy and the authority at once, and it decides nothing by itself; what each part needs, it hands over.
//
// [New] builds everything that can fail on bad config or bad state before a socket is opened; [Daemon.Run] opens the
// sockets, says that it is ready, and on the way out lets calls that run end before it takes their identities away.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
	"github.com/wardmesh/ward/proxy/bind"
	"github.com/wardmesh/ward/proxy/policy"
	"github.com/wardmesh/ward/proxy/token"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

// Options is what config does not say.
type Options struct {
	Version string
	Log     *zap.Logger
	// Attestors stand beside the host's own; Entries take the place of those of the same name in config, or stand
	// beside them. The demonstration enrols the workloads that it launches so, and no config file can.
	Attestors []attest.Attestor
	Entries   []*workload.Entry
	// Listeners are sockets that are open already, by their address as config spells it.
	Listeners map[string]net.Listener
	// Records, when set, sees each record that is appended to the trail.
	Records func(*proxy.Record)
	// Ready, when set, is called once every socket is open.
	Ready func()
}

// drainTime is how long calls that run may take to end once the daemon is told to stop.
const drainTime = 10 * time.Second

// Daemon names every subsystem of one running Ward.
type Daemon struct {
	cfg     *config.Config
	o       Options
	log     *zap.Logger
	started time.Time
	host    string

	registry   *prometheus.Registry
	authority  *authority.Authority
	db         *memdb.MemDB
	directory  *directory
	entries    *workload.Registry
	routes     *proxy.Routes
	pinner     *peer.Pinner
	identities *workload.Service
	selves     *workload.Service
	workloads  *api.Server
	trail      *audit.Log
	recorder   proxy.Recorder
	calls      *counter
	tokens     *token.Verifier
	bindings   *bind.Map
	policies   *policy.Set
}

// New builds a Ward from cfg. Nothing listens yet; what it opened is closed again when it fails.
func New(ctx context.Context, cfg *config.Config, o Options) (*Daemon, error) {
	d := &Daemon{cfg: cfg, o: o, log: o.Log, started: time.Now(), registry: prometheus.NewRegistry()}
	if err := d.build(ctx); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// build makes the parts in the order in which they need each other.
func (d *Daemon) build(ctx context.Context) (err error) {
	if d.host, err = os.Hostname(); err != nil {
		return err
	}
	d.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, build := range []func(context.Context) error{
		d.buildAuthority, d.buildDirectory, d.buildTrail, d.buildIdentities, d.buildIngress,
	} {
		if err := build(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) buildAuthority(ctx context.Context) (err error) {
	d.authority, err = authority.Open(ctx, authority.Options{Dir: d.cfg.Authority.Dir, TrustDomain: d.cfg.TrustDomain,
		CATTL: d.cfg.Authority.CATTL, X509TTL: d.cfg.Authority.X509TTL, Logger: d.log.Named("authority")})
	return err
}

func (d *Daemon) buildDirectory(context.Context) (err error) {
	if d.directory, err = newDirectory(); err != nil {
		return err
	}
	d.db = d.directory.db
	d.entries, d.routes = workload.NewRegistry(d.db), proxy.NewRoutes(d.db)
	extra := d.o.Entries
	for _, s := range services(d.cfg) {
		if s.Listen != "" {
			extra = append(extra, wardEntry(s))
		}
	}
	return d.directory.load(d.cfg, d.entries, extra)
}

func (d *Daemon) buildIdentities(context.Context) (err error) {
	if d.pinner, err = peer.New(peer.Options{}); err != nil {
		return err
	}
	attestors, err := hostAttestors(asksForHash(d.cfg))
	if err != nil {
		return err
	}
	o := workload.Options{Registry: d.entries, Attestors: append(attestors, d.o.Attestors...), Issuer: issuer{d.authority},
		Bundles: issuer{d.authority}, Denials: d.directory, Observer: newWitness(d.registry, d.log.Named("identity"), d.event), Log: d.log.Named("identity")}
	if d.identities, err = workload.NewService(o); err != nil {
		return err
	}
	o.Attestors, o.Observer = []attest.Attestor{itself{}}, workload.NoObserver{}
	if d.selves, err = workload.NewService(o); err != nil {
		return err
	}
	d.workloads, err = api.New(api.Options{Watcher: d.identities, Pin: pin, Registerer: d.registry})
	return err
}

func (d *Daemon) buildTrail(ctx context.Context) (err error) {
	d.trail, err = audit.Open(ctx, audit.Options{Dir: d.cfg.Audit.Dir, Origin: d.cfg.TrustDomain.Name() + "/" + d.host,
		SegmentSize: d.cfg.Audit.SegmentSize, MinFree: d.cfg.Audit.MinFree, Logger: d.log.Named("audit"), Registerer: d.registry})
	if err != nil {
		return err
	}
	d.recorder = d.trail
	if d.o.Records != nil {
		d.recorder = tap{d.trail, d.o.Records}
	}
	d.calls, err = newCounter(d.registry, d.log.Named("proxy"))
	return err
}

// tap lets somebody see the records that go into the trail.
type tap struct {
	proxy.Recorder
	see func(*proxy.Record)
}

func (t tap) Append(r *proxy.Record) (proxy.Receipt, error) {
	t.see(r)
	return t.Recorder.Append(r)
}

// buildIngress loads what decides calls, where this host serves any.
func (d *Daemon) buildIngress(context.Context) (err error) {
	if !d.serves() {
		return nil
	}
	if d.policies, err = policy.Load(d.cfg.Policies.Dir); err != nil {
		return fmt.Errorf("policies:\n%w", err)
	}
	if err = keepPolicies(d.cfg, d.policies); err != nil {
		return err
	}
	if d.tokens, err = newTokens(d.cfg, d.log.Named("token"), d.registry); err != nil {
		return err
	}
	d.bindings, err = newBindings(d.cfg)
	return err
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

func (d *Daemon) serves() bool {
	for _, s := range d.cfg.Services {
		if s.Listen.IsValid() {
			return true
		}
	}
	return false
}

// close ends what New opened, the trail and the authority last.
func (d *Daemon) close() {
	if d.tokens != nil {
		_ = d.tokens.Close()
	}
	for _, s := range []*workload.Service{d.identities, d.selves} {
		if s != nil {
			s.Close()
		}
	}
	if d.pinner != nil {
		_ = d.pinner.Close()
	}
	if d.trail != nil {
		if err := d.trail.Close(); err != nil {
			d.log.Error("the audit log did not close cleanly", zap.Error(err))
		}
	}
	if d.authority != nil {
		if err := d.authority.Close(); err != nil {
			d.log.Error("the authority did not close cleanly", zap.Error(err))
		}
	}
}

// PolicyStore is where the daemon keeps each policy set that it has used, by hash, so that old decisions can still be
// explained: beside the trail that names them.
func PolicyStore(cfg *config.Config) string { return filepath.Clean(cfg.Audit.Dir) + ".policies" }

// keepPolicies writes the set into the store, unless it is there.
func keepPolicies(cfg *config.Config, set *policy.Set) error {
	dir := filepath.Join(PolicyStore(cfg), set.Hash())
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return fmt.Errorf("policy store: %w", err)
	}
	for _, f := range set.Source() {
		if err := os.WriteFile(filepath.Join(tmp, filepath.Base(f.Name)), f.Content, 0o600); err != nil {
			return fmt.Errorf("policy store: %w", err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("policy store: %w", err)
	}
	return nil
}
