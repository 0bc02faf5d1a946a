package proxy

import (
	"context"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// deadline bounds a call in time. It is context.WithTimeout for that one purpose, made to lie within the call: it costs a
// timer, and a place among those whom the exchange's own end wakes, only once somebody waits for it. Whoever only asks
// whether it is over looks at the clock; when both ends have come by then, it is over because the exchange is.
type deadline struct {
	context.Context // the exchange's
	at              time.Time

	mu    sync.Mutex
	err   error // why it is over, nil while it is not
	done  chan struct{}
	timer *time.Timer
	stop  func() bool // takes it from those whom the exchange's end wakes
	after []*func()

	hung wire.Cutter // the connection that goes with the call
	hook wire.Hook   // of the exchange, on which it hangs for that
}

var _ wire.Hook = (*deadline)(nil)

// begin sets d to end with parent, and after timeout at the latest. It is called once.
func (d *deadline) begin(parent context.Context, timeout time.Duration) {
	d.Context, d.at = parent, time.Now().Add(timeout)
	if at, ok := parent.Deadline(); ok && at.Before(d.at) {
		d.at = at
	}
}

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

// Err implements context.Context.
func (d *deadline) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.look()
}

// Done implements context.Context.
func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.look() == nil {
			d.watch()
		} else {
			d.release()
		}
	}
	return d.done
}

// AfterFunc lets package context wait for d without a goroutine: f is called in one of its own when d is over. stop
// reports whether it has kept f from being called.
func (d *deadline) AfterFunc(f func()) (stop func() bool) {
	done, entry := d.Done(), &f
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-done:
		go f()
		return func() bool { return false }
	default:
	}
	d.after = append(d.after, entry)
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i, e := range d.after {
			if e == entry {
				d.after = append(d.after[:i], d.after[i+1:]...)
				return true
			}
		}
		return false
	}
}

// Hang implements wire.Hook. It needs no timer, and no place at an exchange that is a Hook itself.
func (d *deadline) Hang(c wire.Cutter) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.look() != nil:
		go c.Cut()
		return true
	case d.hung != nil:
		return false
	}
	d.hung = c
	d.follow()
	return true
}

// Drop implements wire.Hook.
func (d *deadline) Drop(c wire.Cutter) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung != c {
		return false
	}
	d.hung = nil
	return true
}

// Cut implements wire.Cutter: the exchange has ended.
func (d *deadline) Cut() { d.over(d.Context.Err()) }

// end ends d, if it is not over, and gives back what it holds. It may be called more than once, and without begin.
func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Context != nil && d.look() == nil {
		d.finish(context.Canceled)
	}
}

func (d *deadline) over(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.finish(err)
	}
}

// look finds out whether d is over. mu is held, as it is for all that follow.
func (d *deadline) look() error {
	if d.err == nil {
		if err := d.Context.Err(); err != nil {
			d.finish(err)
		} else if !time.Now().Before(d.at) {
			d.finish(context.DeadlineExceeded)
		}
	}
	return d.err
}

// watch makes sure that d's end is noticed.
func (d *deadline) watch() {
	d.timer = time.AfterFunc(time.Until(d.at), func() { d.over(context.DeadlineExceeded) })
	d.follow()
}

// follow lets the exchange's end wake d.
func (d *deadline) follow() {
	if d.stop != nil || d.hook != nil {
		return
	}
	if h, ok := d.Context.(wire.Hook); ok && h.Hang(d) {
		d.hook = h
	} else if d.Context.Done() != nil {
		d.stop = context.AfterFunc(d.Context, d.Cut)
	}
}

func (d *deadline) finish(err error) {
	d.err = err
	if d.hook != nil {
		d.hook.Drop(d)
	}
	if d.stop != nil {
		d.stop()
	}
	if d.hung != nil {
		go d.hung.Cut()
		d.hung = nil
	}
	if d.done != nil {
		d.release()
	}
}

// release lets everyone go who waits. It is called once: by finish, or by Done when finish came before it.
func (d *deadline) release() {
	if d.timer != nil {
		d.timer.Stop()
	}
	select {
	case <-d.done:
		return
	default:
	}
	close(d.done)
	for _, f := range d.after {
		go (*f)()
	}
	d.after = nil
}
