package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// attackers is how many users' processes hold slow connections: enough for each to stay below what one identity, and
// one user, may have open.
const attackers = 10

// slowEach is how many slow connections of each kind there are, in all. Of stalled handshakes there are fewer than a ward
// lets wait at a time (1,024): beyond that it cuts the oldest, and this would be a flood of new connections instead.
func slowEach() map[string]int {
	return map[string]int{
		"plain head": 3500, "plain body": 1500, "plain reader": 350, // to the client hop
		"stalled handshake": 800, "mtls head": 3500, "mtls reader": 350, // to the server hop
	}
}

// slow holds 10,000 connections open that do next to nothing, for a minute, while an honest application calls at a fixed
// rate: what it notices, what a half-read connection costs, and whether all of it is given back.
func (b *bench) slow(ctx context.Context) ([]finding, error) {
	c, err := b.begin(ctx, ward)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	rate := max(b.o.rate/5, 1)
	honest := errand{Do: "rate", Address: c.front, Request: request("/Patient/example", b.staff), Conns: 16, Rate: rate, For: 4 * b.o.duration, Sources: 64}
	b.say("  an honest application alone")
	idle, _, err := b.under(ctx, honest, c.processes()...)
	if err != nil {
		return nil, err
	}
	client, server, err := held(ctx, c)
	if err != nil {
		return nil, err
	}

	b.say("  half-read heads alone")
	each, err := b.halfRead(ctx, c)
	if err != nil {
		return nil, err
	}

	b.say("  10,000 slow connections")
	var all []*generator
	defer func() {
		for _, g := range all {
			g.stop()
		}
	}()
	for i := range attackers {
		e := errand{Do: "slow", Address: c.front, Back: c.back, Credentials: c.credentials, Request: request("/DocumentReference/bulk", b.staff), Authorization: b.staff, Sources: 64, Slow: map[string]int{}}
		for kind, n := range slowEach() {
			e.Slow[kind] = n / attackers
		}
		g, err := b.generate(ctx, e, uidLoad+1+i)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
		if err := g.goAhead(); err != nil {
			return nil, err
		}
	}
	for _, g := range all { // until each has had all of its connections open
		if _, err := g.hears(); err != nil {
			return nil, err
		}
	}
	honest.For = max(time.Minute, 4*b.o.duration)
	beset, _, attacked := b.under(ctx, honest, c.processes()...)
	var opened, open int64
	for _, g := range all {
		if err := g.goAhead(); err != nil {
			return nil, err
		}
		t, err := g.hears()
		if err != nil {
			return nil, err
		}
		opened, open = opened+t.Calls, open+t.Bytes
	}
	if attacked != nil {
		return nil, attacked
	}
	b.say("  at rest again")
	clientAfter, serverAfter, err := held(ctx, c)
	if err != nil {
		return nil, err
	}
	p := func(t tally, share float64) float64 { return quantile(t.Delays, share).Seconds() * 1e6 }
	return []finding{
		{metric: "slow_connections", value: float64(open)},
		{metric: "slow_opened", value: float64(opened)},
		{metric: "slow_idle_p50", unit: "µs", value: p(idle, .5)}, {metric: "slow_idle_p99", unit: "µs", value: p(idle, .99)},
		{metric: "slow_p50", unit: "µs", value: p(beset, .5)}, {metric: "slow_p99", unit: "µs", value: p(beset, .99)},
		{metric: "slow_p99_by_idle", value: p(beset, .99) / p(idle, .99), must: 2, judged: true},
		{metric: "slow_plain_kb", unit: "KiB", value: each, must: 16, judged: true},
		{metric: "slow_client_idle", unit: "MiB", value: client / 1024}, {metric: "slow_client_after", unit: "MiB", value: clientAfter / 1024},
		{metric: "slow_server_idle", unit: "MiB", value: server / 1024}, {metric: "slow_server_after", unit: "MiB", value: serverAfter / 1024},
		{metric: "slow_memory_by_idle", value: (clientAfter + serverAfter) / (client + server), must: 1.25, judged: true},
	}, nil
}

// held is what both hops hold when they have come to rest, in KiB.
func held(ctx context.Context, c *chain) (client, server float64, err error) {
	if client, err = settled(ctx, c.client, 6*settling); err != nil {
		return 0, 0, err
	}
	server, err = settled(ctx, c.server, settling)
	return client, server, err
}

// halfRead is what one plaintext connection costs the client hop whose request's head does not come to its end.
func (b *bench) halfRead(ctx context.Context, c *chain) (float64, error) {
	before, err := settled(ctx, c.client, settling/2)
	if err != nil {
		return 0, err
	}
	const users = 2
	e := errand{Do: "slow", Address: c.front, Sources: 64, Slow: map[string]int{"plain head": 1000}}
	var all []*generator
	defer func() {
		for _, g := range all {
			g.stop()
		}
	}()
	for i := range users {
		g, err := b.generate(ctx, e, uidLoad+1+i)
		if err != nil {
			return 0, err
		}
		all = append(all, g)
		if err := g.goAhead(); err != nil {
			return 0, err
		}
	}
	for _, g := range all {
		if _, err := g.hears(); err != nil {
			return 0, err
		}
	}
	after, err := settled(ctx, c.client, settling/2)
	return (after - before) / (users * 1000), err
}

// slow holds slow connections, each in the place of one that was cut, until it is told to end. It says when as many as
// are wanted have been open at once, or half a minute has passed, and in the end how many it has opened (Calls) and
// how many were open on average (Bytes).
func (l *load) slow(ctx context.Context, begin func() error) (t tally, err error) {
	if err := begin(); err != nil {
		return t, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open, opened atomic.Int64
	var all sync.WaitGroup
	wanted := 0
	for kind, n := range l.Slow {
		wanted += n
		for range n {
			all.Go(func() {
				for ctx.Err() == nil {
					l.dawdle(ctx, kind, &open, &opened)
					select {
					case <-ctx.Done():
					case <-time.After(200 * time.Millisecond):
					}
				}
			})
		}
	}
	for start := time.Now(); open.Load() < int64(wanted)*9/10 && time.Since(start) < patience; {
		time.Sleep(50 * time.Millisecond)
	}
	over := make(chan error, 1)
	go func() { over <- begin() }()
	var sum, n int64
	for ended := false; !ended; {
		sum, n = sum+open.Load(), n+1
		select {
		case err = <-over:
			ended = true
		case <-time.After(200 * time.Millisecond):
		}
	}
	cancel()
	all.Wait()
	l.calls.Store(opened.Load())
	l.bytes.Store(sum / n)
	return t, err
}

// dawdle holds one slow connection until it is cut.
func (l *load) dawdle(ctx context.Context, kind string, open, opened *atomic.Int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at, config := l.Address, (*tls.Config)(nil)
	switch kind {
	case "stalled handshake":
		at = l.Back
	case "mtls head", "mtls reader":
		at, config = l.Back, l.tls
	}
	c, err := l.dialTo(ctx, at, config)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	open.Add(1)
	opened.Add(1)
	defer open.Add(-1)
	switch kind {
	case "stalled handshake":
		_, err = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}) // the first bytes of a ClientHello
	case "plain reader", "mtls reader":
		if u, ok := c.(interface{ SetReadBuffer(int) error }); ok {
			_ = u.SetReadBuffer(4096)
		}
		if _, err = c.Write(l.Request); err == nil {
			trickle(ctx, func() error { _, err := c.Read(make([]byte, 16)); return err })
		}
		return
	case "plain body":
		if _, err = fmt.Fprintf(c, "POST /Observation HTTP/1.1\r\nHost: %s\r\nContent-Type: application/fhir+json\r\nContent-Length: 4000\r\nAuthorization: Bearer %s\r\n\r\n", mesh, l.Authorization); err == nil {
			go trickle(ctx, func() error { _, err := c.Write([]byte(" ")); return err })
		}
	default:
		if _, err = fmt.Fprintf(c, "GET /Patient/example HTTP/1.1\r\nHost: %s\r\nX-Slow: ", mesh); err == nil {
			go trickle(ctx, func() error { _, err := c.Write([]byte("x")); return err })
		}
	}
	if err == nil {
		_, _ = io.Copy(io.Discard, c) // until it is cut
	}
}

// trickle does something once in three seconds.
func trickle(ctx context.Context, do func() error) {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if do() != nil {
				return
			}
		}
	}
}
