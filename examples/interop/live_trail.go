package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// recorded says what the trail knows of the calls of one phase, in which a role was killed: every call that was answered
// is in it, and of those that were under way, the ones that may have happened are intents without an outcome.
func (l *live) recorded(ctx context.Context, role string, ld *load, killed time.Time, t tally) (string, error) {
	for last := time.Now().Add(patience); ; { // outcomes are not waited for, and may be on their way to the disk
		open, answered, unanswered, err := l.judge(ctx, ld, killed, t)
		switch late := time.Now().After(last); {
		case err != nil && late:
			return "", err
		case err == nil && role != "ingress" && open > 0 && late:
			return "", fmt.Errorf("%d intents of ingress, which was not killed, have no outcome", open)
		case err == nil && (role == "ingress" || open == 0):
			return fmt.Sprintf("of those under way %d got no answer and %d were answered that they had failed; %d intents without an outcome; all %d answers are in the trail",
				unanswered, len(t.failed)-unanswered, open, answered), nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (l *live) judge(ctx context.Context, ld *load, killed time.Time, t tally) (open, answered, unanswered int, err error) {
	trail, err := l.trail(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	for _, s := range t.calls {
		switch {
		case s.Decision == "":
			unanswered++
		case len(trail[s.Decision]) == 0:
			return 0, 0, 0, fmt.Errorf("the trail has no record of %s, which a caller was answered (%d)", s.Decision, s.Status)
		default:
			answered++
		}
	}
	for _, records := range trail {
		intent, outcome := false, false
		for _, r := range records {
			here := r.Time.After(ld.from) && r.Time.Before(killed.Add(time.Second))
			intent, outcome = intent || here && r.Stage == "intent", outcome || r.Stage == "outcome"
		}
		if intent && !outcome {
			open++
		}
	}
	return open, answered, unanswered, nil
}

// checkWhole verifies every role's trail at the end.
func (l *live) checkWhole(ctx context.Context) {
	l.report.check("the trails are whole", func() (string, error) {
		said, err := l.ward(ctx, "audit", "verify")
		if err != nil {
			return "", err
		}
		var whole []string
		for line := range strings.Lines(said) {
			if i := strings.Index(line, "whole: "); i >= 0 {
				whole = append(whole, strings.TrimSpace(line))
			}
		}
		if len(whole) == 0 {
			return "", fmt.Errorf("no trail is: %s", said)
		}
		return strings.Join(whole, "; "), nil
	})
}
