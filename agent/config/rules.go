package config

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// rules checks what no single value can show: that names are unique and references lead somewhere. A rule is
// left out where a value that it builds on is already known to be wrong, since its finding would be noise.
func (d *decoder) rules(c *Config) {
	names := d.workloads(c)
	d.devices(c, names)
	d.services(c, names)
	d.tokens(c)
	d.bindings(c, names)
	d.denied(c)
	d.wards(c)
	d.state(c)
	d.mesh(c)
	d.trail(c)
	d.listeners(c)
	d.lifetimes(c)
}

// directory finds workloads by ID, for references.
type directory struct {
	index map[spiffeid.ID]int
	paths []string // of the IDs, sorted
	whole bool     // every workload has an ID, so a reference that leads nowhere is wrong itself
}

// unique reports a second use of a value; path is where this use stands, and taken remembers the first.
func (d *decoder) unique(taken map[string]string, value, path, code, problem string) {
	first, twice := taken[value]
	if !twice {
		taken[value] = path
		return
	}
	d.failAt(path, fault{code, problem, "change one of the two; the first is at " + d.whereFrom(path, first)})
}

// whereFrom names the place of one path to a reader who is at another: by line, and by file where that differs.
func (d *decoder) whereFrom(from, path string) string {
	at := d.place(path)
	if at.src == d.place(from).src {
		return fmt.Sprintf("line %d", at.line)
	}
	return at.pos().String()
}

func (d *decoder) noRepeats(values []string, path string) {
	seen := make(map[string]bool, len(values))
	for i, v := range values {
		sub := fmt.Sprintf("%s[%d]", path, i)
		if v != "" && seen[v] {
			d.failAt(sub, fault{codeRepeated, quote(v) + " is listed twice", "remove one"})
		}
		seen[v] = true
	}
}

// references checks a list of workload IDs, and returns the workload of each that exists by its place in the list.
func (d *decoder) references(ids []spiffeid.ID, path string, dir directory, c *Config) map[int]*Workload {
	found := make(map[int]*Workload, len(ids))
	seen := make(map[spiffeid.ID]bool, len(ids))
	for i, id := range ids {
		sub := fmt.Sprintf("%s[%d]", path, i)
		if id.IsZero() || !d.ok(sub) {
			continue
		}
		if seen[id] {
			d.failAt(sub, fault{codeRepeated, id.Path() + " is listed twice", "remove one"})
			continue
		}
		seen[id] = true
		if n, ok := dir.index[id]; ok {
			found[i] = &c.Workloads[n]
		} else if dir.whole {
			d.failAt(sub, fault{codeNoWorkload, "there is no workload " + id.Path(), dir.meant(id)})
		}
	}
	return found
}

func (dir directory) meant(id spiffeid.ID) string {
	if near := nearest(id.Path(), dir.paths); near != "" {
		return "did you mean " + quote(near) + "?"
	}
	return "add it under workloads, or remove it here"
}

func (d *decoder) denied(c *Config) {
	seen := make(map[spiffeid.ID]bool, len(c.Deny))
	for i, id := range c.Deny {
		if !id.IsZero() && seen[id] {
			d.failAt(fmt.Sprintf("deny[%d]", i), fault{codeRepeated, id.Path() + " is listed twice", "remove one"})
		}
		seen[id] = true
	}
}

// lifetimes refuses SVIDs that would be cut short by the end of the CA that signs them.
func (d *decoder) lifetimes(c *Config) {
	if !d.ok("authority.ca_ttl") {
		return
	}
	check := func(path string, ttl time.Duration) {
		if d.ok(path) && ttl > c.Authority.CATTL/2 {
			d.failAt(path, fault{codeOutlivesCA, fmt.Sprintf("an SVID would live %s, more than half of the CA's %s", Duration(ttl), Duration(c.Authority.CATTL)),
				"shorten it, or raise authority.ca_ttl"})
		}
	}
	check("authority.x509_ttl", c.Authority.X509TTL)
	for i, w := range c.Workloads {
		check(fmt.Sprintf("workloads[%d].svid.x509_ttl", i), w.SVID.X509TTL)
	}
}
