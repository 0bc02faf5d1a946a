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
	state  *state
	wanted int // bytes for which there was no room
	mode   os.FileMode
	due    *time.Timer // for the next checkpoint
	armed  bool
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
