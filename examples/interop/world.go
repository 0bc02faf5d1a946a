package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Users that nobody else has (systemd's UIDS-GIDS.md: 60578 to 61183 is unused).
const (
	uidEHR      = 60801
	uidPortal   = 60802
	uidScraper  = 60803
	uidNight    = 60804
	uidAuditor  = 60805
	uidStranger = 60809 // enrolled nowhere
	uidProvider = 60811
	uidFHIR     = 60812
)

const (
	mesh    = "fhir.ehr.mesh.internal"
	base    = "http://" + mesh
	domain  = "clinic.example"
	issuer  = "http://127.0.0.1:9400"
	egress  = "127.77.0.1:80"
	ingress = "127.0.0.1:8443"
)

// world is the clinic: who plays in it, and what is known of it so far.
type world struct {
	*parts
	report *report
	clinic clinic
	loaded string // how many of HL7's examples the FHIR server holds

	provider, fhir, daemon *process

	answered []string // every decision id that a caller has read from an answer
	tokens   []string // every access token that the provider has handed out
}

// clinic is node/clinic.json, which the provider reads too.
type clinic struct {
	Audience  string                  `json:"audience"`
	Elsewhere string                  `json:"elsewhere"`
	Users     map[string]any          `json:"users"`
	Clients   map[string]clinicClient `json:"clients"`
}

type clinicClient struct {
	Secret string `json:"secret"`
	Scope  string `json:"scope"`
}

// start starts the provider, the FHIR server and ward, in the order in which they need each other.
func (w *world) start(ctx context.Context) error {
	b, err := files.ReadFile("node/clinic.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &w.clinic); err != nil {
		return err
	}
	if err := os.WriteFile(w.config(), []byte(w.yaml()), 0o600); err != nil {
		return err
	}
	if err := w.startProvider(ctx); err != nil {
		return err
	}
	server := []string{w.at("node", "server.mjs"), w.fhirSocket(), base, w.seenLog()}
	if w.Lenient != "" {
		server = []string{w.at("lenient", "server.mjs"), w.fhirSocket(), w.seenLog()}
	}
	w.fhir, err = w.background("fhir-server", program{uid: uidFHIR, argv: append([]string{w.at("bin", "node")}, server...)})
	if err != nil {
		return err
	}
	line, err := w.fhir.ready(ctx, func(line string) bool { return strings.HasPrefix(line, "ready ") })
	if err != nil {
		return err
	}
	w.loaded = strings.TrimPrefix(line, "ready ")
	return w.startWard(ctx)
}

func (w *world) startProvider(ctx context.Context) (err error) {
	w.provider, err = w.background("provider", program{uid: uidProvider, argv: []string{w.at("bin", "node"), w.at("node", "provider.mjs"), issuer}})
	if err != nil {
		return err
	}
	_, err = w.provider.ready(ctx, func(line string) bool { return strings.HasPrefix(line, "ready ") })
	return err
}

func (w *world) startWard(ctx context.Context) (err error) {
	w.daemon, err = w.background("ward", program{argv: []string{w.at("bin", "ward"), "run", "--config", w.config()}})
	if err != nil {
		return err
	}
	_, err = w.daemon.ready(ctx, func(line string) bool {
		var l struct{ Msg string }
		return json.Unmarshal([]byte(line), &l) == nil && l.Msg == "ready"
	})
	return err
}

// close ends everybody. Whoever does not go is ended by the kernel: this is the first process of its namespace.
func (w *world) close() {
	for _, p := range []*process{w.daemon, w.fhir, w.provider} {
		if p == nil {
			continue
		}
		_ = errors.Join(p.signal(syscall.SIGCONT), p.signal(syscall.SIGTERM))
		if _, err := p.end(context.Background()); err != nil {
			_ = p.signal(syscall.SIGKILL)
		}
	}
}

func (w *world) config() string     { return w.at("state", "ward.yaml") }
func (w *world) fhirSocket() string { return w.at("fhir", "fhir.sock") }
func (w *world) seenLog() string    { return w.at("fhir", "seen.log") }
func (w *world) socket() string     { return w.at("run", "egress", mesh+".sock") }
func (w *world) workloadAPI() string {
	return "unix://" + w.at("run", "workload.sock")
}

// yaml is ward's config, as an operator would write it.
func (w *world) yaml() string {
	// Each answer is looked for in the trail by its decision, and so none is folded into a summary.
	const refusals = ", refusals: 100000"
	return fmt.Sprintf(`trust_domain: %[1]s
authority: {dir: %[2]s/state/authority}
agent: {socket: %[2]s/run/workload.sock}
admin: {socket: %[2]s/run/admin.sock}
workloads:
  - {id: /app/ehr, select: {unix.uid: %[3]d}, proxy: true}
  - {id: /app/portal, select: {unix.uid: %[4]d}, proxy: true}
  - {id: /app/scraper, select: {unix.uid: %[5]d}, proxy: true}
  - {id: /etl/night, select: {unix.uid: %[6]d}, proxy: true}
  - {id: /tool/auditor, select: {unix.uid: %[7]d}}
services:
  - name: %[8]s
    id: /ward/ehr
    addresses: ['%[9]s']
    callers: [/app/ehr, /app/portal, /app/scraper, /etl/night]
    listen: %[9]s
    upstream: {address: 'unix:%[10]s'}
tokens:
  - {issuer: '%[11]s', audience: ['%[12]s'], algorithms: [ES256], types: [at+jwt], leeway: 0s}
bindings:
  - {client_id: ehr, workloads: [/app/ehr]}
  - {client_id: smart-portal, workloads: [/app/portal]}
  - {client_id: kiosk, workloads: [/app/portal]}
  - {client_id: directory, workloads: [/app/scraper]}
  - {client_id: night-export, workloads: [/etl/night]}
policies: {dir: %[2]s/state/policy}
audit: {dir: %[2]s/state/audit%[14]s}
mesh: {dns: '127.77.0.53:53', listen: '%[13]s', sockets: %[2]s/run/egress}
`, domain, w.Dir, uidEHR, uidPortal, uidScraper, uidNight, uidAuditor, mesh, ingress, w.fhirSocket(), issuer, w.clinic.Audience, egress, refusals)
}

// cast names the parts that nobody here has written.
func (w *world) cast() string {
	if w.Lenient != "" {
		return fmt.Sprintf("parts: oidc-provider %s · @asymmetrik/node-fhir-server-core %s · node %s",
			w.What["oidc-provider"], w.What["@asymmetrik/node-fhir-server-core"], w.Tools.NodeVersion)
	}
	return fmt.Sprintf("parts: oidc-provider %s · @medplum/fhir-router %s with %s of HL7's examples (%s) · fhir-kit-client %s · curl %s · spiffe %s · node %s · Python %s",
		w.What["oidc-provider"], w.What["@medplum/fhir-router"], w.loaded, w.What["hl7.fhir.r4.examples"], w.What["fhir-kit-client"],
		w.Tools.CurlVersion, w.What["spiffe"], w.Tools.NodeVersion, w.Tools.PythonVersion)
}

// showLogs prints the end of each log, for whoever has to find out what went wrong.
func (w *world) showLogs(to io.Writer) {
	for _, name := range []string{"provider", "fhir-server", "ward"} {
		b, err := os.ReadFile(w.at("logs", name+".log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(to, "--- %s\n%s\n", name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
}

// sighting is one request as the FHIR server saw it.
type sighting struct {
	Method, URL, Form string
	Headers           map[string][]string // names in lower case
	Authorized        bool
	Status            int
}

// seen gives the request that reached the FHIR server under a decision; nil when none did.
func (w *world) seen(decision string) (*sighting, error) {
	b, err := os.ReadFile(w.seenLog())
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		s := &sighting{}
		if err := json.Unmarshal([]byte(line), s); err != nil {
			return nil, fmt.Errorf("the FHIR server's log: %w", err)
		}
		if slices.Contains(s.Headers["ward-decision"], decision) {
			return s, nil
		}
	}
	return nil, nil
}
