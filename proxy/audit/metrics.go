package audit

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wardmesh/ward/proxy"
)

// metrics are one log's. They say nothing of any record but its stage.
type metrics struct {
	registry   prometheus.Registerer
	collectors []prometheus.Collector

	intents, outcomes, refusals, egresses, events, others prometheus.Counter

	commits         prometheus.Histogram
	rotations, torn prometheus.Counter
	removed         prometheus.Counter
	size, signed    prometheus.Gauge
	failed, full    prometheus.Gauge
	cacheLost       prometheus.Gauge
	reserve         prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	records := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_audit_records_total",
		Help: "Records accepted by the audit log, by stage."}, []string{"stage"})
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		registry:  registry,
		intents:   records.WithLabelValues(string(proxy.StageIntent)),
		outcomes:  records.WithLabelValues(string(proxy.StageOutcome)),
		refusals:  records.WithLabelValues(string(proxy.StageRefusal)),
		egresses:  records.WithLabelValues(string(proxy.StageEgress)),
		events:    records.WithLabelValues(string(proxy.StageEvent)),
		others:    records.WithLabelValues("other"),
		rotations: prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_audit_rotations_total", Help: "Segments of the audit log that were completed."}),
		removed:   prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_audit_removed_segments_total", Help: "Segments of the audit log that were removed for their age or size."}),
		torn:      prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_audit_torn_bytes_total", Help: "Bytes left by interrupted writes that were moved aside when the audit log was opened."}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ward_audit_commit_seconds",
			Help: "Time to write and sync one batch of audit records.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16)}),
		size:      gauge("ward_audit_durable_records", "Records that are durable in the audit log."),
		signed:    gauge("ward_audit_signed_records", "Records that a signed checkpoint of the audit log covers."),
		failed:    gauge("ward_audit_failed", "1 while the audit log has failed and refuses everything until it could open itself anew."),
		reserve:   gauge("ward_audit_reserve_bytes", "Bytes that are allocated for the records of emergencies."),
		full:      gauge("ward_audit_full", "1 while the audit log refuses records because its disk has no room."),
		cacheLost: gauge("ward_audit_hashes_lost", "1 when the audit log's hashes file cannot be written; it is made again at the next start."),
	}
	m.collectors = []prometheus.Collector{records, m.rotations, m.removed, m.torn, m.commits, m.size, m.signed, m.failed, m.full, m.cacheLost, m.reserve}
	for i, c := range m.collectors {
		if err := registry.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, fmt.Errorf("audit: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		m.registry.Unregister(c)
	}
}

func (m *metrics) count(stage proxy.Stage) {
	switch stage {
	case proxy.StageIntent:
		m.intents.Inc()
	case proxy.StageOutcome:
		m.outcomes.Inc()
	case proxy.StageRefusal:
		m.refusals.Inc()
	case proxy.StageEgress:
		m.egresses.Inc()
	case proxy.StageEvent:
		m.events.Inc()
	default:
		m.others.Inc()
	}
}

func (m *metrics) setSize(durable, signed int64) {
	m.size.Set(float64(durable))
	m.signed.Set(float64(signed))
}
