package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/wardmesh/ward/proxy"
)

// The events with which two logs name one another. The Data of each is a Link.
const (
	// EventStandIn is the first record in the second log of those that the first could not take.
	EventStandIn = "second audit log stands in"
	// EventReturned is in both logs, once the first takes records again: the first names the range in the second.
	EventReturned = "first audit log is back"
)

// Link is what one log says of the other.
type Link struct {
	Origin  string    `json:"origin"`            // the other log
	Records int64     `json:"records"`           // that are durable in it
	Signed  int64     `json:"signed"`            // of them, covered by its last checkpoint,
	Root    tlog.Hash `json:"root"`              // whose root is this
	Why     string    `json:"why,omitempty"`     // it cannot take records
	From    int64     `json:"from,omitempty"`    // in it: the records from this one on,
	To      int64     `json:"to,omitempty"`      // up to but without this one, were taken for this log
	Unknown bool      `json:"unknown,omitempty"` // its state is not known: it could not be opened
}

// Trail is a log and, by choice, a second one on another file system, with a Merkle tree and a key of its own, that
// takes the records which the first cannot. A record is refused only when neither can make it durable. When the first
// fails with records on their way, the second takes them over, and whoever waits for them waits on: some of them may
// stand in both logs.
//
// Where the first has no room, emergencies use its reserve only when the second takes nothing either.
type Trail struct {
	first, second *Log // second may be nil
	log           *zap.Logger

	away   atomic.Bool    // the second stands in
	moving sync.WaitGroup // records on their way from the first to the second

	mu   sync.RWMutex // held for writing while the logs change places
	from int64        // in the second: the first record of this time
}

var _ proxy.Recorder = (*Trail)(nil)

// TrailStatus is how a trail does.
type TrailStatus struct {
	First  Status
	Second *Status // nil without a second log
	Away   bool    // the second takes the records
}

// Err is nil while one of the logs takes records.
func (s TrailStatus) Err() error {
	if s.First.Err == nil || s.Second != nil && s.Second.Err == nil {
		return nil
	}
	return s.First.Err
}

// OpenTrail opens the log that first describes and, unless second is "", one in that folder, on another file system.
// The second is as the first, with an origin of its own, `ORIGIN/second`, and its key beside its folder. The metrics of
// the two differ by the label `log`. When the first cannot be reached (its disk does not answer, or takes no writes),
// the second stands in from the beginning; a first log that is damaged or not safe is an error all the same.
func OpenTrail(ctx context.Context, first Options, second string) (*Trail, error) {
	t := &Trail{log: first.Logger}
	two := first
	if first.Registerer != nil {
		first.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{"log": "first"}, first.Registerer)
		two.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{"log": "second"}, two.Registerer)
	}
	if second == "" {
		var err error
		t.first, err = Open(ctx, first)
		return t, err
	}
	two.Dir, two.KeyFile, two.Key, two.Origin = second, "", nil, first.Origin+"/second"
	var err error
	if t.second, err = Open(ctx, two); err != nil {
		return nil, fmt.Errorf("the second log: %w", err)
	}
	if t.first, err = openOrFail(ctx, first, t.takeOver); err != nil {
		return nil, errors.Join(err, t.second.Close())
	}
	if err := t.remember(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// openOrFail opens a log that has somebody to stand in for it. One that cannot be reached is given as failed, and opens
// itself when it can.
func openOrFail(ctx context.Context, o Options, spill func(error, ...*batch)) (*Log, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s, lock, cause := open(ctx, o)
	for _, final := range []error{ErrCorrupt, ErrKey, ErrAccess, ErrLocked, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(cause, final) {
			return nil, cause
		}
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		if cause == nil {
			s.close()
			lock.Close()
		}
		return nil, err
	}
	l := newLog(o, s, m)
	l.spill = spill
	if cause == nil {
		l.lock = lock
		m.torn.Add(float64(s.torn))
		l.refill()
		l.setReserve()
	} else {
		l.err = fmt.Errorf("%w: %w", ErrFailed, cause)
		l.begins(cause)
		m.failed.Set(1)
		l.backoff = o.Retry
		l.again.Reset(l.backoff)
		o.Logger.Error("the audit log cannot be opened; the second one stands in", zap.Error(cause))
	}
	l.start()
	return l, nil
}

// remember finds out whether the second log stood in when the process before this one ended.
func (t *Trail) remember(ctx context.Context) error {
	segments, err := listSegments(t.second.o.Dir)
	if err != nil {
		return err
	}
	for _, s := range slices.Backward(segments) {
		var found bool
		err := eachRecord(ctx, s, `"event":"`, func(f frame, r *proxy.Record) error {
			switch r.Event {
			case EventStandIn:
				found, t.from = true, f.index
				t.away.Store(true)
			case EventReturned:
				found = true
				t.away.Store(false)
			}
			return nil
		})
		if err != nil || found {
			return err
		}
	}
	return nil
}

// Append implements proxy.Recorder.
func (t *Trail) Append(r *proxy.Record) (proxy.Receipt, error) {
	if t.second == nil {
		return t.first.Append(r)
	}
	return t.append(Emergency(r), func(l *Log) (proxy.Receipt, error) { return l.Append(r) })
}

// AppendLine appends a record that another process has encoded (Sender), exactly as it is.
func (t *Trail) AppendLine(line []byte) (proxy.Receipt, error) {
	r, err := decodeLine(line)
	if err != nil {
		return nil, err
	}
	return t.append(Emergency(r), func(l *Log) (proxy.Receipt, error) { return l.addLine(line, r) })
}

// append appends to the log that takes records now.
func (t *Trail) append(urgent bool, to func(*Log) (proxy.Receipt, error)) (proxy.Receipt, error) {
	if t.second == nil {
		return to(t.first)
	}
	var cause error
	if !t.away.Load() || t.comeBack() {
		var receipt proxy.Receipt
		if receipt, cause = to(t.first); cause == nil || !unable(cause) {
			return receipt, cause
		}
	} else if cause = t.first.Err(); cause == nil {
		cause = ErrBusy
	}
	receipt, err := t.instead(cause, func() (proxy.Receipt, error) { return to(t.second) })
	if err == nil || !unable(err) {
		return receipt, err
	}
	if urgent {
		if receipt, err := to(t.first); err == nil {
			return receipt, nil
		}
	}
	return nil, fmt.Errorf("%w; and the second log: %w", cause, err)
}

// unable reports whether err is a log's own, so that another may do better.
func unable(err error) bool {
	return errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) || errors.Is(err, ErrBusy)
}

// instead appends to the second log, in which a record says first that it stands in.
func (t *Trail) instead(cause error, add func() (proxy.Receipt, error)) (proxy.Receipt, error) {
	for {
		t.mu.RLock()
		if t.away.Load() {
			defer t.mu.RUnlock()
			return add()
		}
		t.mu.RUnlock()
		if err := t.leave(cause); err != nil {
			return nil, err
		}
	}
}

// leave makes the second log stand in.
func (t *Trail) leave(cause error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away.Load() {
		return nil
	}
	link := t.first.link()
	link.Why = cause.Error()
	from := t.second.nextIndex()
	if err := t.second.note(EventStandIn, link, fmt.Sprintf("for %s, whose last checkpoint covers %d records: %v", link.Origin, link.Signed, cause)); err != nil {
		return err
	}
	t.from = from
	t.away.Store(true)
	t.log.Error("the second audit log stands in", zap.Error(cause))
	return nil
}

// comeBack makes the first log take the records again, if it can.
func (t *Trail) comeBack() bool {
	if t.first.Err() != nil {
		t.first.wake() // a full one looks whether it still is
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.away.Load() {
		return true
	}
	link := t.second.link()
	link.From, link.To = t.from, t.second.nextIndex()
	if err := t.first.note(EventReturned, link, fmt.Sprintf("records %d to %d of %s were taken for this log", link.From, link.To-1, link.Origin)); err != nil {
		return false
	}
	t.away.Store(false)
	if err := t.second.note(EventReturned, t.first.link(), ""); err != nil {
		t.log.Warn("the second audit log could not say that the first is back; the first says it", zap.Error(err))
	}
	t.log.Info("the first audit log is back")
	return true
}

// takeOver moves what the first log turned away to the second.
func (t *Trail) takeOver(cause error, batches ...*batch) {
	t.moving.Add(1)
	go func() {
		defer t.moving.Done()
		for _, b := range batches {
			if b != nil {
				t.move(cause, b)
			}
		}
	}()
}

// move appends b's records to the second log, and lets those who wait go when they are durable there.
func (t *Trail) move(cause error, b *batch) {
	rescued := b.urgent == nil && len(b.moved) == 0 // its urgent records, if it had any, are the first log's still
	var fate [2]error
	var receipts [2][]proxy.Receipt
	for _, s := range b.spans {
		if s.urgent && rescued {
			continue
		}
		kind := 0
		if s.urgent {
			kind = 1
		}
		if fate[kind] != nil {
			continue
		}
		line := b.buf[s.from:s.to]
		receipt, err := t.instead(cause, func() (proxy.Receipt, error) {
			return t.second.enqueue(line, frameSum(line), s.urgent, t.second.patience)
		})
		if err != nil {
			fate[kind] = err
			continue
		}
		if n := len(receipts[kind]); n == 0 || receipts[kind][n-1] != receipt {
			receipts[kind] = append(receipts[kind], receipt)
		}
	}
	for kind, all := range receipts {
		for _, r := range all {
			fate[kind] = errors.Join(fate[kind], r.Wait(context.Background()))
		}
		if fate[kind] != nil {
			fate[kind] = fmt.Errorf("%w; and the second log: %w", cause, fate[kind])
		}
	}
	b.plain.finish(fate[0])
	b.finishUrgent(fate[1])
}

// Err is nil while one of the logs takes records.
func (t *Trail) Err() error { return t.Status().Err() }

// Status tells how the logs do.
func (t *Trail) Status() TrailStatus {
	s := TrailStatus{First: t.first.Status(), Away: t.away.Load()}
	if t.second != nil {
		second := t.second.Status()
		s.Second = &second
	}
	return s
}

// Close closes both logs. The error is the failure of one that has failed.
func (t *Trail) Close() error {
	err := t.first.Close()
	if t.second == nil {
		return err
	}
	t.moving.Wait()
	return errors.Join(err, t.second.Close())
}

// link is what another log says of this one.
func (l *Log) link() Link {
	link := Link{Origin: l.o.Origin, Records: l.durable.Load(), Signed: l.signed.Load()}
	if p := l.pointed.Load(); p != nil {
		link.Signed, link.Root = p.N, p.Hash
	} else {
		link.Unknown = true
	}
	return link
}

func (l *Log) nextIndex() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// note appends an event of the log's own.
func (l *Log) note(event string, about any, detail string) error {
	data, err := json.Marshal(about)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	_, err = l.Append(&proxy.Record{Stage: proxy.StageEvent, Time: time.Now(), Event: event, Data: data, Detail: detail})
	return err
}

// Dirs gives those of the folders that hold a log, for readers, and those of which that cannot be told: a folder that is
// not there yet, or holds nothing, is left out.
func Dirs(dirs ...string) (all []string) {
	for _, d := range dirs {
		if d == "" {
			continue
		}
		if segments, err := listSegments(filepath.Clean(d)); err != nil && !errors.Is(err, fs.ErrNotExist) || len(segments) > 0 {
			all = append(all, d)
		}
	}
	return all
}
