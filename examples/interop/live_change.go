package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The changes of the long phase: the agent is restarted so often, and the CA replaced at least so often.
const (
	restarts  = 5
	rotations = 2
)

// checkLoad calls on while everything changes at once, and every call must be answered as if nothing did. A call of these
// may last for 1.5 s, and its record waits for the disk: where the disk itself stood still for most of that, by another
// program's measure, the calls failed as they must, and are made once more.
func (l *live) checkLoad(ctx context.Context) {
	l.report.check("calls while everything changes", func() (string, error) {
		said, stood, err := l.changing(ctx)
		if err == nil || stood < time.Second {
			return said, err
		}
		again, _, err2 := l.changing(ctx)
		return fmt.Sprintf("%s; before that the disk stood still for %s: %v", again, stood.Round(time.Millisecond), err), err2
	})
}

// changing says how the calls went, and for how long the disk stood still meanwhile at most.
func (l *live) changing(ctx context.Context) (_ string, stood time.Duration, _ error) {
	renewed, rotated, reloaded := l.logged("agent", `"lent":true`), l.rotated(), l.logged("ingress", "config changed")
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	disk, err := l.probe(ctx)
	if err != nil {
		return "", 0, err
	}
	ld, err := l.begins(max(20, l.calls/55))
	if err != nil {
		return "", 0, err
	}
	var changes sync.WaitGroup
	errs := make(chan error, 2)
	reloading, enough := context.WithCancel(ctx)
	defer enough()
	changes.Go(func() { errs <- l.reload(reloading) })
	done := make(chan error, 1)
	go func() {
		err := l.replaceAgent(ctx)
		for err == nil && l.rotated()-rotated < rotations {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		done <- err
	}()
	err = ld.until(ctx, l.calls, done)
	enough()
	changes.Wait()
	t, end := ld.ends(ctx)
	stop()
	stood = <-disk
	if err := errors.Join(err, <-errs, end, t.none()); err != nil {
		return "", stood, err
	}
	return fmt.Sprintf("%s; SIGTERM and SIGKILL restarted the agent %d times, the CA was replaced %d times, config changed %d times, SVIDs of 6 s were lent %d times; the disk took %s at most",
		t, restarts, l.rotated()-rotated, l.logged("ingress", "config changed")-reloaded, l.logged("agent", `"lent":true`)-renewed, stood.Round(time.Millisecond)), stood, nil
}

// probe writes to the disk on which the trails are, now and then, and tells once ctx has ended how long that took at most.
func (l *live) probe(ctx context.Context) (<-chan time.Duration, error) {
	f, err := os.Create(l.at("probe"))
	if err != nil {
		return nil, err
	}
	longest := make(chan time.Duration, 1)
	go func() {
		defer func() { _ = f.Close() }()
		var most time.Duration
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			began := time.Now()
			if _, err := f.WriteAt([]byte(began.String()), 0); err == nil {
				_ = syscall.Fdatasync(int(f.Fd())) //nolint:gosec // a descriptor fits
			}
			most = max(most, time.Since(began))
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				longest <- most
				return
			}
		}
	}()
	return longest, nil
}

func (l *live) rotated() int { return l.logged("agent", "the CA took a step", `"activate"`) }

// replaceAgent restarts the agent, by turns in order and without warning.
func (l *live) replaceAgent(ctx context.Context) error {
	for i := range restarts {
		select {
		case <-time.After(4 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		by := syscall.SIGTERM
		if i%2 == 1 {
			by = syscall.SIGKILL
		}
		if err := l.restart(ctx, l.roles["agent"], by); err != nil {
			return err
		}
	}
	return nil
}

// reload changes config every second until ctx ends: entries come and go, policies are touched, a service that nobody
// calls gets other callers. Files are replaced by renaming, and every other time the roles are told by SIGHUP as well.
func (l *live) reload(ctx context.Context) error {
	policy := l.at("state", "policy", "live.cedar")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		var err error
		switch i % 4 {
		case 0:
			err = l.replaceFile("entry.yaml", fmt.Sprintf("workloads:\n  - {id: /tool/live-%d, select: {unix.uid: %d}}\n", i, uidScraper))
		case 1:
			err = writeFile(policy, fmt.Sprintf("// %d\n@id(\"live\")\nforbid (principal == Workload::\"/tool/none\", action, resource);\n", i))
		case 2:
			callers := []string{"/app/portal", "/etl/night"}[:1+i/4%2]
			err = l.replaceFile("lab.yaml", fmt.Sprintf("services:\n  - {name: fhir.lab.mesh.internal, id: /ward/lab, addresses: ['127.0.0.1:8444'], callers: [%s], max_exchange: 1s}\n",
				strings.Join(callers, ", ")))
		case 3:
			err = l.removeFile("entry.yaml")
		}
		if err != nil {
			return err
		}
		if i%2 == 1 {
			l.hangUp()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(os.Remove(policy), l.removeFile("lab.yaml"), ignore(l.removeFile("entry.yaml"), os.ErrNotExist))
		}
	}
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// hangUp tells every role that is up to reload, as `systemctl reload` does.
func (l *live) hangUp() {
	for _, name := range roleNames {
		if p := l.roles[name].up(); p != nil {
			_ = p.signal(syscall.SIGHUP)
		}
	}
}

func (l *live) replaceFile(name, content string) error { return writeFile(l.confd(name), content) }
func (l *live) removeFile(name string) error           { return os.Remove(l.confd(name)) }
func (l *live) confd(name string) string               { return l.at("state", "conf.d", name) }

// writeFile puts a whole file in the place of the one that was there.
func writeFile(path, content string) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	return errors.Join(os.WriteFile(tmp, []byte(content), 0o644), os.Rename(tmp, path)) //nolint:gosec // every role reads it
}

// checkUpgrade replaces egress and ingress in turn by a new process, as an upgrade does.
func (l *live) checkUpgrade(ctx context.Context) {
	l.report.check("calls while egress and ingress are replaced", func() (string, error) {
		ld, err := l.begins(150)
		if err != nil {
			return "", err
		}
		var took []time.Duration
		var gone error
		for _, name := range []string{"egress", "ingress", "egress", "ingress", "agent"} {
			if gone = ld.until(ctx, ld.count()+150, nil); gone != nil {
				break
			}
			start := time.Now()
			if gone = l.restart(ctx, l.roles[name], syscall.SIGTERM); gone != nil {
				break
			}
			took = append(took, time.Since(start))
		}
		gone = errors.Join(gone, ld.until(ctx, ld.count()+150, nil))
		t, end := ld.ends(ctx)
		if err := errors.Join(gone, end, t.none()); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s; SIGTERM replaced egress twice, ingress twice and the agent once; from the signal to ready %s at most", t, short3(quantile(took, 1))), nil
	})
}

// checkKills kills each role under load. Only what is under way in the process may fail, and the trail says so.
func (l *live) checkKills(ctx context.Context) {
	for _, name := range []string{"agent", "egress", "ingress"} {
		l.report.check("SIGKILL of "+name+" under load", func() (string, error) {
			ld, err := l.begins(150)
			if err != nil {
				return "", err
			}
			gone := ld.until(ctx, 300, nil)
			before := time.Now()
			gone = errors.Join(gone, l.restart(ctx, l.roles[name], syscall.SIGKILL))
			gone = errors.Join(gone, ld.until(ctx, ld.count()+300, nil))
			t, end := ld.ends(ctx)
			if err := errors.Join(gone, end); err != nil {
				return "", err
			}
			for _, s := range t.failed {
				// It was under way when the signal was sent, or began before the kernel had taken the process down.
				if began := time.Unix(0, s.At); began.After(before.Add(100 * time.Millisecond)) {
					return "", fmt.Errorf("calls failed that were not under way: %s", list(t.failed, 8))
				}
			}
			if len(t.failed) > loops || name == "agent" && len(t.failed) > 0 {
				return "", fmt.Errorf("more failed than were under way: %w", t.none())
			}
			recorded, err := l.recorded(ctx, name, ld, before, t)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%s; %s", t, recorded), nil
		})
	}
}
