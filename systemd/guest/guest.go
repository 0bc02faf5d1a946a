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

// guest is the booted Debian.
type guest struct {
	dir, tree string
	out       io.Writer // what is run in it is shown here

	name   string
	nspawn *exec.Cmd
	ended  chan error
	log    bytes.Buffer
	leader int // the guest's process 1, as the host numbers it
}

// Its filter of system calls lets through what attestation and the roles' sandboxes are made of; without these four
// groups the guest would not be like a host.
const allowedCalls = "pidfd_getfd open_by_handle_at name_to_handle_at bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self"

// The mounts are this process's own and go with it. A tree of control groups of version 2 is mounted in place of the
// host's, which may be of another kind, and the guest lives in a branch of it.
const bootScript = `
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
exec systemd-nspawn --quiet --directory="$2" --machine="$1" --hostname=ward-guest --boot --register=no --keep-unit --private-network \
  --console=pipe --capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON --system-call-filter="$3"
`

const clearScript = `
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for i in 1 2 3 4 5 6 7 8 9 10; do
  [ -d "/sys/fs/cgroup/$1" ] || exit 0
  find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ -d "/sys/fs/cgroup/$1" ] || exit 0
  sleep 0.2
done
exit 1
`

// boot starts the guest and waits until its units are up.
func (g *guest) boot(ctx context.Context) error {
	g.name = "ward-guest-" + strconv.Itoa(os.Getpid())
	g.nspawn = exec.Command("/bin/sh", "-ec", bootScript, "sh", g.name, g.tree, allowedCalls)
	g.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	g.nspawn.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	g.nspawn.Stdout, g.nspawn.Stderr = &g.log, &g.log
	if err := g.nspawn.Start(); err != nil {
		return err
	}
	g.ended = make(chan error, 1)
	go func() { g.ended <- g.nspawn.Wait() }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), g.stop())
		case err := <-g.ended:
			g.ended <- err
			return fmt.Errorf("the guest ended: %w\n%s", err, tail(g.log.String(), 30))
		case <-deadline:
			return errors.Join(errors.New("the guest has not booted within 60 s"), g.stop())
		case <-tick.C:
			if g.findLeader() && g.up(ctx) {
				return nil
			}
		}
	}
}

// findLeader looks for the one child of nspawn that is process 1 of the guest.
func (g *guest) findLeader() bool {
	pid := g.nspawn.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return false
	}
	for _, c := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(c); err == nil {
			g.leader = n
			return true
		}
	}
	return false
}

func (g *guest) up(ctx context.Context) bool {
	out, _ := g.command(ctx, "systemctl", "is-system-running").Output()
	state := strings.TrimSpace(string(out))
	return state == "running" || state == "degraded"
}

// stop ends the guest as a power button would, and takes its control groups away.
func (g *guest) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if g.leader != 0 {
		// SIGRTMIN+4 is "power off" to systemd as process 1.
		_ = syscall.Kill(g.leader, syscall.Signal(34+4))
	}
	select {
	case <-g.ended:
	case <-time.After(20 * time.Second):
		// All of the guest goes with its process 1.
		if g.leader != 0 {
			_ = syscall.Kill(g.leader, syscall.SIGKILL)
		}
		_ = syscall.Kill(-g.nspawn.Process.Pid, syscall.SIGKILL)
		<-g.ended
	}
	clear := exec.CommandContext(ctx, "/bin/sh", "-ec", clearScript, "sh", g.name)
	clear.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := clear.CombinedOutput(); err != nil {
		return fmt.Errorf("the guest's control groups are left: %w\n%s", err, out)
	}
	return nil
}

// command is one that runs in the guest, as its root, in a clean environment. It is no part of any unit of the guest.
func (g *guest) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	all := append([]string{"-t", strconv.Itoa(g.leader), "-a", "/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", name}, args...)
	return exec.CommandContext(ctx, "nsenter", all...)
}

// run runs a command in the guest and gives what it wrote to its standard output.
func (g *guest) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := g.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	fmt.Fprintf(g.out, "$ %s %s\n%s%s", name, strings.Join(args, " "), stdout.String(), stderr.String())
	if err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(stdout.String()+stderr.String(), 30))
	}
	return stdout.String(), nil
}

// script runs lines of shell in the guest, to the first that fails.
func (g *guest) script(ctx context.Context, lines string) (string, error) {
	return g.run(ctx, "/bin/sh", "-ec", lines)
}

// write puts a file into the guest.
func (g *guest) write(name, text string) error {
	path := filepath.Join(g.tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a folder of a system
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // a file of a system
}
