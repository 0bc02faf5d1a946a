package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/wardmesh/ward/proxy"
)

// aged makes a log whose oldest segments were removed for its size.
func aged(t testing.TB) (Options, *Report) {
	t.Helper()
	o := testOptions(t)
	o.SegmentSize, o.MaxSize = 4<<10, 40<<10
	l := mustOpen(t, o)
	for i := range 400 {
		r := refusal(newDecision())
		if i%40 == 0 {
			r.Stage, r.Effect = proxy.StageIntent, "allow"
		}
		mustAdd(t, l, r)
	}
	until(t, "the removal", func() bool {
		segments, err := listSegments(o.Dir)
		return err == nil && len(segments) <= 12
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// Closing may have come between a segment's event and its removal.
	segments, err := listSegments(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	told := int64(0)
	for e, err := range Scan(context.Background(), o.Dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Event == EventRemoved {
			r, err := parseRemoval(e.Record.Data)
			if err != nil {
				t.Fatal(err)
			}
			told = r.To
		}
	}
	if segments[0].first < told {
		if err := os.Remove(segments[0].path); err != nil {
			t.Fatal(err)
		}
	}
	report := mustVerify(t, o)
	if report.Begin == 0 || report.Removal == nil {
		t.Fatalf("nothing was removed: %+v", report)
	}
	return o, report
}

// What remains of a log proves that nothing is missing in it, and that it was the log that removed what was before.
func TestRetentionBySize(t *testing.T) {
	o, report := aged(t)
	if r := report.Removal; r.Why != "size" || r.To != report.Begin || r.Bytes == 0 || r.First.IsZero() {
		t.Errorf("the removal is %+v", r)
	}
	presumed, events := int64(0), 0
	for e, err := range Scan(context.Background(), o.Dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Event == EventRemoved {
			r, err := parseRemoval(e.Record.Data)
			if err != nil {
				t.Fatal(err)
			}
			if r.Presumed != int64(len(r.Decisions)) {
				t.Errorf("%+v", r)
			}
			presumed, events = presumed+r.Presumed, events+1
		}
	}
	if events == 0 || presumed == 0 {
		t.Errorf("%d events tell of %d intents without an outcome", events, presumed)
	}
	// It is opened, with its hashes and without, and goes on.
	for range 2 {
		o = again(o)
		l := mustOpen(t, o)
		mustAdd(t, l, refusal(newDecision()))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, o)
		if err := os.Remove(filepath.Join(o.Dir, hashesName)); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, again(o)).Close()
	mustVerify(t, o)
}

// Removing records without the key is found, however much it looks like retention.
func TestRetentionForged(t *testing.T) {
	o, report := aged(t)
	whole := snapshot(t, o.Dir)
	segments, err := listSegments(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return filepath.Base(segments[i].path) }
	for what, change := range map[string]func(map[string]string){
		"one segment more is gone": func(all map[string]string) { delete(all, name(0)) },
		"all but the last are gone": func(all map[string]string) {
			for i := range segments[:len(segments)-1] {
				delete(all, name(i))
			}
		},
		"one in the middle is gone": func(all map[string]string) { delete(all, name(2)) },
		"an event is added that says so": func(all map[string]string) {
			delete(all, name(0))
			tree := newMemoryTree()
			tree.start(report.Removal)
			for _, j := range jsonOf(t, whole[name(0)])[1:] {
				tree.add([]byte(j))
			}
			line := removalJSON(Removal{From: segments[0].first, To: segments[1].first, Root: tree.root(), Edge: tree.edges()})
			last := report.Begin + report.Records
			all[name(len(segments)-1)] += string(appendFrame(nil, line, frameSum(line), last, last))
		},
		"the event's hashes are others": func(all map[string]string) {
			for n, content := range all {
				all[n] = strings.ReplaceAll(content, report.Removal.Edge[0].String(), tlog.Hash{1}.String())
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			all := map[string]string{}
			for n, content := range whole {
				all[n] = content
			}
			change(all)
			restore(t, o.Dir, all)
			if _, err := Verify(context.Background(), o.Dir, verifier(t, o)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Verify gave %v", err)
			}
		})
	}
}

func removalJSON(r Removal) []byte {
	edge := make([]string, len(r.Edge))
	for i, h := range r.Edge {
		edge[i] = fmt.Sprintf("%q", h)
	}
	return fmt.Appendf(nil, `{"schema":"ward.audit/1","stage":"event","time":"2026-11-23T08:40:04Z","event":%q,"data":{"from":%d,"to":%d,"root":%q,"edge":[%s],"bytes":1,"first":"2026-11-23T08:40:04Z","last":"2026-11-23T08:40:04Z","why":"age"}}`,
		EventRemoved, r.From, r.To, r.Root, strings.Join(edge, ","))
}

// Segments go when they are too old (what was written on the first two days, 73 h after the beginning), and the one that is written stays, however old it is.
func TestRetentionByAge(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(t)
		o.Dir, o.SegmentSize, o.Keep = dir+"/audit", 1<<10, 48*time.Hour
		l := mustOpen(t, o)
		for range 3 {
			for range 20 {
				mustAdd(t, l, &proxy.Record{Stage: proxy.StageRefusal, Decision: newDecision(), Detail: strings.Repeat("x", 300)})
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		report := mustVerify(t, o)
		if report.Begin < 35 || report.Begin > 40 {
			t.Errorf("the log begins with record %d", report.Begin)
		}
		o.Registerer, o.SegmentSize = prometheus.NewRegistry(), 1<<20
		l = mustOpen(t, o)
		time.Sleep(1000 * time.Hour)
		mustAdd(t, l, refusal("last"))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if ids := decisions(t, o.Dir); ids[len(ids)-1] != "last" {
			t.Error("the last record is gone")
		}
		mustVerify(t, o)
	})
}

// FuzzRemoval reads any bytes as the data of a removal: what is accepted gives a tree with its root.
func FuzzRemoval(f *testing.F) {
	t := newMemoryTree()
	for range 5 {
		t.add([]byte("x"))
	}
	line := removalJSON(Removal{To: 5, Root: t.root(), Edge: t.edges()})
	data := line[bytes.Index(line, []byte(`"data":`))+len(`"data":`) : len(line)-1]
	if _, err := parseRemoval(data); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(bytes.Replace(data, []byte(`"to":5`), []byte(`"to":9223372036854775807`), 1))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRemoval(data)
		if err != nil {
			return
		}
		tree := newMemoryTree()
		tree.start(&r)
		if tree.root() != r.Root || tree.n != r.To || len(tree.edges()) != bits.OnesCount64(uint64(r.To)) {
			t.Errorf("%+v", r)
		}
	})
}
