package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// ward is the subject that all others are compared with, and direct the FHIR server without a proxy.
const (
	ward   = "ward"
	direct = "direct"
)

// sample is one figure of one subject in one round.
type sample struct {
	Round  int     `json:"round"`
	Metric string  `json:"metric"`
	Of     string  `json:"of"` // ward, or a peer
	Value  float64 `json:"value"`
}

// results are what has been measured, and what could not be.
type results struct {
	samples []sample
	leftOut map[string]string // peers, and why
}

// measureAll is the program.
func measureAll(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	b, err := prepare(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer b.close()
	if len(o.scenarios) > 0 {
		return b.play(ctx, stdout)
	}
	r, err := b.rounds(ctx)
	if err != nil {
		return err
	}
	rep := summarise(r)
	if err := rep.table(stdout); err != nil {
		return err
	}
	return errors.Join(toFile(o.json, rep.json), toFile(o.svg, rep.svg))
}

// toFile writes a file, if it has a name.
func toFile(name string, write func(io.Writer) error) error {
	if name == "" {
		return nil
	}
	f, err := os.Create(name) //nolint:gosec // named by whoever runs this
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// series is a run of rounds under way.
type series struct {
	*bench
	results
	chains map[string]*chain
	peers  []string // that are left
	round  int
}

// rounds measures everybody in turn, one measurement after another, as often as asked: what changes on the machine
// meanwhile, as it always does, changes for all of them.
func (b *bench) rounds(ctx context.Context) (*results, error) {
	s := &series{bench: b, results: results{leftOut: map[string]string{}}, chains: map[string]*chain{}}
	defer func() {
		for _, c := range s.chains {
			c.stop()
		}
	}()
	if err := s.beginAll(ctx); err != nil {
		return nil, err
	}
	for s.round = 1; s.round <= b.o.rounds; s.round++ {
		b.say("round %d of %d", s.round, b.o.rounds)
		for _, m := range measurements() {
			if !b.wants(m.metrics...) {
				continue
			}
			for _, name := range s.order() {
				if err := s.take(ctx, name, m); err != nil {
					return nil, err
				}
			}
		}
		if b.wants("added_p50", "added_p50_durable", "added_p99") {
			if err := s.delays(ctx); err != nil {
				return nil, err
			}
		}
	}
	return &s.results, nil
}

func (b *bench) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(b.o.metrics, n) })
}

// beginAll starts Ward and all peers. A peer that does not start is left out; without Ward there is nothing to say.
func (s *series) beginAll(ctx context.Context) error {
	names := []string{ward}
	if s.wants("added_p50", "added_p99") {
		names = append(names, inMemory)
	}
	for _, name := range names {
		c, err := s.begin(ctx, name)
		if err != nil {
			return fmt.Errorf("ward does not serve: %w", err)
		}
		s.chains[name] = c
	}
	for _, name := range s.o.peers {
		c, err := s.begin(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.leaveOut(name, err)
			continue
		}
		s.chains[name], s.peers = c, append(s.peers, name)
	}
	s.say("measuring: %s", strings.Join(append(names, s.peers...), ", "))
	return nil
}

// leaveOut goes on without a peer.
func (s *series) leaveOut(name string, why error) {
	s.say("%s is left out: %v", name, why)
	s.leftOut[name] = why.Error()
	s.peers = slices.DeleteFunc(s.peers, func(n string) bool { return n == name })
	if c := s.chains[name]; c != nil {
		c.stop()
		delete(s.chains, name)
	}
}

// order is in which order everybody's turn comes: another one in each round.
func (s *series) order() []string {
	names := append([]string{ward}, s.peers...)
	n := s.round % len(names)
	return slices.Concat(names[n:], names[:n])
}

// take measures one subject. A peer that fails is left out from there on.
func (s *series) take(ctx context.Context, name string, m measurement) error {
	start := time.Now()
	c, err := s.chains[name], error(nil)
	if m.fresh {
		c, err = s.begin(ctx, name)
		defer c.stop()
	}
	var f figures
	if err == nil {
		f, err = m.take(ctx, s.bench, c)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		s.note(name, f)
		s.say("  %-12s %s  (%.1f s)", name, f, time.Since(start).Seconds())
	case name == ward:
		return fmt.Errorf("ward, %s: %w", strings.Join(m.metrics, " and "), err)
	default:
		s.leaveOut(name, fmt.Errorf("%s: %w", strings.Join(m.metrics, " and "), err))
	}
	return nil
}

// note keeps those of the figures that were asked for.
func (s *series) note(of string, f figures) {
	for _, m := range metricNames() {
		if v, ok := f[m]; ok && s.wants(m) {
			s.samples = append(s.samples, sample{Round: s.round, Metric: m, Of: of, Value: v})
		}
	}
}

// String lists the figures.
func (f figures) String() string {
	var parts []string
	for _, m := range metrics() {
		if v, ok := f[m.name]; ok {
			parts = append(parts, fmt.Sprintf("%s %s %s", m.name, number(v), m.unit))
		}
	}
	return strings.Join(parts, ", ")
}

// delays measures how long calls take that are sent at a fixed rate, without a proxy and through each, and notes what
// each adds. Ward's turn comes twice: with its trail in memory, and on the disk.
func (s *series) delays(ctx context.Context) error {
	took := map[string][2]time.Duration{} // the median and the 99th percentile
	subjects := append([]string{direct, inMemory}, s.order()...)
	for _, name := range subjects {
		address := s.direct
		of := []*process{s.origin}
		if name != direct {
			c := s.chains[name]
			if c == nil {
				continue
			}
			address, of = c.front, c.processes()
		}
		t, _, err := s.under(ctx, errand{Do: "rate", Address: address, Request: request("/Patient/example", s.staff), Conns: s.o.conns, For: s.o.duration, Rate: s.o.rate}, of...)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			took[name] = [2]time.Duration{quantile(t.Delays, .5), quantile(t.Delays, .99)}
			s.say("  %-12s delay p50 %d µs, p99 %d µs at %d/s", name, took[name][0].Microseconds(), took[name][1].Microseconds(), s.o.rate)
		case slices.Contains(s.peers, name):
			s.leaveOut(name, fmt.Errorf("delays: %w", err))
		default:
			return fmt.Errorf("%s, delays: %w", name, err)
		}
	}
	added := func(name string, i int) float64 {
		return float64((took[name][i] - took[direct][i]).Nanoseconds()) / 1000
	}
	if _, ok := took[inMemory]; ok {
		s.note(ward, figures{"added_p50": added(inMemory, 0), "added_p99": added(inMemory, 1)})
	}
	s.note(ward, figures{"added_p50_durable": added(ward, 0)})
	for _, name := range s.peers { // which have no trail: the same figure stands beside both of Ward's
		s.note(name, figures{"added_p50": added(name, 0), "added_p50_durable": added(name, 0), "added_p99": added(name, 1)})
	}
	return nil
}
