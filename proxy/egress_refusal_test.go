package proxy_test

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// audited makes the world's egress anew, with changes.
func (w *world) audited(change func(*proxy.EgressOptions)) {
	o := w.egress.EgressOptions
	change(&o)
	w.egress = proxy.NewEgress(o)
}

// A process that gets no identity is named in the record of its refusal all the same, whether it may still speak or is
// cut off.
func TestRefusedProcessIsNamed(t *testing.T) {
	w := newWorld(t, setup{})
	const who = "pid 4711, uid 1001"
	nobody := w.process("/app/nobody", func(p *process) {
		p.refused = proxy.OfProcess(who, proxy.Refuse(proxy.CauseNoIdentity, "process matches no entry"))
	})
	a := send(t, w.dialEgress(nobody), request("GET /fhir/Patient/a", ""))
	w.checkRefusal(t, a, proxy.HopEgress, proxy.CauseNoIdentity)
	if r := w.trail.of(proxy.HopEgress, a.decision())[0]; r.Process != who {
		t.Errorf("%s", toJSON(r))
	}
	if contains(a.body, "1001") || contains(a.body, "4711") {
		t.Errorf("the caller is told: %s", a.body)
	}
	a = send(t, w.dialEgress(nobody), "junk\r\n\r\n") // not even a request
	if r := w.trail.of(proxy.HopEgress, a.decision())[0]; r.Process != who || r.Cause != proxy.CauseMalformed {
		t.Errorf("%s", toJSON(r))
	}

	cut := w.dialEgress(w.process("/app/nobody", func(p *process) { p.unknown = proxy.OfProcess("uid 1002", errGone) }))
	_, _ = io.ReadAll(cut)
	r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Cause == proxy.CausePeerChanged })[0]
	if r.Process != "uid 1002" || r.Stage != proxy.StageRefusal {
		t.Errorf("%s", toJSON(r))
	}
	if proxy.OfProcess(who, nil) != nil {
		t.Error("an error was made of none")
	}
}

// One user's refused processes, however many, leave the record of another user's alone.
func TestRefusalsOfOneUserLeaveAnothersBudget(t *testing.T) {
	w := newWorld(t, setup{})
	budget, err := audit.NewBudget(audit.BudgetOptions{Log: w.trail, PerMinute: 10, Window: time.Hour, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := budget.Close(); err != nil {
			t.Error(err)
		}
	})
	w.audited(func(o *proxy.EgressOptions) { o.Audit = budget })
	var conns []net.Conn
	for pid := range 100 { // a new pid is no new user
		conns = append(conns, w.dialEgress(w.process("/app/nobody", func(p *process) {
			p.refused = proxy.OfProcess(fmt.Sprintf("pid %d, uid 1001", 100+pid), proxy.Refuse(proxy.CauseNoIdentity, "no entry"))
		})))
	}
	for _, c := range conns {
		if a := send(t, c, request("GET /fhir/Patient/a", "")); a.status != 401 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	other := w.process("/app/nobody", func(p *process) {
		p.refused = proxy.OfProcess("pid 7, uid 1002", proxy.Refuse(proxy.CauseNoIdentity, "no entry"))
	})
	for range 10 {
		a := send(t, w.dialEgress(other), request("GET /fhir/Patient/a", ""))
		if got := w.trail.of(proxy.HopEgress, a.decision()); len(got) != 1 || got[0].Process != "pid 7, uid 1002" {
			t.Fatalf("a refusal of the other user's is not recorded: %s", toJSON(got))
		}
	}
	noisy := w.trail.await(t, 10, func(r *proxy.Record) bool { return contains(r.Process, "uid 1001") })
	if len(noisy) != 10 {
		t.Errorf("%d refusals of the first user were recorded one by one", len(noisy))
	}
}

// A defect in egress ends its call without an answer, and leaves a record that says so and nothing of the call's content.
func TestDefectInEgressIsRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		stage proxy.Stage
		apply func(*world)
	}{
		"before the call left": {proxy.StageRefusal, func(w *world) {
			w.audited(func(o *proxy.EgressOptions) { o.Services = brokenServices{} })
		}},
		"with the reply at hand": {proxy.StageEgress, func(w *world) {
			// The clock breaks once, as soon as ingress has let the call through.
			var broken atomic.Bool
			w.audited(func(o *proxy.EgressOptions) {
				o.Now = func() time.Time {
					if !broken.Load() && len(w.upstream.all()) > 0 {
						broken.Store(true)
						panic("Zebra4711")
					}
					return time.Now()
				}
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			c.apply(w)
			conn := w.dialEgress(w.portal)
			if _, err := io.WriteString(conn, request("GET /fhir/Patient/a", "", bearer(w.token()))); err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(conn)
			r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopEgress && r.Cause == proxy.CauseInternal })[0]
			if r.Stage != c.stage || r.Effect != proxy.EffectError || r.Decision == "" || r.Caller != w.portal.id.String() || r.Process == "" || contains(toJSON(r), "Zebra") {
				t.Errorf("%s", toJSON(r))
			}
			if all := w.trail.of(proxy.HopEgress, r.Decision); len(all) != 1 {
				t.Errorf("%d records of one call", len(all))
			}
			w.seen.mu.Lock()
			defer w.seen.mu.Unlock()
			if len(w.seen.defects) != 1 || !contains(w.seen.defects[0], "egress_refusal_test.go") {
				t.Errorf("the log does not say where: %s", w.seen.defects)
			}
			w.seen.defects = nil
		})
	}
}

// brokenServices is a directory with a defect.
type brokenServices struct{}

func (brokenServices) Service(string) *proxy.Service { panic("Zebra4711") }
