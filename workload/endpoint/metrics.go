package endpoint

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	calls   *prometheus.CounterVec
	refused *prometheus.CounterVec
	conns   prometheus.Gauge
	streams prometheus.Gauge
}

func newMetrics(o Options) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: o.Metrics + "_calls_total", Help: "Calls that have ended, by method and gRPC status.",
		}, []string{"method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: o.Metrics + "_refused_connections_total", Help: o.Refused,
		}, []string{"reason"}),
		conns:   prometheus.NewGauge(prometheus.GaugeOpts{Name: o.Metrics + "_connections", Help: "Open connections."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: o.Metrics + "_streams", Help: "Calls under way."}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.refused, m.conns, m.streams} {
		if err := o.Registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
