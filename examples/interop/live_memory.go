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
