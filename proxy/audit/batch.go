package audit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// batch is what one write and one fdatasync make durable together.
type batch struct {
	first int64 // index of its first record
	buffers
	taken chan struct{} // closed when the writer takes it; nil while nobody waits for that. Log.mu guards it

	// The records' receipts: those that may use the reserve have a fate of their own when the disk is full.
	plain  *receipt // &own, once there is such a record
	own    receipt
	urgent *receipt
	moved  []*receipt // of urgent records that were moved here from batches that were turned away
}

type buffers struct {
	buf   []byte // lines
	spans []span // of the records in buf
}

// span is where a record's JSON lies in a batch.
type span struct {
	from, to int
	urgent   bool
}

// receipt is the proxy.Receipt of the records of a batch that share their fate.
type receipt struct {
	log    *Log
	wanted atomic.Bool
	over   atomic.Bool // err is final

	mu   sync.Mutex
	done chan struct{} // closed when err is final; nil while nobody waits for that
	err  error
}

// receipt gives the one that a record of b waits for.
func (b *batch) receipt(l *Log, urgent bool) *receipt {
	switch {
	case urgent && b.urgent == nil:
		b.urgent = &receipt{log: l}
	case !urgent && b.plain == nil:
		b.plain = &b.own
		b.own.log = l
	}
	if urgent {
		return b.urgent
	}
	return b.plain
}

// waiting gives the channel that is closed when the writer takes b. Log.mu is held.
func (b *batch) waiting() <-chan struct{} {
	if b.taken == nil {
		b.taken = make(chan struct{})
	}
	return b.taken
}

// leave lets everyone go who waits for the writer to take b. It is the current batch no more, so nobody else will.
func (b *batch) leave() {
	if b.taken != nil {
		close(b.taken)
	}
}

// add frames a line with the index that it gets.
func (b *batch) add(line []byte, sum uint32, index, durable int64, urgent bool) {
	from := len(b.buf)
	b.buf = appendFrame(b.buf, line, sum, index, durable)
	b.spans = append(b.spans, span{from, from + len(line), urgent})
}

// Wait returns nil once fdatasync has returned for the record, and an error when it never will: ErrFull, ErrFailed.
// When ctx ends first, the record may still become durable.
func (r *receipt) Wait(ctx context.Context) error {
	done := r.pending()
	if done == nil {
		return r.err
	}
	if !r.wanted.Swap(true) {
		r.log.wake()
	}
	select {
	case <-done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("audit: waiting for the disk: %w", ctx.Err())
	}
}

// pending gives the channel that is closed when err is final, nil when it is.
func (r *receipt) pending() <-chan struct{} {
	if r.over.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over.Load() {
		return nil
	}
	if r.done == nil {
		r.done = make(chan struct{})
	}
	return r.done
}

func (r *receipt) finish(err error) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	r.over.Store(true)
	if r.done != nil {
		close(r.done)
	}
}

// finish lets everyone go who waits for b.
func (b *batch) finish(err error) {
	if b == nil {
		return
	}
	b.plain.finish(err)
	b.finishUrgent(err)
}

func (b *batch) finishUrgent(err error) {
	b.urgent.finish(err)
	for _, r := range b.moved {
		r.finish(err)
	}
}

// rescue moves the urgent records of from, and whoever waits for them, to the end of b, whose next index is next.
func (b *batch) rescue(from *batch, next, durable int64) int64 {
	for _, s := range from.spans {
		if s.urgent {
			line := from.buf[s.from:s.to]
			b.add(line, frameSum(line), next, durable, true)
			next++
		}
	}
	if from.urgent != nil {
		b.moved = append(b.moved, from.urgent)
	}
	b.moved = append(b.moved, from.moved...)
	from.urgent, from.moved = nil, nil
	return next
}

// count is how many of b's records are of that kind.
func (b *batch) count(urgent bool) (n int64) {
	for _, s := range b.spans {
		if s.urgent == urgent {
			n++
		}
	}
	return n
}
