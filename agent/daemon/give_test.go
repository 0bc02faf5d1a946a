package daemon_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/agent/handover"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// replace starts a process's worth of Ward that takes the place of one that runs.
func (c *clinic) replace(r *running, version string) *running {
	c.Helper()
	p, err := daemon.Precede(c.config(), r.role, version)
	if err != nil {
		c.Fatal(err)
	}
	return c.start(r.role, func(o *daemon.Options) { o.Predecessor, o.Version = p, version })
}

// answers waits until the role's status has a version. Whoever asks in the very moment of a change may be cut off.
func (r *running) answers(version string) {
	r.clinic.Helper()
	deadline, pause := time.Now().Add(patience), time.NewTicker(2*time.Millisecond)
	defer pause.Stop()
	for {
		var s admin.Status
		err := admin.Get(r.clinic.Context(), r.config.AdminSocket(r.role), "/status", &s)
		if err == nil && s.Version == version && s.Healthy() {
			return
		}
		if time.Now().After(deadline) {
			r.clinic.Fatalf("%s is not healthy in version %s: %+v, %v", r.role, version, s, err)
		}
		<-pause.C
	}
}

// ended waits until a role ends by itself.
func (r *running) ended() {
	r.clinic.Helper()
	select {
	case <-r.done:
		if r.err != nil {
			r.clinic.Errorf("%s: %v", r.role, r.err)
		}
	case <-time.After(2 * patience):
		r.clinic.Fatalf("%s does not end", r.role)
	}
}

// Each hop is replaced twice under a call that runs: the call ends whole, and its outcome is in the trail, through the two
// that came after the one in which it began. The second logs go along.
func TestTakeOver(t *testing.T) {
	c := newClinic(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c.edit("reserve: 64KiB", "second: "+c.dir+"/second/audit, reserve: 64KiB")
	agent, egress, ingress := c.apart()
	app, slow := c.app(ehr), c.app(ehr)
	app.expect(200)
	resp, err := slow.open(ehr, "Patient/slow")
	if err != nil {
		t.Fatal(err)
	}
	decision := resp.Header.Get("Ward-Decision")
	old := []*running{egress, ingress}
	for _, version := range []string{"second", "third"} {
		ingress = c.replace(ingress, version)
		egress = c.replace(egress, version)
		for _, r := range []*running{egress, ingress} {
			r.answers(version)
		}
		app.expect(200)
		old = append(old, egress, ingress)
	}
	close(c.upstream.finish)
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(body), `"slow"`) {
		t.Errorf("%q %v", body, err)
	}
	app.http.CloseIdleConnections()
	slow.http.CloseIdleConnections()
	for _, r := range old[:4] {
		r.ended()
	}
	egress.stop()
	ingress.stop()
	agent.stop()
	if got := old[1].events("stopped"); len(got) != 1 || !strings.Contains(got[0], "replaced by second") {
		t.Errorf("the first says %q", got)
	}
	if got := ingress.events("started"); len(got) != 1 || !strings.Contains(got[0], "ward ingress third") || !strings.Contains(got[0], "in the place of second") {
		t.Errorf("the third says %q", got)
	}
	outcomes, stopped := 0, 0
	for e, err := range audit.Scan(t.Context(), c.config().Trail(config.RoleIngress), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if r := e.Record; r.Stage == proxy.StageOutcome && r.Complete && (r.Decision == decision || r.Peer == decision) {
			outcomes++
		}
		if e.Record.Event == "stopped" {
			stopped++
		}
	}
	if outcomes != 1 || stopped != 3 {
		t.Errorf("%d outcomes of the call that ran on, %d ends", outcomes, stopped)
	}
	for _, role := range []config.Role{config.RoleEgress, config.RoleIngress} {
		if _, err := os.Lstat(handover.Socket(c.config().Trail(role))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s leaves its door behind: %v", role, err)
		}
	}
	for _, s := range []string{"egress/admin.sock", "egress/" + ehr + ".sock", "ingress/admin.sock"} {
		if _, err := os.Lstat(filepath.Join(c.dir, "run", s)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left behind: %v", s, err)
		}
	}
}

// verified proves a log that is closed.
func verified(t *testing.T, dir string) *audit.Report {
	t.Helper()
	key, err := audit.LoadVerifier(audit.PublicFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Verify(t.Context(), dir, key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// origin is what a role's checkpoints are named.
func origin(t *testing.T, cfg *config.Config, role config.Role) string {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return cfg.TrustDomain.Name() + "/" + host + "/" + string(role)
}

// Whoever asks for a role's place and may not have it, or does not become ready, has changed nothing.
func TestGiverServesOn(t *testing.T) {
	c := newClinic(t)
	agent, egress, ingress := c.apart()
	app := c.app(ehr)
	app.expect(200)
	cfg := c.config()
	hello := handover.Message{Kind: handover.KindHello, Protocol: handover.Protocol, Role: "ingress", Version: "next",
		Trails: []string{cfg.Trail(config.RoleIngress), cfg.SecondTrail(config.RoleIngress)}}
	dial := func() *handover.Conn {
		conn, err := handover.Dial(handover.Socket(cfg.Trail(config.RoleIngress)))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// greet goes as far as the welcome.
	greet := func(m handover.Message) (conn *handover.Conn, sockets int, err error) {
		conn = dial()
		if err := conn.Send(m, nil); err != nil {
			t.Fatal(err)
		}
		for {
			m, f, err := conn.Receive()
			if err != nil || m.Kind == handover.KindWelcome {
				return conn, sockets, err
			}
			_ = f.Close()
			sockets++
		}
	}
	for _, bad := range []struct {
		why    string
		change func(*handover.Message)
	}{
		{"this is ingress, and not egress", func(m *handover.Message) { m.Role = "egress" }},
		{"hands over otherwise", func(m *handover.Message) { m.Protocol = 99 }},
		{"other folders for the audit log", func(m *handover.Message) { m.Trails = []string{"/elsewhere", ""} }},
		{`"take", where "hello" was to come`, func(m *handover.Message) { m.Kind = handover.KindTake }},
	} {
		m := hello
		bad.change(&m)
		conn, _, err := greet(m)
		var refused *handover.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Why, bad.why) {
			t.Errorf("%s: %v", bad.why, err)
		}
		_ = conn.Close()
		app.expect(200)
	}

	// It ends before it is ready.
	conn, sockets, err := greet(hello)
	if err != nil || sockets != 2 {
		t.Fatalf("%d sockets, %v", sockets, err)
	}
	_ = conn.Close()
	app.expect(200)

	// It ends after the trail was let go of for it, while a call waits for its record.
	release := func() *handover.Conn {
		conn, _, err := greet(hello)
		if err == nil {
			err = conn.Send(handover.Message{Kind: handover.KindTake}, nil)
		}
		if err == nil {
			_, err = conn.Expect(handover.KindReleased)
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn = release()
	called := make(chan error, 1)
	go func() {
		status, _, err := c.app(ehr).get(ehr, "Patient/a")
		if status != 200 {
			err = errors.Join(err, errors.New("it is not answered well"))
		}
		called <- err
	}()
	_ = conn.Close()
	if err := <-called; err != nil {
		t.Errorf("a call that waited for its record: %v", err)
	}
	app.expect(200)

	// It holds on to the trail: nobody serves without one. How the last call ended is to be told before: there would be
	// nobody to tell.
	for deadline := time.Now().Add(patience); len(open(t, cfg.Trail(config.RoleIngress))) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the last call's outcome is not in the trail")
		}
	}
	conn = release()
	trail, err := audit.OpenTrail(t.Context(), audit.Options{Dir: cfg.Trail(config.RoleIngress), Origin: origin(t, cfg, config.RoleIngress), MinFree: 1,
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}, "")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	app.expect(503)
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		if status, _, err := app.get(ehr, "Patient/a"); err == nil && status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the trail is not taken back")
		}
	}
	// And after all that a good one is let in.
	next := c.replace(ingress, "good")
	app.expect(200)
	ingress.ended()
	app.http.CloseIdleConnections()
	egress.stop()
	next.stop()
	agent.stop()
	r := verified(t, cfg.Trail(config.RoleIngress))
	if len(r.Presumed) > 0 || r.Unfinished > 0 || len(r.Aside) > 0 {
		t.Errorf("the trail: %+v", r)
	}
}

// open are the decisions of the intents in a trail that have no outcome.
func open(t *testing.T, dir string) map[string]bool {
	t.Helper()
	open := map[string]bool{}
	for e, err := range audit.Scan(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch e.Record.Stage {
		case proxy.StageIntent:
			open[e.Record.Decision] = true
		case proxy.StageOutcome:
			delete(open, e.Record.Decision)
		}
	}
	return open
}

// What has taken a role's place and is then gone takes the old one's last records with it: their calls are presumed
// disclosed, and the old one ends.
func TestSuccessorIsGone(t *testing.T) {
	c := newClinic(t)
	agent, egress, ingress := c.apart()
	slow := c.app(ehr)
	resp, err := slow.open(ehr, "Patient/slow")
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.config()
	conn, err := handover.Dial(handover.Socket(cfg.Trail(config.RoleIngress)))
	if err != nil {
		t.Fatal(err)
	}
	say := func(kinds ...handover.Kind) {
		t.Helper()
		for _, k := range kinds {
			if err := conn.Send(handover.Message{Kind: k, Protocol: handover.Protocol, Role: "ingress", Trails: []string{cfg.Trail(config.RoleIngress), ""}}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	say(handover.KindHello, handover.KindTake, handover.KindOpen)
	for kind := handover.Kind(""); kind != handover.KindGo; {
		m, f, err := conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if f != nil {
			_ = f.Close()
		}
		kind = m.Kind
	}
	say(handover.KindServing)
	_ = conn.Close()
	close(c.upstream.finish)
	_, _ = io.Copy(io.Discard, resp.Body) // it may end whole or not
	_ = resp.Body.Close()
	slow.http.CloseIdleConnections()
	ingress.ended()
	egress.stop()
	agent.stop()
	if r := verified(t, cfg.Trail(config.RoleIngress)); len(r.Presumed) != 1 {
		t.Errorf("%d calls are presumed disclosed, want the one that ran", len(r.Presumed))
	}
}

// A FHIR server may have to call others before it can answer: as long as the ingress drains, the egress of the same
// process takes calls (linkerd2#10379).
func TestEgressOutlivesIngress(t *testing.T) {
	for _, role := range []config.Role{config.RoleRun, config.RoleProxy} {
		t.Run(string(role), func(t *testing.T) {
			c := newClinic(t)
			var agent *running
			if role != config.RoleRun {
				agent = c.start(config.RoleAgent)
			}
			r := c.start(role)
			slow, app := c.app(ehr), c.app(ehr)
			resp, err := slow.open(ehr, "Patient/slow")
			if err != nil {
				t.Fatal(err)
			}
			r.end()
			for deadline := time.Now().Add(patience); ; { // nothing announces that draining has begun
				conn, err := net.Dial("tcp", c.ports[0])
				if errors.Is(err, syscall.ECONNREFUSED) {
					break
				}
				if err == nil {
					_ = conn.Close()
				}
				if time.Now().After(deadline) {
					t.Fatal("the ingress goes on accepting")
				}
			}
			// This host's own ingress is closed by now; that it is the egress which says so is what counts.
			status, decision, err := app.get(ehr, "Patient/a")
			if err != nil || status < 500 || decision == "" {
				t.Errorf("a local call while the ingress drains: %d %q %v", status, decision, err)
			}
			app.http.CloseIdleConnections()
			close(c.upstream.finish)
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || !strings.Contains(string(body), `"slow"`) {
				t.Errorf("the call that ran: %q %v", body, err)
			}
			slow.http.CloseIdleConnections()
			r.stop()
			if agent != nil {
				agent.stop()
			}
		})
	}
}
