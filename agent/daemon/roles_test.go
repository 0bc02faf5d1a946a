package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/proxy"
)

// apart starts the three roles of a host.
func (c *clinic) apart(changes ...func(*daemon.Options)) (agent, egress, ingress *running) {
	c.Helper()
	agent = c.start(config.RoleAgent, changes...)
	ingress = c.start(config.RoleIngress, changes...)
	egress = c.start(config.RoleEgress, changes...)
	return agent, egress, ingress
}

// Three processes' worth of Ward serve a call; each has its own socket, trail and word in it.
func TestRolesApartServeACall(t *testing.T) {
	c := newClinic(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	agent, egress, ingress := c.apart()
	app := c.app(ehr)
	decision := app.expect(200)
	left := egress.await("the call", func(r *proxy.Record) bool { return r.Decision == decision || r.Peer == decision })
	came := ingress.await("the call", func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })
	if left.Hop != proxy.HopEgress || came.Hop != proxy.HopIngress || left.Caller != "spiffe://clinic.test/app/test" || came.Caller != left.Caller ||
		came.User != "dr.lee" || !strings.Contains(left.Process, "uid ") {
		t.Errorf("egress %+v\ningress %+v", left, came)
	}
	agent.await("the loan", func(r *proxy.Record) bool { return r.Event == "svid lent" && r.Caller == left.Caller })
	digest := c.config().Digest()
	for _, d := range []*running{agent, egress, ingress} {
		s := d.status()
		if s.Role != string(d.role) || s.Config != digest || !s.Healthy() || s.Audit.Dir != filepath.Join(c.dir, "state", string(d.role), "audit") {
			t.Errorf("%s: %+v", d.role, s)
		}
		if _, err := os.Stat(s.Audit.Dir); err != nil {
			t.Error(err)
		}
	}
	counted := ingress.until("the call is counted", func(s admin.Status) bool { return s.Calls.Allowed > 0 }) // which follows its record
	if a, e, i := agent.status(), egress.status(), counted; a.Authority.Kind != "embedded" || e.Authority.Kind != "" || i.Authority.Kind != "" ||
		len(i.Issuers) != 1 || len(e.Issuers) != 0 || i.Calls.Allowed != 1 {
		t.Errorf("a role tells of what is another's: %+v\n%+v\n%+v", a, e, i)
	}
	app.http.CloseIdleConnections()
	egress.stop()
	ingress.stop()
	agent.stop()
	for _, s := range []string{"agent/workload.sock", "agent/broker.sock", "agent/admin.sock", "egress/admin.sock", "egress/" + ehr + ".sock", "ingress/admin.sock"} {
		if _, err := os.Lstat(filepath.Join(c.dir, "run", s)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left behind: %v", s, err)
		}
	}
}

// A process that no entry matches is told so; egress's trail has the decision, and where the agent's log knows more.
func TestRolesApartRefuseAProcessWithoutAnEntry(t *testing.T) {
	c := newClinic(t)
	for _, apart := range []bool{true, false} {
		c.edit("unix.uid: "+itoa(os.Getuid())+"}, proxy", "unix.uid: 4000000}, proxy")
		var egress *running
		var stops []func()
		if apart {
			agent, e, ingress := c.apart()
			egress, stops = e, []func(){e.stop, ingress.stop, agent.stop}
		} else {
			egress = c.start(config.RoleRun)
			stops = []func(){egress.stop}
		}
		app := c.app(ehr)
		decision := app.expect(401)
		r := egress.await("the refusal", func(r *proxy.Record) bool { return r.Decision == decision })
		if r.Stage != proxy.StageRefusal || r.Cause != proxy.CauseNoIdentity || r.Caller != "" || !strings.Contains(r.Process, "uid "+itoa(os.Getuid())) {
			t.Errorf("%+v", r)
		}
		if want := map[bool]string{true: "the agent's log has its selectors under ", false: "unix.uid"}[apart]; !strings.Contains(r.Detail, want) {
			t.Errorf("the detail does not say %q: %s", want, r.Detail)
		}
		if len(c.upstream.calls) > 0 {
			t.Error("the FHIR server was asked")
		}
		app.http.CloseIdleConnections()
		for _, stop := range stops {
			stop()
		}
		c.edit("unix.uid: 4000000}, proxy", "unix.uid: "+itoa(os.Getuid())+"}, proxy")
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
