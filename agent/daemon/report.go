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

// witness counts and logs what happens to identities, and puts what was issued into the trail. What any local process
// can cause as often as it likes, attestations and refusals, is counted and logged only.
type witness struct {
	log      *zap.Logger
	record   func(*proxy.Record)
	attested *prometheus.CounterVec
	issued   *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newWitness(reg prometheus.Registerer, log *zap.Logger, record func(*proxy.Record)) *witness {
	w := &witness{
		log:      log,
		record:   record,
		attested: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_attestations_total", Help: "Attested processes, by what they asked for and whether an entry matched."}, []string{"want", "result"}),
		issued:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_svids_issued_total", Help: "Attempts to issue an SVID."}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ward_attestation_seconds", Help: "Attestation and matching.",
			Buckets: []float64{.00002, .00005, .0001, .0002, .0005, .001, .005, .05, .5}}),
	}
	reg.MustRegister(w.attested, w.issued, w.seconds)
	return w
}

// Attested implements workload.Observer.
func (w *witness) Attested(v workload.Visit) {
	w.attested.WithLabelValues(v.Want.String(), "matched").Inc()
	w.seconds.Observe(v.Took.Seconds())
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
	now := time.Now()
	s := admin.Status{Schema: admin.StatusSchema, Host: d.host, TrustDomain: d.cfg.TrustDomain.Name(), Version: d.o.Version, Started: d.started,
		Mode: "enforce", Problems: []string{}, Authority: admin.Authority{Kind: "embedded", Issuance: "ok"},
		Calls: admin.Calls{Allowed: d.calls.allowed.Load(), Refused: d.calls.refused.Load(), Errors: d.calls.errors.Load()}}
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }

	entries, _ := d.entries.Entries()
	s.Identity = admin.Identity{Entries: len(entries), Renewals: "working"}
	holding := map[string]bool{}
	for _, st := range append(d.identities.Status(), d.selves.Status()...) {
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
			problem("the SVID of %s cannot be renewed: %v", st.ID, st.LastErr)
		}
	}
	s.Identity.Workloads = len(holding)
	for _, ca := range d.authority.X509Bundle().X509Authorities() {
		if s.Authority.CAEnds.IsZero() || ca.NotAfter.After(s.Authority.CAEnds) {
			s.Authority.CAEnds = ca.NotAfter
		}
	}
	s.Expires = []admin.Expiring{{What: "the CA certificate", Ends: s.Authority.CAEnds}}
	if left := s.Authority.CAEnds.Sub(now); left < min(expiresSoon, d.cfg.Authority.CATTL/6) {
		problem("the CA certificate ends in %s", left.Round(time.Minute))
	}
	for _, svc := range services(d.cfg) {
		s.Services = append(s.Services, admin.Service{Name: svc.Name, Listen: svc.Listen})
	}
	if d.tokens != nil {
		for _, i := range d.tokens.Status() {
			state := fmt.Sprintf("ok, %d keys", i.Keys)
			if i.Keys == 0 {
				state = "no keys yet: its tokens are refused"
				problem("%s: no keys yet, its tokens are refused", i.Issuer)
			}
			if i.Err != nil {
				state += "; last refresh failed: " + i.Err.Error()
				problem("%s: the keys cannot be refreshed: %v", i.Issuer, i.Err)
			}
			s.Issuers = append(s.Issuers, admin.Issuer{Issuer: i.Issuer, State: state})
		}
	}
	trail := d.trail.Status()
	s.Audit = admin.Audit{Records: trail.Records, Dir: d.cfg.Audit.Dir}
	if trail.Err != nil {
		s.Audit.Error = trail.Err.Error()
		problem("the audit log takes no records, so no call is served: %v", trail.Err)
	}
	return s
}

// Entries implements admin.Source.
func (d *Daemon) Entries(context.Context) admin.Entries {
	held := map[string]admin.Entry{}
	for _, st := range append(d.identities.Status(), d.selves.Status()...) {
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
