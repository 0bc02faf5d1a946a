package broker

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	calls   *prometheus.CounterVec
	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, p *places) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_broker_api_calls_total", Help: "Calls that have ended, by method and gRPC status.",
		}, []string{"method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ward_broker_api_refused_connections_total", Help: "Connections that were closed, or told no, by reason.",
		}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.refused,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ward_broker_api_connections", Help: "Open connections.",
		}, func() float64 { n, _ := p.counts(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ward_broker_api_streams", Help: "Calls under way.",
		}, func() float64 { _, n := p.counts(); return float64(n) }),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
