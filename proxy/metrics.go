package proxy

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Metrics counts calls and logs refusals. Its labels are services, hops, effects and causes: sets that config and
// Ward bound, never what a caller sent.
type Metrics struct {
	log     *zap.Logger
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	would   *prometheus.CounterVec
	defects *prometheus.CounterVec

	mu    sync.RWMutex
	found map[outcome]series
}

// outcome is how a call ended, as the labels have it.
type outcome struct {
	hop             Hop
	service, effect string
	cause           Cause
	status          int
}

// series are what a call of an outcome is counted by. There are as many as the vectors below have.
type series struct {
	calls   prometheus.Counter
	seconds prometheus.Observer
}

// NewMetrics registers the proxy's metrics.
func NewMetrics(reg prometheus.Registerer, log *zap.Logger) (*Metrics, error) {
	m := &Metrics{
		log: log, found: map[outcome]series{},
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_calls_total",
			Help: "Calls by hop, service, effect (allow, deny, error), cause and HTTP status."}, []string{"hop", "service", "effect", "cause", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ward_call_seconds",
			Help:    "Time from the request's head to the end of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}}, []string{"hop", "service", "effect"}),
		would: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_would_refuse_total",
			Help: "Calls of observed services that enforcing would have refused, by the first cause, or would have narrowed (cause patient)."},
			[]string{"service", "cause"}),
		defects: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_defects_total",
			Help: "Calls that ended because Ward itself failed."}, []string{"hop"}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds, m.would, m.defects} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Call counts r, and logs what was refused, or would have been: identifiers and causes only.
func (m *Metrics) Call(hop Hop, service string, r *Record) {
	effect := r.Effect
	if effect == "" {
		effect = "relayed" // egress: ingress has refused, and has counted why
	}
	s := m.series(outcome{hop, service, effect, r.Cause, r.Status})
	s.calls.Inc()
	s.seconds.Observe((time.Duration(r.Micros) * time.Microsecond).Seconds())
	if w := r.Would; w != nil && w.Cause != "" {
		m.would.WithLabelValues(service, string(w.Cause)).Inc()
		m.log.Info("call would be refused", zap.String("service", service), zap.String("decision", r.Decision), zap.String("caller", r.Caller),
			zap.String("effect", w.Effect), zap.String("cause", string(w.Cause)), zap.Int("status", w.Status))
	}
	if r.Cause == "" {
		return
	}
	m.log.Info("call refused", zap.String("hop", string(hop)), zap.String("service", service), zap.String("decision", r.Decision),
		zap.String("caller", r.Caller), zap.String("effect", effect), zap.String("cause", string(r.Cause)), zap.Int("status", r.Status))
}

// series finds what o is counted by.
func (m *Metrics) series(o outcome) series {
	m.mu.RLock()
	s, ok := m.found[o]
	m.mu.RUnlock()
	if ok {
		return s
	}
	// The vectors outlive the request whose strings these may be.
	o.service, o.effect = strings.Clone(o.service), strings.Clone(o.effect)
	s = series{m.calls.WithLabelValues(string(o.hop), o.service, o.effect, string(o.cause), strconv.Itoa(o.status)),
		m.seconds.WithLabelValues(string(o.hop), o.service, o.effect)}
	m.mu.Lock()
	m.found[o] = s
	m.mu.Unlock()
	return s
}

// Defect logs a panic by its stack; the panic's value may hold request data and is not logged.
func (m *Metrics) Defect(hop Hop, stack []byte) {
	m.defects.WithLabelValues(string(hop)).Inc()
	m.log.Error("a journey has failed; this is a defect in Ward", zap.String("hop", string(hop)), zap.ByteString("stack", stack))
}
