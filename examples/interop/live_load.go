package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// application is a process that does an errand, and what it has said so far.
type application struct {
	*process
	in *os.File // it goes on until this is closed

	mu   sync.Mutex
	said []said
	fine int           // of those, without an error
	more chan struct{} // closed when there is more
	last chan struct{} // closed when there will be no more
}

// send starts an application as uid.
func (l *live) send(name string, uid int, e errand) (*application, error) {
	e.Unix, e.TCP, e.API, e.Ward = l.socket(), egress, "unix://"+l.agentSocket("workload"), ingress
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	a := &application{in: w, more: make(chan struct{}), last: make(chan struct{})}
	if a.process, err = l.background(name, program{uid: uid, argv: []string{l.at("bin", "interop"), "act"}, stdin: r}); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	go func() {
		defer close(a.last)
		for line := range a.lines {
			var s said
			if json.Unmarshal([]byte(line), &s) != nil {
				s = said{What: "noise", Error: line}
			}
			a.mu.Lock()
			a.said = append(a.said, s)
			if s.Error == "" {
				a.fine++
			}
			close(a.more)
			a.more = make(chan struct{})
			a.mu.Unlock()
		}
	}()
	return a, json.NewEncoder(w).Encode(e)
}

// heard waits for something that the application says after the first n lines, and gives it.
func (a *application) heard(ctx context.Context, n int, is func(said) bool) (said, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for over := false; ; {
		a.mu.Lock()
		more := a.more
		for ; n < len(a.said); n++ {
			if is(a.said[n]) {
				s := a.said[n]
				a.mu.Unlock()
				return s, nil
			}
		}
		a.mu.Unlock()
		if over {
			return said{}, fmt.Errorf("%s has ended: see its log", a.name)
		}
		select {
		case <-more:
		case <-a.last:
			over = true // and look once more
		case <-ctx.Done():
			return said{}, fmt.Errorf("%s does not say what is waited for: %w", a.name, ctx.Err())
		}
	}
}

// count is how many lines there are, and answered how many of them tell of a success.
func (a *application) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.said)
}

func (a *application) answered() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fine
}

// dismiss lets the application end in its own time, and gives all that it has said.
func (a *application) dismiss(ctx context.Context) ([]said, error) {
	_ = a.in.Close()
	if _, err := a.end(ctx); err != nil {
		return nil, errors.Join(err, a.signal(syscall.SIGKILL))
	}
	<-a.last
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said, nil
}

// load is what all callers do together.
type load struct {
	apps []*application
	from time.Time
}

// loops is how many calls can be under way at once.
const loops = 12

// begins has two applications call: together about rate calls a second.
func (l *live) begins(rate int) (*load, error) {
	pause := loops * time.Second / time.Duration(rate)
	ld := &load{from: time.Now()}
	for _, c := range []struct {
		name string
		uid  int
		e    errand
	}{{"ehr", uidEHR, errand{Do: "load", Token: l.token, Writes: true, Loops: 2, Pause: pause}},
		{"portal", uidPortal, errand{Do: "load", Token: l.view, Loops: 1, Pause: pause}}} {
		a, err := l.send("load-"+c.name, c.uid, c.e)
		if err != nil {
			return ld, err
		}
		ld.apps = append(ld.apps, a)
	}
	return ld, nil
}

// count is how many calls have succeeded so far.
func (ld *load) count() (n int) {
	for _, a := range ld.apps {
		n += a.answered()
	}
	return n
}

// until waits until done, and until there were so many calls that did not fail. Where calls fail, it does not wait long.
func (ld *load) until(ctx context.Context, calls int, done <-chan error) (err error) {
	tick, last, since := time.NewTicker(50*time.Millisecond), -1, time.Now()
	defer tick.Stop()
	for {
		n := ld.count()
		if n > last {
			last, since = n, time.Now()
		}
		switch {
		case done == nil && n >= calls:
			return nil
		case time.Since(since) > patience/2:
			return fmt.Errorf("no call has succeeded for %s", patience/2)
		}
		select {
		case err := <-done:
			if done = nil; err != nil {
				return err
			}
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tally is what became of the calls.
type tally struct {
	calls  []said
	failed []said
	took   time.Duration
}

// ends lets the callers finish, and counts.
func (ld *load) ends(ctx context.Context) (t tally, err error) {
	for _, a := range ld.apps {
		said, e := a.dismiss(ctx)
		err = errors.Join(err, e)
		t.calls = append(t.calls, said...)
	}
	for _, s := range t.calls {
		if s.Error != "" {
			t.failed = append(t.failed, s)
		}
	}
	t.took = time.Since(ld.from)
	return t, err
}

// String sums up: how many of what, and how long they took.
func (t tally) String() string {
	took := make([]time.Duration, len(t.calls))
	kinds := map[string]int{}
	for i, s := range t.calls {
		took[i] = time.Duration(s.Took)
		kinds[s.What]++
		kinds[s.Way]++
	}
	return fmt.Sprintf("%d calls in %.0f s (GET %d, POST %d, PUT %d; kept and new connections: Unix %d and %d, TCP %d and %d): p50 %s, p99 %s, longest %s, %d failed",
		len(t.calls), t.took.Seconds(), kinds["GET"], kinds["POST"], kinds["PUT"], kinds["unix kept"], kinds["unix once"], kinds["tcp kept"], kinds["tcp once"],
		short3(quantile(took, .5)), short3(quantile(took, .99)), short3(quantile(took, 1)), len(t.failed))
}

// none is an error when calls have failed.
func (t tally) none() error {
	if len(t.failed) == 0 {
		return nil
	}
	return fmt.Errorf("%s:%s", t, list(t.failed, 8))
}

// list shows the first few.
func list(failed []said, most int) string {
	var b bytes.Buffer
	for i, s := range failed {
		if i == most {
			fmt.Fprintf(&b, "\n        and %d more", len(failed)-most)
			break
		}
		fmt.Fprintf(&b, "\n        %s %s %s after %s: %s", time.Unix(0, s.At).UTC().Format("15:04:05.000"), s.Way, s.What, short3(time.Duration(s.Took)), s.Error)
	}
	return b.String()
}

func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	of = slices.Clone(of)
	slices.Sort(of)
	return of[min(len(of)-1, int(q*float64(len(of))))]
}

// short3 is a duration in three digits or so.
func short3(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// copySelf puts this program where every user can run it.
func (l *live) copySelf() error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(l.at("bin", "interop"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755) //nolint:gosec // to be executed by all
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// logged counts the lines of a role's log that hold all the words.
func (l *live) logged(role string, words ...string) int {
	b, err := os.ReadFile(l.at("logs", role+".log"))
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}
