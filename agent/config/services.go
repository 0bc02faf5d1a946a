package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func (d *decoder) services(c *Config, dir directory) {
	names := make(map[string]string)
	for i := range c.Services {
		s, at := &c.Services[i], fmt.Sprintf("services[%d]", i)
		if s.Name != "" && d.ok(at+".name") {
			d.unique(names, s.Name, at+".name", codeSameName, "the name "+quote(s.Name)+" is already a service's")
			d.serviceName(c, s.Name, at+".name")
		}
		if d.ok(at+".id") && !s.ID.IsZero() {
			if n, taken := dir.index[s.ID]; taken {
				d.failAt(at+".id", fault{codeServiceIsWorkload, s.ID.Path() + " is a workload's ID, so that workload could answer as the service",
					"give the service an ID of its own; the workload is at " + d.whereFrom(at, fmt.Sprintf("workloads[%d].id", n))})
			}
		}
		d.noRepeats(s.Addresses, at+".addresses")
		callers := d.references(s.Callers, at+".callers", dir, c)
		for j := range s.Callers {
			if w := callers[j]; w != nil && !w.Proxy && d.ok(fmt.Sprintf("workloads[%d].proxy", dir.index[w.ID])) {
				d.failAt(fmt.Sprintf("%s.callers[%d]", at, j), fault{codeNotLent, w.ID.Path() + " does not lend its identity to the proxy, so it cannot call",
					"add proxy: true to the workload at " + d.whereFrom(at, fmt.Sprintf("workloads[%d]", dir.index[w.ID]))})
			}
		}
		d.exchange(c, s, at, callers)
		d.observes(s, at)
		if s.Upstream.Network == "tcp" && len(s.Upstream.Process) == 0 && d.ok(at+".upstream") {
			d.failAt(at+".upstream", fault{codeAnyUpstream, "any local user can listen on " + s.Upstream.Address + " while the server is away, and would be sent the calls",
				"add process: {unit: SERVER.service} or process: {uid: NUMBER}, or use a Unix socket"})
		}
		d.crowds(s, at)
		switch listen, upstream := d.set(at+".listen"), d.set(at+".upstream"); {
		case listen && !upstream:
			d.failAt(at+".listen", fault{codeHalfServed, "the service has listen but no upstream", "add upstream: {address: unix:/path/to/socket}, or remove listen where another host serves it"})
		case upstream && !listen:
			d.failAt(at+".upstream", fault{codeHalfServed, "the service has upstream but no listen", "add listen: 10.0.0.5:8443, or remove upstream where another host serves it"})
		}
	}
}

// crowds checks what holds of connections with a service's ward, which only the host that serves it has.
func (d *decoder) crowds(s *Service, at string) {
	var ranges []string
	for _, p := range s.ProxyProtocol {
		if !p.IsValid() {
			ranges = append(ranges, "")
			continue
		}
		ranges = append(ranges, p.String())
	}
	d.noRepeats(ranges, at+".proxy_protocol")
	for _, key := range []string{"proxy_protocol", "max_connections", "max_connections_total"} {
		if d.set(at+"."+key) && d.ok(at+"."+key) && !d.set(at+".listen") && !d.set(at+".upstream") {
			d.failAt(at+"."+key, fault{codeHalfServed, "the service has " + key + " but no listen", "add listen and upstream, or remove " + key + " where another host serves it"})
		}
	}
	if s.MaxConnectionsTotal < s.MaxConnections && d.ok(at+".max_connections") && d.ok(at+".max_connections_total") {
		key := "max_connections"
		if d.set(at + ".max_connections_total") {
			key = "max_connections_total"
		}
		d.failAt(at+"."+key, fault{codeCrowd, fmt.Sprintf("one caller may have %d connections open, and all together %d", s.MaxConnections, s.MaxConnectionsTotal),
			"raise max_connections_total, or lower max_connections"})
	}
}

// observes refuses a service that would observe for good.
func (d *decoder) observes(s *Service, at string) {
	switch until := d.set(at + ".observe_until"); {
	case s.Mode == ModeObserve && !until && d.ok(at+".mode"):
		d.failAt(at+".mode", fault{codeObserve, "the service would let everything through for good", "add observe_until: the day from which it enforces"})
	case s.Mode != ModeObserve && until && d.ok(at+".observe_until"):
		d.failAt(at+".observe_until", fault{codeObserve, "the service enforces already", "remove observe_until, or add mode: observe"})
	}
}

func (d *decoder) serviceName(c *Config, name, at string) {
	if c.Mesh.Zone != "" && d.ok("mesh.zone") && !strings.HasSuffix(name, "."+c.Mesh.Zone) {
		d.failAt(at, fault{codeOutsideZone, fmt.Sprintf("%s is not below the zone %s", quote(name), c.Mesh.Zone), "name it, for example, " + strings.Split(name, ".")[0] + "." + c.Mesh.Zone + ", or change mesh.zone"})
	}
	if c.Mesh.Sockets != "" && d.ok("mesh.sockets") {
		if p := filepath.Join(c.Mesh.Sockets, name+".sock"); len(p) > longestSocket {
			d.failAt(at, fault{codePath, fmt.Sprintf("the service's socket %s has %d bytes; %d are possible", quote(p), len(p), longestSocket), "shorten mesh.sockets or the name"})
		}
	}
}

// exchange checks that a request cannot outlast the certificates that it travels under. A connection is used only
// while both SVIDs outlive max_exchange, and they are renewed at half of their life: a third leaves room.
func (d *decoder) exchange(c *Config, s *Service, at string, callers map[int]*Workload) {
	if !d.ok(at+".max_exchange") || !d.ok("authority.x509_ttl") {
		return
	}
	shortest, whose := c.Authority.X509TTL, "authority.x509_ttl"
	for i := range s.Callers {
		w := callers[i]
		if w != nil && w.SVID.X509TTL != 0 && w.SVID.X509TTL < shortest {
			shortest, whose = w.SVID.X509TTL, "the x509_ttl of "+w.ID.Path()
		}
	}
	if s.MaxExchange > shortest/3 {
		d.failAt(at+".max_exchange", fault{codeLongExchange,
			fmt.Sprintf("max_exchange is %s, more than a third of the shortest SVID's life: %s is %s", Duration(s.MaxExchange), whose, Duration(shortest)),
			fmt.Sprintf("set max_exchange to at most %s, or make that SVID live longer", Duration((shortest / 3).Truncate(time.Second)))})
	}
}

// listeners refuses two uses of one address or socket on this host.
func (d *decoder) listeners(c *Config) {
	type use struct {
		path string
		addr netip.AddrPort
	}
	var uses []use
	add := func(path string, addr netip.AddrPort) {
		if addr.IsValid() && d.ok(path) {
			uses = append(uses, use{path, addr})
		}
	}
	add("mesh.listen", c.Mesh.Listen)
	add("mesh.dns", c.Mesh.DNS)
	add("monitor.metrics", c.Monitor.Metrics)
	for i, s := range c.Services {
		add(fmt.Sprintf("services[%d].listen", i), s.Listen)
	}
	slices.SortStableFunc(uses, func(a, b use) int { return cmp.Compare(a.addr.Port(), b.addr.Port()) })
	for i, u := range uses {
		for j := i - 1; j >= 0 && uses[j].addr.Port() == u.addr.Port(); j-- {
			first := uses[j]
			// A wildcard address takes the port on every address.
			if first.addr.Addr() == u.addr.Addr() || first.addr.Addr().IsUnspecified() || u.addr.Addr().IsUnspecified() {
				d.clash(u.path, first.path, u.addr.String())
				break
			}
		}
	}

	sockets := make(map[string]string)
	addSocket := func(path, socket string) {
		if socket == "" || !d.ok(path) {
			return
		}
		if first, taken := sockets[socket]; taken {
			d.clash(path, first, socket)
			return
		}
		sockets[socket] = path
	}
	addSocket("agent.socket", c.Agent.Socket)
	addSocket("agent.broker", c.Agent.Broker)
	addSocket("admin.socket", c.Admin.Socket)
	addSocket("admin.egress", c.Admin.Egress)
	addSocket("admin.ingress", c.Admin.Ingress)
	addSocket("admin.mesh", c.Admin.Mesh)
	for i, s := range c.Services {
		if c.Mesh.Sockets != "" && s.Name != "" {
			addSocket(fmt.Sprintf("services[%d].name", i), filepath.Join(c.Mesh.Sockets, s.Name+".sock"))
		}
	}
}

// clash reports two uses of one address. The error stands where a file says so; a default has no place.
func (d *decoder) clash(path, first, address string) {
	if !d.set(path) {
		path, first = first, path
	}
	if d.failed[path] && strings.HasSuffix(path, ".name") {
		return // two services of one name have one socket; the name says it already
	}
	where := first + ", which is the default"
	if d.set(first) {
		where = first + " at " + d.whereFrom(path, first)
	}
	d.failAt(path, fault{codeClash, fmt.Sprintf("%s clashes with %s", quote(address), where), "use another address for one of them"})
}
