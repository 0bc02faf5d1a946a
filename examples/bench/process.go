package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience is how long anything may take that should be over at once, on a machine that is busy with other things.
const patience = 30 * time.Second

// Users that nobody else has (systemd's UIDS-GIDS.md: 60578 to 61183 is unused). Ward tells its own roles apart by
// them, and its callers.
const (
	uidAgent   = 60841
	uidEgress  = 60842
	uidIngress = 60843
	uidPeer    = 60844 // every other proxy
	uidOrigin  = 60845
	uidLoad    = 60851 // the first of the load generators; the others follow
)

// process is a program that runs in the background, with all the processes that it starts in a group of their own.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
	err    error // how it ended; valid once exited is closed
}

// command says how a process is started.
type command struct {
	name  string
	uid   int
	argv  []string
	env   []string
	caps  []uintptr  // capabilities that it keeps though it is not root
	files []*os.File // from descriptor 3 on
	stdin io.Reader
	// stdout takes what the process says; without one it goes to the log, as all that it complains of does.
	stdout io.Writer
}

// start starts a process whose complaints go to logs/NAME.log. It must be called by the thread of main, at whose end
// the kernel ends the process too.
func (b *bench) start(c command) (*process, error) {
	p := &process{name: c.name, log: b.at("logs", c.name+".log"), cmd: exec.Command(c.argv[0], c.argv[1:]...), exited: make(chan struct{})} //nolint:gosec // what this program was asked to measure
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM, AmbientCaps: c.caps,
		Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}} //nolint:gosec // our own constants
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.at("home"), "LC_ALL=C.UTF-8"}, c.env...)
	p.cmd.Dir, p.cmd.Stdin, p.cmd.ExtraFiles, p.cmd.Stderr = b.dir, c.stdin, c.files, log
	if p.cmd.Stdout = c.stdout; c.stdout == nil {
		p.cmd.Stdout = log
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive is nil while the process runs.
func (p *process) alive() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s has ended (%v): %s", p.name, p.err, p.lastWords())
	default:
		return nil
	}
}

// lastWords is the end of the log, for whoever has to find out what went wrong.
func (p *process) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "\n\t")
}

// stop ends the process and all that it has started, by force where it takes its time.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.exited
}

// until asks again and again until ready says nil, or one of the processes has ended.
func until(ctx context.Context, ready func() error, needed ...*process) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		last := ready()
		if last == nil {
			return nil
		}
		for _, p := range needed {
			if err := p.alive(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// group lists the processes of p's group: itself and its workers.
func (p *process) group() ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile
		}
		s, err := parseStat(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if s.group == p.pid() {
			pids = append(pids, s.pid)
		}
	}
	return pids, nil
}

// stat is what proc_pid_stat(5) says of a process.
type stat struct {
	pid, group int
	cpu        time.Duration // user and system, all threads, children apart
}

// tick is the unit of proc_pid_stat(5)'s times: USER_HZ, which is the same on all of Linux's usual machines.
const tick = 10 * time.Millisecond

func parseStat(text []byte) (s stat, err error) {
	// The name stands in parentheses and may hold any byte, parentheses and blanks included.
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return s, errors.New("no name in parentheses")
	}
	rest := strings.Fields(string(text[end+1:]))
	if len(rest) < 13 {
		return s, errors.New("too few fields")
	}
	var numbers [4]int
	for i, field := range []string{strings.TrimSpace(string(text[:open])), rest[2], rest[11], rest[12]} {
		if numbers[i], err = strconv.Atoi(field); err != nil {
			return s, err
		}
	}
	return stat{pid: numbers[0], group: numbers[1], cpu: time.Duration(numbers[2]+numbers[3]) * tick}, nil
}

// cpu is the time that the processes and their workers have spent on a processor so far.
func cpu(of ...*process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range of {
		pids, err := p.group()
		if err != nil {
			return 0, err
		}
		if len(pids) == 0 {
			return 0, fmt.Errorf("%s has ended: %s", p.name, p.lastWords())
		}
		for _, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				return 0, fmt.Errorf("a worker of %s has ended: %w", p.name, err)
			}
			s, err := parseStat(text)
			if err != nil {
				return 0, err
			}
			sum += s.cpu
		}
	}
	return sum, nil
}

// memory is what the process and its workers hold of their own, in KiB: not the pages of their executables and
// libraries, of which any use touches some. What several share counts in part for each (PSS).
func (p *process) memory() (float64, error) {
	pids, err := p.group()
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "Pss_Anon:"); ok {
				kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
				if err != nil {
					return 0, err
				}
				sum += kib
			}
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("%s holds nothing: %s", p.name, p.lastWords())
	}
	return sum, nil
}
