package api

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	calls   *prometheus.CounterVec
	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, t *tenants) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_workload_api_calls_total", Help: "Calls that have ended, by method and gRPC status.",
		}, []string{"method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_workload_api_refused_connections_total", Help: "Connections closed before their first byte was read, by reason.",
		}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.refused,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ward_workload_api_connections", Help: "Open connections.",
		}, func() float64 { n, _ := t.counts(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ward_workload_api_streams", Help: "Calls under way.",
		}, func() float64 { _, n := t.counts(); return float64(n) }),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
