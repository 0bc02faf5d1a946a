package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
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
	d.listeners(c)
	d.lifetimes(c)
}

// directory finds workloads by ID, for references.
type directory struct {
	index map[spiffeid.ID]int
	paths []string // of the IDs, sorted
	whole bool     // every workload has an ID, so a reference that leads nowhere is wrong itself
}

func (d *decoder) workloads(c *Config) directory {
	dir := directory{index: make(map[spiffeid.ID]int, len(c.Workloads)), whole: true}
	names := make(map[string]string, len(c.Workloads))
	for i := range c.Workloads {
		w, at := &c.Workloads[i], fmt.Sprintf("workloads[%d]", i)
		if !d.ok(at+".id") || w.ID.IsZero() {
			dir.whole = false
		} else if first, taken := dir.index[w.ID]; taken {
			d.failAt(at+".id", fault{codeSameID, w.ID.Path() + " is already the ID of a workload", "give one of the two another ID; the first is at " + d.whereFrom(at, fmt.Sprintf("workloads[%d].id", first))})
		} else {
			dir.index[w.ID] = i
			dir.paths = append(dir.paths, w.ID.Path())
		}
		if w.Name == "" && !w.ID.IsZero() {
			w.Name = w.ID.Path()
		}
		if w.Name != "" && d.ok(at+".name") && d.ok(at+".id") {
			d.unique(names, w.Name, at+".name", codeSameName, "the name "+quote(w.Name)+" is already a workload's")
		}
		if d.ok(at+".select") && (len(w.Select) > 0 || d.set(at+".select")) {
			d.boundary(w, at)
		}
		d.noRepeats(w.SVID.DNSNames, at+".svid.dns_names")
	}
	slices.Sort(dir.paths)
	return dir
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

// boundary refuses entries that any process of some user could match at will.
func (d *decoder) boundary(w *Workload, at string) {
	has := func(kind string) bool {
		return slices.ContainsFunc(w.Select, func(s Selector) bool { return s.Type == kind })
	}
	const mend = "add unix.uid or systemd.unit"
	f := fault{codeNoBoundary, "", mend}
	switch {
	case has("unix.uid"), has("systemd.unit"):
		if w.MinStrength == "strong" && has("systemd.user_unit") && d.ok(at+".min_strength") {
			d.failAt(at+".min_strength", fault{codeNeverStrong, "an entry with systemd.user_unit is never attested as strong, since its user names the unit",
				"remove min_strength, or select by systemd.unit"})
		}
		return
	case len(w.Select) == 0:
		f.problem = "the entry selects nothing, so every process would match"
	case has("systemd.user_unit"):
		f.problem = "systemd.user_unit alone does not identify a workload: every user can name a unit of their own so"
	case has("unix.gid"), has("unix.group"):
		f.problem = "a group alone does not identify a workload: each of its members can run anything"
	default:
		f.code = codeOnlyExecutable
		f.problem = "a path or hash alone does not identify a workload: any user can run the same file with LD_PRELOAD"
	}
	d.failAt(at+".select", f)
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

func (d *decoder) devices(c *Config, dir directory) {
	ids, identifiers := make(map[string]string), make(map[string]string)
	for i := range c.Devices {
		v, at := &c.Devices[i], fmt.Sprintf("devices[%d]", i)
		if d.ok(at+".id") && !v.ID.IsZero() {
			if n, taken := dir.index[v.ID]; taken {
				d.failAt(at+".id", fault{codeSameID, v.ID.Path() + " is already the ID of a workload", "give the device another ID; the workload is at " + d.whereFrom(at, fmt.Sprintf("workloads[%d].id", n))})
			} else {
				d.unique(ids, v.ID.Path(), at+".id", codeSameID, v.ID.Path()+" is already the ID of a device")
			}
		}
		for j, id := range v.Identifiers {
			if sub := fmt.Sprintf("%s.identifiers[%d]", at, j); d.ok(sub) {
				d.unique(identifiers, id.System+"|"+id.Value, sub, codeSameIdentifier, "the identifier "+quote(id.Value)+" already belongs to a device")
			}
		}
		d.references(v.Via, at+".via", dir, c)
		d.windows(v, at)
	}
}

// windows refuses a device that has two patients at one time.
func (d *decoder) windows(v *Device, at string) {
	var usable []int
	for i, w := range v.Patients {
		sub := windowPath(at, i)
		switch {
		case !d.ok(sub):
		case !w.Until.IsZero() && !w.From.Before(w.Until):
			d.failAt(join(sub, "until"), fault{codeWindow, "the window ends before it begins", "until is the first moment after the window; make it later than from"})
		default:
			usable = append(usable, i)
		}
	}
	// In order of time, a window overlaps with an earlier one exactly if it does with the one that ends last.
	slices.SortStableFunc(usable, func(a, b int) int { return v.Patients[a].From.Compare(v.Patients[b].From) })
	latest := -1
	for _, i := range usable {
		if latest >= 0 && v.Patients[latest].ends().After(v.Patients[i].From) {
			since := "for all time"
			if from := v.Patients[i].From; !from.IsZero() {
				since = "from " + day(from)
			}
			here, there := windowPath(at, i), windowPath(at, latest)
			d.failAt(here, fault{codeTwoPatients, fmt.Sprintf("%s has two patients %s", v.ID.Path(), since), "end the window at " + d.whereFrom(here, there) + " first"})
		}
		if latest < 0 || v.Patients[i].ends().After(v.Patients[latest].ends()) {
			latest = i
		}
	}
}

// ends is Until, or later than any time that config can hold.
func (w Window) ends() time.Time {
	if w.Until.IsZero() {
		return time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return w.Until
}

// windowPath is the path of a device's window.
func windowPath(device string, i int) string { return fmt.Sprintf("%s.patient[%d]", device, i) }

// day writes a time as its author probably did.
func day(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339)
}

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
		switch listen, upstream := d.set(at+".listen"), d.set(at+".upstream"); {
		case listen && !upstream:
			d.failAt(at+".listen", fault{codeHalfServed, "the service has listen but no upstream", "add upstream: {address: unix:/path/to/socket}, or remove listen where another host serves it"})
		case upstream && !listen:
			d.failAt(at+".upstream", fault{codeHalfServed, "the service has upstream but no listen", "add listen: 10.0.0.5:8443, or remove upstream where another host serves it"})
		}
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

func (d *decoder) tokens(c *Config) {
	issuers := make(map[string]string)
	for i := range c.Tokens {
		t, at := &c.Tokens[i], fmt.Sprintf("tokens[%d]", i)
		if t.Issuer != "" && d.ok(at+".issuer") {
			d.unique(issuers, t.Issuer, at+".issuer", codeSameName, "the issuer "+quote(t.Issuer)+" is already configured")
		}
		d.noRepeats(t.Audience, at+".audience")
		d.noRepeats(t.Algorithms, at+".algorithms")
		d.noRepeats(t.Types, at+".types")

		uri, file, found := d.set(at+".jwks_uri"), d.set(at+".jwks_file"), d.set(at+".discovery")
		switch {
		case uri && file:
			d.failAt(at+".jwks_file", fault{codeKeySource, "the issuer has both jwks_uri and jwks_file", "keep one of them"})
		case (uri || file) && found && t.Discovery != DiscoverNone && d.ok(at+".discovery"):
			d.failAt(at+".discovery", fault{codeKeySource, "the issuer's keys are given, so discovery is not used", "remove discovery, or remove jwks_uri and jwks_file"})
		case !uri && !file && t.Discovery == DiscoverNone:
			d.failAt(at+".discovery", fault{codeKeySource, "the issuer has neither discovery nor keys", "add jwks_uri or jwks_file, or write discovery: openid"})
		}
		if !found {
			t.Discovery = DiscoverOpenID
			if uri || file {
				t.Discovery = DiscoverNone
			}
		}
	}
}

func (d *decoder) bindings(c *Config, dir directory) {
	clients := make(map[string]string)
	issuers := make([]string, len(c.Tokens))
	whole := d.ok("tokens")
	for i, t := range c.Tokens {
		issuers[i] = t.Issuer
	}
	for i := range c.Bindings {
		b, at := &c.Bindings[i], fmt.Sprintf("bindings[%d]", i)
		d.references(b.Workloads, at+".workloads", dir, c)
		switch {
		case !whole || !d.ok(at+".issuer"):
		case len(issuers) == 0:
			d.failAt(at, fault{codeNoIssuer, "there is no issuer whose tokens could be bound", "add one under tokens"})
			continue
		case b.Issuer == "" && len(issuers) > 1:
			d.failAt(at, fault{codeNoIssuer, "the binding does not say which of the issuers it is for", "add issuer: " + issuers[0]})
			continue
		case b.Issuer == "":
			b.Issuer = issuers[0]
		case !slices.Contains(issuers, b.Issuer):
			d.failAt(at+".issuer", fault{codeNoIssuer, quote(b.Issuer) + " is not an issuer under tokens", suggest(b.Issuer, issuers, "the issuers are ")})
			continue
		}
		if b.ClientID != "" && d.ok(at+".client_id") {
			d.unique(clients, b.Issuer+" "+b.ClientID, at+".client_id", codeSameName, "the client "+quote(b.ClientID)+" already has a binding")
		}
	}
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
	addSocket("admin.socket", c.Admin.Socket)
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
