package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const reserveName = "reserve"

// reserveStep is how much of the reserve is given to a segment at a time.
const reserveStep = 64 << 10

// reserve is a file whose bytes are allocated and hold nothing: what it gives back to the file system can be taken for
// a segment at once, whoever filled the disk.
type reserve struct {
	f    File
	size int64 // bytes that it holds
	want int64
}

// openReserve opens the reserve as it is; refill makes it whole.
func openReserve(o *Options, mode fs.FileMode) (*reserve, error) {
	path := filepath.Join(o.Dir, reserveName)
	info, err := os.Lstat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return nil, fmt.Errorf("audit: %w", err)
	case o.Reserve == 0 && missing:
		return &reserve{}, nil
	case o.Reserve == 0:
		if err := o.FS.Remove(path); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		return &reserve{}, nil
	}
	f, err := o.FS.Append(path, missing, mode)
	if err != nil {
		if missing && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
			return &reserve{want: o.Reserve}, nil
		}
		return nil, fmt.Errorf("audit: %w", err)
	}
	r := &reserve{f: f, want: o.Reserve}
	if !missing {
		r.size = info.Size()
		// What an interrupted allocation left may have holes.
		if !allocated(path, r.size) {
			r.size = 0
		}
		if r.size = min(r.size, r.want); r.size != info.Size() {
			if err := f.Release(r.size); err != nil {
				f.Close()
				return nil, fmt.Errorf("audit: %w", err)
			}
		}
	}
	return r, nil
}

// allocated reports whether the file has a place on the disk for each of its bytes.
func allocated(path string, size int64) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Blocks*512 >= size
}

func (r *reserve) close() error {
	if r == nil || r.f == nil {
		return nil
	}
	return r.f.Close()
}

// give returns n bytes to the file system.
func (r *reserve) give(n int64) error {
	if r.f == nil || r.size < n {
		return ErrFull
	}
	if err := r.f.Release(r.size - n); err != nil {
		return fmt.Errorf("audit: releasing the reserve: %w", err)
	}
	r.size -= n
	return nil
}

// keep is how much must stay free when an ordinary record was written: the share of others, and what the reserve lacks.
func (l *Log) keep() int64 {
	return l.o.MinFree + l.state.reserve.want - l.state.reserve.size
}

// useReserve makes room for n bytes of urgent records out of the reserve.
func (l *Log) useReserve(n int) error {
	a, r := l.state.segment, l.state.reserve
	for a.size+int64(n) > a.reserved {
		step := min(max(reserveStep, int64(n)), max(r.size, int64(n)))
		if err := r.give(step); errors.Is(err, ErrFull) {
			return fmt.Errorf("%w, nor in its reserve", l.Err())
		} else if err != nil {
			return err
		}
		l.setReserve()
		err := a.Reserve(a.size, step)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			continue // somebody was quicker
		}
		if err != nil {
			return fmt.Errorf("audit: reserving room in %s: %w", a.path, err)
		}
		a.reserved, a.urgent = a.size+step, true
	}
	return nil
}

// refill makes the reserve whole where there is room for it.
func (l *Log) refill() {
	if l.state == nil {
		return
	}
	r := l.state.reserve
	if r.size >= r.want {
		return
	}
	free, err := l.o.FS.Free(l.o.Dir)
	if err == nil && free-(r.want-r.size) < l.o.MinFree {
		return
	}
	if err == nil && r.f == nil {
		r.f, err = l.o.FS.Append(filepath.Join(l.o.Dir, reserveName), true, l.mode)
	}
	if err == nil {
		if err = r.f.Allocate(r.size, r.want); err != nil {
			err = errors.Join(err, r.f.Release(r.size))
		}
	}
	if err != nil {
		l.o.Logger.Warn("the audit log's reserve could not be allocated", zap.Error(err))
		return
	}
	r.size = r.want
	l.setReserve()
}

// setReserve shows how large the reserve is.
func (l *Log) setReserve() {
	l.inReserve.Store(l.state.reserve.size)
	l.m.reserve.Set(float64(l.state.reserve.size))
}

// refuse turns away b and what came after it, because the disk is full. Nothing of them was written, so the log stays
// good; the next record takes b's place. Urgent records among them are written next, out of the reserve.
func (l *Log) refuse(b *batch, err error) {
	l.wanted = len(b.buf)
	l.mu.Lock()
	after := l.cur
	l.begins(err)
	l.cur, l.next, l.full = nil, b.first, err
	l.gap.count += b.count(false)
	if after != nil {
		l.gap.count += after.count(false)
	}
	for _, from := range []*batch{b, after} {
		if from == nil || from.urgent == nil && len(from.moved) == 0 {
			continue
		}
		if l.cur == nil {
			l.cur = l.newBatch(l.next)
		}
		l.next = l.cur.rescue(from, l.next, l.durable.Load())
		l.wake()
	}
	l.mu.Unlock()
	if after != nil {
		after.leave()
	}
	l.turnAway(err, b, after)
	l.nowFull(err)
}

// setFull says that only urgent records are taken, beginning with one of n bytes.
func (l *Log) setFull(err error, n int) {
	l.mu.Lock()
	is := l.full != nil
	l.full = err
	l.begins(err)
	l.mu.Unlock()
	if !is {
		l.wanted = n
		l.nowFull(err)
	}
}

func (l *Log) nowFull(err error) {
	l.m.full.Set(1)
	l.state.tree.hold = true // the cache takes no room either
	l.o.Logger.Error("the audit log accepts nothing but emergencies until its disk has room", zap.Error(err))
}

// spend turns away even urgent records: the reserve is used up.
func (l *Log) spend(b *batch, err error) {
	l.mu.Lock()
	after := l.cur
	l.cur, l.next, l.full, l.spent = nil, b.first, err, true
	l.gap.count += int64(len(b.spans))
	if after != nil {
		l.gap.count += int64(len(after.spans))
	}
	l.mu.Unlock()
	if after != nil {
		after.leave()
	}
	l.turnAway(err, b, after)
}

func (l *Log) isFull() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.full != nil
}

// retry looks whether there is room again. Records that are turned away ask for it.
func (l *Log) retry() {
	if !l.isFull() {
		return
	}
	err := l.makeRoom(l.wanted)
	if err != nil && !errors.Is(err, ErrFull) {
		l.fail(nil, err)
		return
	}
	if err == nil {
		l.roomAgain()
	}
}

// roomAgain takes records again after the disk was full, the first of which says so.
func (l *Log) roomAgain() {
	l.mu.Lock()
	if l.full == nil {
		l.mu.Unlock()
		return
	}
	l.full, l.spent = nil, false
	l.tellGap()
	l.mu.Unlock()
	l.m.full.Set(0)
	l.state.tree.hold = false
	l.refill()
	l.o.Logger.Info("the audit log has room again")
}

// turnAway ends batches that will never be in this log: another one takes them over, or whoever waits is told.
func (l *Log) turnAway(err error, batches ...*batch) {
	if l.spill != nil {
		l.spill(err, batches...)
		return
	}
	for _, b := range batches {
		b.finish(err)
	}
}
