package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
)

func TestScanFrom(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	ids := fill(t, o, 20)
	for from := range 22 {
		var got []string
		for e, err := range Scan(context.Background(), o.Dir, int64(from)) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Index != int64(from+len(got)) || !strings.Contains(string(e.JSON), e.Record.Decision) {
				t.Fatalf("the entry is %+v", e)
			}
			got = append(got, e.Record.Decision)
		}
		if want := ids[min(from, 20):]; !slices.Equal(got, want) {
			t.Errorf("from %d: %v, want %v", from, got, want)
		}
	}
	segments, err := listSegments(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(segments[1].path); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, last = range Scan(context.Background(), o.Dir, 0) {
	}
	if !errors.Is(last, ErrCorrupt) {
		t.Errorf("over a missing segment: %v", last)
	}
	for _, last = range Scan(canceled(), o.Dir, 0) {
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("canceled: %v", last)
	}
}

// A follower sees every record once and in order, beside the writer, across rotations and a restart.
func TestTailFollows(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 2 << 10
	ids := fill(t, o, 10)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := make(chan Entry, 1000)
	done := make(chan error)
	go func() {
		done <- Tail(ctx, o.Dir, TailOptions{Last: 3, Follow: true, Poll: time.Millisecond}, func(e Entry) error {
			e.JSON = nil
			seen <- e
			return nil
		})
	}()
	for range 3 {
		l := mustOpen(t, again(o))
		for range 50 {
			id := newDecision()
			ids = append(ids, id)
			if _, err := l.Append(refusal(id)); err != nil { // nobody waits: it is flushed by time
				t.Fatal(err)
			}
		}
		for len(seen) < len(ids)-7 { // all of them, before the writer closes
			e := <-seen
			seen <- e
			if err := l.Status().Err; err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(seen)
	got := map[int64]string{}
	for e := range seen {
		if e.Lost != 0 {
			t.Errorf("lost %+v", e)
		}
		got[e.Index] = e.Record.Decision
	}
	if len(got) != len(ids)-7 {
		t.Fatalf("%d records were seen, want %d", len(got), len(ids)-7)
	}
	for i, id := range got {
		if ids[i] != id {
			t.Fatalf("record %d is %s, want %s", i, id, ids[i])
		}
	}
}

// A follower never takes half a line for a record, and takes the other half when it comes.
func TestTailHalfLine(t *testing.T) {
	o := testOptions(t)
	ids := fill(t, o, 3)
	path := filepath.Join(o.Dir, segmentName(0))
	content := readFile(t, path)
	writeFile(t, path, content[:len(content)-40])
	var got []string
	err := Tail(context.Background(), o.Dir, TailOptions{Last: 10, Follow: true, Poll: time.Millisecond}, func(e Entry) error {
		got = append(got, e.Record.Decision)
		if len(got) == 2 {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString(content[len(content)-40:])
			return err
		}
		if len(got) == 3 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || !slices.Equal(got, ids) {
		t.Errorf("saw %v, %v; want %v", got, err, ids)
	}
}

var errEnough = errors.New("enough")

// Records that were removed before a follower came to them are counted, and only those.
func TestTailLost(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	fill(t, o, 20)
	segments, err := listSegments(o.Dir)
	if err != nil || len(segments) < 4 {
		t.Fatal(segments, err)
	}
	var next int64
	var lost []Entry
	err = Tail(context.Background(), o.Dir, TailOptions{Last: 100}, func(e Entry) error {
		if e.Index != next {
			t.Errorf("record %d comes after %d", e.Index, next-1)
		}
		if e.Lost > 0 {
			lost = append(lost, e)
			next += e.Lost
			return nil
		}
		next++
		if e.Index == 0 {
			return errors.Join(os.Remove(segments[1].path), os.Remove(segments[2].path))
		}
		return nil
	})
	if err != nil || next != 20 {
		t.Fatalf("%v at %d", err, next)
	}
	if len(lost) != 1 || lost[0].Index != segments[1].first || lost[0].Lost != segments[3].first-segments[1].first {
		t.Errorf("lost %+v", lost)
	}
	if got, want := LostLine(Entry{Lost: 7}), "-- 7 records lost: they were removed from the log before they could be shown --"; got != want {
		t.Error(got)
	}
}

func TestTailEmpty(t *testing.T) {
	o := testOptions(t)
	fill(t, o, 0)
	err := Tail(context.Background(), o.Dir, TailOptions{Last: 5}, func(Entry) error { return errEnough })
	if err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	l := mustOpen(t, o)
	const id, other = "01JD7Q0000000000000000000A", "01JD7Q0000000000000000000B"
	for i := range 30 {
		r := &proxy.Record{Stage: proxy.StageEvent, Time: testTime, Detail: fmt.Sprint(i)}
		switch i {
		case 3, 10:
			*r = proxy.Record{Stage: map[int]proxy.Stage{3: proxy.StageIntent, 10: proxy.StageOutcome}[i], Time: testTime, Decision: id}
		case 4:
			*r = *refusal(other)
		case 5: // names the decision, but is not it
			r.Detail, r.Inputs = `"decision":"`+id, []byte(`{"decision":"`+id+`"}`)
		}
		mustAdd(t, l, r)
	}
	for _, c := range []struct {
		prefix string
		want   []proxy.Stage
	}{
		{id, []proxy.Stage{proxy.StageIntent, proxy.StageOutcome}},
		{strings.ToLower(id), []proxy.Stage{proxy.StageIntent, proxy.StageOutcome}},
		{other, []proxy.Stage{proxy.StageRefusal}},
		{"01JD7Q", []proxy.Stage{proxy.StageIntent, proxy.StageRefusal, proxy.StageOutcome}},
		{"01JD7R", nil},
	} {
		found, err := Find(context.Background(), o.Dir, c.prefix)
		if err != nil {
			t.Fatal(err)
		}
		var got []proxy.Stage
		for _, r := range found {
			got = append(got, r.Stage)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.prefix, got, c.want)
		}
	}
	for _, bad := range []string{"", `01"`, strings.Repeat("0", 27), "\u202e"} {
		if _, err := Find(context.Background(), o.Dir, bad); err == nil || strings.Contains(err.Error(), "\u202e") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
