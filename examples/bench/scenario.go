package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// scenarioNames are what can be played instead of measuring.
func scenarioNames() []string { return []string{"slow", "upgrade"} }

// finding is one figure of a scenario, and what it must be.
type finding struct {
	metric, unit string
	value        float64
	must         float64 // at most, or at least
	atLeast      bool
	judged       bool
}

// verdict says what a finding must be, and whether it is.
func (f finding) verdict() (said string, holds bool) {
	if !f.judged {
		return "", true
	}
	bound := "at most"
	holds = f.value <= f.must
	if f.atLeast {
		bound, holds = "at least", f.value >= f.must
	}
	if holds {
		return fmt.Sprintf("%s %s: met", bound, number(f.must)), true
	}
	return fmt.Sprintf("%s %s: missed", bound, number(f.must)), false
}

// play plays the scenarios that were asked for, and says what came of them. One that does not hold is an error.
func (b *bench) play(ctx context.Context, stdout io.Writer) error {
	rep := &report{Ratios: []ratio{}, Raw: []sample{}}
	var failed []string
	for _, name := range b.o.scenarios {
		scene := b.slow
		if name == "upgrade" {
			scene = b.upgrade
		}
		found, err := scene(ctx)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", name, err)
		}
		for _, f := range found {
			said, holds := f.verdict()
			if !holds && !slices.Contains(failed, name) {
				failed = append(failed, name)
			}
			fmt.Fprintf(stdout, "%-32s %10s %-6s %s\n", f.metric, number(f.value), f.unit, said)
			rep.Values = append(rep.Values, value{Metric: f.metric, Unit: f.unit, spread: spreadOf([]float64{f.value})})
			rep.Raw = append(rep.Raw, sample{Round: 1, Metric: f.metric, Of: ward, Value: f.value})
		}
	}
	if err := toFile(b.o.json, rep.json); err != nil {
		return err
	}
	if len(failed) > 0 {
		return errors.New("what was to hold does not: " + fmt.Sprint(failed))
	}
	return nil
}
