package audit

import (
	"errors"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"
)

// run is the writer: the only goroutine that touches the files.
func (l *Log) run() {
	defer close(l.closed)
	l.settle()
	for {
		select {
		case <-l.kick:
			// Who can run now may have records of its own: it is cheaper by one fdatasync to let it queue them first.
			runtime.Gosched()
			l.commit(l.take())
		case <-l.due.C:
			l.armed = false
			l.slim()
			l.refill()
			l.sign()
		case done := <-l.signNow:
			done <- l.signAll()
		case <-l.again.C:
			l.reopen()
		case <-l.closing:
			for b := l.take(); b != nil; b = l.take() { // what is rescued of one batch stands in the next
				l.commit(b)
			}
			l.shut()
			return
		}
	}
}

// settle signs what an earlier process left unsigned.
func (l *Log) settle() {
	if l.state == nil {
		return
	}
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
		b.leave()
	}
	return b
}

// commit makes b durable and lets its waiters go; the tree grows after that, while the next batch gathers.
func (l *Log) commit(b *batch) {
	if l.state == nil {
		if b != nil {
			l.turnAway(l.Err(), b)
		}
		return
	}
	if b == nil {
		l.retry()
		return
	}
	full := l.isFull()
	n := len(b.buf)
	if full {
		n = max(n, l.wanted) // a little room that is left over is not room again
	}
	err := l.makeRoom(n)
	switch {
	case err == nil && full:
		l.roomAgain()
	case errors.Is(err, ErrFull) && b.plain != nil:
		l.refuse(b, err)
		return
	case errors.Is(err, ErrFull):
		l.setFull(err, n)
		if err = l.useReserve(len(b.buf)); errors.Is(err, ErrFull) {
			l.spend(b, err)
			return
		}
	}
	if err == nil {
		err = l.write(b.buf)
	}
	if err != nil {
		l.fail(b, err)
		return
	}
	l.durable.Store(b.first + int64(len(b.spans)))
	l.m.setSize(l.durable.Load(), l.signed.Load()) // before the waiters go: they see what they waited for counted
	b.finish(nil)
	for _, s := range b.spans {
		l.state.tree.add(b.buf[s.from:s.to])
	}
	l.recycle(b)
	if l.durable.Load()-l.signed.Load() >= l.o.CheckpointRecords && !l.isFull() {
		l.sign()
	} else if !l.armed {
		l.armed = true
		l.due.Reset(l.o.CheckpointEvery)
	}
}

// write appends b to the segment, and lets Status see how long it takes.
func (l *Log) write(b []byte) error {
	began := time.Now()
	l.beats.Store(began.UnixNano())
	err := l.state.segment.append(b)
	took := time.Since(began)
	l.took.Store(int64(took))
	l.beats.Store(0)
	l.m.commits.Observe(took.Seconds())
	return err
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
	return l.state.segment.room(&l.o, l.keep(), n, min(reserveChunk, l.o.SegmentSize))
}

// rotate ends the segment: signed and its hashes written, before the next one's header names its root.
func (l *Log) rotate() error {
	old := l.state.segment
	if err := l.checkpoint(); err != nil {
		return err
	}
	l.state.tree.sync()
	t := tlog.Tree{N: l.state.tree.n, Hash: l.state.tree.root()}
	next, err := createSegment(&l.o, l.keep(), l.mode, t)
	if err != nil {
		return err
	}
	l.state.segment = next
	l.m.rotations.Inc()
	select {
	case l.rotated <- struct{}{}:
	default:
	}
	if err := old.finish(); err != nil {
		l.o.Logger.Warn("an audit segment did not close; its records are durable", zap.Error(err))
	}
	return nil
}

// signAll makes a checkpoint now, out of the reserve if it must be.
func (l *Log) signAll() error {
	if l.state == nil {
		return l.Err()
	}
	err := l.checkpoint()
	if errors.Is(err, ErrFull) && l.state.reserve.give(reserveStep) == nil {
		l.setReserve()
		c := l.state.checkpoints
		if err = c.Reserve(c.size, reserveStep); err != nil {
			return noRoom(err, "reserving room in %s", c.path)
		}
		c.reserved = c.size + reserveStep
		err = l.checkpoint()
	}
	if err != nil && !errors.Is(err, ErrFull) {
		l.fail(nil, err)
	}
	return err
}

// sign makes a checkpoint; while the disk is full it is put off.
func (l *Log) sign() {
	if l.state == nil {
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
	point := tlog.Tree{N: t.n, Hash: t.root()}
	line, err := signCheckpoint(l.state.key, l.o.Origin, point, time.Now())
	if err != nil {
		return err
	}
	if err := l.state.checkpoints.room(&l.o, l.keep(), len(line), 64<<10); err != nil {
		return err
	}
	t.flush()
	if t.lost != nil {
		l.m.cacheLost.Set(1)
	}
	if err := l.state.checkpoints.append(line); err != nil {
		return err
	}
	l.signed.Store(t.n)
	l.pointed.Store(&point)
	l.m.setSize(l.durable.Load(), t.n)
	return nil
}

// shut signs, closes the files and gives up the lock.
func (l *Log) shut() {
	l.flush.Stop()
	l.again.Stop()
	l.sign()
	l.due.Stop()
	if l.state != nil {
		l.state.tree.sync()
		if err := errors.Join(l.state.tree.close(), l.state.segment.finish(), l.state.checkpoints.finish(), l.state.reserve.close()); err != nil {
			l.o.Logger.Warn("closing the audit log's files", zap.Error(err))
		}
		l.lock.Close()
	}
	l.m.unregister()
}
