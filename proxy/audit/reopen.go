package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/wardmesh/ward/proxy"
)

// EventResumed is the Event of the record with which a log goes on after it took none. Its Data is a Gap.
const EventResumed = "audit log resumed"

// Gap is what a log turned away while it could not take records. None of these calls was served by it.
type Gap struct {
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Why     string    `json:"why"`
	Refused int64     `json:"refused"` // records that were not taken; a Trail's second log may have them
}

// gap is one that has not ended. Log.mu guards it.
type gap struct {
	since time.Time
	why   error
	count int64
}

// begins notes why records are turned away. l.mu is held.
func (l *Log) begins(why error) {
	if l.gap.why == nil {
		l.gap.since, l.gap.why = time.Now(), why
	}
}

// tellGap queues the record of a gap that has ended. l.mu is held, and the log takes records.
func (l *Log) tellGap() {
	if l.gap.why == nil {
		return
	}
	now := time.Now()
	data, err := json.Marshal(Gap{Since: l.gap.since.UTC(), Until: now.UTC(), Why: l.gap.why.Error(), Refused: l.gap.count})
	var line []byte
	if err == nil {
		line, err = appendRecord(nil, &proxy.Record{Stage: proxy.StageEvent, Time: now, Event: EventResumed, Data: data,
			Detail: fmt.Sprintf("%d records refused since %s: %v", l.gap.count, l.gap.since.UTC().Format(time.RFC3339), l.gap.why)}, time.Now)
	}
	if err != nil {
		l.o.Logger.Error("a gap in the audit log could not be recorded", zap.Error(err))
		return
	}
	l.put(line, frameSum(line), false)
	l.m.count(proxy.StageEvent)
	l.gap = gap{}
	l.wake()
}

// mostBackoff is the longest that a failed log waits before it looks again.
const mostBackoff = time.Minute

// fail ends all appending until the log has been opened anew, and lets go of its files: their file system may have to
// be unmounted.
func (l *Log) fail(b *batch, cause error) {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	l.mu.Lock()
	after := l.cur
	l.cur = nil
	l.err, l.full, l.spent = err, nil, false
	l.begins(cause)
	for _, lost := range []*batch{b, after} {
		if lost != nil {
			l.gap.count += int64(len(lost.spans))
		}
	}
	l.mu.Unlock()
	if after != nil {
		after.leave()
	}
	l.had = &tlog.Tree{N: l.state.tree.n, Hash: l.state.tree.root()}
	l.state.close() // the files stay exactly as they are
	l.state = nil
	l.lock.Close()
	l.m.failed.Set(1)
	l.m.full.Set(0)
	l.turnAway(err, b, after)
	l.backoff = l.o.Retry
	l.again.Reset(l.backoff)
	l.o.Logger.Error("the audit log has failed; every call that must be recorded is refused until it can be opened anew", zap.Error(cause))
}

// reopen opens a failed log anew, once what is on the disk has proved to be what was durable, or tries again later.
func (l *Log) reopen() {
	if l.state != nil {
		return
	}
	s, lock, err := l.regain()
	if err != nil {
		l.backoff = min(2*l.backoff, mostBackoff)
		l.again.Reset(l.backoff)
		l.o.Logger.Warn("the audit log cannot be opened anew yet", zap.Error(err), zap.Duration("again_in", l.backoff))
		return
	}
	l.begin(s)
	l.lock = lock
	l.refill()
	l.setReserve()
	l.m.torn.Add(float64(s.torn))
	l.m.setSize(l.durable.Load(), l.signed.Load())
	if s.tree.n > s.segment.first {
		// What the failure touched is not appended to. A disk without room cannot begin a segment; it goes on in this.
		if err := l.rotate(); err != nil && !errors.Is(err, ErrFull) {
			l.fail(nil, err)
			return
		}
	}
	l.mu.Lock()
	if !errors.Is(l.err, ErrFailed) { // closed meanwhile
		l.mu.Unlock()
		return
	}
	l.err = nil
	l.tellGap()
	l.mu.Unlock()
	l.m.failed.Set(0)
	l.o.Logger.Info("the audit log goes on", zap.Int64("records", l.durable.Load()))
}

// regain opens the log's files and proves that they begin with all that was durable.
func (l *Log) regain() (*state, *os.File, error) {
	if l.had == nil {
		return open(l.ctx, l.o)
	}
	s, lock, err := take(l.ctx, l.o, true)
	if err != nil {
		return nil, nil, err
	}
	if err := s.continues(*l.had); err != nil {
		s.close()
		lock.Close()
		return nil, nil, err
	}
	return s, lock, nil
}

// continues is nil when the log begins with that tree.
func (s *state) continues(had tlog.Tree) error {
	if s.tree.n < had.N {
		return corrupt(s.segment.path, s.tree.n, s.segment.size, "%d records were durable, and %d are left", had.N, s.tree.n)
	}
	root := s.tree.root()
	if had.N < s.tree.n {
		if s.tree.lost != nil {
			return fmt.Errorf("audit: %w", s.tree.lost)
		}
		var err error
		if root, err = s.tree.storedRoot(had.N); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	if root != had.Hash {
		return corrupt(s.segment.path, had.N, 0, "the first %d records are not those that were durable", had.N)
	}
	return nil
}
