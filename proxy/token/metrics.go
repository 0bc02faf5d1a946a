package token

import (
	"cmp"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts tokens and watches keys. Labels are issuers from config, causes and fixed words: nothing that
// a token says.
type metrics struct {
	registerer prometheus.Registerer
	registered []prometheus.Collector

	accepted *prometheus.CounterVec // issuer, from: cache or check
	refused  *prometheus.CounterVec // issuer ("" when unknown), cause
	readings *prometheus.CounterVec // issuer, result: ok or error
}

func newMetrics(r prometheus.Registerer, issuers map[string]*issuer) (*metrics, error) {
	m := &metrics{
		registerer: r,
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_tokens_accepted_total", Help: "Access tokens accepted, by issuer and by where their verification came from.",
		}, []string{"issuer", "from"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_tokens_refused_total", Help: "Access tokens refused, by issuer and cause.",
		}, []string{"issuer", "cause"}),
		readings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_issuer_key_readings_total", Help: "Attempts to read an issuer's keys, by result.",
		}, []string{"issuer", "result"}),
	}
	for _, is := range issuers {
		name := is.Issuer.Issuer
		is.cached, is.fresh = m.accepted.WithLabelValues(name, "cache"), m.accepted.WithLabelValues(name, "check")
		is.keys.good, is.keys.bad = m.readings.WithLabelValues(name, "ok"), m.readings.WithLabelValues(name, "error")
	}
	for _, c := range []prometheus.Collector{m.accepted, m.refused, m.readings, newKeyGauges(issuers)} {
		if err := r.Register(c); err != nil {
			m.close()
			return nil, err
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

func (m *metrics) refuse(issuer string, err error) {
	m.refused.WithLabelValues(issuer, string(cause(err))).Inc()
}

func (m *metrics) close() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
}

// keyGauges shows the issuers' keys as they are when asked.
type keyGauges struct {
	issuers    []*issuer
	keys, read *prometheus.Desc
}

func newKeyGauges(issuers map[string]*issuer) *keyGauges {
	return &keyGauges{
		issuers: sorted(issuers),
		keys:    prometheus.NewDesc("ward_issuer_keys", "Keys of the issuer that can verify tokens now.", []string{"issuer"}, nil),
		read:    prometheus.NewDesc("ward_issuer_keys_read_seconds", "When the issuer's keys were last read, in Unix time.", []string{"issuer"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (g *keyGauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- g.keys
	ch <- g.read
}

// Collect implements prometheus.Collector.
func (g *keyGauges) Collect(ch chan<- prometheus.Metric) {
	for _, is := range g.issuers {
		s := is.keys.status(is.Issuer.Issuer)
		ch <- prometheus.MustNewConstMetric(g.keys, prometheus.GaugeValue, float64(s.Keys), s.Issuer)
		if !s.Read.IsZero() {
			ch <- prometheus.MustNewConstMetric(g.read, prometheus.GaugeValue, float64(s.Read.Unix()), s.Issuer)
		}
	}
}

func sorted(issuers map[string]*issuer) []*issuer {
	return slices.SortedFunc(maps.Values(issuers), func(a, b *issuer) int { return cmp.Compare(a.Issuer.Issuer, b.Issuer.Issuer) })
}
