package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// How soon a change reaches what it concerns: the promise, and with how much more a machine that is busy with other
// things gets away here.
const (
	promptly = 100 * time.Millisecond
	leniency = 500 * time.Millisecond
	trials   = 20
	rounds   = 5 // of so many trials each, of which one must keep the promise
)

// lateError says how much later than promised something was.
type lateError struct{ said string }

func (e *lateError) Error() string { return e.said }

// latency judges trials of one kind.
func latency(what string, took []time.Duration) (string, error) {
	said := fmt.Sprintf("%s: p50 %s, longest %s of %d (at most %s)", what, short3(quantile(took, .5)), short3(quantile(took, 1)), len(took), promptly)
	if quantile(took, .5) > promptly || quantile(took, 1) > leniency {
		return "", &lateError{said}
	}
	return said, nil
}

// repeated makes a round of trials again when it was late: nobody can tell from one whether it was Ward or the machine.
func repeated(round func() (string, error)) (string, error) {
	for n := 1; ; n++ {
		said, err := round()
		var late *lateError
		if n == rounds || !errors.As(err, &late) {
			return said, err
		}
	}
}

func (l *live) checkLatency(ctx context.Context) {
	l.report.check("entry edited on disk", func() (string, error) { return repeated(func() (string, error) { return l.entryLatency(ctx) }) })
	l.report.check("deny", func() (string, error) { return repeated(func() (string, error) { return l.denyLatency(ctx) }) })
	for _, how := range []string{"exit", "exec"} {
		l.report.check("process "+how, func() (string, error) { return repeated(func() (string, error) { return l.endLatency(ctx, how) }) })
	}
}

// entryLatency gives a process another identity, and waits for it on the stream that it has open.
func (l *live) entryLatency(ctx context.Context) (string, error) {
	edit := func(i int) (string, error) {
		id := fmt.Sprintf("/live/number-%d", i)
		return "spiffe://" + domain + id, l.replaceFile("entry.yaml", fmt.Sprintf("workloads:\n  - {id: %s, select: {unix.uid: %d}}\n", id, uidFleet))
	}
	defer func() { _ = l.removeFile("entry.yaml") }()
	id, err := edit(0)
	if err != nil {
		return "", err
	}
	a, err := l.send("watch", uidFleet, errand{Do: "watch"})
	if err != nil {
		return "", err
	}
	defer func() { _, _ = a.dismiss(ctx) }()
	has := func(s said) bool { return s.What == "svid" && s.Text == id }
	if _, err := a.heard(ctx, 0, has); err != nil {
		return "", err
	}
	var took []time.Duration
	for i := range trials {
		n, start := a.count(), time.Now()
		if id, err = edit(i + 1); err != nil {
			return "", err
		}
		s, err := a.heard(ctx, n, has)
		if err != nil {
			return "", err
		}
		took = append(took, time.Unix(0, s.At).Sub(start))
	}
	return latency("from the file to the new SVID on the open stream", took)
}

// denyLatency denies an identity that has a connection to each role, and waits for the end of all three.
func (l *live) denyLatency(ctx context.Context) (string, error) {
	a, err := l.send("hold", uidPortal, errand{Do: "hold", Token: l.view})
	if err != nil {
		return "", err
	}
	defer func() { _, _ = a.dismiss(ctx) }()
	took := map[string][]time.Duration{}
	n := 0
	for range trials {
		if _, err := a.heard(ctx, n, func(s said) bool { return s.What == "ready" }); err != nil {
			return "", err
		}
		n = a.count()
		start := time.Now()
		if err := l.replaceFile("deny.yaml", "deny: [/app/portal]\n"); err != nil {
			return "", err
		}
		for _, role := range roleNames {
			s, err := a.heard(ctx, n, func(s said) bool { return s.What == "cut" && s.Way == role })
			if err != nil {
				return "", errors.Join(fmt.Errorf("the connection to %s", role), err, l.removeFile("deny.yaml"))
			}
			took[role] = append(took[role], time.Unix(0, s.At).Sub(start))
		}
		n = a.count()
		if err := l.removeFile("deny.yaml"); err != nil {
			return "", err
		}
	}
	var all string
	for _, role := range roleNames {
		said, err := latency("until "+role+" cuts", took[role])
		if err != nil {
			return "", err
		}
		all += said + "; "
	}
	return all[:len(all)-2], nil
}

// endLatency lets a process end, or become another program, while somebody else holds its connection to egress open.
func (l *live) endLatency(ctx context.Context, how string) (string, error) {
	var took []time.Duration
	for range trials {
		a, err := l.send("linger", uidEHR, errand{Do: "linger", Token: l.token, Ask: how})
		if err != nil {
			return "", err
		}
		going, err := a.heard(ctx, 0, func(s said) bool { return s.What == "going" })
		if err != nil {
			return "", err
		}
		cut, err := a.heard(ctx, 0, func(s said) bool { return s.What == "cut" })
		_ = a.in.Close()
		if how == "exec" {
			err = errors.Join(err, ignore(a.signal(syscall.SIGKILL), os.ErrProcessDone))
		}
		if err != nil {
			return "", err
		}
		took = append(took, time.Duration(cut.At-going.At))
	}
	return latency("until egress cuts the connection, which a child holds open", took)
}
