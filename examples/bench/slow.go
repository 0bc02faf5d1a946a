package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// attackers is how many users' processes hold slow connections: enough for each to stay below what one identity, and
// one user, may have open.
const attackers = 12

// slowEach is how many slow connections of each kind there are places for: more than leastSlow, because some are always on
// their way back. Of stalled handshakes there are fewer than a ward lets wait at a time (1,024): beyond that it cuts
// the oldest, and this would be a flood of new connections instead.
func slowEach() map[string]int {
	return map[string]int{
		"plain head": 3600, "plain body": 1500, "plain reader": 348, // to the client hop
		"stalled handshake": 804, "mtls head": 3600, "mtls reader": 348, // to the server hop
	}
}

// slowPlaces is how many that are in all.
func slowPlaces() (n int64) {
	for _, each := range slowEach() {
		n += int64(each)
	}
	return n
}

// leastSlow is how many slow connections must be open on average.
const leastSlow = 10000

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
	idle, idleShares, err := b.besetBy(ctx, honest, c)
	if err != nil {
		return nil, err
	}
	if idle.Failed > 0 {
		return nil, fmt.Errorf("%d calls failed with nobody else there: %s", idle.Failed, idle.Why)
	}
	client, server, err := held(ctx, c)
	if err != nil {
		return nil, err
	}

	b.say("  half-read heads alone")
	each, back, err := b.halfRead(ctx, c)
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
	clientUnder, serverUnder, err := holds(c)
	if err != nil {
		return nil, err
	}
	beset, shares, err := b.besetBy(ctx, honest, c)
	if err != nil {
		return nil, err
	}
	var opened, refused, open int64
	for _, g := range all {
		if err := g.goAhead(); err != nil {
			return nil, err
		}
		t, err := g.hears()
		if err != nil {
			return nil, err
		}
		opened, refused, open = opened+t.Calls, refused+t.Again, open+t.Bytes
	}
	if beset.Failed > 0 {
		b.say("  %d honest calls failed, the first by: %s", beset.Failed, beset.Why)
	}
	b.say("  at rest again")
	clientAfter, serverAfter, err := held(ctx, c)
	if err != nil {
		return nil, err
	}
	p := func(t tally, share float64) float64 { return quantile(t.Delays, share).Seconds() * 1e6 }
	return []finding{
		{metric: "slow_connections", value: float64(open), must: leastSlow, atLeast: true, judged: true},
		{metric: "slow_opened", value: float64(opened)}, {metric: "slow_answered", value: float64(refused)},
		{metric: "slow_idle_p50", unit: "µs", value: p(idle, .5)}, {metric: "slow_idle_p99", unit: "µs", value: p(idle, .99)},
		{metric: "slow_p50", unit: "µs", value: p(beset, .5)}, {metric: "slow_p99", unit: "µs", value: p(beset, .99)},
		{metric: "slow_p50_by_idle", value: p(beset, .5) / p(idle, .5)},
		{metric: "slow_p99_by_idle", value: p(beset, .99) / p(idle, .99), must: 2, judged: true},
		{metric: "slow_failed", value: float64(beset.Failed), judged: true},
		{metric: "slow_client_cpu", unit: "%", value: shares[0]}, {metric: "slow_client_cpu_idle", unit: "%", value: idleShares[0]},
		{metric: "slow_server_cpu", unit: "%", value: shares[1]}, {metric: "slow_server_cpu_idle", unit: "%", value: idleShares[1]},
		{metric: "slow_agent_cpu", unit: "%", value: shares[2]}, {metric: "slow_agent_cpu_idle", unit: "%", value: idleShares[2]},
		{metric: "slow_plain_kb", unit: "KiB", value: each, must: 16, judged: true},
		{metric: "slow_plain_back_kb", unit: "KiB", value: back, must: 8, judged: true},
		{metric: "slow_client_idle", unit: "MiB", value: client / 1024}, {metric: "slow_client_beset", unit: "MiB", value: clientUnder / 1024},
		{metric: "slow_client_after", unit: "MiB", value: clientAfter / 1024},
		{metric: "slow_server_idle", unit: "MiB", value: server / 1024}, {metric: "slow_server_beset", unit: "MiB", value: serverUnder / 1024},
		{metric: "slow_server_after", unit: "MiB", value: serverAfter / 1024},
		{metric: "slow_memory_by_idle", value: (clientAfter + serverAfter) / (client + server), must: 1.25, judged: true},
	}, nil
}

// besetBy does the honest errand, of which calls may fail, and says how much of one processor client hop, server hop and
// agent took meanwhile, in per cent.
func (b *bench) besetBy(ctx context.Context, e errand, c *chain) (t tally, shares [3]float64, err error) {
	g, err := b.generate(ctx, e, uidLoad)
	if err != nil {
		return t, shares, err
	}
	defer g.stop()
	spent := func(sign float64) error {
		for i, p := range c.processes() {
			d, err := cpu(p)
			if err != nil {
				return err
			}
			shares[i] += sign * d.Seconds()
		}
		return nil
	}
	start := time.Now()
	if err := errors.Join(spent(-1), g.goAhead()); err != nil {
		return t, shares, err
	}
	if t, err = g.hears(); err != nil {
		return t, shares, err
	}
	err = spent(1)
	for i := range shares {
		shares[i] *= 100 / time.Since(start).Seconds()
	}
	if err == nil && len(t.Delays) == 0 {
		err = fmt.Errorf("no call came to its end: %s", t.Why)
	}
	return t, shares, err
}

// holds is what both hops hold at this moment, in KiB.
func holds(c *chain) (client, server float64, err error) {
	if client, err = c.client.memory(); err != nil {
		return 0, 0, err
	}
	server, err = c.server.memory()
	return client, server, err
}

// held is what both hops hold when they have come to rest, in KiB.
func held(ctx context.Context, c *chain) (client, server float64, err error) {
	if client, err = settled(ctx, c.client, 6*settling); err != nil {
		return 0, 0, err
	}
	server, err = settled(ctx, c.server, settling)
	return client, server, err
}

// halfRead is what one plaintext connection costs the client hop whose request's head does not come to its end, and what it
// costs once the head has, the call has been answered, and the connection is as idle as any.
func (b *bench) halfRead(ctx context.Context, c *chain) (half, back float64, err error) {
	before, err := settled(ctx, c.client, settling/2)
	if err != nil {
		return 0, 0, err
	}
	const users = 4
	e := errand{Do: "half", Address: c.front, Conns: 500, Authorization: b.staff}
	var all []*generator
	defer func() {
		for _, g := range all {
			g.stop()
		}
	}()
	for i := range users {
		g, err := b.generate(ctx, e, uidLoad+1+i)
		if err != nil {
			return 0, 0, err
		}
		all = append(all, g)
	}
	weighed := func(during time.Duration) (float64, error) {
		for _, g := range all {
			if err := g.goAhead(); err != nil {
				return 0, err
			}
			if _, err := g.hears(); err != nil {
				return 0, err
			}
		}
		now, err := settled(ctx, c.client, during)
		return (now - before) / float64(users*e.Conns), err
	}
	if half, err = weighed(settling / 2); err != nil {
		return 0, 0, err
	}
	back, err = weighed(settling)
	return half, back, err
}

// half opens connections and sends half a head on each, brings that to its end when it is told to, and then holds the
// connections, after one call, until it is told to end.
func (l *load) half(ctx context.Context, begin func() error) (t tally, err error) {
	if err := begin(); err != nil {
		return t, err
	}
	callers := make([]*caller, l.Conns)
	err = l.each(16, l.Conns, func(i int) error {
		c, err := l.dial(ctx)
		if err != nil {
			return err
		}
		callers[i] = newCaller(c)
		_, err = io.WriteString(c, halfHead)
		return err
	})
	if err := errors.Join(err, begin()); err != nil {
		return t, err
	}
	rest := fmt.Appendf(nil, "x\r\nAuthorization: Bearer %s\r\n\r\n", l.Authorization)
	err = l.each(16, l.Conns, func(i int) error {
		_, err := callers[i].call(rest)
		return err
	})
	return t, errors.Join(err, begin())
}

// halfHead is a head that has not come to its end.
const halfHead = "GET /Patient/example HTTP/1.1\r\nHost: " + mesh + "\r\nX-Slow: "

// slow holds slow connections, each in the place of one that was cut, until it is told to end. It says when as many as
// are wanted have been open at once, or half a minute has passed, and in the end how many it has opened (Calls), how
// many of them were answered (Again) and how many were open on average (Bytes).
//
// It is no flood: connections come one after another, and whoever has been answered, or could not connect, stays away
// for some seconds. There are more of them than may be open at once, so that others are there meanwhile.
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
		places := make(chan struct{}, n)
		for i := range n + n/2 {
			first := gather * time.Duration(i) / time.Duration(n)
			all.Go(func() {
				rest(ctx, first, first+gather/time.Duration(n))
				for ctx.Err() == nil {
					select {
					case places <- struct{}{}:
					case <-ctx.Done():
						return
					}
					l.dawdle(ctx, kind, &open, &opened)
					<-places
					rest(ctx, time.Second, 5*time.Second)
				}
			})
		}
	}
	for start := time.Now(); open.Load() < int64(wanted)*leastSlow/slowPlaces() && time.Since(start) < patience; {
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
	t.Again = l.again.Load()
	return t, err
}

// gather is within what time slow connections are opened at first, one after another: about as fast as they are opened
// anew when they are cut, so that they are not cut in waves.
const gather = 10 * time.Second

// rest waits for a time between least and most.
func rest(ctx context.Context, least, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(least + rand.N(most-least)):
	}
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
		if _, err = io.WriteString(c, halfHead); err == nil {
			go trickle(ctx, func() error { _, err := c.Write([]byte("x")); return err })
		}
	}
	if err != nil {
		return
	}
	if n, _ := io.Copy(io.Discard, c); n > 0 { // until it is cut
		l.again.Add(1)
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
