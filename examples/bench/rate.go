package main

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rate sends calls at a fixed rate, whether those before have been answered or not, and counts each call's delay from
// when it was to be sent. A proxy that stalls delays the calls that would have come meanwhile, and they count: a client
// that waits for one answer before it asks again would leave them out, and flatter whoever stalls (Tene's coordinated
// omission).
//
// One thread keeps the time, because the runtime's own timers are no finer than a millisecond here; as long as the
// connection whose turn it is is free, that thread sends too.
func (l *load) rate(ctx context.Context, begin func() error) (t tally, err error) {
	callers, err := l.open(ctx)
	if err != nil {
		return t, err
	}
	if err := begin(); err != nil {
		return t, err
	}
	s := schedule{start: time.Now().Add(10 * time.Millisecond), every: time.Second / time.Duration(l.Rate)}
	lanes := make([]*lane, len(callers))
	var all sync.WaitGroup
	for i, c := range callers {
		lanes[i] = &lane{caller: c, wake: make(chan struct{}, 1)}
		all.Go(func() { lanes[i].answers(l, s) })
	}
	n := int(l.For / s.every)
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return t, err
	}
	for i := range n {
		pause(time.Until(s.at(i)))
		lanes[i%len(lanes)].due(l, i)
	}
	for _, l := range lanes {
		l.over()
	}
	all.Wait()
	t.Took = time.Since(s.start)
	for _, l := range lanes {
		t.Delays = append(t.Delays, l.delays...)
	}
	if len(t.Delays) != n && l.bad.Load() == 0 {
		return t, errors.New("calls have got lost")
	}
	return t, nil
}

// schedule is when each call is to be sent.
type schedule struct {
	start time.Time
	every time.Duration
}

func (s schedule) at(i int) time.Time { return s.start.Add(time.Duration(i) * s.every) }

// pause sleeps, more exactly than the runtime does.
func pause(d time.Duration) {
	if d <= 0 {
		return
	}
	left := unix.NsecToTimespec(int64(d))
	for errors.Is(unix.Nanosleep(&left, &left), unix.EINTR) { //nolint:revive // it goes on with what is left
	}
}

// lane is one connection, with the calls that are to be made on it, in order.
type lane struct {
	*caller
	delays []time.Duration

	mu    sync.Mutex
	queue []int // calls that were due and are not answered; the first has been sent
	ended bool
	wake  chan struct{} // there is a first call, or there will be none
}

// due is told when call i is to be sent. It sends it, unless the one before is still under way.
func (n *lane) due(l *load, i int) {
	n.mu.Lock()
	n.queue = append(n.queue, i)
	first := len(n.queue) == 1
	n.mu.Unlock()
	if !first {
		return
	}
	if _, err := n.Write(l.Request); err != nil {
		l.failed(err)
	}
	n.wake <- struct{}{}
}

// over says that nothing more will be due.
func (n *lane) over() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended = true; len(n.queue) == 0 {
		close(n.wake)
	}
}

// answers reads replies, and sends at once what has become due meanwhile.
func (n *lane) answers(l *load, s schedule) {
	for range n.wake {
		for more := true; more; {
			length, err := n.reply()
			now := time.Now()
			n.mu.Lock()
			if err == nil {
				n.delays = append(n.delays, now.Sub(s.at(n.queue[0])))
				l.calls.Add(1)
				l.bytes.Add(length)
			}
			n.queue = n.queue[1:]
			more = len(n.queue) > 0
			done := n.ended && !more
			n.mu.Unlock()
			if err == nil && more {
				_, err = n.Write(l.Request)
			}
			if err != nil {
				l.failed(err)
				return
			}
			if done {
				return
			}
		}
	}
}
