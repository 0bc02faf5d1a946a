package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

func newBudget(t testing.TB, log proxy.Recorder, change func(*BudgetOptions)) *Budget {
	t.Helper()
	o := BudgetOptions{Log: log, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}
	if change != nil {
		change(&o)
	}
	b, err := NewBudget(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func mustRefuse(t testing.TB, b *Budget, r *proxy.Record) {
	t.Helper()
	receipt, err := b.Append(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := receipt.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// tallied adds up the records of a log: refusals one by one, and folded ones.
func tallied(t testing.TB, dir string) (singles, folded int64, summaries []Folded, records []proxy.Record) {
	t.Helper()
	for e, err := range Scan(context.Background(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, e.Record)
		if e.Record.Stage == proxy.StageRefusal {
			singles++
		}
		if e.Record.Event == EventFolded {
			var f Folded
			if err := json.Unmarshal(e.Record.Data, &f); err != nil {
				t.Fatal(err)
			}
			var sum int64
			for _, n := range f.Causes {
				sum += n
			}
			if sum != f.Count {
				t.Errorf("%d refusals have %d causes", f.Count, sum)
			}
			folded += f.Count
			summaries = append(summaries, f)
		}
	}
	return singles, folded, summaries, records
}

// One user's processes make 100,000 refused calls: the disk gets the first of them, and a line that counts the rest.
func TestFloodOfRefusals(t *testing.T) {
	const calls = 100_000
	o := testOptions(t)
	l := mustOpen(t, o)
	b := newBudget(t, l, nil)
	for i := range calls {
		receipt, err := b.Append(&proxy.Record{Stage: proxy.StageRefusal, Time: testTime, Decision: newDecision(), Remote: "127.0.0.1:4711",
			Process: fmt.Sprintf("pid %d, uid 1001", 1000+i), Effect: "deny", Cause: proxy.CauseNoIdentity, Detail: strings.Repeat("x", 200)})
		if err != nil {
			t.Fatal(err)
		}
		if i%20000 == 0 {
			if err := receipt.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
	singles, folded, _, records := tallied(t, o.Dir)
	if singles+folded != calls || singles > 300 {
		t.Errorf("%d one by one and %d folded, want %d", singles, folded, calls)
	}
	var size int64
	files, _ := filepath.Glob(filepath.Join(o.Dir, "*"))
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 128<<10 {
		t.Errorf("the log has %d bytes", size)
	}
	t.Logf("%d refused calls took %d bytes on the disk", calls, size)
	last := records[len(records)-1]
	if got, want := Line(last, LineOptions{}), fmt.Sprintf("-- %d refusals of uid 1001 not shown one by one, 08:40:04 to 08:40:04: no-identity %d --", folded, folded); got != want {
		t.Errorf("the line is %q, want %q", got, want)
	}
}

// However many identities and sources there are, what is written and what is held in memory is bounded, no count is
// lost, and those without an identity do not take the room of the verified.
func TestManySources(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	b := newBudget(t, l, nil)
	const calls = 20_000
	for i := range calls {
		mustAppend(t, b, &proxy.Record{Stage: proxy.StageRefusal, Time: testTime, Cause: proxy.CauseNoIdentity, Remote: fmt.Sprintf("10.%d.%d.%d:99", i>>16, i>>8&255, i&255)})
		mustAppend(t, b, &proxy.Record{Stage: proxy.StageRefusal, Time: testTime, Cause: proxy.CausePolicy, Caller: fmt.Sprintf("spiffe://clinic.test/app/%d", i%9000)})
	}
	b.mu.Lock()
	for k, n := range []int{4096 + 1, 1024 + 1, 0} {
		if got := len(b.kinds[k].keys); got > n {
			t.Errorf("kind %d holds %d", k, got)
		}
	}
	b.mu.Unlock()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	singles, folded, sums, _ := tallied(t, o.Dir)
	if singles != 600 || singles+folded != 2*calls || len(sums) > 64 {
		t.Errorf("%d one by one, %d folded in %d summaries", singles, folded, len(sums))
	}
}

func mustAppend(t testing.TB, log proxy.Recorder, r *proxy.Record) {
	t.Helper()
	if _, err := log.Append(r); err != nil {
		t.Fatal(err)
	}
}

// A window ends by itself, with one summary for each identity, and the next one begins anew. What is not a refusal is
// never folded, and breaks of glass have a budget of their own.
func TestBudgetWindows(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(t)
		o.Dir = dir + "/audit"
		l := mustOpen(t, o)
		b := newBudget(t, l, func(o *BudgetOptions) { o.PerMinute = 2 })
		for range 3 {
			for range 10 {
				mustAppend(t, b, refusal(""))
				glass := refusal("")
				glass.Purpose = "BTG"
				mustAppend(t, b, glass)
				mustAppend(t, b, &proxy.Record{Stage: proxy.StageIntent, Time: testTime, Caller: "spiffe://clinic.test/app/portal", Purpose: "BTG"})
				mustAppend(t, b, &proxy.Record{Stage: proxy.StageEgress, Time: testTime, Effect: "deny"})
			}
			time.Sleep(61 * time.Second)
			synctest.Wait()
		}
		b.Close()
		l.Close()
		singles, folded, sums, records := tallied(t, o.Dir)
		if singles != 3*2*2 || folded != 3*2*8 || len(sums) != 6 || len(records) != 12+6+60 {
			t.Errorf("%d one by one, %d folded in %d summaries, %d records", singles, folded, len(sums), len(records))
		}
	})
}

// What the log turns away is counted, and written when it takes records again.
func TestBudgetOutlivesFullDisk(t *testing.T) {
	o := testOptions(t)
	o.MinFree = 1 << 20
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	disk.set(func() { disk.free = 1000 })
	for { // until what was reserved is used up
		receipt, err := l.Append(&proxy.Record{Stage: proxy.StageEgress, Detail: strings.Repeat("x", 1000)})
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := newBudget(t, l, func(o *BudgetOptions) { o.PerMinute = 1000 })
	for range 100 {
		mustRefuse(t, b, refusal(newDecision()))
	}
	if err := b.write(context.Background()); !errors.Is(err, ErrFull) {
		t.Errorf("writing the summary gave %v", err)
	}
	disk.set(func() { disk.free = 0 })
	for l.Err() != nil {
		_ = b.write(context.Background())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	singles, folded, _, _ := tallied(t, o.Dir)
	if singles+folded != 100 {
		t.Errorf("%d one by one and %d folded, want 100", singles, folded)
	}
}

func TestWhose(t *testing.T) {
	for name, c := range map[string]struct {
		r    proxy.Record
		kind int
		want string
	}{
		"caller":         {proxy.Record{Caller: "spiffe://a/b", Remote: "10.0.0.1:1"}, verified, "spiffe://a/b"},
		"break-glass":    {proxy.Record{Caller: "spiffe://a/b", Purpose: "BTG"}, glass, "spiffe://a/b"},
		"unverified BTG": {proxy.Record{Remote: "10.0.0.1:1", Purpose: "BTG"}, source, "10.0.0.1"},
		"process":        {proxy.Record{Process: "pid 12, uid 991", Remote: "127.0.0.1:1"}, source, "uid 991"},
		"selectors":      {proxy.Record{Process: "unix.gid: 5, unix.uid: 991"}, source, "uid 991"},
		"odd process":    {proxy.Record{Process: "pid 12, uid none"}, source, "pid 12, uid none"},
		"IPv4 mapped":    {proxy.Record{Remote: "[::ffff:10.0.0.1]:1"}, source, "10.0.0.1"},
		"IPv6":           {proxy.Record{Remote: "[2001:db8:1:2:3:4:5:6%eth0]:1"}, source, "2001:db8:1:2::/64"},
		"a socket":       {proxy.Record{Remote: "@"}, source, "@"},
		"nothing":        {proxy.Record{}, source, "unknown"},
		"too long":       {proxy.Record{Caller: strings.Repeat("x", 4000)}, verified, strings.Repeat("x", mostKey)},
	} {
		t.Run(name, func(t *testing.T) {
			if kind, w := whose(&c.r); kind != c.kind || w.String() != c.want {
				t.Errorf("kind %d, %q", kind, w)
			}
		})
	}
}

// FuzzFoldedLine shows any data of an event. It is one line that a terminal shows as it is.
func FuzzFoldedLine(f *testing.F) {
	f.Add([]byte(`{"count":3,"first":"2026-11-23T08:40:04Z","last":"2026-11-23T08:40:04Z","causes":{"policy":3},"kind":"verified"}`), "spiffe://clinic.test/app/portal")
	f.Add([]byte(`{"count":-3,"causes":{"\u001b[2J":1},"others":2}`), "\x1b")
	f.Fuzz(func(t *testing.T, data []byte, who string) {
		line := Line(proxy.Record{Stage: proxy.StageEvent, Event: EventFolded, Data: data, Caller: who}, LineOptions{})
		if line != Escape(line) {
			t.Errorf("%q", line)
		}
	})
}

func BenchmarkBudget(b *testing.B) {
	l := mustOpen(b, testOptions(b))
	budget := newBudget(b, l, nil)
	r := refusal("01JD7Q0000000000000000000A")
	b.ReportAllocs()
	for b.Loop() {
		mustAppend(b, budget, r)
	}
}
