package daemon_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
)

// each runs a test with all of Ward in one process, and with its roles apart; ingress is who decides, all are whom a
// change concerns.
func each(t *testing.T, test func(t *testing.T, c *clinic, all []*running)) {
	t.Run("in one process", func(t *testing.T) {
		c := newClinic(t)
		test(t, c, []*running{c.start(config.RoleRun)})
	})
	t.Run("apart", func(t *testing.T) {
		c := newClinic(t)
		agent, egress, ingress := c.apart()
		test(t, c, []*running{agent, ingress, egress})
	})
}

func reloadAll(all []*running) {
	for _, r := range all {
		r.mustReload()
	}
}

// ingressOf finds, among the roles, the one that serves.
func ingressOf(all []*running) *running { return all[min(1, len(all)-1)] }

// settle waits until a service answers: the ward of a new one may wait for its SVID.
func (a *app) settle(service string) {
	a.clinic.Helper()
	deadline := time.Now().Add(patience)
	for {
		status, _, err := a.get(service, "Patient/a")
		if status == 200 && err == nil {
			return
		}
		if time.Now().After(deadline) {
			a.clinic.Fatalf("%s: %d %v", service, status, err)
		}
	}
}

func TestReloadAddsAndRemovesAService(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		first, second := c.app(ehr), c.app(lab)
		first.expect(200)
		socket := filepath.Join(c.dir, "run", "egress", lab+".sock")
		for range 3 { // as often as one likes, on the same address
			back := c.edit("services:\n", "services:\n"+c.labService())
			reloadAll(all)
			second.settle(lab)
			resp, err := second.open(lab, "Patient/slow")
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			back()
			reloadAll(all)
			if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
			if conn, err := net.Dial("tcp", c.ports[1]); err == nil {
				t.Error("the address still answers")
				_ = conn.Close()
			}
			c.upstream.finish <- struct{}{}
			if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(body), `"slow"}`) {
				t.Errorf("the call that ran was cut: %q, %v", body, err)
			}
			_ = resp.Body.Close()
			first.expect(200)
		}
		if got := ingressOf(all).events("config changed"); len(got) != 6 || !strings.Contains(got[0], "service +"+lab) || !strings.Contains(got[1], "service -"+lab) {
			t.Errorf("%q", got)
		}
	})
}

// Egress closes the connections to a service that is removed, though its ward is still there.
func TestReloadClosesConnectionsToARemovedService(t *testing.T) {
	c := newClinic(t)
	agent, egress, ingress := c.apart()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	closed := make(chan struct{}, 16)
	go relay(l, c.ports[1], closed)
	back := c.edit("services:\n", "services:\n"+strings.Replace(c.labService(), "addresses: ['"+c.ports[1], "addresses: ['"+l.Addr().String(), 1))
	reloadAll([]*running{agent, ingress, egress})
	c.app(lab).settle(lab)
	for len(closed) > 0 { // what was tried before the ward had its SVID
		<-closed
	}
	back()
	egress.mustReload()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("the connection is still open")
	}
}

// relay passes connections on, and tells closed of each that its caller has ended.
func relay(l net.Listener, to string, closed chan<- struct{}) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = near.Close() }()
			far, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer func() { _ = far.Close() }()
			go func() { _, _ = io.Copy(near, far) }()
			_, _ = io.Copy(far, near)
			closed <- struct{}{}
		}()
	}
}

// A service may take over the address of another, or become another one in its place.
func TestReloadReplacesAServiceOnItsAddress(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		app := c.app(ehr)
		app.expect(200)
		c.edit("id: /ward/ehr", "id: /ward/better")
		reloadAll(all)
		app.settle(ehr)
		ingressOf(all).await("a call at the new ward", func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })
		c.edit("id: /ward/better", "id: /ward/ehr")
		reloadAll(all)
		app.settle(ehr)
	})
}

// A caller that is taken off the list loses the call that runs.
func TestReloadCutsACallerThatIsRemoved(t *testing.T) {
	for name, edit := range map[string][2]string{
		"no caller any more": {"callers: [/app/test]", "callers: [/app/other]"},
		"denied":             {"trust_domain: clinic.test\n", "trust_domain: clinic.test\ndeny: [/app/test]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, c *clinic, all []*running) {
				app := c.app(ehr)
				app.expect(200)
				resp, err := app.open(ehr, "Patient/slow")
				if err != nil || resp.StatusCode != 200 {
					t.Fatal(resp, err)
				}
				defer resp.Body.Close()
				back := c.edit(edit[0], edit[1])
				start := time.Now()
				reloadAll(all)
				if body, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("the call ended well: %q", body)
				}
				t.Logf("cut %s after the change began", time.Since(start))
				app.expect(403)
				back()
				reloadAll(all)
				app.settle(ehr)
			})
		})
	}
}

// A denial that egress has read is in force there, whatever the agent has said a moment before, and will say.
func TestReloadOfTheDenyListAtEgressAlone(t *testing.T) {
	c := newClinic(t)
	_, egress, _ := c.apart()
	c.app(ehr).expect(200)
	c.edit("trust_domain: clinic.test\n", "trust_domain: clinic.test\ndeny: [/app/test]\n")
	egress.mustReload()
	d := c.app(ehr).expect(403)
	r := egress.await("the refusal", func(r *proxy.Record) bool { return r.Decision == d })
	if r.Stage != proxy.StageRefusal || r.Cause != proxy.CauseDenyList || !strings.Contains(r.Process, "uid "+itoa(os.Getuid())) {
		t.Errorf("%+v", r)
	}
}

func TestReloadTakesPoliciesIssuersAndBindings(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		old, ingress := c.app(ehr), ingressOf(all)
		old.expect(200)
		c.put("etc/policy/a.cedar", strings.Replace(physician, "physician", "nurse", 1))
		reloadAll(all)
		d := old.expect(403)
		if r := ingress.await("the refusal", func(r *proxy.Record) bool { return r.Peer == d || r.Decision == d }); r.Cause != proxy.CausePolicy {
			t.Errorf("%+v", r)
		}
		c.put("etc/policy/a.cedar", physician)
		reloadAll(all)
		old.expect(200)

		c.issuer("new.json")
		c.edit("op.json", "new.json")
		reloadAll(all)
		old.expect(401)
		fresh := c.app(ehr)
		fresh.bearer = c.token("new.json")
		fresh.expect(200)
		metrics(t, ingress)
		for range 3 { // to and fro: metrics are there once, whichever verifier has them
			c.edit("new.json", "op.json")
			reloadAll(all)
			old.expect(200)
			fresh.expect(401)
			c.edit("op.json", "new.json")
			reloadAll(all)
			old.expect(401)
			fresh.expect(200)
			metrics(t, ingress)
		}

		c.edit("client_id: test, workloads: [/app/test]", "client_id: test, workloads: [/app/other]")
		reloadAll(all)
		d = fresh.expect(403)
		if r := ingress.await("the refusal", func(r *proxy.Record) bool { return r.Peer == d || r.Decision == d }); r.Cause != proxy.CauseTokenBinding {
			t.Errorf("%+v", r)
		}
	})
}

// metrics checks that the role's can be gathered, those of tokens among them.
func metrics(t *testing.T, r *running) {
	t.Helper()
	text := scrape(t, r)
	if n := strings.Count(text, "# TYPE ward_issuer_keys "); n != 1 {
		t.Errorf("metrics of the issuers' keys are there %d times:\n%s", n, text)
	}
}

func scrape(t *testing.T, r *running) string {
	t.Helper()
	conn, err := net.Dial("unix", r.config.AdminSocket(r.role))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: ward\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") {
		t.Fatalf("%v\n%s", err, text)
	}
	return string(text)
}

// An entry that is edited is another identity on the streams that are open.
func TestReloadReachesOpenStreams(t *testing.T) {
	c := newClinic(t)
	agent := c.start(config.RoleAgent)
	got := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- workloadapi.WatchX509Context(ctx, watcher{got}, workloadapi.WithAddr("unix://"+agent.config.Agent.Socket))
	}()
	defer func() {
		cancel()
		<-done
	}()
	want := func(id string) {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case ids := <-got:
				if strings.Contains(ids, id) {
					return
				}
			case <-deadline:
				t.Fatalf("no SVID of %s", id)
			}
		}
	}
	want("spiffe://clinic.test/app/test")
	c.edit("id: /app/test", "id: /app/renamed", "[/app/test]", "[/app/renamed]")
	start := time.Now()
	agent.mustReload()
	want("spiffe://clinic.test/app/renamed")
	t.Logf("%s after the change began", time.Since(start))
}

type watcher struct{ got chan string }

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	var ids []string
	for _, s := range c.SVIDs {
		ids = append(ids, s.ID.String())
	}
	w.got <- strings.Join(ids, " ")
}

func (w watcher) OnX509ContextWatchError(error) {}

// The first entry that asks for an executable's hash is matched like any other.
func TestReloadTakesAnEntryThatAsksForAHash(t *testing.T) {
	c := newClinic(t)
	agent := c.start(config.RoleAgent)
	sum := hashOf(t, "/proc/self/exe")
	c.edit("{id: /app/test, select: {unix.uid: "+itoa(os.Getuid())+"}", "{id: /app/hashed, select: {unix.uid: "+itoa(os.Getuid())+", exe.sha256: "+sum+"}", "[/app/test]", "[/app/hashed]")
	agent.mustReload()
	got := fetch(t, agent.config)
	for _, s := range got.SVIDs {
		if s.ID == spiffeid.RequireFromString("spiffe://clinic.test/app/hashed") {
			return
		}
	}
	t.Errorf("no SVID for an entry with a hash")
}

// What cannot be taken changes nothing at all, is said once for each reason, and is over when it is mended.
func TestReloadRefusedChangesNothing(t *testing.T) {
	for name, bad := range map[string]struct {
		spoil  func(t *testing.T, c *clinic) (mend func())
		reason string
	}{
		"policy": {func(_ *testing.T, c *clinic) func() {
			c.put("etc/policy/b.cedar", "permit (principal, action, resource) when { context.rolez == 1 };\n")
			return func() { _ = os.Remove(filepath.Join(c.dir, "etc/policy/b.cedar")) }
		}, "b.cedar:1:"},
		"key that takes a restart": {func(_ *testing.T, c *clinic) func() {
			return c.edit("mesh: {dns: ''", "mesh: {zone: other.internal, dns: ''", ".mesh.internal", ".other.internal")
		}, "ward.yaml:10:"},
		"address in use": {func(t *testing.T, c *clinic) func() {
			l, err := net.Listen("tcp", c.ports[1])
			if err != nil {
				t.Fatal(err)
			}
			back := c.edit("services:\n", "deny: [/app/test]\nservices:\n"+c.labService())
			return func() {
				_ = l.Close()
				back()
			}
		}, "address already in use"},
		"socket in the way": {func(t *testing.T, c *clinic) func() {
			path := filepath.Join(c.dir, "run/egress", lab+".sock")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			back := c.edit("services:\n", "deny: [/app/test]\nservices:\n"+c.labService())
			return func() {
				_ = os.Remove(path)
				back()
			}
		}, "is in the way and is not a socket"},
		"issuer's keys": {func(_ *testing.T, c *clinic) func() {
			c.put("etc/bad.json", "{}")
			return c.edit("op.json", "bad.json")
		}, "ward.yaml:16:"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			r := c.start(config.RoleRun)
			app := c.app(ehr)
			app.expect(200)
			resp, err := app.open(ehr, "Patient/slow")
			if err != nil {
				t.Fatal(err)
			}
			before, digest := r.status(), c.config().Digest()
			mend := bad.spoil(t, c)
			for range 3 {
				if err := r.reload(); err == nil || !strings.Contains(err.Error(), bad.reason) {
					t.Fatalf("%v", err)
				}
			}
			s := r.status()
			if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], bad.reason) || s.Config != digest {
				t.Errorf("%+v", s)
			}
			if s.Identity.Entries != before.Identity.Entries || s.Identity.Workloads != before.Identity.Workloads {
				t.Errorf("entries or holdings were left behind: %+v, before %+v", s.Identity, before.Identity)
			}
			if got := r.events("config refused"); len(got) != 1 || !strings.Contains(got[0], bad.reason) || !strings.Contains(got[0], digest) {
				t.Errorf("%q", got)
			}
			c.app(ehr).expect(200)
			metrics(t, r)
			mend()
			r.mustReload()
			if s := r.status(); !s.Healthy() || s.Config != digest {
				t.Errorf("%+v", s)
			}
			if got := r.events("config changed"); len(got) != 0 {
				t.Errorf("%q", got)
			}
			c.upstream.finish <- struct{}{}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Errorf("a call was cut: %v", err)
			}
			_ = resp.Body.Close()
			app.http.CloseIdleConnections()
			r.stop()
		})
	}
}

// Two hundred changes cost nothing that stays.
func TestReloadsLeaveNothingBehind(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		app := c.app(ehr)
		app.expect(200)
		c.issuer("new.json")
		change := func() {
			back := c.edit("services:\n", "services:\n"+c.labService(), "leeway: 0s", "leeway: 1s")
			reloadAll(all)
			back()
			reloadAll(all)
		}
		c.edit("{roles: roles}}", "{roles: roles}, leeway: 0s}")
		for range 5 {
			change()
		}
		goroutines, files := usage(t)
		for range 100 / len(all) { // two hundred changes of one role each, at least
			change()
		}
		deadline := time.Now().Add(patience)
		for {
			g, f := usage(t)
			// What is retired is closed after some seconds; of each change one verifier waits for that.
			if g <= goroutines+10 && f <= files+10 {
				t.Logf("%d goroutines and %d files, before %d and %d", g, f, goroutines, files)
				break
			}
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines and %d files, before %d and %d\n%s", g, f, goroutines, files, buf[:runtime.Stack(buf, true)])
			}
			runtime.Gosched()
		}
		app.expect(200)
	})
}

func usage(t *testing.T) (goroutines, files int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(fds)
}

// Calls go on while config changes all the time, from several sides at once, and none fails.
func TestCallsGoOnWhileConfigChanges(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		app := c.app(ehr)
		app.expect(200)
		var configs []*config.Config
		for _, text := range []string{c.text(), strings.Replace(c.text(), "services:\n", "services:\n"+c.labService(), 1)} {
			c.put("etc/ward.yaml", text)
			configs = append(configs, c.config())
		}
		stop, called := make(chan struct{}), make(chan struct{}, 1)
		var changes, calls sync.WaitGroup
		for _, r := range all {
			for range 2 { // two at a time
				changes.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						case <-called:
						}
						if err := r.Reload(context.Background(), configs[i%2]); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		for range 4 {
			calls.Go(func() {
				app := c.app(ehr)
				defer app.http.CloseIdleConnections()
				for range 100 {
					if status, _, err := app.get(ehr, "Patient/a"); status != 200 || err != nil {
						t.Errorf("%d %v", status, err)
						return
					}
					select {
					case called <- struct{}{}:
					default:
					}
				}
			})
		}
		calls.Wait()
		close(stop)
		changes.Wait()
	})
}

// A call meets one state of config, never the policies of one and the bindings of another: under either state the token
// gets the same answer, and under a mixture it would not.
func TestCallsMeetOneConfig(t *testing.T) {
	c := newClinic(t)
	// State A: client test is /app/test's, and physicians may read. State B: it is /app/other's, and nobody may.
	r := c.start(config.RoleRun)
	a := c.config()
	other := filepath.Join(c.dir, "etc", "policy-b")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	c.put("etc/policy-b/b.cedar", `@id("none") forbid (principal, action, resource);`+"\n")
	c.edit("workloads: [/app/test]}", "workloads: [/app/other]}", "dir: policy", "dir: policy-b")
	b := c.config()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if err := r.Reload(context.Background(), []*config.Config{b, a}[i%2]); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	app := c.app(ehr)
	for range 400 {
		status, decision, err := app.get(ehr, "Patient/a")
		if err != nil {
			t.Error(err)
			break
		}
		if status == 200 {
			continue
		}
		rec := r.await("the refusal", func(r *proxy.Record) bool {
			return r.Hop == proxy.HopIngress && (r.Decision == decision || r.Peer == decision)
		})
		if rec.Cause != proxy.CauseTokenBinding { // policy would be met only with the bindings of the other state
			t.Errorf("%d: %+v", status, rec)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// A change that waits for what does not come neither stops the daemon's end nor leaves anything.
func TestReloadDuringTheEnd(t *testing.T) {
	c := newClinic(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	agent, egress, ingress := c.apart()
	app := c.app(ehr)
	app.expect(200)
	resp, err := app.open(ehr, "Patient/slow")
	if err != nil {
		t.Fatal(err)
	}
	c.edit("services:\n", "services:\n"+c.labService())
	ingress.end() // it drains, and waits for the call
	var s admin.Status
	for admin.Get(t.Context(), ingress.config.AdminSocket(config.RoleIngress), "/status", &s) == nil {
		if err := ingress.reload(); err != nil {
			if !strings.Contains(err.Error(), "shutting down") {
				t.Errorf("%v", err)
			}
			break
		}
	}
	c.upstream.finish <- struct{}{}
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(body), "}") {
		t.Errorf("%q %v", body, err)
	}
	_ = resp.Body.Close()
	app.http.CloseIdleConnections()
	ingress.stop()
	egress.stop()
	agent.stop()
}
