package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The users of the roles, and the only group that operators are in: nobody here is.
const (
	uidWardAgent   = 60821
	uidWardEgress  = 60822
	uidWardIngress = 60823
	gidWardAdmin   = 60824
	uidFleet       = 60830 // the first of the users who hold many streams
)

var roleNames = [...]string{"agent", "ingress", "egress"}

// fhirPort is where the FHIR server listens here: a loopback port, which any local user can take while the server is
// away.
const fhirPort = "9480"

// live is Ward in its separate roles under load, while everything that can change under it does.
type live struct {
	*world
	calls int
	roles map[string]*role
	token string // of dr.lee at the EHR
	view  string // of dr.lee at the portal
}

// life is how long certificates live in a phase.
type life struct {
	ca, svid, exchange time.Duration
}

// Short lives: lent SVIDs are renewed every 2 s, the wards' own every 3 s, and the CA replaced every 40 s, the shortest
// that config allows. Long ones are what a clinic has, and let a call wait for as long as a ward takes to be replaced.
func short() life {
	return life{ca: time.Minute, svid: 6 * time.Second, exchange: 1500 * time.Millisecond}
}
func long() life { return life{ca: 30 * 24 * time.Hour, svid: time.Hour, exchange: 20 * time.Second} }

// startClinic starts the provider and the FHIR server, the latter on a port, and leaves Ward to the phases.
func (w *world) startClinic(ctx context.Context) error {
	b, err := files.ReadFile("node/clinic.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &w.clinic); err != nil {
		return err
	}
	if err := w.startProvider(ctx); err != nil {
		return err
	}
	return w.startFHIR(ctx)
}

func (w *world) startFHIR(ctx context.Context) (err error) {
	w.fhir, err = w.background("fhir-server", program{uid: uidFHIR, argv: []string{w.at("bin", "node"), w.at("node", "server.mjs"), fhirPort, base, w.seenLog()}})
	if err != nil {
		return err
	}
	line, err := w.fhir.ready(ctx, func(line string) bool { return strings.HasPrefix(line, "ready ") })
	w.loaded = strings.TrimPrefix(line, "ready ")
	return err
}

// runLive is the program, in its namespaces, with -live.
func (w *world) runLive(ctx context.Context, calls int, only string, stderr io.Writer) {
	l := &live{world: w, calls: calls}
	l.roles = l.newRoles()
	defer func() { _ = l.stopRoles(context.Background()) }()
	failed := w.report.failed
	for _, phase := range []struct {
		name string
		run  func(context.Context)
	}{{"begin", l.begin}, {"idle", l.checkIdle}, {"latency", l.checkLatency}, {"streams", l.checkStreams}, {"upgrade", l.checkUpgrade}, {"kill", l.checkKills},
		{"begin", l.shorten}, {"attack", l.checkAttacks}, {"load", l.checkLoad}, {"whole", l.checkWhole}} {
		if ctx.Err() != nil || l.roles["egress"].process == nil && w.report.failed > failed {
			break
		}
		if phase.name == "begin" || only == "" || strings.Contains(only, phase.name) {
			phase.run(ctx)
		}
	}
	if w.report.failed > failed {
		for _, name := range roleNames {
			showEnd(stderr, name, w.at("logs", name+".log"))
		}
	}
}

func showEnd(to io.Writer, name, path string) {
	if b, err := os.ReadFile(path); err == nil {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(to, "--- %s\n%s\n", name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
}

// begin lays the folders out as the packages do, and starts everybody.
func (l *live) begin(ctx context.Context) {
	l.report.check("separate roles", func() (string, error) {
		if err := errors.Join(l.copySelf(), l.layOutRoles(), l.configure(long())); err != nil {
			return "", err
		}
		if err := l.startRoles(ctx); err != nil {
			return "", err
		}
		var err error
		if l.token, err = l.login(ctx, "ehr", "dr.lee", scopeEHR, l.clinic.Audience); err != nil {
			return "", err
		}
		if l.view, err = l.login(ctx, "smart-portal", "dr.lee", scopePortal, l.clinic.Audience); err != nil {
			return "", err
		}
		return l.privileges()
	})
}

// privileges says which user and capabilities each role has, and fails when there is one that its unit does not give.
func (l *live) privileges() (string, error) {
	want := map[string]string{"agent": "0000000000080004", "egress": "0000000000000000", "ingress": "0000000000000000"}
	var said []string
	for _, name := range roleNames {
		r := l.roles[name]
		for _, field := range []string{"CapEff", "CapPrm", "CapAmb"} {
			if caps, err := r.status(field); err != nil || caps != want[name] {
				return "", fmt.Errorf("%s of %s is %s, not %s (%v)", field, name, caps, want[name], err)
			}
		}
		said = append(said, fmt.Sprintf("%s is uid %d with capabilities %s", name, r.uid, strings.TrimLeft(want[name], "0")+"h"))
	}
	return strings.ReplaceAll(strings.Join(said, ", "), "capabilities h", "no capability"), nil
}

func (l *live) layOutRoles() error {
	for _, d := range []struct {
		name string
		mode os.FileMode
		uid  int
	}{{"state", 0o755, 0}, {"state/conf.d", 0o755, 0}, {"state/policy", 0o755, 0}, {"run/agent", 0o755, 0}, {"run/ingress", 0o755, uidWardIngress},
		{"run/egress", 0o755, uidWardEgress}, {"var", 0o755, 0}, {"var/agent", 0o700, uidWardAgent}, {"var/authority", 0o700, uidWardAgent},
		{"var/egress", 0o700, uidWardEgress}, {"var/ingress", 0o700, uidWardIngress}} {
		path := l.at(d.name)
		if err := os.MkdirAll(path, d.mode); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(path, d.mode), os.Chown(path, d.uid, d.uid)); err != nil {
			return err
		}
	}
	names, err := filepath.Glob(l.at("state", "policy", "*.cedar"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no policies: %w", err)
	}
	for _, name := range names { // every role reads them
		if err := os.Chmod(name, 0o644); err != nil { //nolint:gosec // nothing secret
			return err
		}
	}
	return nil
}

func (l *live) agentSocket(name string) string { return l.at("run", "agent", name+".sock") }

// configure writes the main file, for roles that are about to start.
func (l *live) configure(t life) error {
	return os.WriteFile(l.config(), []byte(fmt.Sprintf(`trust_domain: %[1]s
authority: {dir: %[2]s/var/authority, ca_ttl: %[3]s, x509_ttl: %[4]s}
agent:
  socket: %[2]s/run/agent/workload.sock
  broker: %[2]s/run/agent/broker.sock
  state: %[2]s/var/agent
  wards: {egress: {unix.uid: %[5]d}, ingress: {unix.uid: %[6]d}}
admin: {socket: %[2]s/run/agent/admin.sock, egress: %[2]s/run/egress/admin.sock, ingress: %[2]s/run/ingress/admin.sock}
workloads:
  - {id: /app/ehr, select: {unix.uid: %[7]d}, proxy: true}
  - {id: /app/portal, select: {unix.uid: %[8]d}, proxy: true}
  - {id: /etl/night, select: {unix.uid: %[9]d}, proxy: true}
  - {id: /tool/auditor, select: {unix.uid: %[10]d}}
services:
  - name: %[11]s
    id: /ward/ehr
    addresses: ['%[12]s']
    callers: [/app/ehr, /app/portal]
    max_exchange: %[13]s
    listen: %[12]s
    upstream: {address: '127.0.0.1:%[14]s', process: {uid: %[15]d}}
tokens:
  - {issuer: '%[16]s', audience: ['%[17]s'], algorithms: [ES256], types: [at+jwt], leeway: 0s}
bindings:
  - {client_id: ehr, workloads: [/app/ehr]}
  - {client_id: smart-portal, workloads: [/app/portal]}
policies: {dir: %[2]s/state/policy}
audit: {dir: %[2]s/var/audit}
mesh: {dns: "", listen: '%[18]s', sockets: %[2]s/run/egress, resolver: none}
`, domain, l.Dir, t.ca, t.svid, uidWardEgress, uidWardIngress, uidEHR, uidPortal, uidNight, uidAuditor, mesh, ingress, t.exchange,
		fhirPort, uidFHIR, issuer, l.clinic.Audience, egress)), 0o644) //nolint:gosec // every role reads it
}

// shorten starts Ward anew with certificates that live as shortly as config allows, for what follows.
func (l *live) shorten(ctx context.Context) {
	l.report.check("short lives", func() (string, error) {
		err := errors.Join(l.stopRoles(ctx), os.RemoveAll(l.at("var", "authority")), os.RemoveAll(l.at("var", "agent")), l.layOutRoles(), l.configure(short()))
		if err != nil {
			return "", err
		}
		return "a CA for a minute, SVIDs for 6 s, calls for 1.5 s", l.startRoles(ctx)
	})
}
