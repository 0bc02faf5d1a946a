package audit

import (
	"errors"
	"fmt"
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
	l.m.setSize(l.durable.Load(), l.signed.Load()) // before the waiters go: they see what they waited for counted
	b.finish(nil)
	for _, s := range b.spans {
		l.state.tree.add(b.buf[s.from:s.to])
	}
	l.recycle(b)
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
	l.wanted = len(b.buf)
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
	err := l.makeRoom(l.wanted)
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
