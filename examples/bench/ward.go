package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mesh   = "fhir.ehr.mesh.internal"
	domain = "bench.example"
	wardID = "spiffe://" + domain + "/ward/ehr"
)

// prepareWard makes the ward binary, from this checkout and as a release is built unless one was named, and lays out what
// all instances share: the policies of a clinic, and one more for the callers that those do not know.
func (b *bench) prepareWard(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	root := strings.TrimSpace(string(out))
	if err != nil || root == "" {
		return errors.New("ward cannot be built: run this inside of its repository, with Go at hand")
	}
	if err := b.policies(filepath.Join(root, "examples", "clinic", "policy")); err != nil {
		return err
	}
	if b.o.ward != "" {
		text, err := os.ReadFile(b.o.ward)
		if err != nil {
			return fmt.Errorf("the ward binary: %w", err)
		}
		return b.write("bin/ward", text, 0o755, 0)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.at("bin", "ward"), "./agent")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ward cannot be built: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (b *bench) policies(from string) error {
	names, err := filepath.Glob(filepath.Join(from, "*.cedar"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("there are no policies in %s (%v)", from, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := b.write("ward/policy/"+filepath.Base(name), text, 0o644, 0); err != nil {
			return err
		}
	}
	ids, _ := b.callers()
	for i, id := range ids {
		ids[i] = fmt.Sprintf("Workload::%q", id)
	}
	return b.write("ward/policy/50-load.cedar", fmt.Appendf(nil, `@id("load-read")
@description("The callers of the measurement that are not the portal read what it reads.")
permit (
    principal,
    action == Action::"read",
    resource
)
when { resource is FHIR::Patient || resource is FHIR::DocumentReference }
when { principal in [%s] };
`, strings.Join(ids, ", ")), 0o644, 0)
}

// startWard starts Ward as its units run it: agent, ingress and egress in processes of their own, each under a user of
// its own and with the capabilities of its unit. The trail lies in trail, on a disk or in memory.
func (b *bench) startWard(ctx context.Context, name, trail string) (_ *chain, err error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	dir := b.at(name)
	c := &chain{name: name, front: ports[0], back: ports[1],
		credentials: &credentials{API: "unix://" + filepath.Join(dir, "run", "agent", "workload.sock"), Peer: wardID}}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	c.listen = c.front
	if b.o.front == "unix" {
		c.front = "unix:" + filepath.Join(dir, "run", "egress", mesh+".sock")
	}
	if err := b.layOutWard(name, trail, c); err != nil {
		return nil, err
	}
	for _, role := range []struct {
		name string
		uid  int
		args []string
		caps []uintptr
		into **process
	}{
		{"agent", uidAgent, []string{"agent"}, []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, &c.agent},
		{"ingress", uidIngress, []string{"proxy", "--role", "ingress"}, nil, &c.server},
		{"egress", uidEgress, []string{"proxy", "--role", "egress"}, nil, &c.client},
	} {
		argv := append([]string{b.at("bin", "ward")}, append(role.args, "--config", filepath.Join(dir, "ward.yaml"))...)
		p, err := b.start(command{name: name + "-" + role.name, uid: role.uid, argv: argv, caps: role.caps})
		if err != nil {
			return nil, err
		}
		*role.into = p
		if err := until(ctx, p.saysReady, p); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// saysReady looks for the line by which a daemon of Ward tells that it serves.
func (p *process) saysReady() error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var said struct{ Msg string }
		if json.Unmarshal(lines.Bytes(), &said) == nil && said.Msg == "ready" {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready: %s", p.name, p.lastWords())
}

// layOutWard makes the folders as the packages do, the policies of a clinic, and the config.
func (b *bench) layOutWard(name, trail string, c *chain) error {
	for _, d := range []struct {
		path string
		mode os.FileMode
		uid  int
	}{{b.at(name), 0o755, 0}, {b.at(name, "run"), 0o755, 0}, {b.at(name, "run", "agent"), 0o755, uidAgent}, {b.at(name, "run", "ingress"), 0o755, uidIngress},
		{b.at(name, "run", "egress"), 0o755, uidEgress}, {b.at(name, "state"), 0o755, 0}, {b.at(name, "state", "agent"), 0o700, uidAgent},
		{b.at(name, "state", "authority"), 0o700, uidAgent}, {trail, 0o755, 0}, {filepath.Join(trail, "agent"), 0o700, uidAgent},
		{filepath.Join(trail, "egress"), 0o700, uidEgress}, {filepath.Join(trail, "ingress"), 0o700, uidIngress}} {
		if err := errors.Join(os.MkdirAll(d.path, d.mode), os.Chmod(d.path, d.mode), os.Chown(d.path, d.uid, d.uid)); err != nil {
			return err
		}
	}
	return b.write(name+"/ward.yaml", []byte(b.yaml(b.at(name), trail, c)), 0o644, 0)
}

// callers are the workloads that may call: the portal of the clinic's policies, and others for whatever takes many.
func (b *bench) callers() (names []string, entries string) {
	var text strings.Builder
	for i := range b.o.callers() {
		id := fmt.Sprintf("/load/%d", i)
		if i == 0 {
			id = "/app/portal"
		}
		names = append(names, id)
		fmt.Fprintf(&text, "  - {id: %s, select: {unix.uid: %d}, proxy: true}\n", id, uidLoad+i)
	}
	return names, text.String()
}

func (b *bench) yaml(dir, trail string, c *chain) string {
	names, entries := b.callers()
	return fmt.Sprintf(`trust_domain: %[1]s
authority: {dir: %[2]s/state/authority, x509_ttl: 12h}
agent:
  socket: %[2]s/run/agent/workload.sock
  broker: %[2]s/run/agent/broker.sock
  state: %[2]s/state/agent
  wards: {egress: {unix.uid: %[3]d}, ingress: {unix.uid: %[4]d}}
admin: {socket: %[2]s/run/agent/admin.sock, egress: %[2]s/run/egress/admin.sock, ingress: %[2]s/run/ingress/admin.sock}
workloads:
%[5]sservices:
  - name: %[6]s
    id: /ward/ehr
    addresses: ['%[7]s']
    callers: [%[8]s]
    listen: %[7]s
    upstream: {address: 'unix:%[9]s'}
tokens:
  - {issuer: '%[10]s', audience: ['http://%[6]s'], algorithms: [ES256], types: [at+jwt], jwks_file: %[11]s}
bindings:
  - {client_id: smart-portal, workloads: [%[8]s]}
policies: {dir: %[12]s}
audit: {dir: %[13]s/audit}
mesh: {dns: "", listen: '%[14]s', sockets: %[2]s/run/egress, resolver: none}
`, domain, dir, uidEgress, uidIngress, entries, mesh, c.back, strings.Join(names, ", "), b.originSocket(), issuer,
		b.at("ward", "jwks.json"), b.at("ward", "policy"), trail, c.listen)
}
