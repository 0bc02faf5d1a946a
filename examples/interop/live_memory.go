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
			held, err := l.roles[name].memory("VmRSS")
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

// memory is a role's resident memory in KiB, by its name in proc_pid_status(5).
func (r *role) memory(field string) (float64, error) {
	v, err := r.status(field)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSuffix(v, " kB"), 64)
}

// checkStreams has 2,000 processes' worth of streams open, and looks at what each costs the agent: in memory of its own,
// without the pages of its executable, of which any use touches some.
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
		before, err := l.roles["agent"].memory("RssAnon")
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
		// Opening so many at once leaves garbage behind, which an agent that has come to rest gives back.
		var first, each float64
		start := time.Now()
		for first == 0 || each > streamMost && time.Since(start) < idling {
			after, err := l.roles["agent"].memory("RssAnon")
			if err != nil {
				return "", err
			}
			if each = (after - before) / streams; first == 0 {
				first = each
			}
			time.Sleep(100 * time.Millisecond)
		}
		said := fmt.Sprintf("%d streams on as many connections take %.1f KiB each of the agent's own memory, %.1f once it is at rest after %s (at most %.0f)",
			streams, first, each, short3(time.Since(start)), streamMost)
		if each > streamMost {
			return "", fmt.Errorf("%s", said)
		}
		return said, nil
	})
}
