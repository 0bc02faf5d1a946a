package proxy_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/bind"
	"github.com/wardmesh/ward/proxy/policy"
	"github.com/wardmesh/ward/proxy/wire"
)

const (
	serviceName = "fhir.ehr.mesh.internal"
	// patience is how long a test waits for what must happen.
	patience = time.Minute
	// soon is when a bound ends before which a call must have come to where the test wants it, on a busy machine too.
	// Tests that wait for it do so beside each other.
	soon = 2 * time.Second
)

// cedar is the policy of the tests.
const cedar = `
@id("metadata") permit (principal, action == Action::"capabilities", resource);
@id("clinicians-read") permit (principal, action in Action::"reads", resource) when { context.roles.contains("physician") };
@id("own-records") permit (principal == Workload::"/app/portal", action in Action::"reads", resource) when { context.confined };
@id("clinicians-write") permit (principal == Workload::"/app/ehr", action in Action::"writes", resource)
    when { context.roles.contains("physician") };
@id("no-accounts") forbid (principal, action, resource is FHIR::Account);
@id("secret-procedures") forbid (principal, action == Action::"read", resource is FHIR::Procedure)
    when { resource.labels.contains("http://terminology.hl7.org/CodeSystem/v3-Confidentiality|V") };
`

// clock is the time that the wards see: the real one, moved.
type clock struct{ moved atomic.Int64 }

func (c *clock) Now() time.Time { return time.Now().Add(time.Duration(c.moved.Load())) }

func (c *clock) Advance(d time.Duration) { c.moved.Add(int64(d)) }

// nextWard stands in ingress's place and records what egress sends it.
func (w *world) nextWard(svid *x509svid.SVID) *upstream {
	w.Helper()
	u := newUpstream(w, tls.NewListener(listen(w), proxy.ServerTLS(newIdentity(svid, w.ca.bundle()), time.Now)))
	u.always(reply(200, "", "Ward-Decision: "+someDecision))
	w.service.Addresses = []string{u.Addr().String()}
	return u
}

// denials is the operator's deny list.
type denials struct {
	mu  sync.Mutex
	ids []spiffeid.ID
}

func (d *denials) Denied(id spiffeid.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.ids, id)
}

func (d *denials) deny(id spiffeid.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ids = append(d.ids, id)
}

// directory is a table of services.
type directory map[string]*proxy.Service

func (d directory) Service(name string) *proxy.Service { return d[name] }

// world is an egress and an ingress with everything between and around them.
type world struct {
	testing.TB
	clock    *clock
	ca       *authority
	self     *identity
	service  *proxy.Service
	upstream *upstream
	issuer   *issuer
	trail    *recorder
	seen     *observer
	denied   *denials
	live     *proxy.LiveIngress
	rules    proxy.IngressOptions
	ingress  *wire.Server
	egress   *proxy.Egress
	pool     *proxy.Pool
	portal   *process // may read, for its users
	ehr      *process // may also write
	address  string   // of the ingress
	bounds   func(*wire.Server)

	mu      sync.Mutex              // tests call from goroutines of their own
	servers map[string]*wire.Server // of egress, by address
	shared  map[*process]string     // egress's shared listeners, by who calls there
}

// setup changes the world before it comes into being.
type setup struct {
	dir      string   // for the audit log; "" is a folder of the test's own
	upstream net.Addr // another FHIR server than the world's
	plain    bool     // the trail and the metrics are Ward's own, and no test looks at them
	service  func(*proxy.Service)
	ingress  func(*proxy.IngressOptions)
	server   func(*wire.Server) // both wards'
}

func newWorld(t testing.TB, s setup) *world {
	t.Helper()
	if s.dir == "" {
		s.dir = memory(t) // a disk that others use may let calls wait for their records for long
	}
	ca := newAuthority(t, "clinic.test")
	w := &world{TB: t, clock: &clock{}, ca: ca, self: newIdentity(ca.issue(t, "/ward/ehr"), ca.bundle()), upstream: newUpstream(t, listen(t)),
		issuer: newIssuer(t), trail: newRecorder(t, s.dir), seen: newObserver(), denied: &denials{}, servers: map[string]*wire.Server{}, shared: map[*process]string{}, bounds: s.server}
	t.Cleanup(func() { // when both wards have stopped
		for _, d := range w.seen.found() {
			t.Errorf("a journey failed: %s", d)
		}
	})
	w.portal, w.ehr = w.process("/app/portal"), w.process("/app/ehr")
	l := listen(t)
	w.address = l.Addr().String()
	w.service = &proxy.Service{Name: serviceName, ID: w.self.svid.Load().ID, Addresses: []string{w.address},
		Callers: []spiffeid.ID{w.portal.id, w.ehr.id}, Base: "/fhir", MaxExchange: time.Minute}
	if s.service != nil {
		s.service(w.service)
	}
	o := proxy.IngressOptions{Service: w.service, Self: w.self, Denials: w.denied, Tokens: w.issuer.verifier(t, w.clock.Now),
		Binder: bindings(t, w), Limits: proxy.NoLimits{}, Risk: proxy.NoRisk{}, Policy: policies(t),
		Upstream: w.toUpstream(cmp.Or[net.Addr](s.upstream, w.upstream.Addr())), Now: w.clock.Now}
	var trail proxy.Recorder = w.trail
	var observe proxy.Observer = w.seen
	if s.plain {
		metrics, err := proxy.NewMetrics(prometheus.NewRegistry(), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		trail, observe = w.trail.log, metrics
	}
	o.Audit, o.Observe = trail, observe
	if s.ingress != nil {
		s.ingress(&o)
	}
	w.rules, w.live = o, proxy.NewLiveIngress(proxy.NewIngress(o))
	w.ingress = w.live.Server()
	if w.bounds != nil {
		w.bounds(w.ingress)
	}
	w.serve(w.ingress, l)
	w.pool = proxy.NewPool(proxy.PoolOptions{Now: w.clock.Now, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}})
	t.Cleanup(w.pool.Close)
	w.egress = proxy.NewEgress(proxy.EgressOptions{Callers: callers{}, Services: directory{serviceName: w.service}, Pool: w.pool,
		Audit: trail, Observe: observe, Now: w.clock.Now})
	return w
}

func (w *world) toUpstream(to net.Addr) *wire.Client {
	c := wire.NewClient(wire.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", to.String())
	}})
	w.Cleanup(c.CloseIdle)
	return c
}

func bindings(t testing.TB, w *world) *bind.Map {
	m, err := bind.New([]bind.ClientMap{
		{Issuer: issuerURL, ClientID: "portal", Workloads: []spiffeid.ID{w.portal.id}},
		{Issuer: issuerURL, ClientID: "ehr", Workloads: []spiffeid.ID{w.ehr.id}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func policies(t testing.TB) *policy.Set {
	set, err := policy.Parse([]policy.File{{Name: "test.cedar", Content: []byte(cedar)}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// serve runs s on l until the test ends.
func (w *world) serve(s *wire.Server, l net.Listener) {
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	w.Cleanup(func() {
		// A connection that was opened and not used would be waited for.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
}

// dialEgress connects to egress's shared listener as p.
func (w *world) dialEgress(p *process) net.Conn {
	w.Helper()
	return w.dial(w.sharedAddress(p))
}

func (w *world) sharedAddress(p *process) string {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	address, ok := w.shared[p]
	if !ok {
		address = w.open(p, nil)
		w.shared[p] = address
	}
	return address
}

func (w *world) dial(address string) net.Conn {
	w.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// dialIngress connects to ingress over mTLS with an SVID, past egress.
func (w *world) dialIngress(svid *x509svid.SVID) net.Conn {
	w.Helper()
	c, err := w.handshake(svid, nil)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// handshake is TLS with ingress; it returns once the server has accepted or refused the client's certificate. In TLS
// 1.3 the client ends its own handshake before that, so an error can come with the first read.
func (w *world) handshake(svid *x509svid.SVID, change func(*tls.Config)) (*tls.Conn, error) {
	w.Helper()
	cfg := proxy.ClientTLS(svid, x509bundle.NewSet(w.ca.bundle()), w.service.ID, time.Now)
	if change != nil {
		change(cfg)
	}
	c := tls.Client(w.dial(w.address), cfg)
	return c, c.Handshake()
}

// hop is one side of a call, to which a test speaks raw HTTP.
type hop struct {
	name proxy.Hop
	dial func(w *world, p *process) net.Conn
}

var hops = []hop{
	{proxy.HopEgress, (*world).dialEgress},
	{proxy.HopIngress, func(w *world, p *process) net.Conn { return w.dialIngress(p.svid.Load()) }},
}
