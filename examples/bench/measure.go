package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Ward with its trail in memory, for the delay that is its own and not the disk's.
const inMemory = "ward@memory"

// figures are what one measurement of one proxy gives, by metric.
type figures map[string]float64

// measurement is one thing that is done to each proxy in turn.
type measurement struct {
	metrics []string // that it gives
	fresh   bool     // it takes a chain that has done nothing yet, and that nobody will use again
	take    func(ctx context.Context, b *bench, c *chain) (figures, error)
}

// measurements are all of them. Delays are not among them: they are compared with those of calls without a proxy.
func measurements() []measurement {
	return []measurement{
		{metrics: []string{"cpu_per_request"}, take: perRequest("cpu_per_request", func(b *bench) []byte { return request("/Patient/example", b.staff) })},
		{metrics: []string{"cpu_per_request_checked"}, take: perRequest("cpu_per_request_checked", func(b *bench) []byte { return request("/Patient/example", b.patient) })},
		{metrics: []string{"bulk_cpu_per_gb", "bulk_throughput"}, take: bulk},
		{metrics: []string{"bulk_checked"}, take: bulkChecked},
		{metrics: []string{"app_connections_per_s"}, take: appConnections},
		{metrics: []string{"handshake_cpu"}, take: handshakes},
		{metrics: []string{"idle_mtls_kb"}, fresh: true, take: idleMTLS},
		{metrics: []string{"idle_plain_kb"}, fresh: true, take: idlePlain},
	}
}

func perRequest(name string, ask func(b *bench) []byte) func(context.Context, *bench, *chain) (figures, error) {
	return func(ctx context.Context, b *bench, c *chain) (figures, error) {
		t, spent, err := b.under(ctx, errand{Do: "keepalive", Address: c.front, Request: ask(b), Conns: b.o.conns, Warm: b.o.duration / 4, For: b.o.duration}, c.processes()...)
		if err != nil {
			return nil, err
		}
		return figures{name: float64(spent.Microseconds()) / float64(t.Calls)}, nil
	}
}

func bulk(ctx context.Context, b *bench, c *chain) (figures, error) {
	ask := request("/DocumentReference/bulk", b.staff)
	t, spent, err := b.under(ctx, errand{Do: "keepalive", Address: c.front, Request: ask, Conns: 4, For: b.o.duration}, c.processes()...)
	if err != nil {
		return nil, err
	}
	return figures{"bulk_cpu_per_gb": spent.Seconds() / (float64(t.Bytes) / 1e9), "bulk_throughput": float64(t.Bytes) / 1e6 / t.Took.Seconds()}, nil
}

func bulkChecked(ctx context.Context, b *bench, c *chain) (figures, error) {
	ask := request("/Observation?patient=Patient/example", b.patient)
	t, _, err := b.under(ctx, errand{Do: "keepalive", Address: c.front, Request: ask, Conns: 4, For: b.o.duration}, c.processes()...)
	if err != nil {
		return nil, err
	}
	return figures{"bulk_checked": float64(t.Bytes) / 1e6 / t.Took.Seconds()}, nil
}

func appConnections(ctx context.Context, b *bench, c *chain) (figures, error) {
	ask := request("/Patient/example", b.staff)
	t, _, err := b.under(ctx, errand{Do: "connect", Address: c.front, Request: ask, Conns: 32, For: b.o.duration, Sources: 64}, c.processes()...)
	if err != nil {
		return nil, err
	}
	return figures{"app_connections_per_s": float64(t.Calls) / t.Took.Seconds()}, nil
}

func handshakes(ctx context.Context, b *bench, c *chain) (figures, error) {
	t, spent, err := b.under(ctx, errand{Do: "handshake", Address: c.back, Credentials: c.credentials, Conns: 8, For: b.o.duration, Sources: 64}, c.server)
	if err != nil {
		return nil, err
	}
	return figures{"handshake_cpu": spent.Seconds() * 1000 / float64(t.Calls)}, nil
}

func idleMTLS(ctx context.Context, b *bench, c *chain) (figures, error) {
	each, err := b.idle(ctx, errand{Do: "hold", Address: c.back, Credentials: c.credentials}, c.server)
	return figures{"idle_mtls_kb": each}, err
}

func idlePlain(ctx context.Context, b *bench, c *chain) (figures, error) {
	each, err := b.idle(ctx, errand{Do: "hold", Address: c.front}, c.client)
	return figures{"idle_plain_kb": each}, err
}

// settling is how long a proxy has to give back what opening connections left behind.
const settling = 5 * time.Second

// idle weighs idle connections: what p holds while they are open, each after one call, and what it held before, for each
// of them. They come from several users, so that none has more than is allowed to one.
func (b *bench) idle(ctx context.Context, e errand, p *process) (float64, error) {
	const users = 8
	e.Request, e.Sources = request("/Patient/example", b.staff), 64
	e.Conns = (b.o.idle + users - 1) / users
	var all []*generator
	defer func() {
		for _, g := range all {
			g.stop()
		}
	}()
	for i := range users {
		g, err := b.generate(ctx, e, uidLoad+i)
		if err != nil {
			return 0, err
		}
		all = append(all, g)
	}
	before, err := settled(ctx, p, settling/2)
	if err != nil {
		return 0, err
	}
	for _, g := range all {
		if err := g.goAhead(); err != nil {
			return 0, err
		}
		if _, err := g.hears(); err != nil {
			return 0, err
		}
	}
	after, err := settled(ctx, p, settling)
	if err != nil {
		return 0, err
	}
	for _, g := range all {
		if err := g.goAhead(); err != nil {
			return 0, err
		}
		if _, err := g.hears(); err != nil {
			return 0, err
		}
	}
	return (after - before) / float64(e.Conns*users), nil
}

// settled is the least that the process holds during a while.
func settled(ctx context.Context, p *process, during time.Duration) (least float64, err error) {
	for end := time.Now().Add(during); ; {
		now, err := p.memory()
		if err != nil {
			return 0, err
		}
		if least == 0 || now < least {
			least = now
		}
		if time.Now().After(end) {
			return least, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// under does one errand, and gives what the processes spent on it meanwhile. A call that failed is an error: what is
// refused costs less than what is served.
func (b *bench) under(ctx context.Context, e errand, of ...*process) (t tally, spent time.Duration, err error) {
	g, err := b.generate(ctx, e, uidLoad)
	if err != nil {
		return t, 0, err
	}
	defer g.stop()
	before, err := cpu(of...)
	if err != nil {
		return t, 0, err
	}
	if err := g.goAhead(); err != nil {
		return t, 0, err
	}
	if t, err = g.hears(); err != nil {
		return t, 0, err
	}
	after, err := cpu(of...)
	switch {
	case err != nil:
	case t.Failed > 0:
		err = fmt.Errorf("%d calls failed and %d did not, the first by: %s", t.Failed, t.Calls, t.Why)
	case t.Calls == 0:
		err = errors.New("no call came to its end")
	}
	return t, after - before, err
}

// generator is a load generator that runs.
type generator struct {
	*process
	ctx  context.Context
	in   *os.File
	said chan tally // closed when it says no more
}

// generate starts a load generator as uid, and waits until it has prepared its errand.
func (b *bench) generate(ctx context.Context, e errand, uid int) (*generator, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = inR.Close() }()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inW.Close())
	}
	argv := []string{b.at("bin", "bench"), "load"}
	if e.Do == "slow" { // an attacker has processors of its own: what it spends itself must not slow down those it attacks
		argv = append([]string{"chrt", "--idle", "0"}, argv...)
	}
	p, err := b.start(command{name: fmt.Sprintf("load-%d", b.count()), uid: uid, argv: argv, stdin: inR, stdout: outW})
	if err := errors.Join(err, outW.Close()); err != nil {
		return nil, errors.Join(err, inW.Close(), outR.Close())
	}
	g := &generator{process: p, ctx: ctx, in: inW, said: make(chan tally, 4)}
	go func() {
		defer close(g.said)
		defer func() { _ = outR.Close() }()
		for d := json.NewDecoder(bufio.NewReader(outR)); ; {
			var t tally
			if d.Decode(&t) != nil {
				return
			}
			g.said <- t
		}
	}()
	if err := json.NewEncoder(inW).Encode(e); err != nil {
		g.stop()
		return nil, err
	}
	if _, err := g.hears(); err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}

func (g *generator) goAhead() error {
	_, err := g.in.Write([]byte("go\n"))
	return err
}

// hears waits for the next thing that the generator says.
func (g *generator) hears() (tally, error) {
	select {
	case t, ok := <-g.said:
		if !ok {
			<-g.exited
			return t, fmt.Errorf("the load generator has ended: %s", g.lastWords())
		}
		return t, nil
	case <-g.ctx.Done():
		return tally{}, g.ctx.Err()
	case <-time.After(10 * time.Minute):
		return tally{}, errors.New("the load generator is lost")
	}
}

func (g *generator) stop() {
	_ = g.in.Close()
	g.process.stop()
}
