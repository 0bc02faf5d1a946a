package daemon_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/proxy"
)

// The end lets the calls that run end, takes no others, and leaves no socket; the next start finds everything as it was.
func TestDrain(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		app := c.app(ehr)
		app.expect(200)
		resp, err := app.open(ehr, "Patient/slow")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		front := all[len(all)-1] // whoever the application talks to ends first
		front.end()
		socket := filepath.Join(c.dir, "run/egress", ehr+".sock")
		for deadline := time.Now().Add(patience); ; {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				break
			}
			_ = conn.Close()
			if time.Now().After(deadline) {
				t.Fatal("connections are still taken")
			}
		}
		c.upstream.finish <- struct{}{}
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(body), `"slow"}`) {
			t.Errorf("the call that ran was cut: %q, %v", body, err)
		}
		_ = resp.Body.Close()
		front.stop()
		if got := front.events("stopped"); len(got) != 1 {
			t.Errorf("%q", got)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket was left: %v", err)
		}
		again := c.start(front.role)
		c.app(ehr).expect(200)
		again.stop()
	})
}

// Sockets that somebody else holds outlive a restart: who connects meanwhile waits, and is served.
func TestSocketsThatAreHandedOver(t *testing.T) {
	c := newClinic(t)
	socket := filepath.Join(c.dir, "run/egress", ehr+".sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	held := map[string]*os.File{}
	for _, at := range [][2]string{{"unix", socket}, {"tcp", c.ports[0]}} {
		l, err := net.Listen(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_ = l.Close()
		held[at[1]] = f
	}
	handed := func(o *daemon.Options) {
		o.Listeners = map[string]net.Listener{}
		for at, f := range held {
			l, err := net.FileListener(f)
			if err != nil {
				t.Fatal(err)
			}
			o.Listeners[at] = l
		}
	}
	r := c.start(config.RoleRun, handed)
	c.app(ehr).expect(200)
	// A service that leaves the config and comes back finds its sockets again.
	back := c.edit("services:\n", "services: []\nleft:\n")
	gone := strings.SplitAfter(c.text(), "services: []\n")[0]
	c.put("etc/ward.yaml", gone)
	r.mustReload()
	back()
	r.mustReload()
	c.app(ehr).settle(ehr)
	for range 3 {
		r.stop()
		waiting := make(chan error, 1)
		app := c.app(ehr)
		go func() {
			status, _, err := app.get(ehr, "Patient/a")
			if err == nil && status != 200 {
				err = errors.New("refused")
			}
			waiting <- err
		}()
		r = c.start(config.RoleRun, handed)
		if err := <-waiting; err != nil {
			t.Errorf("who waited was not served: %v", err)
		}
	}
}

// impostor is what stands where the FHIR server should: it counts what reaches it.
type impostor struct{ got chan int }

func impersonate(tb testing.TB, l net.Listener) *impostor {
	i := &impostor{make(chan int, 64)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				n, _ := io.Copy(io.Discard, conn)
				i.got <- int(n)
				_ = conn.Close()
			}()
		}
	}()
	tb.Cleanup(func() { _ = l.Close() })
	return i
}

// A process of another user at the FHIR server's address gets not one byte.
func TestUpstreamOfAnotherUser(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			c := newClinic(t)
			address := c.ports[2]
			word := address
			if network == "unix" {
				address = filepath.Join(c.dir, "squat.sock")
				word = "unix:" + address
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			i := impersonate(t, l)
			c.edit("upstream: {address: 'unix:"+c.dir+"/fhir.sock'}", "upstream: {address: '"+word+"', process: {uid: 4000002}}")
			r := c.start(config.RoleRun)
			d := c.app(ehr).expect(502)
			rec := r.await("the refusal", func(r *proxy.Record) bool {
				return r.Hop == proxy.HopIngress && (r.Decision == d || r.Peer == d) && r.Cause != ""
			})
			if rec.Cause != proxy.CauseUpstreamPeer || !strings.Contains(rec.Detail, "4000002") {
				t.Errorf("%+v", rec)
			}
			if n := <-i.got; n != 0 {
				t.Errorf("%d bytes reached the impostor", n)
			}
		})
	}
}

// squatter is the other user's side of TestUpstreamTakenByAnotherUser, which this test's binary plays.
const squatter = "WARD_TEST_SQUAT"

func TestMain(m *testing.M) {
	if address := os.Getenv(squatter); address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("listening\n")
		conn, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		if n, _ := io.Copy(io.Discard, conn); n > 0 {
			os.Exit(3)
		}
		os.Exit(0)
	}
	syscall.Umask(0o022)
	os.Exit(m.Run())
}

// The same with the users as they are: root's FHIR server is down, and nobody has taken its port.
func TestUpstreamTakenByAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: a process of another user needs root")
	}
	c := newClinic(t)
	dir, err := os.MkdirTemp("", "squat")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "squat")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(binary, self, 0o755)); err != nil { //nolint:gosec // the other user runs it
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = []string{squatter + "=" + c.ports[2]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("listening\n"))); err != nil {
		t.Fatal(err)
	}
	c.edit("upstream: {address: 'unix:"+c.dir+"/fhir.sock'}", "upstream: {address: '"+c.ports[2]+"', process: {uid: 0}}")
	r := c.start(config.RoleRun)
	d := c.app(ehr).expect(502)
	rec := r.await("the refusal", func(r *proxy.Record) bool {
		return r.Hop == proxy.HopIngress && (r.Decision == d || r.Peer == d) && r.Cause != ""
	})
	if rec.Cause != proxy.CauseUpstreamPeer || !strings.Contains(rec.Detail, "65534") {
		t.Errorf("%+v", rec)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the squatter was told something: %v", err)
	}
}

// While the agent is away connections go on and new ones wait; who was denied meanwhile is refused when it is back.
func TestAgentAway(t *testing.T) {
	c := newClinic(t)
	agent, egress, ingress := c.apart()
	old := c.app(ehr)
	old.expect(200)
	agent.stop()
	for range 5 {
		old.expect(200)
	}
	waiting := make(chan int, 1)
	go func() {
		status, _, err := c.app(ehr).get(ehr, "Patient/a")
		if err != nil {
			status = -1
		}
		waiting <- status
	}()
	agent = c.start(config.RoleAgent)
	if status := <-waiting; status != 200 {
		t.Errorf("who came while the agent was away got %d", status)
	}
	old.expect(200)

	agent.stop()
	c.edit("trust_domain: clinic.test\n", "trust_domain: clinic.test\ndeny: [/app/test]\n")
	go func() {
		status, _, err := c.app(ehr).get(ehr, "Patient/a")
		if err != nil {
			status = -1
		}
		waiting <- status
	}()
	agent = c.start(config.RoleAgent) // the proxies have not read the new config: the agent's word is enough
	if status := <-waiting; status != 403 {
		t.Errorf("who was denied while the agent was away got %d", status)
	}
	egress.stop()
	ingress.stop()
	agent.stop()
}

// What a service that is observed would refuse goes through, and is recorded as that.
func TestObservedService(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		c.put("etc/policy/a.cedar", `@id("none") forbid (principal, action, resource);`+"\n")
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		c.edit("max_exchange: 1m,", "max_exchange: 1m, mode: observe, observe_until: "+until+",")
		reloadAll(all)
		app := c.app(ehr)
		app.expect(200)
		r := ingressOf(all)
		rec := r.await("what enforcing would do", func(r *proxy.Record) bool { return r.Would != nil })
		if rec.Would.Cause != proxy.CausePolicy || rec.Would.Status != 403 || rec.Effect != "allow" {
			t.Errorf("%+v %+v", rec, rec.Would)
		}
		if s := r.status(); s.Mode != "observe" || s.Services[0].Observes.IsZero() {
			t.Errorf("%+v", s)
		}
		c.edit("mode: observe, observe_until: "+until+",", "mode: enforce,")
		reloadAll(all)
		app.expect(403)
		if s := r.status(); s.Mode != "enforce" {
			t.Errorf("%+v", s)
		}
	})
}
