package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// TailOptions says what of the log's end Tail gives. The zero value gives nothing.
type TailOptions struct {
	Last   int64            // how many of the last records,
	Show   func(Entry) bool // of those for which this is true; nil: of all
	Follow bool             // go on with records as they are written
	Poll   time.Duration    // how often a follower looks; 200 ms
}

func (o *TailOptions) shows(e Entry) bool { return o.Show == nil || e.Lost > 0 || o.Show(e) }

// Tail calls fn for the last records of the log and, when it follows, for those that come, across rotations and
// restarts of the writer, until ctx ends or fn returns an error; that error is returned. Half a record is never seen.
// A follower is told of what it lost by an Entry; it misses nothing without one.
func Tail(ctx context.Context, dir string, o TailOptions, fn func(Entry) error) error {
	from, err := o.begin(ctx, dir)
	if err != nil {
		return err
	}
	_, err = o.read(ctx, dir, from, fn)
	return err
}

// TailAll is Tail over several logs: their last records in the order of time, and then those of all of them as they come.
func TailAll(ctx context.Context, dirs []string, o TailOptions, fn func(Entry) error) error {
	if len(dirs) == 1 {
		return Tail(ctx, dirs[0], o, fn)
	}
	ended := o
	ended.Follow = false
	next := make([]int64, len(dirs))
	var all []Entry
	for i, dir := range dirs {
		from, err := o.begin(ctx, dir)
		if err != nil {
			return err
		}
		if next[i], err = ended.read(ctx, dir, from, func(e Entry) error {
			e.JSON = bytes.Clone(e.JSON)
			all = append(all, e)
			return nil
		}); err != nil {
			return err
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return a.Record.Time.Compare(b.Record.Time) })
	for _, e := range all[max(0, int64(len(all))-o.Last):] {
		if err := fn(e); err != nil {
			return err
		}
	}
	if !o.Follow {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var one sync.Mutex
	var work sync.WaitGroup
	for i, dir := range dirs {
		work.Go(func() {
			_, err := o.read(ctx, dir, next[i], func(e Entry) error {
				one.Lock()
				defer one.Unlock()
				if err := ctx.Err(); err != nil {
					return err
				}
				return fn(e)
			})
			cancel(err)
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// begin finds the index of the first record to give.
func (o *TailOptions) begin(ctx context.Context, dir string) (int64, error) {
	segments, err := listSegments(dir)
	if err != nil || len(segments) == 0 {
		return 0, err
	}
	last, err := lastIndex(segments[len(segments)-1])
	if err != nil {
		return 0, err
	}
	first, end := segments[0].first, max(last+1, segments[len(segments)-1].first)
	want := max(0, o.Last)
	if o.Show == nil || want == 0 {
		return max(first, end-want), nil
	}
	for span := want; ; {
		from := max(first, end-min(span, end))
		var shown []int64
		find := TailOptions{Show: o.Show}
		if _, err := find.read(ctx, dir, from, func(e Entry) error { shown = append(shown, e.Index); return nil }); err != nil {
			return 0, err
		}
		if n := int64(len(shown)); n >= want {
			return shown[n-want], nil
		}
		if from == first {
			return first, nil
		}
		span = cmp.Or(min(span, 1<<50), 1) * 8
	}
}

// read gives the records from an index on, and the index after the last.
func (o TailOptions) read(ctx context.Context, dir string, from int64, fn func(Entry) error) (int64, error) {
	c := &cursor{dir: dir, next: from}
	defer c.close()
	setDefault(&o.Poll, 200*time.Millisecond)
	ticker := time.NewTicker(o.Poll)
	defer ticker.Stop()
	for {
		e, err := c.read(ctx)
		switch {
		case err == nil:
			if !o.shows(e) {
				continue
			}
			if err := fn(e); err != nil {
				return c.next, err
			}
		case !errors.Is(err, io.EOF):
			return c.next, err
		case !o.Follow:
			return c.next, nil
		default:
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return c.next, ctx.Err()
			}
		}
	}
}
