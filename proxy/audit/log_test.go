package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wardmesh/ward/proxy"
)

// Records that wait while the disk is busy share the next write and the next fdatasync.
func TestGroupCommit(t *testing.T) {
	o := testOptions(t)
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	mustAdd(t, l, refusal("warm"))
	gate := make(chan struct{})
	disk.set(func() { disk.gate, disk.atGate = gate, make(chan struct{}, 10) })
	before := disk.synced.Load()
	var receipts []proxy.Receipt
	for i := range 65 {
		r, err := l.Append(refusal(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
		if i == 0 {
			if err := r.Wait(canceled()); !errors.Is(err, context.Canceled) { // asks for the write, and leaves
				t.Fatal(err)
			}
			<-disk.atGate
		}
	}
	close(gate)
	for _, r := range receipts {
		if err := r.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if n := disk.synced.Load() - before; n != 2 {
		t.Errorf("65 records took %d syncs, want 2", n)
	}
}

// What nobody waits for is durable after FlushEvery, and signed after CheckpointEvery.
func TestTimers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(t)
		o.Dir = dir + "/audit"
		l := mustOpen(t, o)
		defer l.Close()
		if _, err := l.Append(&proxy.Record{Stage: proxy.StageEgress}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			after           time.Duration
			durable, signed int64
		}{{0, 0, 0}, {49 * time.Millisecond, 0, 0}, {2 * time.Millisecond, 1, 0}, {9 * time.Second, 1, 0}, {time.Second, 1, 1}} {
			time.Sleep(c.after)
			synctest.Wait()
			if s := l.Status(); s.Records != c.durable || s.Signed != c.signed {
				t.Errorf("after %v more: %d durable, %d signed; want %d and %d", c.after, s.Records, s.Signed, c.durable, c.signed)
			}
		}
	})
}

func TestRecordTooLong(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	if _, err := l.Append(&proxy.Record{Detail: strings.Repeat("x", MaxRecord)}); !errors.Is(err, ErrRecord) {
		t.Errorf("Append gave %v", err)
	}
	long := &proxy.Record{Detail: strings.Repeat("x", MaxRecord-200)}
	mustAdd(t, l, long, refusal("after"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := mustVerify(t, o); r.Records != 2 {
		t.Errorf("%d records", r.Records)
	}
}

func TestMetrics(t *testing.T) {
	o := testOptions(t)
	registry := o.Registerer.(*prometheus.Registry)
	l := mustOpen(t, o)
	mustAdd(t, l, refusal("a"), refusal("b"), &proxy.Record{Stage: proxy.StageEvent}, &proxy.Record{Stage: "dr.lee"})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, label := range m.Label {
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"ward_audit_records_total refusal": 2, "ward_audit_records_total event": 1, "ward_audit_records_total other": 1,
		"ward_audit_durable_records": 4, "ward_audit_failed": 0, "ward_audit_full": 0} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if families, err := registry.Gather(); err != nil || len(families) != 0 {
		t.Errorf("after Close there are %d metrics, %v", len(families), err)
	}
}
