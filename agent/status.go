package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/audit"
)

type adminFlag struct {
	configFlag
	Socket string `placeholder:"S" help:"Admin socket (default: the config's)."`
}

// get reads a document from the daemon's admin socket.
func (f adminFlag) get(c *console, doc string, v any) error {
	socket := f.Socket
	if socket == "" {
		cfg, err := f.load()
		if err != nil {
			return err
		}
		socket = cfg.Admin.Socket
	}
	return admin.Get(c.ctx, socket, doc, v)
}

type statusCommand struct {
	adminFlag
	JSON bool `help:"One JSON object, schema ward.status/1."`
}

// Run exits 0 even when the daemon is degraded, and 1 when it cannot be reached.
func (cmd statusCommand) Run(c *console) error {
	roles, err := cmd.roles(c)
	if err != nil {
		return err
	}
	first := roles[0]
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(struct {
			admin.Status
			Roles []admin.Status `json:"roles,omitempty"` // the other roles of this host, in processes of their own
		}{first, roles[1:]})
	}
	now := time.Now()
	if err := writeStatus(c.out, first, now); err != nil {
		return err
	}
	for _, s := range roles[1:] {
		if err := writeRole(c.out, s, now); err != nil {
			return err
		}
	}
	return nil
}

// roles asks every role of this host that answers; the agent, or the one process that is all of Ward, comes first.
func (cmd statusCommand) roles(c *console) ([]admin.Status, error) {
	if cmd.Socket != "" {
		var s admin.Status
		err := admin.Get(c.ctx, cmd.Socket, "/status", &s)
		return []admin.Status{s}, err
	}
	cfg, err := cmd.load()
	if err != nil {
		return nil, err
	}
	var roles []admin.Status
	var first error
	for _, role := range []config.Role{config.RoleAgent, config.RoleEgress, config.RoleIngress, config.RoleMesh} {
		var s admin.Status
		switch err := admin.Get(c.ctx, cfg.AdminSocket(role), "/status", &s); {
		case err == nil:
			roles = append(roles, s)
		case first == nil:
			first = err
		}
	}
	if len(roles) == 0 {
		return nil, first
	}
	return roles, nil
}

// writeRole is a role that stands beside the first.
func writeRole(w io.Writer, s admin.Status, now time.Time) error {
	about := fmt.Sprintf("up %s; %d allowed · %d refused · %d failed", short(now.Sub(s.Started)), s.Calls.Allowed, s.Calls.Refused, s.Calls.Errors)
	if s.Audit.Dir != "" {
		about += fmt.Sprintf("; %d records in %s", s.Audit.Records, s.Audit.Dir)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s %s\n", s.Role, audit.Escape(about))
	for _, i := range s.Issuers {
		fmt.Fprintf(&b, "%-9s %s\n", "issuer", audit.Escape(i.Issuer+": "+i.State))
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "! %s: %s\n", s.Role, audit.Escape(p))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeStatus(w io.Writer, s admin.Status, now time.Time) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name, audit.Escape(fmt.Sprintf(format, args...)))
	}
	b.WriteString(audit.Escape(fmt.Sprintf("host %s  %s  %s  ward %s  up %s", s.Host, s.TrustDomain, s.Mode, s.Version, short(now.Sub(s.Started)))) + "\n")
	ends := ""
	if !s.Identity.EarliestEnd.IsZero() {
		ends = fmt.Sprintf("; earliest ends in %s, renewals %s", short(s.Identity.EarliestEnd.Sub(now)), s.Identity.Renewals)
	}
	if s.Authority.Kind != "" {
		line("identity", "%d of %d entries hold SVIDs%s", s.Identity.Workloads, s.Identity.Entries, ends)
		line("authority", "%s; issuance %s", s.Authority.Kind, s.Authority.Issuance)
	}
	for _, i := range s.Issuers {
		line("issuer", "%s: %s", i.Issuer, i.State)
	}
	for _, e := range s.Expires {
		line("expires", "%s in %s", e.What, short(e.Ends.Sub(now)))
	}
	line("calls", "%d allowed · %d refused · %d failed, since the start", s.Calls.Allowed, s.Calls.Refused, s.Calls.Errors)
	trail := "ok"
	if s.Audit.Error != "" {
		trail = s.Audit.Error
	}
	line("audit", "%d records in %s; %s", s.Audit.Records, s.Audit.Dir, trail)
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "! %s\n", audit.Escape(p))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// short is a duration in at most two units: 31m, 9d, 4h12m.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "no time (it has ended)"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

type entriesCommand struct {
	adminFlag
	JSON bool `help:"One JSON object, schema ward.entries/1."`
}

func (cmd entriesCommand) Run(c *console) error {
	var e admin.Entries
	if err := cmd.get(c, "/entries", &e); err != nil {
		return err
	}
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(e)
	}
	return writeEntries(c.out, e, time.Now())
}

func writeEntries(w io.Writer, e admin.Entries, now time.Time) error {
	if len(e.Entries) == 0 {
		_, err := io.WriteString(w, "no workload is enrolled; add one under workloads: in the config\n")
		return err
	}
	rows := [][]string{{"ID", "HOLDERS", "SVID", "SELECTORS"}}
	slices.SortFunc(e.Entries, func(a, b admin.Entry) int { return strings.Compare(a.ID, b.ID) })
	for _, entry := range e.Entries {
		svid := "-"
		switch {
		case entry.Error != "":
			svid = "FAILING: " + entry.Error
		case !entry.NotAfter.IsZero():
			svid = "ends in " + short(entry.NotAfter.Sub(now))
		}
		id := entry.ID
		if entry.Name != "" && path.Base(entry.ID) != entry.Name && !strings.HasSuffix(entry.ID, entry.Name) {
			id += " (" + entry.Name + ")"
		}
		rows = append(rows, []string{id, fmt.Sprint(entry.Holders), svid, strings.Join(entry.Selectors, ", ")})
	}
	return writeTable(w, rows)
}
