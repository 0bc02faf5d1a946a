package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/wardmesh/ward/agent/handover"
)

// upgradeCommand starts a new process that takes the place of a proxy. Package handover says why the one that runs cannot
// do so by itself; the units call this command in ExecReload=, so that the service manager starts it.
type upgradeCommand struct {
	configFlag
	Role  string `enum:"egress,ingress,both" required:"" help:"Whose place to take: egress, ingress or both."`
	Force bool   `help:"Also where the process that runs has been started from this very file."`
}

// upgradeTime bounds all of it: systemd's own patience with ExecReload= is TimeoutStartSec=, 30 s.
const upgradeTime = 27 * time.Second

// Run exits 0 once the new process serves, or when there is nothing to do. Otherwise the one that runs serves on.
func (cmd upgradeCommand) Run(c *console) error {
	cfg, err := cmd.load()
	if err != nil {
		return listErrors(c.err, err)
	}
	runs, pid, err := who(handover.Socket(cfg.Trail(proxyRole(cmd.Role))))
	if errors.Is(err, handover.ErrNobody) {
		return fmt.Errorf("no ward proxy --role %s runs here that could hand over its sockets; start or restart it instead (%w)", cmd.Role, err)
	}
	if err != nil {
		return fmt.Errorf("the process that runs: %w", err)
	}
	if runs.Executable == handover.Executable() && !cmd.Force {
		_, err := fmt.Fprintf(c.out, "%s runs this version already (%s)\n", cmd.Role, runs.Version)
		return err
	}
	next, err := cmd.launch()
	if err != nil {
		return fmt.Errorf("the new process: %w; version %s serves on", err, runs.Version)
	}
	_, err = fmt.Fprintf(c.out, "%s: version %s (process %d) has taken the place of version %s (process %d), which ends the calls that it has\n",
		cmd.Role, versionText(), next, runs.Version, pid)
	return err
}

// who asks which process of a role runs.
func who(socket string) (handover.Message, int, error) {
	conn, err := handover.Dial(socket)
	if err != nil {
		return handover.Message{}, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(upgradeTime)); err != nil {
		return handover.Message{}, 0, err
	}
	if err := conn.Send(handover.Message{Kind: handover.KindAsk, Protocol: handover.Protocol}, nil); err != nil {
		return handover.Message{}, 0, err
	}
	m, err := conn.Expect(handover.KindWelcome)
	return m, conn.PID, err
}

// launch starts the new process and waits until it serves, or ends it. It is not this process's child but its parent's,
// which under systemd is the one that is told to look after it.
func (cmd upgradeCommand) launch() (pid int, err error) {
	path, err := os.Executable()
	if err != nil {
		return 0, err
	}
	config, err := cmd.path()
	if err != nil {
		return 0, err
	}
	none, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer none.Close()
	said, tell, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer said.Close()
	p, err := os.StartProcess(path, []string{"ward", "proxy", "--role", cmd.Role, "--config", config, "--take-over", "--tell", "3"},
		&os.ProcAttr{Files: []*os.File{none, os.Stdout, os.Stderr, tell}, Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_PARENT}})
	if err := errors.Join(err, tell.Close()); err != nil {
		return 0, err
	}
	defer func() { _ = p.Release() }()
	if err := said.SetReadDeadline(time.Now().Add(upgradeTime)); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	switch {
	case line == "ok\n":
		return p.Pid, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, errors.Join(fmt.Errorf("it was not ready within %s and has been ended", upgradeTime), p.Kill())
	}
	return 0, errors.New("it has ended, and said why")
}

// tell says that this process serves.
func (s succession) tell() {
	if s.Tell < 3 {
		return
	}
	f := os.NewFile(uintptr(s.Tell), "tell "+strconv.Itoa(s.Tell))
	_, _ = f.WriteString("ok\n") // whoever waited for it is gone
	_ = f.Close()
}
