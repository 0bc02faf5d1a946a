package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/wardmesh/ward/proxy"
)

// EventRemoved is the Event of the record that comes before the removal of the oldest segment. Its Data is a Removal.
const EventRemoved = "audit segment removed"

// Removal is what a log says of its oldest segment before it removes it. It is durable and signed before the file
// goes, so that who lacks the key cannot remove records and call it retention.
type Removal struct {
	From int64 `json:"from"` // first record of the segment
	To   int64 `json:"to"`   // first record after it, and the first that the log holds from now on
	// Root is the root of the tree over the first To records, and Edge the hashes of the complete subtrees that make
	// it up, the smallest first (RFC 6962 §2.1): with them the tree can be followed from there on.
	Root tlog.Hash   `json:"root"`
	Edge []tlog.Hash `json:"edge"`

	Bytes int64     `json:"bytes"`
	First time.Time `json:"first"` // times of its first and last record
	Last  time.Time `json:"last"`
	Why   string    `json:"why"` // `age` or `size`
	// Presumed is how many of its intents have no outcome, in it or within a day after; Decisions are those, the
	// first hundred.
	Presumed  int64    `json:"presumed,omitempty"`
	Decisions []string `json:"decisions,omitempty"`
}

// mostDecisions bounds Removal.Decisions.
const mostDecisions = 100

// callLife is longer than any call: SVIDs end after a day at the latest, and what runs then is cut.
const callLife = 24 * time.Hour

// parseRemoval reads an event's data, and checks that its edge gives its root.
func parseRemoval(data []byte) (Removal, error) {
	var r Removal
	if err := jsonv2.Unmarshal(data, &r); err != nil {
		return r, errors.New("the removal is not readable")
	}
	if r.From < 0 || r.To <= r.From || len(r.Edge) != bits.OnesCount64(uint64(r.To)) {
		return r, errors.New("the removal's range is malformed")
	}
	t := newMemoryTree()
	t.start(&r)
	if t.root() != r.Root {
		return r, errors.New("the removal's hashes do not give its root")
	}
	return r, nil
}

// start makes t the tree of which r's segment was the last.
func (t *tree) start(r *Removal) {
	t.n = r.To
	i := 0
	for rest := uint64(r.To); rest != 0; rest &= rest - 1 {
		t.edge[bits.TrailingZeros64(rest)] = r.Edge[i]
		i++
	}
}

// edges gives the complete subtrees at the right, the smallest first.
func (t *tree) edges() (all []tlog.Hash) {
	for rest := uint64(t.n); rest != 0; rest &= rest - 1 {
		all = append(all, t.edge[bits.TrailingZeros64(rest)])
	}
	return all
}

// store writes the edge into the hashes file, in place of what comes before it.
func (t *tree) store() error {
	for rest := uint64(t.n); rest != 0; rest &= rest - 1 {
		level := bits.TrailingZeros64(rest)
		if _, err := t.file.WriteAt(t.edge[level][:], tlog.StoredHashIndex(level, t.n>>level-1)*tlog.HashSize); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	t.at = tlog.StoredHashCount(t.n) * tlog.HashSize
	return nil
}

// findRemoval gives the removal after which the log begins with the first of segments: nil when that is the log's
// beginning. It is in the newest segment in which there is one, or nearly.
func findRemoval(ctx context.Context, dir string, segments []segment) (*Removal, error) {
	first := segments[0]
	if first.first == 0 {
		return nil, nil
	}
	for _, s := range slices.Backward(segments) {
		var found *Removal
		err := eachRecord(ctx, s, `"event":"`+EventRemoved+`"`, func(_ frame, rec *proxy.Record) error {
			if rec.Event != EventRemoved {
				return nil
			}
			r, err := parseRemoval(rec.Data)
			if err == nil && r.To == first.first {
				found = &r
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if found != nil {
			return found, nil
		}
	}
	return nil, corrupt(filepath.Join(dir, segmentName(0)), 0, 0, "the first segment is missing: the log begins with record %d, and does not say that it removed what was before", first.first)
}

// eachRecord calls fn for the whole lines of s that hold needle, as they are decoded; "" is all of them.
func eachRecord(ctx context.Context, s segment, needle string, fn func(frame, *proxy.Record) error) error {
	r, err := openSegment(s)
	var d *damage
	if errors.As(err, &d) {
		return nil // whoever proves the log says what is wrong with it
	}
	if err != nil {
		return err
	}
	defer r.close()
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return fmt.Errorf("audit: %w", ctx.Err())
		}
		f, at, err := r.read()
		switch {
		case errors.Is(err, io.EOF) || errors.As(err, &d):
			return nil
		case err != nil:
			return err
		}
		if !bytes.Contains(f.json, []byte(needle)) {
			continue
		}
		e, err := decode(f)
		if err != nil {
			return corrupt(s.path, f.index, at, "%v", err)
		}
		if err := fn(f, &e.Record); err != nil {
			return corrupt(s.path, f.index, at, "%v", err)
		}
	}
}

// retention removes old segments beside the writer, which never touches them again.
type retention struct {
	log  *Log
	base *tree // before the oldest segment; nil until it is known
}

// retainEvery is how often a log looks for segments that are too old when none ends.
const retainEvery = 10 * time.Minute

// retain runs until the log closes.
func (l *Log) retain() {
	defer l.retaining.Done()
	if l.o.Keep == 0 && l.o.MaxSize == 0 {
		return
	}
	r := &retention{log: l}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		for {
			more, err := r.removeOne(l.ctx)
			if err != nil && l.ctx.Err() == nil {
				r.base = nil
				l.o.Logger.Warn("old audit records are kept for now", zap.Error(err))
			}
			if err != nil || !more {
				break
			}
		}
		select {
		case <-l.rotated:
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
	}
}

// removeOne removes the oldest segment if it is time.
func (r *retention) removeOne(ctx context.Context) (bool, error) {
	l := r.log
	if l.Err() != nil {
		return false, nil
	}
	segments, err := listSegments(l.o.Dir)
	if err != nil || len(segments) < 2 {
		return false, err
	}
	why, err := r.why(segments)
	if err != nil || why == "" {
		return false, err
	}
	removal, err := r.read(ctx, segments)
	if err != nil {
		return false, err
	}
	removal.Why = why
	if err := r.tell(ctx, removal); err != nil {
		return false, err
	}
	if err := os.Remove(segments[0].path); err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	if err := l.o.FS.SyncDir(l.o.Dir); err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	l.m.removed.Inc()
	l.o.Logger.Info("removed old audit records", zap.String("why", why), zap.Int64("from", removal.From), zap.Int64("to", removal.To-1), zap.Int64("presumed_disclosed", removal.Presumed))
	return true, nil
}

// why says why the oldest segment is to go; "" when it is not.
func (r *retention) why(segments []segment) (string, error) {
	if keep := r.log.o.Keep; keep > 0 {
		next, err := openSegment(segments[1])
		if err != nil {
			return "", err
		}
		next.close()
		if time.Since(next.header.Time) > keep { // it began after the last record of the oldest
			return "age", nil
		}
	}
	if most := r.log.o.MaxSize; most > 0 {
		var size int64
		for _, s := range segments {
			info, err := os.Stat(s.path)
			if err != nil {
				return "", fmt.Errorf("audit: %w", err)
			}
			size += info.Size()
		}
		if size > most {
			return "size", nil
		}
	}
	return "", nil
}

// read proves the oldest segment, and says what it is.
func (r *retention) read(ctx context.Context, segments []segment) (*Removal, error) {
	s, next := segments[0], segments[1]
	if r.base == nil || r.base.n != s.first {
		r.base = newMemoryTree()
		before, err := findRemoval(ctx, r.log.o.Dir, segments)
		if err != nil {
			return nil, err
		}
		if before != nil {
			r.base.start(before)
		}
	}
	t := r.base
	r.base = nil // until it is known to be good again
	removal := &Removal{From: s.first, To: next.first}
	open := map[string]int64{}
	err := eachRecord(ctx, s, "", func(f frame, rec *proxy.Record) error {
		t.add(f.json)
		t.queue = t.queue[:0]
		if f.index == s.first {
			removal.First = rec.Time
		}
		removal.Last = rec.Time
		follow(open, f.index, rec)
		return nil
	})
	if err != nil {
		return nil, err
	}
	after, err := openSegment(next)
	if err != nil {
		return nil, err
	}
	after.close()
	if t.n != next.first || t.root() != after.header.Root {
		return nil, corrupt(s.path, t.n, 0, "it does not give the root with which the next segment begins; it is not removed")
	}
	for _, later := range segments[1:] {
		if len(open) == 0 {
			break
		}
		late := false
		err := eachRecord(ctx, later, `"stage":"outcome"`, func(_ frame, rec *proxy.Record) error {
			late = late || rec.Time.Sub(removal.Last) > callLife
			if rec.Stage == proxy.StageOutcome {
				delete(open, rec.Decision)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if late {
			break
		}
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	removal.Root, removal.Edge, removal.Bytes, removal.Presumed = t.root(), t.edges(), info.Size(), int64(len(open))
	for id := range open {
		removal.Decisions = append(removal.Decisions, id)
	}
	slices.SortFunc(removal.Decisions, func(a, b string) int { return int(min(1, max(-1, open[a]-open[b]))) })
	removal.Decisions = removal.Decisions[:min(len(removal.Decisions), mostDecisions)]
	r.base = t
	return removal, nil
}

// follow keeps in open the intents that have no outcome yet, by the index of each.
func follow(open map[string]int64, index int64, rec *proxy.Record) {
	switch rec.Stage {
	case proxy.StageIntent:
		key := rec.Decision
		if key == "" {
			key = fmt.Sprintf("record %d", index) // nothing can be its outcome
		}
		open[key] = index
	case proxy.StageOutcome:
		delete(open, rec.Decision)
	}
}

// tell records the removal, and waits until a checkpoint covers the record. It may use the reserve: it is what makes
// room.
func (r *retention) tell(ctx context.Context, removal *Removal) error {
	l := r.log
	data, err := json.Marshal(removal)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	line, err := appendRecord(nil, &proxy.Record{Stage: proxy.StageEvent, Time: time.Now(), Event: EventRemoved, Data: data,
		Detail: fmt.Sprintf("records %d to %d, for their %s; %d presumed disclosed", removal.From, removal.To-1, removal.Why, removal.Presumed)}, time.Now)
	if err != nil {
		return err
	}
	receipt, err := l.enqueue(line, frameSum(line), true, func() (context.Context, context.CancelFunc) { return ctx, func() {} })
	if err == nil {
		err = receipt.Wait(ctx)
	}
	if err != nil {
		return err
	}
	l.m.count(proxy.StageEvent)
	done := make(chan error, 1)
	select {
	case l.signNow <- done:
	case <-ctx.Done():
		return fmt.Errorf("audit: %w", ctx.Err())
	}
	select {
	case err = <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("audit: %w", ctx.Err())
	}
}
