package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// upgrade replaces egress and ingress, three times each, by processes of another binary, while as many applications as
// there are connections call without a pause. No call may fail.
func (b *bench) upgrade(ctx context.Context) ([]finding, error) {
	c, err := b.begin(ctx, ward)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	text, err := os.ReadFile(b.at("bin", "ward"))
	if err != nil {
		return nil, err
	}
	if err := b.write("bin/next/ward", text, 0o755, 0); err != nil {
		return nil, err
	}
	g, err := b.generate(ctx, errand{Do: "steady", Address: c.front, Request: request("/Patient/example", b.staff), Conns: b.o.conns, Sources: 64}, uidLoad)
	if err != nil {
		return nil, err
	}
	defer g.stop()
	if err := g.goAhead(); err != nil {
		return nil, err
	}
	config := filepath.Join(filepath.Dir(filepath.Dir(c.credentials.socketFolder())), "ward.yaml")
	var successors []int
	defer func() {
		for _, pid := range successors {
			end(pid)
		}
	}()
	began := time.Now()
	for range 3 {
		for role, uid := range map[string]int{"egress": uidEgress, "ingress": uidIngress} {
			pid, err := b.takeOver(ctx, role, uid, config)
			if err != nil {
				return nil, err
			}
			successors = append(successors, pid)
			b.say("  process %d has taken the place of %s", pid, role)
			select {
			case <-time.After(b.o.duration / 2):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	took := time.Since(began)
	if err := g.goAhead(); err != nil { // which ends it
		return nil, err
	}
	if _, err := g.hears(); err != nil { // the line by which it said that it had begun to wait
		return nil, err
	}
	t, err := g.hears()
	if err != nil {
		return nil, err
	}
	if t.Failed > 0 {
		b.say("  the first call that failed: %s", t.Why)
	}
	return []finding{
		{metric: "upgrade_calls", value: float64(t.Calls)},
		{metric: "upgrade_takeovers", value: float64(len(successors))},
		{metric: "upgrade_seconds", unit: "s", value: took.Seconds()},
		{metric: "upgrade_failed", value: float64(t.Failed), judged: true},
		{metric: "upgrade_made_anew", value: float64(t.Again)},
		{metric: "upgrade_p99", unit: "ms", value: quantile(t.Delays, .99).Seconds() * 1000},
		{metric: "upgrade_longest", unit: "ms", value: quantile(t.Delays, 1).Seconds() * 1000},
	}, nil
}

// takeOver runs `ward upgrade` as the role's user, and gives the new process. The command makes it this program's child,
// as it would make it the service manager's.
func (b *bench) takeOver(ctx context.Context, role string, uid int, config string) (int, error) {
	program := b.at("bin", "next", "ward")
	cmd := exec.CommandContext(ctx, program, "upgrade", "--role", role, "--config", config, "--force")          //nolint:gosec // our own
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}} //nolint:gosec // our own constants
	cmd.Env, cmd.Dir = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.at("home")}, b.dir
	log, err := os.OpenFile(b.at("logs", "next-"+role+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe() // the new process has it too, and keeps it
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout, cmd.Stderr = w, log
	err = cmd.Run()
	_ = w.Close()
	said := make([]byte, 4096)
	_ = r.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := r.Read(said)
	m := regexp.MustCompile(`\(process ([0-9]+)\) has taken`).FindSubmatch(said[:n])
	if err != nil || m == nil {
		why, _ := os.ReadFile(log.Name())
		return 0, fmt.Errorf("ward upgrade --role %s: %w: %s%s", role, errors.Join(err), said[:n], why)
	}
	return strconv.Atoi(string(m[1]))
}

// end ends a child that no process of ours stands for, and waits for it.
func end(pid int) {
	_ = syscall.Kill(pid, syscall.SIGTERM)
	for range 50 {
		if got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); got == pid || errors.Is(err, syscall.ECHILD) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	_, _ = syscall.Wait4(pid, nil, 0, nil)
}
