package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// counter is proxy.Metrics that also counts for `ward status`.
type counter struct {
	*proxy.Metrics
	allowed, refused, errors atomic.Int64
}

func newCounter(reg prometheus.Registerer, log *zap.Logger) (*counter, error) {
	m, err := proxy.NewMetrics(reg, log)
	return &counter{Metrics: m}, err
}

// Call implements proxy.Observer.
func (c *counter) Call(hop proxy.Hop, service string, r *proxy.Record) {
	c.Metrics.Call(hop, service, r)
	switch {
	case r.Effect == proxy.Allow.String() && hop == proxy.HopIngress:
		c.allowed.Add(1)
	case r.Effect == proxy.Deny.String():
		c.refused.Add(1)
	case r.Effect == proxy.EffectError:
		c.errors.Add(1)
	}
}

// witness counts and logs what happens to identities, and puts what was issued and lent into the trail. What any local process
// can cause as often as it likes, attestations and refusals, is counted and logged only.
type witness struct {
	log      *zap.Logger
	record   func(*proxy.Record)
	lendings *lendings
	attested *prometheus.CounterVec
	issued   *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newWitness(reg prometheus.Registerer, log *zap.Logger, record func(*proxy.Record)) *witness {
	w := &witness{
		log:      log,
		record:   record,
		lendings: newLendings(record, time.Now),
		attested: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_attestations_total", Help: "Attested processes, by what they asked for and whether an entry matched."}, []string{"want", "result"}),
		issued:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_svids_issued_total", Help: "Attempts to issue an SVID."}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ward_attestation_seconds", Help: "Attestation and matching.",
			Buckets: []float64{.00002, .00005, .0001, .0002, .0005, .001, .005, .05, .5}}),
	}
	reg.MustRegister(w.attested, w.issued, w.seconds)
	return w
}

// watchers are gauges of the parts that keep no metrics of their own.
func (d *Daemon) watchers() {
	gauge := func(name, help string, value func() float64) {
		d.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("ward_peers_held", "Local processes that are pinned.", func() float64 { return float64(d.pinner.Status().Held) })
	gauge("ward_peers_exec_events", "1 while the kernel tells of each exec; 0 while processes are looked at in turn instead.",
		func() float64 { return yes(d.pinner.Status().ExecEvents) })
	if s, apart := d.borrower().(*strangers); apart {
		gauge("ward_agent_away", "1 while the agent does not answer egress.", func() float64 { return yes(s.client.Status().Away) })
		gauge("ward_loans", "Identities that egress has borrowed, those kept for a while included.", func() float64 { return float64(s.client.Status().Lines) })
	}
}

func (d *Daemon) borrower() borrower {
	if d.egress == nil {
		return nil
	}
	return d.egress.callers
}

// Attested implements workload.Observer.
func (w *witness) Attested(v workload.Visit) {
	w.attested.WithLabelValues(v.Want.String(), "matched").Inc()
	w.seconds.Observe(v.Took.Seconds())
	w.lendings.see(v)
}

// Issued implements workload.Observer.
func (w *witness) Issued(i workload.Issuance) {
	if i.Err != nil {
		w.issued.WithLabelValues("failed").Inc()
		w.log.Warn("an SVID could not be issued", zap.Stringer("id", i.ID), zap.Error(i.Err))
		return
	}
	w.issued.WithLabelValues("ok").Inc()
	what := "svid issued"
	if i.Lent {
		what = "svid lent" // to this host's proxy, for one of the workload's processes
	}
	w.record(&proxy.Record{Event: what, Caller: i.ID.String(), Detail: "serial " + i.Serial + " until " + i.NotAfter.UTC().Format(time.RFC3339)})
	w.log.Info("SVID issued", zap.Stringer("id", i.ID), zap.String("serial", i.Serial), zap.Bool("lent", i.Lent), zap.Time("not_after", i.NotAfter))
}

// Refused implements workload.Observer.
func (w *witness) Refused(v workload.Visit, r *workload.Refusal) {
	if errors.Is(r, peer.ErrClosed) {
		return // the connection has come to its ordinary end, and this side has let go of the process
	}
	w.attested.WithLabelValues(v.Want.String(), "refused").Inc()
	w.log.Info("no identity for a process", zap.Int("pid", v.PID), zap.Uint32("uid", v.UID), zap.String("reference", r.Reference),
		zap.Stringer("selectors", r.Attestation.Selectors), zap.Error(r.Err))
}

// expiresSoon is how far ahead the end of what does not renew itself is worth an operator's attention.
const expiresSoon = 30 * 24 * time.Hour

// Status implements admin.Source.
func (d *Daemon) Status(context.Context) admin.Status {
	cfg := d.config()
	s := admin.Status{Schema: admin.StatusSchema, Host: d.host, TrustDomain: cfg.TrustDomain.Name(), Version: d.o.Version, Started: d.started,
		Role: string(d.o.Role), Config: cfg.Digest(), Mode: "enforce", Problems: []string{},
		Calls: admin.Calls{Allowed: d.calls.allowed.Load(), Refused: d.calls.refused.Load(), Errors: d.calls.errors.Load()}}
	if why := d.refused.Load(); why != nil {
		s.Problems = append(s.Problems, "the config on disk is not in force: "+*why)
	}
	if d.authority != nil {
		d.tellIdentities(&s)
		d.tellAuthority(&s)
	}
	for _, svc := range cfg.Services {
		told := admin.Service{Name: svc.Name}
		if svc.Listen.IsValid() {
			told.Listen = svc.Listen.String()
		}
		if svc.Mode == config.ModeObserve && time.Now().Before(svc.ObserveUntil) {
			told.Observes, s.Mode = svc.ObserveUntil, "observe"
		}
		s.Services = append(s.Services, told)
	}
	if d.ingress != nil {
		d.tellIssuers(&s)
	}
	if b, apart := d.borrower().(*strangers); apart && b.client.Status().Away {
		s.Problems = append(s.Problems, "the agent does not answer on "+cfg.Agent.Broker+": new local callers wait, and those that are known go on until their SVIDs end")
	}
	kept := d.desk.trail()
	if kept == nil {
		s.Audit = admin.Audit{Dir: cfg.Trail(d.o.Role), Second: cfg.SecondTrail(d.o.Role), Folded: d.budget.Folded()}
		s.Problems = append(s.Problems, "the audit log is changing hands to another process of this role")
		return s
	}
	trail := kept.Status()
	s.Audit = admin.Audit{Records: trail.First.Records, Dir: cfg.Trail(d.o.Role), Second: cfg.SecondTrail(d.o.Role), SecondInUse: trail.Away,
		ReserveInUse: cfg.Audit.Reserve > 0 && trail.First.Reserve < cfg.Audit.Reserve, Folded: d.budget.Folded()}
	if slow := trail.First.Latency; slow > time.Second {
		s.Problems = append(s.Problems, fmt.Sprintf("the disk of the audit log is slow: a write has taken %s, and every call waits for one", slow.Round(time.Millisecond)))
	}
	if err := trail.Err(); err != nil {
		s.Audit.Error = err.Error()
		s.Problems = append(s.Problems, fmt.Sprintf("the audit log takes no records, so no call is served: %v", err))
	} else if trail.Away {
		s.Problems = append(s.Problems, fmt.Sprintf("the second audit log stands in for the first: %v", trail.First.Err))
	}
	return s
}

func (d *Daemon) tellIdentities(s *admin.Status) {
	entries, _ := d.entries.Entries()
	s.Identity = admin.Identity{Entries: len(entries), Renewals: "working"}
	s.Authority = admin.Authority{Kind: "embedded", Issuance: "ok"}
	holding := map[string]bool{}
	for _, st := range d.held() {
		if st.NotAfter.IsZero() && st.LastErr == nil {
			continue
		}
		holding[st.Entry] = true
		if !st.NotAfter.IsZero() && (s.Identity.EarliestEnd.IsZero() || st.NotAfter.Before(s.Identity.EarliestEnd)) {
			s.Identity.EarliestEnd = st.NotAfter
		}
		if st.LastErr != nil {
			s.Identity.Renewals = "failing"
			s.Authority.Issuance = "failing"
			s.Problems = append(s.Problems, fmt.Sprintf("the SVID of %s cannot be renewed: %v", st.ID, st.LastErr))
		}
	}
	s.Identity.Workloads = len(holding)
}

// held is the state of every SVID in use.
func (d *Daemon) held() []workload.Status {
	var out []workload.Status
	for _, s := range []*workload.Service{d.identities, d.selves} {
		if s != nil {
			out = append(out, s.Status()...)
		}
	}
	return out
}

func (d *Daemon) tellIssuers(s *admin.Status) {
	tokens := d.ingress.rules.Load().tokens
	if tokens == nil {
		return
	}
	for _, i := range tokens.Status() {
		state := fmt.Sprintf("ok, %d keys", i.Keys)
		if i.Keys == 0 {
			state = "no keys yet: its tokens are refused"
			s.Problems = append(s.Problems, i.Issuer+": no keys yet, its tokens are refused")
		}
		if i.Err != nil {
			state += "; last refresh failed: " + i.Err.Error()
			s.Problems = append(s.Problems, fmt.Sprintf("%s: the keys cannot be refreshed: %v", i.Issuer, i.Err))
		}
		s.Issuers = append(s.Issuers, admin.Issuer{Issuer: i.Issuer, State: state})
	}
}

// Entries implements admin.Source.
func (d *Daemon) Entries(context.Context) admin.Entries {
	held := map[string]admin.Entry{}
	for _, st := range d.held() {
		e := held[st.Entry]
		e.Holders += st.Holders
		// The workload's own SVID says more than one that is lent to the proxy for a few minutes.
		if !st.Lent || e.NotAfter.IsZero() {
			e.NotAfter, e.Renews = st.NotAfter, st.Renewal
		}
		if st.LastErr != nil {
			e.Error = st.LastErr.Error()
		}
		held[st.Entry] = e
	}
	out := admin.Entries{Schema: admin.EntriesSchema, Entries: []admin.Entry{}}
	entries, _ := d.entries.Entries()
	for _, e := range entries {
		a := held[e.Name]
		a.Name, a.ID, a.Proxy = e.Name, e.ID.String(), e.Proxy
		for _, s := range e.Selectors {
			a.Selectors = append(a.Selectors, s.String())
		}
		out.Entries = append(out.Entries, a)
	}
	return out
}
