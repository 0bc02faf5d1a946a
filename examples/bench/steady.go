package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// steady calls on all connections until it is told to end, as applications do that know HTTP's rules: a connection that
// the answer says will be closed is not used again, and a call whose connection was closed before a byte of an answer
// came is made anew on another one (RFC 9110 §9.2.2, RFC 9112 §9.3.1). Any other call that does not succeed has failed.
func (l *load) steady(ctx context.Context, begin func() error) (t tally, err error) {
	callers, err := l.open(ctx)
	if err != nil {
		return t, err
	}
	if err := begin(); err != nil {
		return t, err
	}
	var over atomic.Bool
	var all sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for _, c := range callers {
		all.Go(func() {
			var delays []time.Duration
			for !over.Load() {
				at := time.Now()
				var err error
				if c, err = l.insist(ctx, c); err != nil {
					l.failed(err)
					continue
				}
				l.calls.Add(1)
				delays = append(delays, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			t.Delays = append(t.Delays, delays...)
		})
	}
	err = begin() // until it is told to end
	over.Store(true)
	all.Wait()
	t.Took, t.Again = time.Since(start), l.again.Load()
	return t, err
}

// insist makes one call, on a new connection where there is none or the one there is has been closed.
func (l *load) insist(ctx context.Context, c *caller) (*caller, error) {
	for {
		fresh := c == nil
		if fresh {
			conn, err := l.dial(ctx)
			if err != nil {
				return nil, err
			}
			c = newCaller(conn)
		}
		_, err := c.call(l.Request)
		if err == nil && !bytes.Contains(bytes.ToLower(c.head), []byte("\r\nconnection: close\r\n")) {
			return c, nil
		}
		_ = c.Close()
		gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		if err == nil || fresh || !gone || c.began {
			return nil, err
		}
		l.again.Add(1)
		c = nil
	}
}
