package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
)

// crash kills ward with SIGKILL, again and again, while an application calls without a pause, and starts it anew each
// time. Nothing that a caller was answered may be missing from the trail, and the trail must be whole, every time.
func (w *world) crash(ctx context.Context, times int) {
	var load *process
	w.report.check("load", func() (string, error) {
		token, err := w.login(ctx, "ehr", "dr.lee", scopeEHR, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		load, err = w.background("load", program{uid: uidEHR, argv: []string{w.at("bin", "node"), w.at("node", "load.mjs"), base}, stdin: strings.NewReader(token)})
		if err != nil {
			return "", err
		}
		_, err = w.underLoad(ctx, load, 100)
		return fmt.Sprintf("eight loops of node's fetch (uid %d): reads, searches, writes, and deletes that policy refuses", uidEHR), err
	})
	if load == nil {
		return
	}
	defer func() { _ = load.signal(syscall.SIGKILL) }()
	for i := range times {
		if ctx.Err() != nil {
			return
		}
		w.report.check(fmt.Sprintf("SIGKILL %d", i+1), func() (string, error) {
			n, err := w.underLoad(ctx, load, 20+rand.IntN(200)) //nolint:gosec // any moment will do
			if err != nil {
				return "", err
			}
			if err := w.daemon.signal(syscall.SIGKILL); err != nil {
				return "", err
			}
			if _, err := w.daemon.end(ctx); err != nil {
				return "", err
			}
			if err := w.startWard(ctx); err != nil {
				return "", err
			}
			return w.survived(ctx, n)
		})
	}
	w.report.check("the load ends", func() (string, error) {
		if err := load.signal(syscall.SIGKILL); err != nil {
			return "", err
		}
		if _, err := load.end(ctx); err != nil {
			return "", err
		}
		return w.survived(ctx, 0)
	})
}

// survived verifies the trail, and looks in it for all that the load has been answered so far.
func (w *world) survived(ctx context.Context, more int) (string, error) {
	b, err := os.ReadFile(w.at("logs", "load.log"))
	if err != nil {
		return "", err
	}
	w.answered = w.answered[:0]
	statuses := map[string]int{}
	for line := range strings.Lines(string(b)) {
		if decision, status, ok := answeredCall(line); ok {
			w.answered = append(w.answered, decision)
			statuses[status]++
		}
	}
	whole, err := w.verify(ctx)
	if err != nil {
		return "", err
	}
	said, err := w.missing(ctx)
	if err != nil {
		return "", err
	}
	for _, status := range []string{"200", "201", "403"} {
		if statuses[status] == 0 {
			return "", fmt.Errorf("the load was never answered %s: %v", status, statuses)
		}
	}
	return fmt.Sprintf("after %d more answers; %s; answered calls in the trail: %s %v", more, whole, said, statuses), nil
}

// underLoad waits until the application has had that many more answers.
func (w *world) underLoad(ctx context.Context, load *process, answers int) (int, error) {
	for drained := false; !drained; { // what was said long ago
		select {
		case <-load.lines:
		default:
			drained = true
		}
	}
	n := 0
	_, err := load.ready(ctx, func(line string) bool {
		if _, _, ok := answeredCall(line); ok {
			n++
		}
		return n >= answers
	})
	return n, err
}

// answeredCall reads a line of the load's: a decision and the status of the answer.
func answeredCall(line string) (decision, status string, ok bool) {
	decision, status, ok = strings.Cut(strings.TrimSpace(line), " ")
	return decision, status, ok && decision != "" && decision != "null"
}
