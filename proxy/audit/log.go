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

	retaining sync.WaitGroup
	rotated   chan struct{}   // a segment has ended
	signNow   chan chan error // asks for a checkpoint

	durable atomic.Int64 // records that are safe on the disk
	signed  atomic.Int64 // records that the last checkpoint covers

	mu    sync.Mutex
	cur   *batch    // records not yet taken by the writer; nil when there are none
	next  int64     // index of the next record
	spare []buffers // to use again
	full  error     // an ErrFull while the disk has no room
	spent bool      // and while the reserve has none either
	err   error     // why nothing is accepted any more
	gap   gap       // what was turned away and is not yet told of

	beats     atomic.Int64 // when the write that is under way began, Unix ns; 0 when there is none
	took      atomic.Int64 // how long the last one took, ns
	inReserve atomic.Int64 // bytes in the reserve
	pointed   atomic.Pointer[tlog.Tree]

	// spill, when it is set, takes over what is turned away, with those who wait for it.
	spill func(err error, batches ...*batch)

	// The rest belongs to the writer alone.
	state   *state
	had     *tlog.Tree // what was durable when the log failed; nil when it was never open
	again   *time.Timer
	backoff time.Duration
	ctx     context.Context // ends when the log is to close
	cancel  context.CancelFunc
	wanted  int // bytes for which there was no room
	mode    os.FileMode
	due     *time.Timer // for the next checkpoint
	armed   bool
}

// reserveChunk is how much room is asked of the file system at a time.
const reserveChunk = 1 << 20

// flushBytes is when records that nobody waits for are written without waiting for FlushEvery.
const flushBytes = 256 << 10

func newLog(o Options, s *state, m *metrics) *Log {
	l := &Log{o: o, m: m, kick: make(chan struct{}, 1), closing: make(chan struct{}), closed: make(chan struct{}),
		rotated: make(chan struct{}, 1), signNow: make(chan chan error),
		due: time.NewTimer(math.MaxInt64), again: time.NewTimer(math.MaxInt64)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.scratch.New = func() any { b := make([]byte, 0, 1024); return &b }
	l.flush = time.AfterFunc(math.MaxInt64, l.wake)
	if s != nil {
		l.begin(s)
	}
	return l
}

// begin makes s the log that is appended to.
func (l *Log) begin(s *state) {
	l.state, l.mode = s, fileMode(l.o.Dir)
	l.durable.Store(s.tree.n)
	l.signed.Store(s.signed)
	l.pointed.Store(&s.last)
	l.mu.Lock()
	l.next = s.tree.n
	l.mu.Unlock()
}

// start begins to write.
func (l *Log) start() {
	l.retaining.Add(1)
	go l.run()
	go l.retain()
}

// Append adds r to the log; r may be used again at once. While the queue is full it waits up to Options.Patience for
// room. An error means that r is not in the log and never will be; it is an ErrFull, ErrBusy, ErrFailed, ErrClosed or
// ErrRecord. A record whose Time is zero gets the time of the call.
func (l *Log) Append(r *proxy.Record) (proxy.Receipt, error) {
	return l.add(r, l.patience)
}

// AppendContext is Append, but waits for room as long as ctx allows.
func (l *Log) AppendContext(ctx context.Context, r *proxy.Record) (proxy.Receipt, error) {
	return l.add(r, func() (context.Context, context.CancelFunc) { return ctx, func() {} })
}

func (l *Log) patience() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), l.o.Patience, ErrBusy)
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

	receipt, err := l.enqueue(line, sum, Emergency(r), patience)
	if err == nil {
		l.m.count(r.Stage)
	}
	return receipt, err
}

// addLine queues r as it was encoded by another process.
func (l *Log) addLine(line []byte, r *proxy.Record) (proxy.Receipt, error) {
	receipt, err := l.enqueue(line, frameSum(line), Emergency(r), l.patience)
	if err == nil {
		l.m.count(r.Stage)
	}
	return receipt, err
}

// enqueue queues an encoded record.
func (l *Log) enqueue(line []byte, sum uint32, urgent bool, patience func() (context.Context, context.CancelFunc)) (proxy.Receipt, error) {
	receipt, room, err := l.queue(line, sum, urgent)
	if room != nil {
		ctx, cancel := patience()
		defer cancel()
		for room != nil {
			select {
			case <-room:
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
			}
			receipt, room, err = l.queue(line, sum, urgent)
		}
	}
	if err != nil {
		return nil, err
	}
	return receipt, nil
}

// queue puts an encoded record into the current batch. While there is no room it gives the channel that is closed when
// there may be.
func (l *Log) queue(line []byte, sum uint32, urgent bool) (r *receipt, room <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		l.gap.count++
		return nil, nil, l.err
	}
	if l.full != nil {
		l.wake() // to look again
		if !urgent || l.spent {
			l.gap.count++
			return nil, nil, l.full
		}
	}
	if b := l.cur; b != nil && (len(b.spans) >= l.o.QueueRecords || len(b.buf)+len(line)+64 > l.o.QueueBytes && len(b.spans) > 0) {
		l.wake()
		return nil, b.waiting(), nil
	}
	return l.put(line, sum, urgent), nil, nil
}

// put puts an encoded record into the current batch. l.mu is held.
func (l *Log) put(line []byte, sum uint32, urgent bool) *receipt {
	b := l.cur
	if b == nil {
		b = l.newBatch(l.next)
		l.cur = b
		l.flush.Reset(l.o.FlushEvery)
	}
	from := len(b.buf)
	b.add(line, sum, l.next, l.durable.Load(), urgent)
	l.next++
	if from < flushBytes && len(b.buf) >= flushBytes {
		l.wake()
	}
	return b.receipt(l, urgent)
}

func (l *Log) newBatch(first int64) *batch {
	b := &batch{first: first}
	if n := len(l.spare); n > 0 {
		b.buffers, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	return b
}

func (l *Log) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

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
		l.cancel()
		l.retaining.Wait()
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

	// Latency is how long the write that is under way has taken so far, or else the last one: what a slow disk costs
	// every call.
	Latency time.Duration
	Refused int64 // records that were turned away since the log last took any
	Reserve int64 // bytes that are allocated for emergencies, of Options.Reserve
}

// Status tells how the log does.
func (l *Log) Status() Status {
	err := l.Err()
	latency := time.Duration(l.took.Load())
	if began := l.beats.Load(); began != 0 {
		latency = max(latency, time.Since(time.Unix(0, began)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{Records: l.durable.Load(), Signed: l.signed.Load(), Queued: int(max(0, l.next-l.durable.Load())),
		Capacity: l.o.QueueRecords, Err: err, Latency: latency, Refused: l.gap.count, Reserve: l.inReserve.Load()}
}
