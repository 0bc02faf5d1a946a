package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// role is one part of Ward as its unit runs it: under a user of its own, with no capability but those of the unit, and
// with listening sockets that the service manager, here this program, opens and holds across restarts (sd_listen_fds(3)).
type role struct {
	*process // the one that runs now
	name     string
	uid      int
	caps     []uintptr
	args     []string
	listens  []listens
	held     []*os.File
	running  atomic.Pointer[process] // once it is ready, and until it is told to end
}

// up is the process that runs and is ready, or nil.
func (r *role) up() *process { return r.running.Load() }

// listens is one ListenStream= of a socket unit.
type listens struct {
	address string // a path, or host and port
	mode    os.FileMode
	group   int
}

func (l *live) newRoles() map[string]*role {
	anyone, members := os.FileMode(0o666), os.FileMode(0o660)
	return map[string]*role{
		"agent": {name: "agent", uid: uidWardAgent, args: []string{"agent"}, caps: []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, listens: []listens{
			{l.agentSocket("workload"), anyone, 0}, {l.agentSocket("broker"), members, uidWardEgress}, {l.agentSocket("admin"), members, gidWardAdmin}}},
		"ingress": {name: "ingress", uid: uidWardIngress, args: []string{"proxy", "--role", "ingress"}, listens: []listens{
			{address: ingress}, {l.at("run", "ingress", "admin.sock"), members, gidWardAdmin}}},
		"egress": {name: "egress", uid: uidWardEgress, args: []string{"proxy", "--role", "egress"}, listens: []listens{
			{address: egress}, {l.socket(), anyone, 0}, {l.at("run", "egress", "admin.sock"), members, gidWardAdmin}}},
	}
}

// hold opens the role's listening sockets.
func (r *role) hold() error {
	for _, s := range r.listens {
		network := "tcp"
		if strings.HasPrefix(s.address, "/") {
			network = "unix"
		}
		ln, err := net.Listen(network, s.address)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		var f *os.File
		switch ln := ln.(type) {
		case *net.UnixListener:
			ln.SetUnlinkOnClose(false)
			f, err = ln.File()
			if err == nil { // PassCredentials=yes
				err = errors.Join(unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1),
					os.Chown(s.address, 0, s.group), os.Chmod(s.address, s.mode))
			}
		case *net.TCPListener:
			f, err = ln.File()
		}
		if err := errors.Join(err, ln.Close()); err != nil {
			return fmt.Errorf("%s: %s: %w", r.name, s.address, err)
		}
		r.held = append(r.held, f)
	}
	return nil
}

// start starts the role and waits until it says that it is ready.
func (l *live) start(ctx context.Context, r *role) (err error) {
	argv := append([]string{"/bin/sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh", l.at("bin", "ward")}, r.args...)
	r.process, err = l.background(r.name, program{uid: r.uid, argv: append(argv, "--config", l.config()), caps: r.caps, files: r.held,
		env: []string{fmt.Sprintf("LISTEN_FDS=%d", len(r.held))}})
	if err != nil {
		return err
	}
	_, err = r.ready(ctx, func(line string) bool {
		var said struct{ Msg string }
		return json.Unmarshal([]byte(line), &said) == nil && said.Msg == "ready"
	})
	if err == nil {
		r.running.Store(r.process)
	}
	return err
}

// restart ends the role by a signal and starts it at once, as the service manager does. Its sockets stay.
func (l *live) restart(ctx context.Context, r *role, by syscall.Signal) error {
	r.running.Store(nil)
	if err := r.signal(by); err != nil {
		return err
	}
	code, err := r.end(ctx)
	if err != nil {
		return err
	}
	if by == syscall.SIGTERM && code != 0 {
		return fmt.Errorf("%s exits %d upon SIGTERM", r.name, code)
	}
	return l.start(ctx, r)
}

// startRoles starts all of Ward, in no special order: each waits for what it needs.
func (l *live) startRoles(ctx context.Context) error {
	for _, name := range roleNames {
		r := l.roles[name]
		if r.held == nil {
			if err := r.hold(); err != nil {
				return err
			}
		}
		if err := l.start(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// stopRoles ends all of Ward. The sockets stay.
func (l *live) stopRoles(ctx context.Context) error {
	var errs []error
	for _, name := range []string{"egress", "ingress", "agent"} {
		r := l.roles[name]
		if r == nil || r.process == nil {
			continue
		}
		_ = r.signal(syscall.SIGTERM)
		if _, err := r.end(ctx); err != nil {
			errs = append(errs, err, r.signal(syscall.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// status is a field of /proc/PID/status.
func (r *role) status(field string) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no %s in the status of %s", field, r.name)
}
