package audit

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
)

// The last records are the last of those that are shown, however many others lie between and after them.
func TestTailShows(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 2 << 10
	l := mustOpen(t, o)
	var want []string
	for i := range 100 {
		r := refusal(newDecision())
		if i%30 == 0 {
			want = append(want, r.Decision)
		} else {
			r.Stage = proxy.StageEgress
		}
		mustAdd(t, l, r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range int64(7) {
		var got []string
		err := Tail(context.Background(), o.Dir, TailOptions{Last: n, Show: func(e Entry) bool { return e.Record.Stage == proxy.StageRefusal }}, func(e Entry) error {
			got = append(got, e.Record.Decision)
			return nil
		})
		if err != nil || !slices.Equal(got, want[max(0, int64(len(want))-n):]) {
			t.Errorf("the last %d are %v (%v)", n, got, err)
		}
	}
}

// Several logs are shown as one, in the order of time, and followed together.
func TestTailAll(t *testing.T) {
	at := func(s int, id string) *proxy.Record {
		r := refusal(id)
		r.Time = testTime.Add(time.Duration(s) * time.Second)
		return r
	}
	one, two := testOptions(t), testOptions(t)
	l1, l2 := mustOpen(t, one), mustOpen(t, two)
	mustAdd(t, l1, at(1, "a"), at(3, "c"), at(5, "e"))
	mustAdd(t, l2, at(2, "b"), at(4, "d"))
	ctx, cancel := context.WithCancel(context.Background())
	var got []string
	seen := make(chan string, 100)
	done := make(chan error, 1)
	dirs := Dirs(one.Dir, filepath.Join(one.Dir, "none"), "", two.Dir)
	go func() {
		done <- TailAll(ctx, dirs, TailOptions{Last: 3, Follow: true, Poll: time.Millisecond}, func(e Entry) error {
			seen <- e.Record.Decision
			return nil
		})
	}()
	for range 3 {
		got = append(got, <-seen)
	}
	mustAdd(t, l2, at(6, "f"))
	got = append(got, <-seen)
	mustAdd(t, l1, at(7, "g"))
	got = append(got, <-seen)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("TailAll gave %v", err)
	}
	if !slices.Equal(got, []string{"c", "d", "e", "f", "g"}) {
		t.Errorf("it showed %v", got)
	}
}
