package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/proxy"
)

const (
	ehr       = "fhir.ehr.mesh.internal"
	lab       = "fhir.lab.mesh.internal"
	issuerURL = "https://op.clinic.test"
	physician = `@id("reads") permit (principal, action in Action::"reads", resource) when { context.roles.contains("physician") };` + "\n"
	patience  = time.Minute
)

// clinic is a host with a FHIR server, an issuer of tokens, and the Ward of a test, in one process or in three.
type clinic struct {
	testing.TB
	dir, file string
	upstream  *upstream
	keys      map[string]*ecdsa.PrivateKey // of issuers, by the name of their file
	ports     []string
}

// newClinic writes a config with one service, which the user of this test may call as /app/test.
func newClinic(tb testing.TB) *clinic {
	tb.Helper()
	dir := folder(tb)
	c := &clinic{TB: tb, dir: dir, file: filepath.Join(dir, "etc", "ward.yaml"), keys: map[string]*ecdsa.PrivateKey{}, ports: freePorts(tb, 3)}
	c.upstream = newUpstream(tb, filepath.Join(dir, "fhir.sock"))
	c.issuer("op.json")
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		tb.Fatal(err)
	}
	c.put("etc/policy/a.cedar", physician)
	c.put("etc/ward.yaml", fmt.Sprintf(`trust_domain: clinic.test
authority: {dir: %[1]s/state/authority}
agent:
  socket: %[1]s/run/agent/workload.sock
  broker: %[1]s/run/agent/broker.sock
  state: %[1]s/state/agent
  wards: {egress: {unix.uid: %[2]d}, ingress: {unix.uid: %[2]d}}
admin: {socket: %[1]s/run/agent/admin.sock, egress: %[1]s/run/egress/admin.sock, ingress: %[1]s/run/ingress/admin.sock, mesh: %[1]s/run/mesh/admin.sock}
audit: {dir: %[1]s/state/audit, reserve: 64KiB, min_free: 1MiB}
mesh: {dns: '', listen: '', sockets: %[1]s/run/egress}
policies: {dir: policy}
workloads:
  - {id: /app/test, select: {unix.uid: %[2]d}, proxy: true}
  - {id: /app/other, select: {unix.uid: 4000001}, proxy: true}
tokens:
  - {issuer: '%[3]s', audience: ['http://fhir.ehr.mesh.internal'], jwks_file: %[1]s/etc/op.json, claims: {roles: roles}}
bindings:
  - {client_id: test, workloads: [/app/test]}
services:
  - {name: fhir.ehr.mesh.internal, id: /ward/ehr, addresses: ['%[4]s'], callers: [/app/test], base: /fhir, max_exchange: 1m, listen: '%[4]s', upstream: {address: 'unix:%[1]s/fhir.sock'}}
`, dir, os.Getuid(), issuerURL, c.ports[0]))
	return c
}

// folder makes a folder with a short path, because sockets are to lie in it, and in memory, where there is much of that: of a
// slow disk a role tells in its status, and is not healthy.
func folder(tb testing.TB) string {
	tb.Helper()
	in := ""
	var s unix.Statfs_t
	if unix.Statfs("/dev/shm", &s) == nil && s.Bavail*uint64(s.Bsize) > 1<<30 && unix.Access("/dev/shm", unix.W_OK) == nil { //nolint:gosec // no size is negative
		in = "/dev/shm"
	}
	dir, err := os.MkdirTemp(in, "ward")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// labService is the line of a second service.
func (c *clinic) labService() string {
	return fmt.Sprintf("  - {name: %s, id: /ward/lab, addresses: ['%[2]s'], callers: [/app/test], base: /fhir, max_exchange: 1m, listen: '%[2]s', upstream: {address: 'unix:%s/fhir.sock'}}\n",
		lab, c.ports[1], c.dir)
}

// freePorts gives addresses on which nobody listens, and on which nobody else will: packages are tested beside each
// other, and each of their listeners takes a port of 127.0.0.1 that is free at the time. So these are of an address that
// is this process's own.
func freePorts(tb testing.TB, n int) (addresses []string) {
	tb.Helper()
	pid := os.Getpid()
	own := netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16&0x1f), byte(pid >> 8), byte(pid)})
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
		if err != nil {
			tb.Fatal(err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// put writes a file beside another one and renames it into place.
func (c *clinic) put(name, text string) {
	c.Helper()
	path := filepath.Join(c.dir, name)
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, path)); err != nil {
		c.Fatal(err)
	}
}

func (c *clinic) text() string {
	c.Helper()
	b, err := os.ReadFile(c.file)
	if err != nil {
		c.Fatal(err)
	}
	return string(b)
}

// edit replaces words of the config, which must be there. It returns what takes the edit back.
func (c *clinic) edit(pairs ...string) (back func()) {
	c.Helper()
	before := c.text()
	after := before
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(after, pairs[i]) {
			c.Fatalf("the config has no %q", pairs[i])
		}
		after = strings.ReplaceAll(after, pairs[i], pairs[i+1])
	}
	c.put("etc/ward.yaml", after)
	return func() { c.put("etc/ward.yaml", before) }
}

func (c *clinic) load() (*config.Config, error) { return config.Load(c.file, config.Options{}) }

func (c *clinic) config() *config.Config {
	c.Helper()
	cfg, err := c.load()
	if err != nil {
		c.Fatal(err)
	}
	return cfg
}

// running is one daemon.
type running struct {
	*daemon.Daemon
	clinic *clinic
	role   config.Role
	config *config.Config
	end    context.CancelFunc
	done   chan struct{}
	err    error

	mu      sync.Mutex
	records []proxy.Record
	more    chan struct{}
}

// start runs a role until the test or stop ends it.
func (c *clinic) start(role config.Role, changes ...func(*daemon.Options)) *running {
	c.Helper()
	r, ready := c.begin(role, changes...)
	select {
	case <-ready:
	case <-r.done:
		c.Fatalf("%s: %v", role, r.err)
	case <-time.After(patience):
		c.Fatalf("%s does not become ready", role)
	}
	return r
}

// begin is start without waiting for it to be ready.
func (c *clinic) begin(role config.Role, changes ...func(*daemon.Options)) (*running, <-chan struct{}) {
	c.Helper()
	r := &running{clinic: c, role: role, config: c.config(), done: make(chan struct{}), more: make(chan struct{})}
	ready := make(chan struct{})
	o := daemon.Options{Role: role, Version: "test", Log: zap.NewNop(), Records: r.take, Ready: func() { close(ready) }}
	for _, change := range changes {
		change(&o)
	}
	var err error
	if r.Daemon, err = daemon.New(c.Context(), r.config, o); err != nil {
		c.Fatalf("%s: %v", role, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	go func() {
		defer close(r.done)
		r.err = r.Run(ctx)
	}()
	c.Cleanup(r.stop)
	return r, ready
}

// watching lets a role follow the config's folders.
func (c *clinic) watching(o *daemon.Options) { o.Load = c.load }

func (r *running) stop() {
	r.end()
	<-r.done
	if r.err != nil {
		r.clinic.Errorf("%s: %v", r.role, r.err)
	}
}

func (r *running) take(rec *proxy.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, *rec)
	close(r.more)
	r.more = make(chan struct{})
}

// await waits for a record.
func (r *running) await(what string, is func(*proxy.Record) bool) proxy.Record {
	r.clinic.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		i, more := slices.IndexFunc(r.records, func(rec proxy.Record) bool { return is(&rec) }), r.more
		var found proxy.Record
		if i >= 0 {
			found = r.records[i]
		}
		r.mu.Unlock()
		if i >= 0 {
			return found
		}
		select {
		case <-more:
		case <-deadline:
			r.clinic.Fatalf("%s has no record of %s", r.role, what)
		}
	}
}

// events are the details of the records of one kind of event.
func (r *running) events(kind string) (details []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.records {
		if rec.Event == kind {
			details = append(details, rec.Detail)
		}
	}
	return details
}

// status asks the role's own admin socket.
func (r *running) status() admin.Status {
	r.clinic.Helper()
	var s admin.Status
	if err := admin.Get(r.clinic.Context(), r.config.AdminSocket(r.role), "/status", &s); err != nil {
		r.clinic.Fatal(err)
	}
	return s
}

// until waits for a status, which nothing announces.
func (r *running) until(what string, is func(admin.Status) bool) admin.Status {
	r.clinic.Helper()
	deadline, pause := time.Now().Add(patience), time.NewTicker(2*time.Millisecond)
	defer pause.Stop()
	for {
		s := r.status()
		if is(s) {
			return s
		}
		if time.Now().After(deadline) {
			r.clinic.Fatalf("%s: never %s: %+v", r.role, what, s)
		}
		<-pause.C
	}
}

// reload takes the config that is on disk.
func (r *running) reload() error {
	cfg, err := r.clinic.load()
	if err != nil {
		return err
	}
	return r.Reload(context.Background(), cfg)
}

func (r *running) mustReload() {
	r.clinic.Helper()
	if err := r.reload(); err != nil {
		r.clinic.Fatal(err)
	}
}

// issuer makes an issuer's key and the file that publishes it.
func (c *clinic) issuer(file string) {
	c.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: file, Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		c.Fatal(err)
	}
	c.keys[file] = key
	c.put("etc/"+file, string(set))
}

// token is a physician's access token by the key of a file.
func (c *clinic) token(file string) string {
	c.Helper()
	now := time.Now()
	part := func(v map[string]any) string {
		b, err := json.Marshal(v)
		if err != nil {
			c.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := part(map[string]any{"alg": "ES256", "kid": file, "typ": "at+jwt"}) + "." + part(map[string]any{"iss": issuerURL,
		"aud": "http://" + ehr, "sub": "dr.lee", "client_id": "test", "jti": "t-1", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"scope": "user/*.cruds", "roles": []string{"physician"}})
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, c.keys[file], digest[:])
	if err != nil {
		c.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// app is a local application: whatever it calls, it calls over one connection while that lasts.
type app struct {
	clinic *clinic
	http   *http.Client
	bearer string
}

func (c *clinic) app(service string) *app {
	c.Helper()
	t := &http.Transport{MaxIdleConnsPerHost: 1, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.dir, "run", "egress", service+".sock"))
	}}
	c.Cleanup(t.CloseIdleConnections)
	return &app{clinic: c, http: &http.Client{Transport: t, Timeout: 2 * patience}, bearer: c.token("op.json")}
}

// open sends a request and returns once the reply's head is there.
func (a *app) open(service, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+service+"/fhir/"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.bearer)
	return a.http.Do(req)
}

// get is one whole call.
func (a *app) get(service, path string) (status int, decision string, err error) {
	resp, err := a.open(service, path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode == 200 && err == nil && !strings.Contains(string(body), `"Patient"`) {
		err = fmt.Errorf("not the server's answer: %q", body)
	}
	return resp.StatusCode, resp.Header.Get("Ward-Decision"), err
}

// expect makes a call that must end so, and gives its decision.
func (a *app) expect(status int) string {
	a.clinic.Helper()
	got, decision, err := a.get(ehr, "Patient/a")
	if err != nil || got != status {
		a.clinic.Fatalf("status %d, %v, want %d", got, err, status)
	}
	return decision
}

// upstream is a FHIR server on a Unix socket. Patient/slow is sent in two parts; the second waits for finish.
type upstream struct {
	calls  chan string // the paths asked for
	finish chan struct{}
}

func newUpstream(tb testing.TB, socket string) *upstream {
	tb.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	u := &upstream{calls: make(chan string, 1<<16), finish: make(chan struct{})}
	s := &http.Server{Handler: u, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	tb.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return u
}

// ServeHTTP implements http.Handler.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.calls <- r.URL.Path
	w.Header().Set("Content-Type", "application/fhir+json")
	if strings.HasSuffix(r.URL.Path, "/slow") {
		_, _ = io.WriteString(w, `{"resourceType":`)
		w.(http.Flusher).Flush()
		select {
		case <-u.finish:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, `"Patient","id":"slow"}`)
		return
	}
	_, _ = io.WriteString(w, `{"resourceType":"Patient","id":"a"}`)
}

func hashOf(tb testing.TB, file string) string {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
