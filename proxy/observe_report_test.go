package proxy_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// However many workloads, causes and users there are, the report counts every call and stays within its bounds.
func TestObserveReportIsBounded(t *testing.T) {
	const n = 300_000
	r := proxy.NewObserveReport()
	for i := range n {
		r.Add(&proxy.Record{Hop: proxy.HopIngress, Stage: proxy.StageOutcome, Observed: true, Service: serviceName, Effect: "allow", Status: 200,
			Caller: "spiffe://clinic.test/app/" + strconv.Itoa(i%6000), User: strconv.Itoa(i), Time: time.Unix(int64(i), 0), Decision: strconv.Itoa(i),
			Would: &proxy.Would{Effect: "deny", Cause: proxy.CausePolicy, Status: 403}})
	}
	s := r.Finish().Services[0]
	var calls int64
	users, folded := 0, false
	for _, f := range s.Findings {
		calls += f.Calls
		users += f.Users
		folded = folded || f.Workload == "" && f.AtLeast
	}
	if s.Calls != n || calls != n || s.Harmed != n || s.Enforce || len(s.Findings) > 5000 || users >= n || !folded {
		t.Errorf("%d calls, %d in %d findings, %d users", s.Calls, calls, len(s.Findings), users)
	}
	if s.Findings[0].Example != strconv.Itoa(n-1) && s.Findings[0].Workload != "" {
		t.Errorf("the first finding is %s", toJSON(s.Findings[0]))
	}
}

func TestWouldRefuseMetric(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m, err := proxy.NewMetrics(reg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*proxy.Would{nil, {Effect: proxy.EffectNarrow}, {Effect: proxy.EffectNarrow, Cause: proxy.CausePatient}, {Effect: "deny", Cause: proxy.CauseScope}, {Effect: "deny", Cause: proxy.CauseScope}} {
		m.Call(proxy.HopIngress, serviceName, &proxy.Record{Effect: "allow", Status: 200, Observed: true, Would: w})
	}
	want := `
# HELP ward_would_refuse_total Calls of observed services that enforcing would have refused, by the first cause, or would have narrowed (cause patient).
# TYPE ward_would_refuse_total counter
ward_would_refuse_total{cause="patient",service="fhir.ehr.mesh.internal"} 1
ward_would_refuse_total{cause="scope",service="fhir.ehr.mesh.internal"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ward_would_refuse_total"); err != nil {
		t.Error(err)
	}
}
