package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// attackDoors: sockets that are not for workloads.
func (l *live) attackDoors(ctx context.Context) (string, error) {
	operators := []string{l.agentSocket("admin"), l.at("run", "egress", "admin.sock"), l.at("run", "ingress", "admin.sock")}
	broker := l.agentSocket("broker")
	for _, c := range []struct {
		uid     int
		sockets []string
	}{{uidEHR, append([]string{broker}, operators...)}, {uidStranger, append([]string{broker}, operators...)},
		{uidWardEgress, operators}, {uidWardIngress, append([]string{broker}, operators...)}, {uidWardAgent, operators[1:]}} {
		got, err := l.attempt(ctx, c.uid, errand{Do: "connect", Ask: strings.Join(c.sockets, " ")})
		if err != nil {
			return "", err
		}
		if _, err := nothing(got); err != nil {
			return "", fmt.Errorf("uid %d: %w", c.uid, err)
		}
	}
	// Who is in the right group, or may open every file, is still not egress: the agent attests who asks.
	if err := os.Chmod(broker, 0o666); err != nil {
		return "", err
	}
	defer func() { _ = os.Chmod(broker, 0o660) }()
	got, err := l.attempt(ctx, uidEHR, errand{Do: "borrow", Ask: fmt.Sprintf("%s %d", broker, l.fhir.cmd.Process.Pid)})
	if err != nil {
		return "", err
	}
	said, err := nothing(got[len(got)-1:])
	if err != nil {
		return "", err
	}
	if _, err := nothing(got); err != nil {
		return "", err
	}
	return "workloads and the roles themselves can open none (permission denied); with the broker's socket open to all, " + said, nil
}

// attackReferences: egress, taken over, asks for identities whose processes it has not met.
func (l *live) attackReferences(ctx context.Context) (string, error) {
	victim, err := l.send("victim", uidEHR, errand{Do: "watch"})
	if err != nil {
		return "", err
	}
	defer func() { _, _ = victim.dismiss(ctx) }()
	if _, err := victim.heard(ctx, 0, func(s said) bool { return s.What == "svid" }); err != nil {
		return "", err
	}
	got, err := l.attempt(ctx, uidWardEgress, errand{Do: "borrow", Ask: fmt.Sprintf("%s %d", l.agentSocket("broker"), victim.cmd.Process.Pid)})
	if err != nil {
		return "", err
	}
	return nothing(got)
}

// attackTrace: a debugger's tools, on Ward's processes and on another user's; and on one's own, which gains nothing but
// what that process is.
func (l *live) attackTrace(ctx context.Context) (string, error) {
	own, err := l.send("own", uidStranger, errand{Do: "watch"})
	if err != nil {
		return "", err
	}
	defer func() { _, _ = own.dismiss(ctx) }()
	victim, err := l.send("victim", uidEHR, errand{Do: "watch"})
	if err != nil {
		return "", err
	}
	defer func() { _, _ = victim.dismiss(ctx) }()
	if _, err := victim.heard(ctx, 0, func(s said) bool { return s.What == "svid" }); err != nil {
		return "", err
	}
	defer func() { _ = own.signal(syscall.SIGCONT) }() // whoever was traced has been stopped, too
	if s, err := own.heard(ctx, 0, func(s said) bool { return s.What == "svid" || s.What == "refused" }); err != nil || s.What == "svid" {
		return "", errors.Join(err, fmt.Errorf("uid %d was told that it is %s", uidStranger, s.Text))
	}
	others := fmt.Sprintf("ehr:%d", victim.cmd.Process.Pid)
	for _, name := range roleNames {
		others += fmt.Sprintf(" %s:%d", name, l.roles[name].cmd.Process.Pid)
	}
	got, err := l.attempt(ctx, uidStranger, errand{Do: "trace", Ask: others})
	if err != nil {
		return "", err
	}
	if _, err := nothing(got); err != nil {
		return "", err
	}
	// egress and ingress, taken over, are users like others.
	if got, err = l.attempt(ctx, uidWardIngress, errand{Do: "trace", Ask: others[:strings.LastIndex(others, " ingress:")]}); err != nil {
		return "", err
	}
	if _, err := nothing(got); err != nil {
		return "", err
	}
	if got, err = l.attempt(ctx, uidStranger, errand{Do: "trace", Ask: fmt.Sprintf("own:%d", own.cmd.Process.Pid)}); err != nil {
		return "", err
	}
	said := "was let in"
	if got[0].Error != "" {
		said = "was refused by the kernel (" + got[0].Error + ")"
	}
	return fmt.Sprintf("uid %d got operation not permitted on every role and on the EHR, and ingress on the agent and the EHR; on a process of its own it %s, which has no identity either", uidStranger, said), nil
}
