// Package daemon joins the trees: it turns a Config into a running Ward. It is the only package that sees attest,
// workload, proxy and the authority at once, and it decides nothing by itself; what each part needs, it hands over.
//
// # Roles
//
// One process is one role ([config.Role]), and builds what that role needs and nothing more:
//
//	agent     attestation, entries, the Workload API and the Broker API, the embedded authority
//	egress    local callers' listeners; their identities are borrowed over the Broker API
//	ingress   the network's listeners; its own identities come over the Workload API
//	proxy     egress and ingress in one process
//	run       all of these in one process, which hand each other what they would ask for over sockets
//
// The mesh is a journey of its own ([RunMesh]).
//
// # Life
//
// [New] builds everything that can fail on bad config or bad state before a socket is opened. [Daemon.Run] opens the
// sockets, says that it is ready, and on the way out lets calls that run end before it takes their identities away.
// [Daemon.Reload] replaces what config says while all this goes on: whole, or not at all.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/sandbox"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
	"github.com/wardmesh/ward/workload/broker"
)

// Options is what config does not say.
type Options struct {
	// Role is what this process is; "" stands for config.RoleRun.
	Role    config.Role
	Version string
	Log     *zap.Logger
	// Load reads the config anew, for Reload's callers: signals and the watch on its folders. Nil: it cannot change.
	Load func() (*config.Config, error)
	// Attestors stand beside the host's own; Entries take the place of those of the same name in config, or stand
	// beside them. The demonstration enrols the workloads that it launches so, and no config file can.
	Attestors []attest.Attestor
	Entries   []*workload.Entry
	// Listeners are sockets that are open already, by their address as config spells it. The Daemon closes them.
	Listeners map[string]net.Listener
	// Predecessor is the process that runs, whose place this one is to take; nil: there is none. Listeners are then
	// those that it holds for the service manager, whatever is given here.
	Predecessor *Predecessor
	// Datagrams are such sockets for mesh.dns, which it closes, too.
	Datagrams []net.PacketConn
	// Confine gives up, for good, what the role does not need of the host's files and ports.
	Confine bool
	// Records, when set, sees each record that is appended to the trail.
	Records func(*proxy.Record)
	// Ready, when set, is called once every socket is open; Reloading and Reloaded around each Reload.
	Ready, Reloading, Reloaded func()
	// Succeeded, when set, is called when another process, of that id, has taken this one's place.
	Succeeded func(pid int)
}

// drainTime is how long calls that run may take to end once the daemon is told to stop.
const drainTime = 10 * time.Second

// Daemon names every subsystem of one running Ward. What its role does not have is nil.
type Daemon struct {
	cfg     atomic.Pointer[config.Config]
	next    atomic.Pointer[chan struct{}] // closed when cfg is replaced
	hashes  atomic.Bool                   // an entry asks for executables' hashes
	o       Options
	log     *zap.Logger
	started time.Time
	host    string

	registry  *prometheus.Registry
	db        *memdb.MemDB
	directory *directory
	entries   *workload.Registry
	routes    *proxy.Routes
	desk      *desk
	budget    *audit.Budget
	recorder  proxy.Recorder
	calls     *counter
	pinner    *peer.Pinner
	units     *systemd.Attestor

	// the agent
	kept       workload.Kept
	authority  *embedded
	identities *workload.Service
	selves     *workload.Service
	workloads  *api.Server
	broker     *broker.Server

	// the proxies
	own     identities
	egress  *egress
	ingress *ingress

	sockets   listening
	gate      chan struct{}          // closed when calls may be accepted
	given     chan struct{}          // closed when another process has taken this one's place
	successor atomic.Pointer[string] // its version
	sender    *audit.Sender          // by which records reach it then; guarded by reloading

	sandbox   sandbox.Report
	reloading sync.Mutex
	running   bool                   // the sockets are open, and not closing; guarded by reloading
	refused   atomic.Pointer[string] // why the config on disk is not the one that is used; nil when it is
}

// config is what holds now. One journey should ask for it once.
func (d *Daemon) config() *config.Config { return d.cfg.Load() }

// changed is closed when another config takes the place of the one that holds.
func (d *Daemon) changed() <-chan struct{} { return *d.next.Load() }

func (d *Daemon) use(cfg *config.Config) {
	d.cfg.Store(cfg)
	next := make(chan struct{})
	if old := d.next.Swap(&next); old != nil {
		close(*old)
	}
}

// Which parts a role has.
func (d *Daemon) attests() bool { return d.o.Role == config.RoleRun || d.o.Role == config.RoleAgent }
func (d *Daemon) calling() bool {
	return d.attestsAlone() || d.o.Role == config.RoleEgress || d.o.Role == config.RoleProxy
}
func (d *Daemon) serving() bool {
	return d.attestsAlone() || d.o.Role == config.RoleIngress || d.o.Role == config.RoleProxy
}

// attestsAlone reports whether this process is all of Ward on its host.
func (d *Daemon) attestsAlone() bool { return d.o.Role == config.RoleRun }

// New builds a Ward from cfg. Nothing listens yet; what it opened is closed again when it fails.
func New(ctx context.Context, cfg *config.Config, o Options) (*Daemon, error) {
	if o.Role == "" {
		o.Role = config.RoleRun
	}
	d := &Daemon{o: o, log: o.Log, started: time.Now(), registry: prometheus.NewRegistry(), desk: newDesk(),
		gate: make(chan struct{}), given: make(chan struct{})}
	if o.Predecessor == nil {
		close(d.gate)
	} else {
		d.o.Listeners = o.Predecessor.held
	}
	d.use(cfg)
	if err := d.build(ctx); err != nil {
		d.close()
		return nil, err
	}
	if o.Confine {
		var err error
		if d.sandbox, err = sandbox.Enter(o.Role, cfg); err != nil {
			d.close()
			return nil, err
		}
		d.log.Info(d.sandbox.String())
	}
	return d, nil
}

// build makes the parts in the order in which they need each other.
func (d *Daemon) build(ctx context.Context) (err error) {
	if d.host, err = os.Hostname(); err != nil {
		return err
	}
	d.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	parts := []func(context.Context) error{d.buildDirectory, d.buildTrail, d.buildPinner}
	if d.attests() {
		parts = append(parts, d.buildAuthority, d.buildIdentities)
	}
	if d.calling() {
		parts = append(parts, d.buildEgress)
	}
	if d.serving() {
		parts = append(parts, d.buildIngress)
	}
	for _, build := range parts {
		if err := build(ctx); err != nil {
			return err
		}
	}
	d.watchers()
	return nil
}

func (d *Daemon) buildDirectory(context.Context) (err error) {
	if d.directory, err = newDirectory(); err != nil {
		return err
	}
	d.db = d.directory.db
	d.entries, d.routes = workload.NewRegistry(d.db), proxy.NewRoutes(d.db)
	return d.directory.load(d.config(), d.entries, d.enrolled(d.config()))
}

func (d *Daemon) buildTrail(ctx context.Context) (err error) {
	for _, dir := range []string{d.config().Trail(d.o.Role), d.config().SecondTrail(d.o.Role)} {
		if dir == "" {
			continue
		}
		if err := ownFolder(filepath.Dir(dir), d.attestsAlone()); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	if d.o.Predecessor == nil { // it keeps the trail until takeOver
		trail, err := d.openTrail(ctx)
		if err != nil {
			return err
		}
		d.desk.resume(trail)
	}
	// What any local process can cause as often as it likes must not eat the space that allowed calls need.
	d.budget, err = audit.NewBudget(audit.BudgetOptions{Log: d.desk, PerMinute: d.config().Audit.Refusals, Logger: d.log.Named("audit"), Registerer: d.registry})
	if err != nil {
		return err
	}
	d.recorder = d.budget
	if d.o.Records != nil {
		d.recorder = tap{d.recorder, d.o.Records}
	}
	d.calls, err = newCounter(d.registry, d.log.Named("proxy"))
	return err
}

// openTrail opens this role's log, or its two. One process has them at a time.
func (d *Daemon) openTrail(ctx context.Context) (*audit.Trail, error) {
	a := d.config().Audit
	return audit.OpenTrail(ctx, audit.Options{Dir: d.config().Trail(d.o.Role), Origin: d.origin(),
		SegmentSize: a.SegmentSize, MinFree: a.MinFree, Reserve: a.Reserve, Keep: a.Keep, MaxSize: a.MaxSize,
		Logger: d.log.Named("audit"), Registerer: d.registry}, d.config().SecondTrail(d.o.Role))
}

// ownFolder makes the folder in which a role keeps what is its own, where the service manager has not done so. The
// state of ward run lies in one that all of it shares, which is made by whoever installs it.
func ownFolder(dir string, shared bool) error {
	if shared || exists(dir) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // other roles' folders lie there, too
		return err
	}
	return os.Mkdir(dir, 0o700)
}

// buildPinner makes what asks the kernel who is at the other end of a local socket.
func (d *Daemon) buildPinner(context.Context) (err error) {
	if d.pinner, err = peer.New(peer.Options{}); err != nil {
		return err
	}
	d.units, err = systemd.New()
	return err
}

// origin names this process's trail in its checkpoints.
func (d *Daemon) origin() string {
	name := d.config().TrustDomain.Name() + "/" + d.host
	if !d.attestsAlone() {
		name += "/" + string(d.o.Role)
	}
	return name
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

// close ends what New opened, the trail and the authority last.
func (d *Daemon) close() {
	for _, l := range d.o.Listeners {
		_ = l.Close()
	}
	for _, c := range d.o.Datagrams {
		_ = c.Close()
	}
	if d.ingress != nil {
		d.ingress.close()
	}
	if d.egress != nil {
		d.egress.close()
	}
	for _, s := range []*workload.Service{d.identities, d.selves} {
		if s != nil {
			s.Close()
		}
	}
	if d.pinner != nil {
		_ = d.pinner.Close()
	}
	if d.o.Predecessor != nil {
		d.o.Predecessor.close()
	}
	if d.desk.paused.Load() { // this process has never had the trail
		d.desk.resume(nobody{audit.ErrClosed})
	}
	if d.budget != nil {
		if err := d.budget.Close(); err != nil {
			d.log.Error("counted refusals could not be recorded", zap.Error(err))
		}
	}
	if d.sender != nil {
		ctx, cancel := context.WithTimeoutCause(context.Background(), drainTime, errors.New("it does not answer"))
		if err := d.sender.Close(ctx); err != nil {
			d.log.Error("the last records of this process may be missing", zap.Error(err))
		}
		cancel()
	}
	if trail := d.desk.trail(); trail != nil {
		if err := trail.Close(); err != nil {
			d.log.Error("the audit log did not close cleanly", zap.Error(err))
		}
	}
	if d.authority != nil {
		if err := d.authority.Close(); err != nil {
			d.log.Error("the authority did not close cleanly", zap.Error(err))
		}
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

// lifecycle is the record of a start, stop or change.
func (d *Daemon) lifecycle(what string) *proxy.Record {
	r := &proxy.Record{Event: what, Detail: fmt.Sprintf("ward %s %s, config %s", d.o.Role, d.o.Version, d.config().Digest())}
	switch next := d.successor.Load(); {
	case next != nil:
		r.Detail += ", replaced by " + *next
	case d.o.Predecessor != nil:
		r.Detail += ", in the place of " + d.o.Predecessor.Version
	}
	if d.ingress != nil {
		r.PolicySet = d.ingress.policySet()
	}
	return r
}

// policyStore is where a role keeps each policy set that it has used, by hash, so that old decisions can still be
// explained: beside the trail that names them.
func policyStore(cfg *config.Config, role config.Role) string {
	return filepath.Clean(cfg.Trail(role)) + ".policies"
}

// PolicyStore is where the policies are kept that this host has decided by, whichever role does that here.
func PolicyStore(cfg *config.Config) string {
	for _, role := range []config.Role{config.RoleIngress, config.RoleProxy} {
		if dir := policyStore(cfg, role); exists(dir) {
			return dir
		}
	}
	return policyStore(cfg, config.RoleRun)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

var errStopped = errors.New("a part of the daemon has stopped")
