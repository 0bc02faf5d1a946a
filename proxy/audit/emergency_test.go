package audit

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

func TestEmergency(t *testing.T) {
	for _, c := range []struct {
		stage   proxy.Stage
		purpose string
		want    bool
	}{
		{proxy.StageIntent, "ETREAT", true}, {proxy.StageOutcome, "ETREAT", true}, {proxy.StageIntent, "BTG", true}, {proxy.StageOutcome, "BTG", true},
		{proxy.StageIntent, "TREAT", false}, {proxy.StageIntent, "", false}, {proxy.StageRefusal, "ETREAT", false}, {proxy.StageRefusal, "BTG", false},
		{proxy.StageEgress, "ETREAT", false}, {proxy.StageEvent, "BTG", false},
	} {
		if got := Emergency(&proxy.Record{Stage: c.stage, Purpose: c.purpose}); got != c.want {
			t.Errorf("%s of %q: %v", c.stage, c.purpose, got)
		}
	}
	for effect, want := range map[string]bool{"deny": false, "error": false, proxy.EffectNarrow: true} {
		if got := Emergency(&proxy.Record{Stage: proxy.StageIntent, Purpose: "BTG", Observed: true, Would: &proxy.Would{Effect: effect}}); got != want {
			t.Errorf("observed, would %s: %v", effect, got)
		}
	}
}

func emergency(decision string) *proxy.Record {
	return &proxy.Record{Stage: proxy.StageIntent, Time: testTime, Decision: decision, Caller: "spiffe://clinic.test/app/portal",
		Purpose: "ETREAT", Effect: "allow", Detail: strings.Repeat("x", 400)}
}

// add appends one record and waits for it.
func add(l proxy.Recorder, r *proxy.Record) error {
	receipt, err := l.Append(r)
	if err != nil {
		return err
	}
	return receipt.Wait(context.Background())
}

// fillUp appends until the log says that its disk is full.
func fillUp(t testing.TB, l proxy.Recorder, bytes int) (ids []string) {
	t.Helper()
	for {
		r := refusal(newDecision())
		r.Detail = strings.Repeat("y", bytes)
		switch err := add(l, r); {
		case errors.Is(err, ErrFull):
			return ids
		case err != nil:
			t.Fatal(err)
		}
		ids = append(ids, r.Decision)
	}
}

// On a full disk emergencies are recorded, and nothing else, until the reserve is used up; with room again it is whole
// again before anything ordinary is taken.
func TestReserve(t *testing.T) {
	o := testOptions(t)
	o.MinFree, o.Reserve = 1<<20, 256<<10
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	mustAdd(t, l, refusal("first"))
	path := filepath.Join(o.Dir, reserveName)
	whole := func() bool { return allocated(path, o.Reserve) && l.Status().Reserve == o.Reserve }
	if !whole() {
		t.Fatalf("the reserve has %d bytes", l.Status().Reserve)
	}
	disk.set(func() { disk.free = 1000 })
	want := append([]string{"first"}, fillUp(t, l, 2000)...)
	for {
		e := emergency(newDecision())
		if err := add(l, e); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		want = append(want, e.Decision)
		if err := add(l, refusal(newDecision())); !errors.Is(err, ErrFull) {
			t.Fatalf("an ordinary record: %v", err)
		}
	}
	if s := l.Status(); s.Reserve >= reserveStep || !errors.Is(s.Err, ErrFull) || s.Refused == 0 {
		t.Errorf("the status is %+v", s)
	}
	if n := len(want); n < 300 {
		t.Errorf("the reserve held %d records", n)
	}
	// Room for records, but not for the reserve.
	disk.set(func() { disk.free = o.MinFree + o.Reserve })
	for range 3 {
		if err := add(l, refusal(newDecision())); !errors.Is(err, ErrFull) {
			t.Fatalf("an ordinary record: %v", err)
		}
	}
	disk.set(func() { disk.free = 0 })
	for l.Err() != nil {
		_ = add(l, refusal("again"))
	}
	mustAdd(t, l, refusal("last"))
	if !whole() {
		t.Errorf("the reserve has %d bytes", l.Status().Reserve)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
	got := slices.DeleteFunc(decisions(t, o.Dir), func(id string) bool { return id == "again" })
	if !slices.Equal(got, append(want, "last")) {
		t.Errorf("the log holds %d records, want %d", len(got), len(want)+1)
	}
	gaps(t, o.Dir, 1)

	// A reserve that is no longer wanted is given back.
	o.Reserve, o.Registerer = 0, prometheus.NewRegistry()
	mustOpen(t, o)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// gaps reads the events with which the log went on.
func gaps(t testing.TB, dir string, want int) (all []Gap) {
	t.Helper()
	for e, err := range Scan(context.Background(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Event == EventResumed {
			var g Gap
			if err := json.Unmarshal(e.Record.Data, &g); err != nil {
				t.Fatal(err)
			}
			if g.Until.Before(g.Since) || g.Why == "" || g.Refused == 0 {
				t.Errorf("the gap is %+v", g)
			}
			all = append(all, g)
		}
	}
	if len(all) != want {
		t.Errorf("%d gaps, want %d", len(all), want)
	}
	return all
}

// Emergencies that were queued among ordinary records when the disk ran full are taken out of the reserve.
func TestEmergencyAmongOthers(t *testing.T) {
	o := testOptions(t)
	o.MinFree, o.Reserve = 1<<20, 256<<10
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	// Nearly all that was reserved ahead, so that the batch after it does not fit.
	big := refusal("big")
	big.Detail = strings.Repeat("z", MaxRecord-1000)
	mustAdd(t, l, big)
	disk.set(func() { disk.free = 1000 })
	var plain, urgent []proxy.Receipt
	for _, r := range []*proxy.Record{big, emergency("one"), big, emergency("two"), refusal("small")} {
		receipt, err := l.Append(r)
		if errors.Is(err, ErrFull) && !Emergency(r) {
			continue // the disk was found full by now
		}
		if err != nil {
			t.Fatal(err)
		}
		if Emergency(r) {
			urgent = append(urgent, receipt)
		} else {
			plain = append(plain, receipt)
		}
	}
	for _, r := range urgent {
		if err := r.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	}
	for _, r := range plain {
		if err := r.Wait(context.Background()); !errors.Is(err, ErrFull) {
			t.Errorf("an ordinary record: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
	if got := decisions(t, o.Dir); !slices.Equal(got, []string{"big", "one", "two"}) {
		t.Errorf("the log holds %v", got)
	}
}

// A log that failed goes on by itself once the disk answers again, in a new segment, and says what it missed.
func TestGoesOn(t *testing.T) {
	for name, fault := range map[string]func(*faultyDisk){
		"EIO on write":     func(d *faultyDisk) { d.write = unix.EIO },
		"EIO on fdatasync": func(d *faultyDisk) { d.sync = unix.EIO },
		"EROFS on write":   func(d *faultyDisk) { d.write = unix.EROFS },
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			o.Retry = time.Millisecond
			disk := &faultyDisk{}
			o.FS = disk
			l := mustOpen(t, o)
			mustAdd(t, l, refusal("before"))
			disk.set(func() { fault(disk) })
			if err := add(l, refusal("lost")); !errors.Is(err, ErrFailed) {
				t.Fatalf("a record gave %v", err)
			}
			for range 100 {
				if err := add(l, refusal("lost")); !errors.Is(err, ErrFailed) {
					t.Fatalf("a record gave %v", err)
				}
			}
			disk.set(func() { disk.write, disk.sync = nil, nil })
			for errors.Is(add(l, refusal("after")), ErrFailed) {
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if r := mustVerify(t, o); r.Segments != 2 {
				t.Errorf("%d segments", r.Segments)
			}
			ids := decisions(t, o.Dir)
			if ids[0] != "before" || ids[len(ids)-1] != "after" {
				t.Errorf("the log holds %v", ids)
			}
			if g := gaps(t, o.Dir, 1); len(g) == 1 && g[0].Refused < 101 {
				t.Errorf("the gap is %+v", g[0])
			}
		})
	}
}

// A log does not go on with files that are not what it had made durable.
func TestGoesOnOnlyWithItsOwn(t *testing.T) {
	o := testOptions(t)
	disk := &faultyDisk{}
	o.FS = disk
	o.CheckpointRecords = 1
	l := mustOpen(t, o)
	mustAdd(t, l, refusal("one"))
	before := snapshot(t, o.Dir)
	mustAdd(t, l, refusal("two"))
	disk.set(func() { disk.sync = unix.EIO })
	if err := add(l, refusal("lost")); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	disk.set(func() { disk.sync = nil })
	if err := l.Close(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	for name, change := range map[string]func(){
		"an older state of it": func() { restore(t, o.Dir, before) },
		"nothing":              func() { restore(t, o.Dir, nil) },
		"another log":          func() { restore(t, o.Dir, nil); other := again(o); other.FS = nil; fill(t, other, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			change()
			if s, lock, err := l.regain(); err == nil {
				s.close()
				lock.Close()
				t.Error("it went on")
			}
		})
	}
}
