package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// A captured egress borrows in the name of processes that never called it, long after the SVID was issued that it gets:
// each of them is in the agent's trail.
func TestAttackLendingsLeaveTraces(t *testing.T) {
	var records []*proxy.Record
	now := time.Now()
	l := newLendings(func(r *proxy.Record) { records = append(records, r) }, func() time.Time { return now })
	entry := &workload.Entry{Name: "bridge", ID: spiffeid.RequireFromString("spiffe://clinic.test/app/bridge")}
	egress := &workload.Broker{PID: 50, UID: 7005}
	visit := func(pid int) workload.Visit {
		return workload.Visit{PID: pid, UID: 7002, Want: workload.LentSVIDs, Broker: egress, Entries: []*workload.Entry{entry}}
	}
	l.see(visit(100))
	l.see(visit(101)) // the same entry and SVID, another process
	l.see(visit(100)) // once more: a second connection
	if len(records) != 2 {
		t.Fatalf("%d records for two processes", len(records))
	}
	if r := records[1]; r.Caller != entry.ID.String() || r.Process != "pid 101, uid 7002" || !strings.Contains(r.Detail, "pid 50, uid 7005") {
		t.Errorf("%+v", r)
	}
	now = now.Add(lendingAgain)
	l.see(visit(100))
	now = now.Add(-time.Hour) // the clock is set back
	l.see(visit(100))
	if len(records) != 4 {
		t.Errorf("%d records, with time", len(records))
	}
	own := visit(102)
	own.Broker, own.Want = nil, workload.X509SVIDs // a process that asks for itself
	l.see(own)
	// More processes than are told apart: each is written down, and memory ends.
	records = nil
	for pid := range 3 * lendingsMost {
		l.see(visit(1000 + pid))
	}
	if len(records) != 3*lendingsMost || len(l.known) > lendingsMost {
		t.Errorf("%d records, %d known", len(records), len(l.known))
	}
}
