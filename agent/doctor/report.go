package doctor

import (
	"context"
	"net/url"
	"runtime"
	"time"

	"github.com/wardmesh/ward/agent/config"
)

// BundleSchema names the shape of a bug report; fields are only ever added.
const BundleSchema = "ward.report/1"

// BugReport is what a bug report needs. It is made field by field of what is known to be harmless: identifiers of
// software and services, counts, times. Patients, users, devices, tokens, keys, clients, issuers' paths and the free
// text of daemons have no field.
type BugReport struct {
	Schema  string    `json:"schema"`
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Go      string    `json:"go"`
	OS      string    `json:"os"`
	Arch    string    `json:"arch"`
	Kernel  Kernel    `json:"kernel"`
	Root    bool      `json:"root"` // the doctor was

	Checks  []BugCheck  `json:"checks"`
	Daemons []BugDaemon `json:"daemons"`
	Config  *BugConfig  `json:"config,omitempty"`
}

// BugCheck is how a check ended. What it found is not told: findings name files and users.
type BugCheck struct {
	Code     string `json:"code"`
	Level    Level  `json:"level"`
	Findings int    `json:"findings,omitempty"`
}

// BugDaemon is the state of one role in numbers.
type BugDaemon struct {
	Role        string    `json:"role"`
	Answers     bool      `json:"answers"`
	Version     string    `json:"version,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Entries     int       `json:"entries"`
	Workloads   int       `json:"workloads"`
	EarliestEnd time.Time `json:"earliest_end,omitzero"`
	CAEnds      time.Time `json:"ca_ends,omitzero"`
	Allowed     int64     `json:"allowed"`
	Refused     int64     `json:"refused"`
	Errors      int64     `json:"errors"`
	Records     int64     `json:"records"`
	AuditFails  bool      `json:"audit_fails"`
	Problems    int       `json:"problems"`
}

// BugConfig is the config's shape.
type BugConfig struct {
	TrustDomain string        `json:"trust_domain"`
	Workloads   []BugWorkload `json:"workloads"`
	Services    []BugService  `json:"services"`
	Devices     int           `json:"devices"`
	Issuers     []string      `json:"issuers"` // their hosts
	Bindings    int           `json:"bindings"`
	Denied      int           `json:"denied"`
	Intercepts  int           `json:"intercepts"`
	Seal        string        `json:"seal"`
	CATTL       string        `json:"ca_ttl"`
	X509TTL     string        `json:"x509_ttl"`
	Guard       bool          `json:"guard"`
	Range       string        `json:"range,omitempty"`
	Resolver    string        `json:"resolver"`
	DNS         bool          `json:"dns"`
	SecondTrail bool          `json:"second_trail"`
}

// BugWorkload is an entry without the values of its selectors.
type BugWorkload struct {
	ID       string   `json:"id"`
	Select   []string `json:"select"` // types
	Proxy    bool     `json:"proxy"`
	Strength string   `json:"min_strength"`
	MaxAge   string   `json:"max_age,omitempty"`
}

// BugService is a service without its addresses.
type BugService struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Callers     []string `json:"callers"`
	Served      bool     `json:"served"` // by this host
	Upstream    string   `json:"upstream,omitempty"`
	Process     []string `json:"process,omitempty"` // types
	Mode        string   `json:"mode"`
	MaxExchange string   `json:"max_exchange"`
}

// Bundle makes a bug report of the checks' outcome.
func Bundle(ctx context.Context, r *Report) BugReport {
	x := r.examined
	out := BugReport{Schema: BundleSchema, Time: r.Time, Version: r.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		Kernel: x.probed(), Root: x.host.UID == 0, Checks: []BugCheck{}, Daemons: []BugDaemon{}}
	for _, res := range r.Results {
		out.Checks = append(out.Checks, BugCheck{res.Code, res.Level, len(res.Findings)})
	}
	if x.cfg == nil {
		return out
	}
	for _, role := range x.daemons(ctx) {
		if role.absent {
			continue
		}
		d := BugDaemon{Role: role.title()}
		if s := role.status; s != nil {
			d = BugDaemon{Role: d.Role, Answers: true, Version: s.Version, Started: s.Started, Entries: s.Identity.Entries, Workloads: s.Identity.Workloads,
				EarliestEnd: s.Identity.EarliestEnd, CAEnds: s.Authority.CAEnds, Allowed: s.Calls.Allowed, Refused: s.Calls.Refused, Errors: s.Calls.Errors,
				Records: s.Audit.Records, AuditFails: s.Audit.Error != "", Problems: len(s.Problems)}
		}
		out.Daemons = append(out.Daemons, d)
	}
	out.Config = shape(x.cfg)
	return out
}

func shape(c *config.Config) *BugConfig {
	out := &BugConfig{TrustDomain: c.TrustDomain.Name(), Workloads: []BugWorkload{}, Services: []BugService{}, Devices: len(c.Devices), Issuers: []string{},
		Bindings: len(c.Bindings), Denied: len(c.Deny), Intercepts: len(c.Mesh.Intercept), Seal: c.Authority.Keys.Seal, CATTL: c.Authority.CATTL.String(),
		X509TTL: c.Authority.X509TTL.String(), Guard: c.Mesh.Guard, Resolver: c.Mesh.Resolver, DNS: c.Mesh.DNS.IsValid(), SecondTrail: c.Audit.Second != ""}
	if c.Mesh.Range.IsValid() {
		out.Range = c.Mesh.Range.String()
	}
	for _, w := range c.Workloads {
		b := BugWorkload{ID: w.ID.String(), Select: types(w.Select), Proxy: w.Proxy, Strength: w.MinStrength}
		if w.MaxAge > 0 {
			b.MaxAge = w.MaxAge.String()
		}
		out.Workloads = append(out.Workloads, b)
	}
	for _, s := range c.Services {
		b := BugService{Name: s.Name, ID: s.ID.String(), Callers: []string{}, Served: s.Listen.IsValid(), Upstream: s.Upstream.Network,
			Process: types(s.Upstream.Process), Mode: s.Mode, MaxExchange: s.MaxExchange.String()}
		for _, id := range s.Callers {
			b.Callers = append(b.Callers, id.String())
		}
		out.Services = append(out.Services, b)
	}
	for _, t := range c.Tokens {
		host := "?"
		if u, err := url.Parse(t.Issuer); err == nil {
			host = u.Hostname() // a path may name a tenant
		}
		out.Issuers = append(out.Issuers, host)
	}
	return out
}

func types(all []config.Selector) []string {
	var out []string
	for _, s := range all {
		out = append(out, s.Type)
	}
	return out
}
