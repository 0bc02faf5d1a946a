package proxy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy/wire"
)

// A deadline is what context.WithTimeout makes, whatever happens to it and whoever asks.
func TestDeadlineIsWithTimeout(outside *testing.T) {
	rapid.Check(outside, func(t *rapid.T) {
		outer := time.Duration(rapid.IntRange(0, 6).Draw(t, "the exchange's own deadline")) * time.Second
		timeout := time.Duration(rapid.IntRange(0, 4).Draw(t, "timeout")) * time.Second
		hooks := rapid.Bool().Draw(t, "the exchange is a hook")
		type step struct {
			act  string
			wait time.Duration
		}
		var steps []step
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			steps = append(steps, step{rapid.SampledFrom([]string{"wait", "wait", "err", "done", "child", "after", "stop", "hang", "drop", "parent", "end"}).Draw(t, "act"),
				time.Duration(rapid.IntRange(0, 3).Draw(t, "wait")) * 700 * time.Millisecond})
		}
		failure := ""
		synctest.Test(outside, func(*testing.T) {
			parent, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "kept"))
			if outer > 0 {
				parent, cancel = context.WithTimeout(parent, outer)
			}
			defer cancel()
			exchange := parent
			if hooks {
				h := &hooked{Context: parent}
				defer context.AfterFunc(parent, h.cut)()
				defer func() {
					if h.hung != nil && failure == "" {
						failure = "something hangs on the exchange still"
					}
				}()
				exchange = h
			}
			want, end := context.WithTimeout(parent, timeout)
			defer end()
			got := &deadline{}
			got.begin(exchange, timeout)
			defer got.end()
			a, b := &waiters{ctx: got}, &waiters{ctx: want}
			defer a.close()
			defer b.close()
			for _, s := range steps {
				switch s.act {
				case "wait":
					time.Sleep(s.wait)
				case "parent":
					_ = got.Err() // else nobody knows which end came first
					cancel()
					_ = got.Err()
				case "end":
					got.end()
					end()
				default:
					a.act(s.act)
					b.act(s.act)
				}
				synctest.Wait()
				if x, y := a.state(s.act), b.state(s.act); x != y {
					failure = s.act + ": " + x + ", want " + y
					return
				}
			}
			if x, y := a.last(), b.last(); x != y {
				failure = "at the end: " + x + ", want " + y
			}
		})
		if failure != "" {
			t.Fatalf("%v, exchange %s, timeout %s: %s", steps, outer, timeout, failure)
		}
	})
}

type key struct{}

// waiters is a context and those who wait for it.
type waiters struct {
	ctx      context.Context
	children []context.Context
	cancels  []context.CancelFunc
	stops    []func() bool
	cut      *cutter
	drop     func() bool
	called   chan struct{}
	log      string
}

func (w *waiters) act(act string) {
	if w.called == nil {
		w.called = make(chan struct{}, 64)
	}
	switch act {
	case "err":
		w.log += word(w.ctx.Err())
	case "done":
		w.log += closed(w.ctx.Done())
	case "child":
		child, cancel := context.WithCancel(w.ctx)
		w.children, w.cancels = append(w.children, child), append(w.cancels, cancel)
	case "after":
		w.stops = append(w.stops, context.AfterFunc(w.ctx, func() { w.called <- struct{}{} }))
	case "hang": // for which a context that is no Hook has AfterFunc
		if w.cut != nil {
			break
		}
		w.cut = &cutter{}
		if h, ok := w.ctx.(wire.Hook); ok {
			if !h.Hang(w.cut) {
				w.log += "taken "
			}
			w.drop = func() bool { return h.Drop(w.cut) }
		} else {
			w.drop = context.AfterFunc(w.ctx, w.cut.Cut)
		}
	case "drop":
		if w.cut != nil {
			if w.drop() {
				w.log += "dropped "
			} else {
				w.log += "too late "
			}
			w.cut = nil
		}
	case "stop":
		if n := len(w.stops); n > 0 {
			if w.stops[n-1]() {
				w.log += "stopped "
			}
			w.stops = w.stops[:n-1]
		}
	}
}

// state is what can be seen without waking a deadline that nobody waits for, and after "done" all of it.
func (w *waiters) state(act string) string {
	s := w.log
	if w.cut != nil && w.ctx.Err() != nil { // a Hook leaves the deadline to who hangs on it, until somebody looks
		synctest.Wait()
		s += fmt.Sprint(w.cut.times.Load())
	}
	for _, c := range w.children {
		s += word(c.Err()) + closed(c.Done())
	}
	if act == "done" {
		s += w.last()
	}
	return s
}

func (w *waiters) last() string {
	at, ok := w.ctx.Deadline()
	s := word(w.ctx.Err()) + closed(w.ctx.Done()) + at.String()
	if !ok || w.ctx.Value(key{}) != "kept" {
		s += "lost"
	}
	return s + string(rune('0'+len(w.called)))
}

type cutter struct{ times atomic.Int32 }

func (c *cutter) Cut() { c.times.Add(1) }

// hooked is an exchange's context.
type hooked struct {
	context.Context
	mu   sync.Mutex
	hung wire.Cutter
}

func (h *hooked) Hang(c wire.Cutter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Err() != nil {
		go c.Cut()
	} else if h.hung != nil {
		return false
	} else {
		h.hung = c
	}
	return true
}

func (h *hooked) Drop(c wire.Cutter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := h.hung == c
	if mine {
		h.hung = nil
	}
	return mine
}

func (h *hooked) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hung != nil {
		go h.hung.Cut()
		h.hung = nil
	}
}

func (w *waiters) close() {
	for _, cancel := range w.cancels {
		cancel()
	}
}

func word(err error) string {
	switch {
	case err == nil:
		return "open "
	case errors.Is(err, context.DeadlineExceeded):
		return "late "
	case errors.Is(err, context.Canceled):
		return "canceled "
	}
	return err.Error()
}

func closed(c <-chan struct{}) string {
	select {
	case <-c:
		return "closed "
	default:
		return "waiting "
	}
}
