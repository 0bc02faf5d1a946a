package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What memory a role may hold when nobody asks anything of it, in MiB, and a stream of the Workload API, in KiB.
var idleMost = map[string]float64{"agent": 30, "egress": 25, "ingress": 25}

const (
	streamMost = 45.0
	streams    = 2000
	idling     = 40 * time.Second
)

// checkIdle leaves the roles alone, and looks at what they hold.
func (l *live) checkIdle(ctx context.Context) {
	l.report.check("memory when idle", func() (string, error) {
		select {
		case <-time.After(idling):
		case <-ctx.Done():
			return "", ctx.Err()
		}
		var said []string
		for _, name := range roleNames {
			held, err := l.roles[name].resident()
			if err != nil {
				return "", err
			}
			said = append(said, fmt.Sprintf("%s %.1f MiB (at most %.0f)", name, held/1024, idleMost[name]))
			if held/1024 > idleMost[name] {
				return "", fmt.Errorf("%s", strings.Join(said, ", "))
			}
		}
		return fmt.Sprintf("resident after %s: %s", idling, strings.Join(said, ", ")), nil
	})
}

// resident is a role's resident memory in KiB.
func (r *role) resident() (float64, error) {
	v, err := r.status("VmRSS")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSuffix(v, " kB"), 64)
}

// checkStreams has 2,000 processes' worth of streams open, and looks at what each costs the agent.
func (l *live) checkStreams(ctx context.Context) {
	l.report.check("memory of streams", func() (string, error) {
		const users = 5 // each has its share of connections
		var entries strings.Builder
		entries.WriteString("workloads:\n")
		for i := range users {
			fmt.Fprintf(&entries, "  - {id: /live/fleet-%d, select: {unix.uid: %d}}\n", i, uidFleet+i)
		}
		if err := l.replaceFile("fleet.yaml", entries.String()); err != nil {
			return "", err
		}
		defer func() { _ = l.removeFile("fleet.yaml") }()
		before, err := l.roles["agent"].resident()
		if err != nil {
			return "", err
		}
		var fleet []*application
		for i := range users {
			a, err := l.send(fmt.Sprintf("streams-%d", i), uidFleet+i, errand{Do: "streams", Count: streams / users})
			if err != nil {
				return "", err
			}
			fleet = append(fleet, a)
		}
		defer func() {
			for _, a := range fleet {
				_, _ = a.dismiss(ctx)
			}
		}()
		for _, a := range fleet {
			if _, err := a.heard(ctx, 0, func(s said) bool { return s.What == "open" }); err != nil {
				return "", err
			}
		}
		after, err := l.roles["agent"].resident()
		if err != nil {
			return "", err
		}
		each := (after - before) / streams
		said := fmt.Sprintf("%d streams on as many connections: the agent grew from %.1f to %.1f MiB, %.1f KiB each (at most %.0f)", streams, before/1024, after/1024, each, streamMost)
		if each > streamMost {
			return "", fmt.Errorf("%s", said)
		}
		return said, nil
	})
}
