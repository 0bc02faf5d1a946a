package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

var clinic = spiffeid.RequireTrustDomainFromString("clinic.test")

// bench is a server on a real socket, with everything beneath it real but the kernel's word for who connects.
type bench struct {
	t         testing.TB
	db        *memdb.MemDB
	authority *authority
	server    *api.Server
	service   *workload.Service
	metrics   *prometheus.Registry
	address   string
	starting  bool // stays so

	mu    sync.Mutex
	who   *process   // the process behind the next connection
	peers []*process // those behind the connections so far
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

type choice func(*bench, *api.Options)

// serve starts a server that is ready, for one process that is uid 1000.
func serve(t testing.TB, entries []*workload.Entry, choices ...choice) *bench {
	t.Helper()
	b := &bench{t: t, authority: newAuthority(t), metrics: prometheus.NewRegistry(), who: newProcess("unix.uid", "1000", "exe.path", "/usr/bin/portal")}
	var err error
	if b.db, err = memdb.NewMemDB(&memdb.DBSchema{Tables: workload.Tables()}); err != nil {
		t.Fatal(err)
	}
	b.load(entries...)
	b.service, err = workload.NewService(workload.Options{
		Registry: workload.NewRegistry(b.db), Attestors: []attest.Attestor{teller{}}, Issuer: b.authority, Bundles: b.authority,
		Denials: workload.NoDenials{}, Kept: workload.NoKept{}, Observer: workload.NoObserver{}, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	options := api.Options{Watcher: b.service, Pin: b.pin, Registerer: b.metrics}
	for _, c := range choices {
		c(b, &options)
	}
	if b.server, err = api.New(options); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "workload.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b.address = "unix://" + path
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(l) }()
	t.Cleanup(func() {
		b.shutdown()
		if err := <-served; err != nil {
			t.Error(err)
		}
		b.service.Close()
	})
	if !b.starting {
		b.server.SetReady()
	}
	return b
}

func (b *bench) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b.server.Shutdown(ctx)
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

func (b *bench) pin(net.Conn) (workload.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.who == nil {
		return nil, attest.ErrMismatch
	}
	p := &process{facts: b.who.facts, uid: b.who.uid, done: make(chan struct{})}
	b.peers = append(b.peers, p)
	return p, nil
}

func (b *bench) become(p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.who = p
}

// peer is the process behind the latest connection.
func (b *bench) peer() *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers[len(b.peers)-1]
}

// client is go-spiffe's own, unmodified.
func (b *bench) client() *workloadapi.Client {
	b.t.Helper()
	c, err := workloadapi.New(b.ctx(), workloadapi.WithAddr(b.address))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// dial is for what go-spiffe's client does not show.
func (b *bench) dial() *grpc.ClientConn {
	b.t.Helper()
	c, err := grpc.NewClient(b.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *bench) raw() spiffe.SpiffeWorkloadAPIClient {
	return spiffe.NewSpiffeWorkloadAPIClient(b.dial())
}

// ctx ends before the server is shut down.
func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	b.t.Cleanup(cancel)
	return ctx
}

// headed bears the security header.
func (b *bench) headed() context.Context {
	return metadata.AppendToOutgoingContext(b.ctx(), "workload.spiffe.io", "true")
}

func entry(name string, selectors ...string) *workload.Entry {
	return &workload.Entry{Name: name, ID: spiffeid.RequireFromPath(clinic, "/"+name), Selectors: sel(selectors...)}
}

func sel(pairs ...string) attest.Selectors {
	var out []attest.Selector
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, attest.Selector{Type: pairs[i], Value: pairs[i+1]})
	}
	return attest.NewSelectors(out...)
}

// process stands for what the kernel pins.
type process struct {
	facts attest.Selectors
	uid   uint32
	done  chan struct{}

	mu    sync.Mutex
	state error
}

func newProcess(pairs ...string) *process {
	return &process{facts: sel(pairs...), uid: 1000, done: make(chan struct{})}
}

func (p *process) PID() int                  { return 4711 }
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

// end makes the process exit or exec.
func (p *process) end(state error) {
	p.mu.Lock()
	p.state = state
	p.mu.Unlock()
	close(p.done)
}

type teller struct{}

func (teller) Name() string { return "teller" }

func (teller) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	return p.(*process).facts, nil
}

// authority is an issuer made of crypto/x509.
type authority struct {
	t testing.TB

	mu      sync.Mutex
	key     *ecdsa.PrivateKey
	root    *x509.Certificate
	bundle  *x509bundle.Bundle
	changed chan struct{}
	fail    error
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, changed: make(chan struct{})}
	a.key, a.root = a.ca()
	a.publish(a.root)
	return a
}

func (a *authority) ca() (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "clinic.test"}, URIs: []*url.URL{clinic.ID().URL()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c, err := signed(template, template, key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, c
}

func (a *authority) publish(roots ...*x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bundle = x509bundle.FromX509Authorities(clinic, roots)
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *authority) set(fail error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = fail
}

func (a *authority) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle, a.changed
}

func (a *authority) IssueX509(_ context.Context, r workload.X509Request) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	leaf, err := signed(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{r.ID.URL()}, DNSNames: r.DNSNames,
		NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(ttl), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.root, r.PublicKey, a.key)
	return []*x509.Certificate{leaf}, err
}

func signed(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
