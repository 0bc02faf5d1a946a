package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// patience is how long anything may take that should be over at once, on a machine that is busy with other things.
const patience = 60 * time.Second

// process is a server that runs in the background.
type process struct {
	name   string
	cmd    *exec.Cmd
	lines  chan string // the latest that it said, as far as anybody reads it; closed when it says no more
	exited chan struct{}
	err    error // how it ended; valid once exited is closed
}

// as gives a process a user and group of its own, and no others.
func as(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}} //nolint:gosec // our own constants
}

// background starts a program as p.uid and keeps what it says in logs/NAME.log.
func (w *world) background(name string, b program) (*process, error) {
	log, err := os.OpenFile(w.at("logs", name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(b.argv[0], b.argv[1:]...), lines: make(chan string, 1024), exited: make(chan struct{})} //nolint:gosec // our own
	p.cmd.SysProcAttr, p.cmd.Env, p.cmd.Dir, p.cmd.Stdin = as(b.uid), environment(b.env...), "/", b.stdin
	p.cmd.SysProcAttr.AmbientCaps, p.cmd.ExtraFiles = b.caps, b.files
	r, out, err := os.Pipe()
	if err != nil {
		_ = log.Close()
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := errors.Join(p.cmd.Start(), out.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), r.Close(), log.Close())
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		defer close(p.lines)
		defer func() { _ = errors.Join(log.Close(), r.Close()) }()
		s := bufio.NewScanner(r)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			_, _ = fmt.Fprintln(log, s.Text())
			select {
			case p.lines <- s.Text():
			default: // nobody waits for a line any more: the log has it
			}
		}
	}()
	go func() {
		p.err = p.cmd.Wait()
		<-said
		close(p.exited)
	}()
	return p, nil
}

func environment(more ...string) []string {
	return append([]string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/nonexistent", "LC_ALL=C.UTF-8", "NO_COLOR=1", "NODE_NO_WARNINGS=1"}, more...)
}

// ready waits until the process says a line that is ready, and gives that line.
func (p *process) ready(ctx context.Context, is func(line string) bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("%s ended before it was ready: see its log", p.name)
			}
			if is(line) {
				return line, nil
			}
		case <-ctx.Done():
			return "", fmt.Errorf("%s is not ready: %w", p.name, ctx.Err())
		}
	}
}

func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// end waits until the process has ended, and gives its exit code (-1 when a signal ended it).
func (p *process) end(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s does not end: %w", p.name, ctx.Err())
	}
}

// ran is how a program ended that was run to its end.
type ran struct {
	code           int
	stdout, stderr string
}

// program is one run of a program as somebody.
type program struct {
	uid   int
	argv  []string
	stdin io.Reader
	env   []string
	caps  []uintptr  // capabilities that it keeps though it is not root
	files []*os.File // from descriptor 3 on
}

// run runs a program to its end. Only a program that could not be run, or did not end, is an error.
func (w *world) run(ctx context.Context, p program) (ran, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...) //nolint:gosec // our own
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = p.stdin, &stdout, &stderr, "/"
	cmd.SysProcAttr, cmd.Env = as(p.uid), environment(p.env...)
	err := cmd.Run()
	r := ran{stdout: stdout.String(), stderr: stderr.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		r.code, err = exit.ExitCode(), nil
	}
	if err != nil {
		return r, fmt.Errorf("%s (uid %d): %w: %s", p.argv[0], p.uid, err, strings.TrimSpace(r.stderr))
	}
	return r, nil
}

// ward runs a command of the ward binary against this clinic's config. Its failure is an error.
func (w *world) ward(ctx context.Context, args ...string) (string, error) {
	r, err := w.run(ctx, program{argv: append([]string{w.at("bin", "ward")}, args...), env: []string{"WARD_CONFIG=" + w.config()}})
	if err != nil {
		return "", err
	}
	if r.code != 0 {
		return "", fmt.Errorf("ward %s: exit %d: %s", strings.Join(args, " "), r.code, strings.TrimSpace(r.stderr))
	}
	w.report.note("ward %s\n%s", strings.Join(args, " "), indent(r.stdout))
	return r.stdout, nil
}

func indent(s string) string {
	return "        " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n        ")
}
