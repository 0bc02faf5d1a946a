package broker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

var clinic = spiffeid.RequireTrustDomainFromString("clinic.test")

// bench is an agent's Broker API on a real socket, with everything beneath it real but the kernel's word for who is who.
type bench struct {
	t         testing.TB
	db        *memdb.MemDB
	authority *authority
	denials   *denials
	seen      *observer
	dir       string
	socket    string
	choices   []choice
	starting  bool // stays so

	mu      sync.Mutex
	brokers []attest.Selectors
	changed chan struct{}
	who     *process                      // the process behind the next connection
	peers   []*process                    // those behind the connections so far
	procs   map[attest.Reference]*process // what references resolve to
	fault   error                         // of resolving
	stalled chan<- struct{}               // told when the next look at a reference is held up
	goOn    <-chan struct{}               // until this is closed
	opened  map[*process]int              // resolved and not yet closed
	agent   *agent                        // nil while the agent is away
}

// agent is one life of the agent.
type agent struct {
	service *workload.Service
	server  *broker.Server
	metrics *prometheus.Registry
	served  chan error
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

type choice func(*bench, *broker.Options)

var egress = sel("unix.uid", "990", "systemd.unit", "ward-egress.service")

// serve starts an agent that is ready, and whose every connection comes from the egress ward.
func serve(t testing.TB, entries []*workload.Entry, choices ...choice) *bench {
	t.Helper()
	b := &bench{t: t, authority: newAuthority(t), seen: &observer{}, denials: &denials{denied: map[spiffeid.ID]bool{}, changed: make(chan struct{})},
		dir: t.TempDir(), choices: choices, brokers: []attest.Selectors{egress}, changed: make(chan struct{}),
		procs: map[attest.Reference]*process{}, opened: map[*process]int{}}
	b.socket = filepath.Join(b.dir, "broker.sock")
	b.who = newProcess("unix.uid", "990", "systemd.unit", "ward-egress.service", "exe.path", "/usr/bin/ward")
	b.who.uid = 990
	var err error
	if b.db, err = memdb.NewMemDB(&memdb.DBSchema{Tables: workload.Tables()}); err != nil {
		t.Fatal(err)
	}
	b.load(entries...)
	b.rise()
	t.Cleanup(b.fall)
	return b
}

// rise starts the agent anew: nothing of an earlier life is left but the authority and the entries.
func (b *bench) rise() {
	b.t.Helper()
	a := &agent{metrics: prometheus.NewRegistry(), served: make(chan error, 1)}
	var err error
	a.service, err = workload.NewService(workload.Options{
		Registry: workload.NewRegistry(b.db), Attestors: []attest.Attestor{teller{}}, Issuer: b.authority, Bundles: b.authority,
		Denials: b.denials, Kept: workload.NoKept{}, Observer: b.seen, Log: zap.NewNop(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	o := broker.Options{Lender: a.service, Pin: b.pin, Resolve: b.resolve, Attestors: []attest.Attestor{teller{}}, Brokers: b.allowed, Registerer: a.metrics,
		Limits: broker.Limits{RatePerUID: 1000}}
	for _, c := range b.choices {
		c(b, &o)
	}
	if a.server, err = broker.New(o); err != nil {
		b.t.Fatal(err)
	}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		b.t.Fatal(err)
	}
	go func() { a.served <- a.server.Serve(l) }()
	if !b.starting {
		a.server.SetReady()
	}
	b.agent = a
}

// fall stops the agent.
func (b *bench) fall() {
	if b.agent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b.agent.server.Shutdown(ctx)
	if err := <-b.agent.served; err != nil {
		b.t.Error(err)
	}
	b.agent.service.Close()
	b.agent = nil
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, n := range b.opened {
		if n != 0 {
			b.t.Errorf("process %d is still held %d times", p.pid, n)
		}
	}
}

func (b *bench) load(entries ...*workload.Entry) {
	b.t.Helper()
	txn := b.db.Txn(true)
	defer txn.Abort()
	if err := workload.NewRegistry(b.db).Load(txn, entries, nil); err != nil {
		b.t.Fatal(err)
	}
	txn.Commit()
}

func (b *bench) allowed() ([]attest.Selectors, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.brokers, b.changed
}

func (b *bench) allow(sets ...attest.Selectors) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.brokers = sets
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *bench) pin(net.Conn) (workload.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.who == nil {
		return nil, attest.ErrMismatch
	}
	p := &process{pid: 990, facts: b.who.facts, uid: b.who.uid, done: make(chan struct{}), fail: b.who.fail}
	b.peers = append(b.peers, p)
	return p, nil
}

func (b *bench) become(p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.who = p
}

// peer is the broker behind the latest connection.
func (b *bench) peer() *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers[len(b.peers)-1]
}

// held counts Close.
type held struct {
	*process
	b *bench
}

func (h held) Close() error {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	h.b.opened[h.process]--
	return nil
}

func (b *bench) resolve(_ context.Context, r attest.Reference) (workload.Process, error) {
	p, err := b.look(r)
	b.mu.Lock()
	stalled, goOn := b.stalled, b.goOn
	b.stalled, b.goOn = nil, nil
	b.mu.Unlock()
	if stalled != nil {
		close(stalled)
		<-goOn
	}
	return p, err
}

// stall holds up the next look at a reference, when it has been taken and before it is told.
func (b *bench) stall() (looked <-chan struct{}, goOn chan<- struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stalled, release := make(chan struct{}), make(chan struct{})
	b.stalled, b.goOn = stalled, release
	return stalled, release
}

func (b *bench) look(r attest.Reference) (workload.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fault != nil {
		return nil, b.fault
	}
	p := b.procs[r]
	if p == nil {
		return nil, fmt.Errorf("%w: nobody", attest.ErrExited)
	}
	if err := p.Alive(); err != nil {
		return nil, err
	}
	b.opened[p]++
	return held{p, b}, nil
}

func (b *bench) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = err
}

// run makes a process of uid 1000 with further facts, and a reference to it.
func (b *bench) run(pid int, pairs ...string) (*process, attest.Reference) {
	p := newProcess(append([]string{"unix.uid", "1000"}, pairs...)...)
	p.pid = pid
	r := attest.Reference{Process: attest.ProcessReference{PID: pid, Inode: uint64(pid) + 1<<33, UID: 1000, GID: 1000}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.procs[r] = p
	return p, r
}

// again makes the reference name p from now on, as after an exec.
func (b *bench) again(r attest.Reference, p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.procs[r] = p
}

func (b *bench) client(o ...func(*broker.ClientOptions)) *broker.Client {
	b.t.Helper()
	options := broker.ClientOptions{Socket: b.socket, Verify: broker.ServedBy(uint32(os.Getuid())), Log: zap.NewNop()}
	for _, f := range o {
		f(&options)
	}
	c, err := broker.NewClient(options)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *bench) borrow(c *broker.Client, r attest.Reference) *broker.Loan {
	b.t.Helper()
	l, err := c.Borrow(b.ctx(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

// dial is for what the client does not show.
func (b *bench) dial() *grpc.ClientConn {
	b.t.Helper()
	c, err := grpc.NewClient("unix://"+b.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *bench) raw() spiffe.APIClient { return spiffe.NewAPIClient(b.dial()) }

// ctx ends before the server is shut down.
func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.t.Cleanup(cancel)
	return ctx
}

// headed bears the security header.
func (b *bench) headed() context.Context {
	return metadata.AppendToOutgoingContext(b.ctx(), "broker.spiffe.io", "true")
}

func (b *bench) packed(r attest.Reference) *spiffe.WorkloadReference {
	b.t.Helper()
	w, err := broker.Pack(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

// ask subscribes and returns the stream with its first answer.
func (b *bench) ask(api spiffe.APIClient, r attest.Reference) (spiffe.API_SubscribeToX509SVIDClient, *spiffe.SubscribeToX509SVIDResponse, error) {
	b.t.Helper()
	s, err := api.SubscribeToX509SVID(b.headed(), &spiffe.SubscribeToX509SVIDRequest{Reference: b.packed(r)})
	if err != nil {
		return nil, nil, err
	}
	m, err := s.Recv()
	return s, m, err
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("%v: %v; want %v", got, err, want)
	}
}

// over waits for the end of a loan and checks why.
func over(t testing.TB, l *broker.Loan, want error) *workload.Refusal {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(patience):
		t.Fatalf("the loan goes on")
	}
	err := l.Err()
	var r *workload.Refusal
	if !errors.Is(err, want) || !errors.As(err, &r) {
		t.Fatalf("the loan ended with %v; want %v", err, want)
	}
	if _, err := l.GetX509SVID(); !errors.Is(err, want) {
		t.Errorf("its SVID: %v", err)
	}
	if _, err := l.GetX509BundleForTrustDomain(clinic); !errors.Is(err, want) {
		t.Errorf("its bundle: %v", err)
	}
	return r
}

func lent(name string, selectors ...string) *workload.Entry {
	return &workload.Entry{Name: name, ID: spiffeid.RequireFromPath(clinic, "/"+name), Selectors: sel(selectors...), Proxy: true}
}

func own(e *workload.Entry) *workload.Entry { e.Proxy = false; return e }

func sel(pairs ...string) attest.Selectors {
	var out []attest.Selector
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, attest.Selector{Type: pairs[i], Value: pairs[i+1]})
	}
	return attest.NewSelectors(out...)
}

func portal() *workload.Entry { return lent("portal", "unix.uid", "1000") }

// process stands for what the kernel pins.
type process struct {
	pid   int
	uid   uint32
	facts attest.Selectors
	done  chan struct{}
	fail  error // of attesting it

	mu    sync.Mutex
	state error
}

func newProcess(pairs ...string) *process {
	return &process{pid: 4711, facts: sel(pairs...), uid: 1000, done: make(chan struct{})}
}

func (p *process) PID() int                  { return p.pid }
func (p *process) UID() uint32               { return p.uid }
func (p *process) GID() uint32               { return p.uid }
func (p *process) Proc() *os.File            { return nil }
func (p *process) Strength() attest.Strength { return attest.Strong }
func (p *process) Done() <-chan struct{}     { return p.done }

func (p *process) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// become changes what Alive says, without any event.
func (p *process) become(state error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
}

// end makes the process exit or exec.
func (p *process) end(state error) {
	p.become(state)
	close(p.done)
}

type teller struct{}

func (teller) Name() string { return "teller" }

func (teller) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	if h, ok := p.(held); ok {
		p = h.process
	}
	return p.(*process).facts, p.(*process).fail
}

type denials struct {
	mu      sync.Mutex
	denied  map[spiffeid.ID]bool
	changed chan struct{}
}

func (d *denials) Denied(id spiffeid.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.denied[id]
}

func (d *denials) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *denials) deny(id spiffeid.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.denied[id] = true
	close(d.changed)
	d.changed = make(chan struct{})
}

type observer struct {
	mu       sync.Mutex
	visits   []workload.Visit
	refusals map[string]workload.Visit
	why      map[string]error
}

func (o *observer) Attested(v workload.Visit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.visits = append(o.visits, v)
}

func (o *observer) Issued(workload.Issuance) {}

func (o *observer) Refused(v workload.Visit, r *workload.Refusal) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refusals == nil {
		o.refusals, o.why = map[string]workload.Visit{}, map[string]error{}
	}
	o.refusals[r.Reference], o.why[r.Reference] = v, r.Err
}

// refused is what was reported under a reference.
func (o *observer) refused(reference string) (workload.Visit, error, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.refusals[reference]
	return v, o.why[reference], ok
}

func (o *observer) attested() []workload.Visit {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]workload.Visit(nil), o.visits...)
}
