package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// world is the guest with what is in it.
type world struct {
	guest *guest
	parts *parts
	ctx   context.Context
	loads int
}

const (
	service = "fhir.ehr.mesh.internal"
	socket  = "/run/ward/egress/" + service + ".sock"
	target  = "http://" + service + "/Patient/example"
	token   = "/srv/token"
)

const demoUnit = `[Unit]
Description=The example FHIR server and OpenID Provider
[Service]
ExecStart=/opt/demo/demo -fhir /run/fhir/fhir.sock -issuer 127.0.0.1:9080 -audience http://` + service + `
User=fhir
RuntimeDirectory=fhir
UMask=0007
[Install]
WantedBy=multi-user.target
`

// furnish makes what a hospital has before it has Ward: a FHIR server, an OpenID Provider, an application and its user.
func (w *world) furnish() ([]string, error) {
	if err := w.guest.write("etc/systemd/system/fhir.service", demoUnit); err != nil {
		return nil, err
	}
	_, err := w.guest.script(w.ctx, `
useradd --system --user-group fhir
useradd --system --user-group portal
useradd --system --user-group stranger
systemctl daemon-reload
systemctl enable --now --quiet fhir
for i in $(seq 100); do curl -fs -o /dev/null http://127.0.0.1:9080/jwks && exit 0; sleep 0.1; done
exit 1`)
	return []string{"the example FHIR server and OpenID Provider run"}, err
}

// login asks the OpenID Provider for a physician's access token.
func (w *world) login() error {
	_, err := w.guest.script(w.ctx, `curl -fsS -u smart-portal:portal -d grant_type=password -d username=dr.lee -d password=demonstration \
  http://127.0.0.1:9080/token | sed 's/.*"access_token":"\([^"]*\)".*/\1/' >`+token)
	return err
}

// words are the commands that README.md gives under a heading: the first block of shell after it.
func (w *world) words(heading string) (string, error) {
	text, err := os.ReadFile(filepath.Join(w.parts.root, "systemd/README.md"))
	if err != nil {
		return "", err
	}
	return shellAfter(string(text), heading)
}

func shellAfter(text, heading string) (string, error) {
	_, rest, ok := strings.Cut(text, "\n"+heading+"\n")
	if !ok {
		return "", fmt.Errorf("README.md has no heading %q", heading)
	}
	_, rest, ok = strings.Cut(rest, "\n```sh\n")
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !ok || !closed {
		return "", fmt.Errorf("README.md has no shell commands under %q", heading)
	}
	return block, nil
}

// as runs a command in the guest as a user's own unit, and gives its output.
func (w *world) as(user, name string, args ...string) (string, error) {
	all := append([]string{"--pipe", "--wait", "--quiet", "--collect", "--uid=" + user, "--gid=" + user, name}, args...)
	return w.guest.run(w.ctx, "systemd-run", all...)
}

// call makes one call as a user, by the service's socket, and gives the status and the decision.
func (w *world) call(user string) (status, decision string, err error) {
	return w.curl(user, "--max-time", "20", "--unix-socket", socket)
}

func (w *world) curl(user string, args ...string) (status, decision string, err error) {
	script := fmt.Sprintf(`curl -sS -o /dev/null -D - -H "Authorization: Bearer $(cat %s)" %s %s`, token, strings.Join(args, " "), target)
	out, err := w.as(user, "/bin/sh", "-c", script)
	if err != nil {
		return "", "", err
	}
	for line := range strings.SplitSeq(out, "\n") {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "HTTP/1.1 "); ok {
			status, _, _ = strings.Cut(s, " ")
		}
		if name, value, ok := strings.Cut(line, ": "); ok && strings.EqualFold(name, "Ward-Decision") {
			decision = value
		}
	}
	return status, decision, nil
}

// load starts an application that calls all the time. What it returns ends it and gives what it saw.
func (w *world) load() (func() (tally, error), error) {
	w.loads++
	unit, result := fmt.Sprintf("portal-%d", w.loads), fmt.Sprintf("/run/portal-%d/tally", w.loads)
	_, err := w.guest.run(w.ctx, "systemd-run", "--quiet", "--unit="+unit, "--uid=portal", "--gid=portal", "--property=RuntimeDirectory="+unit,
		"--property=RuntimeDirectoryPreserve=yes", "--property=TimeoutStopSec=60s",
		"/opt/portal/guest", "load", "-socket", socket, "-url", target, "-token", token, "-result", result)
	if err != nil {
		return nil, err
	}
	return func() (t tally, err error) {
		if _, err := w.guest.run(w.ctx, "systemctl", "stop", unit); err != nil {
			return t, err
		}
		out, err := w.guest.run(w.ctx, "cat", result)
		if err != nil {
			return t, err
		}
		err = json.Unmarshal([]byte(out), &t)
		if err == nil && t.OK == 0 {
			err = errors.New("not one call went well")
		}
		return t, err
	}, nil
}

// pause lets the load go on for a while.
func (w *world) pause(d time.Duration) error {
	select {
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// show is a property of a unit.
func (w *world) show(unit, property string) (string, error) {
	out, err := w.guest.run(w.ctx, "systemctl", "show", "--value", "-p", property, unit)
	return strings.TrimSpace(out), err
}

// journal is what the units have said lately, for whoever looks for a cause.
func (w *world) journal() string {
	out, err := w.guest.run(context.WithoutCancel(w.ctx), "journalctl", "--no-pager", "-n", "60", "-o", "short-precise", "-u", "ward*", "-u", "fhir*")
	if err != nil {
		return err.Error()
	}
	return out
}
