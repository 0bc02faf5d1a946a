package proxy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	logged "go.uber.org/zap/zaptest/observer"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
)

// Services are replaced whole, or not at all.
func TestRoutes(t *testing.T) {
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: proxy.Tables()})
	if err != nil {
		t.Fatal(err)
	}
	routes := proxy.NewRoutes(db)
	load := func(commit bool, services ...*proxy.Service) {
		txn := db.Txn(true)
		if err := proxy.LoadServices(txn, services); err != nil {
			t.Fatal(err)
		}
		if !commit {
			txn.Abort()
			return
		}
		txn.Commit()
	}
	ehr, lab := &proxy.Service{Name: "fhir.ehr.mesh.internal"}, &proxy.Service{Name: "fhir.lab.mesh.internal"}
	load(true, lab, ehr)
	if routes.Service("fhir.ehr.mesh.internal") != ehr || routes.Service("fhir.lab.mesh.internal") != lab {
		t.Error("a service is not found")
	}
	for _, name := range []string{"", "fhir", "fhir.ehr.mesh.interna", "fhir.ehr.mesh.internal.", "FHIR.ehr.mesh.internal", "x.fhir.ehr.mesh.internal"} {
		if s := routes.Service(name); s != nil {
			t.Errorf("%q finds %s", name, s.Name)
		}
	}
	load(false)
	if d := cmp.Diff([]string{"fhir.ehr.mesh.internal", "fhir.lab.mesh.internal"}, routes.Names()); d != "" {
		t.Error(d)
	}
	load(true, lab)
	if routes.Service("fhir.ehr.mesh.internal") != nil || len(routes.Names()) != 1 {
		t.Error("a service that was removed is still found")
	}
}

// Whatever is loaded, in whatever order, a name finds what the last transaction that was committed has left.
func TestRoutesFollowTheTable(t *testing.T) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: proxy.Tables()})
		if err != nil {
			t.Fatal(err)
		}
		routes, want := proxy.NewRoutes(db), map[string]*proxy.Service{}
		for range 10 {
			next, list := map[string]*proxy.Service{}, []*proxy.Service{}
			for _, n := range names {
				switch rapid.SampledFrom([]string{"gone", "same", "new"}).Draw(t, n) {
				case "same":
					if s := want[n]; s != nil {
						next[n], list = s, append(list, s)
					}
				case "new":
					s := &proxy.Service{Name: n, Base: rapid.StringN(1, 8, -1).Draw(t, "base")}
					if old := want[n]; old != nil && old.Base == s.Base {
						s = old // equal ones keep their place
					}
					next[n], list = s, append(list, s)
				}
			}
			txn := db.Txn(true)
			if err := proxy.LoadServices(txn, list); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "commit") {
				txn.Commit()
				want = next
			} else {
				txn.Abort()
			}
			for _, n := range names {
				if got := routes.Service(n); got != want[n] {
					t.Fatalf("%s: %+v, want %+v", n, got, want[n])
				}
			}
		}
	})
}

// Operators get counts by cause and a line for each refusal, and neither holds what callers sent.
func TestMetrics(t *testing.T) {
	core, logs := logged.New(zap.DebugLevel)
	reg := prometheus.NewPedanticRegistry()
	m, err := proxy.NewMetrics(reg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	m.Call(proxy.HopIngress, serviceName, &proxy.Record{Effect: "allow", Status: 200, Micros: 1500, Patients: []string{"Zebra"}})
	m.Call(proxy.HopIngress, serviceName, &proxy.Record{Effect: "deny", Status: 403, Cause: proxy.CausePolicy, Detail: "Zebra", User: "Zebra",
		Patients: []string{"Zebra"}, Decision: someDecision, Caller: "spiffe://clinic.test/app/portal"})
	m.Call(proxy.HopEgress, serviceName, &proxy.Record{Status: 403})
	m.Defect(proxy.HopIngress, []byte("goroutine 1"))
	want := `
# HELP ward_calls_total Calls by hop, service, effect (allow, deny, error), cause and HTTP status.
# TYPE ward_calls_total counter
ward_calls_total{cause="",effect="allow",hop="ingress",service="fhir.ehr.mesh.internal",status="200"} 1
ward_calls_total{cause="",effect="relayed",hop="egress",service="fhir.ehr.mesh.internal",status="403"} 1
ward_calls_total{cause="policy",effect="deny",hop="ingress",service="fhir.ehr.mesh.internal",status="403"} 1
# HELP ward_defects_total Calls that ended because Ward itself failed.
# TYPE ward_defects_total counter
ward_defects_total{hop="ingress"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ward_calls_total", "ward_defects_total"); err != nil {
		t.Error(err)
	}
	if n := logs.FilterMessage("call refused").Len(); n != 1 || logs.Len() != 2 {
		t.Errorf("%d lines, %d of refusals", logs.Len(), n)
	}
	for _, e := range logs.All() {
		if contains(toJSON(e.ContextMap()), "Zebra") {
			t.Errorf("logged: %v", e.ContextMap())
		}
	}
	if _, err := proxy.NewMetrics(reg, zap.NewNop()); err == nil {
		t.Error("metrics were registered twice")
	}
}
