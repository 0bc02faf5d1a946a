package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/wardmesh/ward/proxy"
)

// Log is an open log. Its methods may be called from any goroutine.
type Log struct {
	o    Options
	m    *metrics
	lock *os.File

	scratch sync.Pool     // *[]byte, for encoding
	kick    chan struct{} // the writer is to write what there is
	flush   *time.Timer   // kicks for records that nobody waits for
	closing chan struct{}
	closed  chan struct{}
	once    sync.Once

	durable atomic.Int64 // records that are safe on the disk
	signed  atomic.Int64 // records that the last checkpoint covers

	mu    sync.Mutex
	cur   *batch    // records not yet taken by the writer; nil when there are none
	next  int64     // index of the next record
	spare []buffers // to use again
	full  error     // an ErrFull while the disk has no room
	err   error     // why nothing is accepted any more

	// The rest belongs to the writer alone.
	state *state
	mode  os.FileMode
	due   *time.Timer // for the next checkpoint
	armed bool
}

// reserveChunk is how much room is asked of the file system at a time.
const reserveChunk = 1 << 20

// flushBytes is when records that nobody waits for are written without waiting for FlushEvery.
const flushBytes = 256 << 10

func newLog(o Options, s *state, m *metrics) *Log {
	l := &Log{o: o, m: m, state: s, mode: fileMode(o.Dir), next: s.tree.n, kick: make(chan struct{}, 1),
		closing: make(chan struct{}), closed: make(chan struct{}), due: time.NewTimer(math.MaxInt64)}
	l.scratch.New = func() any { b := make([]byte, 0, 1024); return &b }
	l.flush = time.AfterFunc(math.MaxInt64, l.wake)
	l.durable.Store(s.tree.n)
	l.signed.Store(s.signed)
	return l
}

// Append adds r to the log; r may be used again at once. While the queue is full it waits up to Options.Patience for
// room. An error means that r is not in the log and never will be; it is an ErrFull, ErrBusy, ErrFailed, ErrClosed or
// ErrRecord. A record whose Time is zero gets the time of the call.
func (l *Log) Append(r *proxy.Record) (proxy.Receipt, error) {
	return l.add(r, func() (context.Context, context.CancelFunc) {
		return context.WithTimeoutCause(context.Background(), l.o.Patience, ErrBusy)
	})
}

// AppendContext is Append, but waits for room as long as ctx allows.
func (l *Log) AppendContext(ctx context.Context, r *proxy.Record) (proxy.Receipt, error) {
	return l.add(r, func() (context.Context, context.CancelFunc) { return ctx, func() {} })
}

// add encodes and queues r. Only when it must wait for room does it ask for patience.
func (l *Log) add(r *proxy.Record, patience func() (context.Context, context.CancelFunc)) (proxy.Receipt, error) {
	scratch := l.scratch.Get().(*[]byte)
	defer l.scratch.Put(scratch)
	var err error
	if *scratch, err = appendRecord((*scratch)[:0], r, time.Now); err != nil {
		return nil, err
	}
	line := *scratch
	if len(line) > MaxRecord {
		return nil, fmt.Errorf("%w: it has %d bytes, the most is %d", ErrRecord, len(line), MaxRecord)
	}
	sum := frameSum(line)

	b, room, err := l.queue(line, sum)
	if room != nil {
		ctx, cancel := patience()
		defer cancel()
		for room != nil {
			select {
			case <-room:
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
			}
			b, room, err = l.queue(line, sum)
		}
	}
	if err != nil {
		return nil, err
	}
	l.m.count(r.Stage)
	return b, nil
}

// queue puts an encoded record into the current batch. While there is no room it gives the channel that is closed when
// there may be.
func (l *Log) queue(line []byte, sum uint32) (b *batch, room <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, nil, l.err
	}
	if l.full != nil {
		l.wake() // to look again
		return nil, nil, l.full
	}
	b = l.cur
	if b == nil {
		b = &batch{log: l, first: l.next, done: make(chan struct{}), taken: make(chan struct{})}
		if n := len(l.spare); n > 0 {
			b.buffers, l.spare = l.spare[n-1], l.spare[:n-1]
		}
		l.cur = b
		l.flush.Reset(l.o.FlushEvery)
	}
	if len(b.spans) >= l.o.QueueRecords || len(b.buf)+len(line)+64 > l.o.QueueBytes && len(b.spans) > 0 {
		l.wake()
		return nil, b.taken, nil
	}
	from := len(b.buf)
	b.buf = appendFrame(b.buf, line, sum, l.next, l.durable.Load())
	b.spans = append(b.spans, span{from, from + len(line)})
	l.next++
	if from < flushBytes && len(b.buf) >= flushBytes {
		l.wake()
	}
	return b, nil, nil
}

func (l *Log) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// batch is what one write and one fdatasync make durable together. It is the Receipt of each of its records.
type batch struct {
	log   *Log
	first int64
	buffers
	wanted atomic.Bool
	taken  chan struct{} // closed when the writer takes it
	done   chan struct{} // closed when err is final
	err    error
}

type buffers struct {
	buf   []byte // lines
	spans []span // of the records in buf
}

type span struct{ from, to int }

// Wait returns nil once fdatasync has returned for the record, and an error when it never will: ErrFull, ErrFailed.
// When ctx ends first, the record may still become durable.
func (b *batch) Wait(ctx context.Context) error {
	select {
	case <-b.done:
		return b.err
	default:
	}
	if !b.wanted.Swap(true) {
		b.log.wake()
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("audit: waiting for the disk: %w", ctx.Err())
	}
}

func (b *batch) finish(err error) {
	if b != nil {
		b.err = err
		close(b.done)
	}
}

// run is the writer: the only goroutine that touches the files.
func (l *Log) run() {
	defer close(l.closed)
	l.settle()
	for {
		select {
		case <-l.kick:
			l.commit(l.take())
		case <-l.due.C:
			l.armed = false
			l.slim()
			l.sign()
		case <-l.closing:
			l.commit(l.take())
			l.shut()
			return
		}
	}
}

// settle signs what an earlier process left unsigned.
func (l *Log) settle() {
	l.m.setSize(l.durable.Load(), l.signed.Load())
	if l.durable.Load() > l.signed.Load() {
		l.sign()
	}
}

// take makes the current batch the writer's.
func (l *Log) take() *batch {
	l.mu.Lock()
	b := l.cur
	l.cur = nil
	if b != nil {
		l.flush.Stop()
	}
	l.mu.Unlock()
	if b != nil {
		close(b.taken)
	}
	return b
}

// commit makes b durable and lets its waiters go; the tree grows after that, while the next batch gathers.
func (l *Log) commit(b *batch) {
	if l.failed() {
		b.finish(l.Err())
		return
	}
	if b == nil {
		l.retry()
		return
	}
	err := l.makeRoom(len(b.buf))
	if errors.Is(err, ErrFull) {
		l.refuse(b, err)
		return
	}
	if err == nil {
		began := time.Now()
		err = l.state.segment.append(b.buf)
		l.m.commits.Observe(time.Since(began).Seconds())
	}
	if err != nil {
		l.fail(b, err)
		return
	}
	l.durable.Store(b.first + int64(len(b.spans)))
	b.finish(nil)
	for _, s := range b.spans {
		l.state.tree.add(b.buf[s.from:s.to])
	}
	l.recycle(b)
	l.m.setSize(l.durable.Load(), l.signed.Load())
	if l.durable.Load()-l.signed.Load() >= l.o.CheckpointRecords {
		l.sign()
	} else if !l.armed {
		l.armed = true
		l.due.Reset(l.o.CheckpointEvery)
	}
}

// recycle keeps b's buffers for a later batch: two, since one batch gathers while another is written.
func (l *Log) recycle(b *batch) {
	l.mu.Lock()
	if len(l.spare) < 2 {
		l.spare = append(l.spare, buffers{b.buf[:0], b.spans[:0]})
	}
	l.mu.Unlock()
	b.buffers = buffers{}
}

// slim lets go of buffers, which a rush may have made large.
func (l *Log) slim() {
	l.mu.Lock()
	l.spare = nil
	l.mu.Unlock()
}

// makeRoom begins a new segment when it is time, and makes sure that n bytes fit.
func (l *Log) makeRoom(n int) error {
	if l.state.segment.size >= l.o.SegmentSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return l.state.segment.room(&l.o, n, min(reserveChunk, l.o.SegmentSize))
}

// rotate ends the segment: signed and its hashes written, before the next one's header names its root.
func (l *Log) rotate() error {
	old := l.state.segment
	if err := l.checkpoint(); err != nil {
		return err
	}
	l.state.tree.sync()
	t := tlog.Tree{N: l.state.tree.n, Hash: l.state.tree.root()}
	next, err := createSegment(&l.o, l.mode, t)
	if err != nil {
		return err
	}
	l.state.segment = next
	l.m.rotations.Inc()
	if err := old.finish(); err != nil {
		l.o.Logger.Warn("an audit segment did not close; its records are durable", zap.Error(err))
	}
	return nil
}

// sign makes a checkpoint; while the disk is full it is put off.
func (l *Log) sign() {
	if l.failed() {
		return
	}
	err := l.checkpoint()
	if errors.Is(err, ErrFull) {
		l.o.Logger.Warn("an audit checkpoint is put off", zap.Error(err))
		l.armed = true
		l.due.Reset(l.o.CheckpointEvery)
	} else if err != nil {
		l.fail(nil, err)
	}
}

// checkpoint signs the tree as it is; all of its records are durable.
func (l *Log) checkpoint() error {
	t := l.state.tree
	if t.n == l.signed.Load() {
		return nil
	}
	t.flush()
	if t.lost != nil {
		l.m.cacheLost.Set(1)
	}
	line, err := signCheckpoint(l.state.key, l.o.Origin, tlog.Tree{N: t.n, Hash: t.root()}, time.Now())
	if err != nil {
		return err
	}
	if err := l.state.checkpoints.room(&l.o, len(line), 64<<10); err != nil {
		return err
	}
	if err := l.state.checkpoints.append(line); err != nil {
		return err
	}
	l.signed.Store(t.n)
	l.m.setSize(l.durable.Load(), t.n)
	return nil
}

// refuse turns away b and what came after it, because the disk is full. Nothing of them was written, so the log stays
// good; the next record takes b's place once there is room.
func (l *Log) refuse(b *batch, err error) {
	l.mu.Lock()
	after := l.cur
	l.cur, l.next, l.full = nil, b.first, err
	l.mu.Unlock()
	l.turnAway(b, after, err)
	l.m.full.Set(1)
	l.o.Logger.Error("the audit log accepts nothing until its disk has room", zap.Error(err))
}

// retry looks whether there is room again. Records that are turned away ask for it.
func (l *Log) retry() {
	l.mu.Lock()
	full := l.full != nil
	l.mu.Unlock()
	if !full {
		return
	}
	err := l.makeRoom(1)
	if err != nil && !errors.Is(err, ErrFull) {
		l.fail(nil, err)
		return
	}
	l.mu.Lock()
	l.full = err
	l.mu.Unlock()
	if err == nil {
		l.m.full.Set(0)
		l.o.Logger.Info("the audit log has room again")
	}
}

// fail ends all appending until the log is opened anew.
func (l *Log) fail(b *batch, cause error) {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	l.mu.Lock()
	after := l.cur
	l.cur = nil
	l.err = err
	l.mu.Unlock()
	l.turnAway(b, after, err)
	l.m.failed.Set(1)
	l.o.Logger.Error("the audit log has failed; every call that must be recorded is refused until it is reopened", zap.Error(cause))
}

func (l *Log) turnAway(b, after *batch, err error) {
	b.finish(err)
	if after != nil {
		close(after.taken)
		after.finish(err)
	}
}

func (l *Log) failed() bool { return errors.Is(l.Err(), ErrFailed) }

// Err is nil while the log accepts records, else why it does not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return l.full
}

// Close makes everything appended durable, signs it and ends the log; the error is the log's failure, if it failed.
// Appending after Close is an ErrClosed.
func (l *Log) Close() error {
	l.once.Do(func() {
		l.mu.Lock()
		if l.err == nil {
			l.err = ErrClosed
		}
		l.mu.Unlock()
		close(l.closing)
	})
	<-l.closed
	if err := l.Err(); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// shut signs, closes the files and gives up the lock.
func (l *Log) shut() {
	l.flush.Stop()
	l.due.Stop()
	l.sign()
	if l.failed() { // the files stay exactly as they are
		l.state.close()
	} else {
		l.state.tree.sync()
		if err := errors.Join(l.state.tree.close(), l.state.segment.finish(), l.state.checkpoints.finish()); err != nil {
			l.o.Logger.Warn("closing the audit log's files", zap.Error(err))
		}
	}
	l.m.unregister()
	l.lock.Close()
}

// Status is how a log does.
type Status struct {
	Records  int64 // that are durable
	Signed   int64 // of them, covered by a checkpoint
	Queued   int   // waiting to be written
	Capacity int   // the most that may wait
	Err      error // why it accepts nothing, else nil
}

// Status tells how the log does.
func (l *Log) Status() Status {
	err := l.Err()
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{Records: l.durable.Load(), Signed: l.signed.Load(), Queued: int(l.next - l.durable.Load()),
		Capacity: l.o.QueueRecords, Err: err}
}
