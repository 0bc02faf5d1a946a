package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// The units in which this host's proxies run when they are installed from a package.
const (
	egressUnit  = "ward-egress.service"
	ingressUnit = "ward-ingress.service"
)

// wards fills in which processes are this host's proxies, and refuses words by which any process could be one.
func (d *decoder) wards(c *Config) {
	for _, w := range []struct {
		path, unit string
		into       *[]Selector
	}{{"agent.wards.egress", egressUnit, &c.Agent.Wards.Egress}, {"agent.wards.ingress", ingressUnit, &c.Agent.Wards.Ingress}} {
		switch {
		case !d.set(w.path):
			*w.into = []Selector{{"systemd.unit", w.unit}}
		case d.ok(w.path) && len(*w.into) == 0:
			d.failAt(w.path, fault{codeNoBoundary, "any process could be taken for this ward", "add systemd.unit or unix.uid"})
		}
	}
}

// state puts what the agent keeps beside the authority, where config has moved the one and is silent on the other: two
// Wards of one host share neither.
func (d *decoder) state(c *Config) {
	if !d.set("agent.state") && d.set("authority.dir") && d.ok("authority.dir") {
		c.Agent.State = filepath.Join(filepath.Dir(c.Authority.Dir), "agent")
	}
}

func (d *decoder) mesh(c *Config) {
	for i, n := range c.Mesh.Intercept {
		at := fmt.Sprintf("mesh.intercept[%d].select", i)
		if d.set(at) && d.ok(at) && len(n.Select) != 1 {
			d.failAt(at, fault{codeIntercept, "traffic is told apart by the user or by the unit, one of them", "name one of the two, and nothing else"})
		}
	}
	if d.ok("mesh.range") && d.ok("mesh.listen") && c.Mesh.Listen.IsValid() && c.Mesh.Range.Contains(c.Mesh.Listen.Addr()) {
		d.failAt("mesh.range", fault{codeClash, "mesh.listen lies in the range that is redirected to it", "choose another range, or another address for mesh.listen"})
	}
}

func (d *decoder) trail(c *Config) {
	if c.Audit.Second == "" || !d.ok("audit.second") || !d.ok("audit.dir") {
		return
	}
	if within(c.Audit.Second, c.Audit.Dir) || within(c.Audit.Dir, c.Audit.Second) {
		d.failAt("audit.second", fault{codeSecondTrail, quote(c.Audit.Second) + " and audit.dir lie in one another", "choose a folder on another filesystem"})
	}
}

func within(p, dir string) bool {
	rel, err := filepath.Rel(dir, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// Role is the part of Ward that one process is.
type Role string

// The roles. RoleRun is all of them but the mesh in one process.
const (
	RoleRun     Role = "run"
	RoleAgent   Role = "agent"
	RoleEgress  Role = "egress"
	RoleIngress Role = "ingress"
	RoleProxy   Role = "proxy" // egress and ingress in one process, apart from the agent
	RoleMesh    Role = "mesh"
)

// AdminSocket is the operator's socket of a role.
func (c *Config) AdminSocket(r Role) string {
	switch r {
	case RoleEgress, RoleProxy:
		return c.Admin.Egress
	case RoleIngress:
		return c.Admin.Ingress
	case RoleMesh:
		return c.Admin.Mesh
	}
	return c.Admin.Socket
}

// Trail is the folder of a role's own audit log. Roles run as different users, and each writes its own: beside the
// folder of ward run, in a folder of the role's name (`/var/lib/ward/ingress/audit`).
func (c *Config) Trail(r Role) string { return beside(c.Audit.Dir, r) }

// SecondTrail is the folder of a role's second audit log, or "".
func (c *Config) SecondTrail(r Role) string {
	if c.Audit.Second == "" {
		return ""
	}
	return beside(c.Audit.Second, r)
}

func beside(dir string, r Role) string {
	if r == RoleRun {
		return dir
	}
	return filepath.Join(filepath.Dir(dir), string(r), filepath.Base(dir))
}
