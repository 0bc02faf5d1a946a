package doctor

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// observeFor is for how long a proposed service observes.
const observeFor = 30 // days

// Propose writes a config for what was found. It observes, and says in comments what it rests on and what is a guess.
func (f *Found) Propose(now time.Time) []byte {
	p := &proposal{names: map[string]int{}, workloads: map[Party]string{}}
	p.line("# Proposed by ward doctor --discover on %s, from what this host looked like at that moment.", now.UTC().Format(time.RFC3339))
	p.line("# Read it before you use it: what is marked as a guess was not seen. Who did not call just then is not in it.")
	p.line("# Then: ward check --config FILE, and start with it; until observe_until everything is let through and recorded.")
	if f.Domain == "" {
		p.line("trust_domain: clinic.example # a guess: name your site's own; it cannot be changed later")
	} else {
		p.line("trust_domain: %s # a guess from this host's name; it cannot be changed later", f.Domain)
	}
	p.line("policies: {dir: policy} # the folder beside this file, with one policy at least")
	var servers, others []Server
	for _, s := range f.Servers {
		if s.FHIR == Possible || s.Network == "tcp" && !s.Who.Known || s.Network == "unix" && !safePath(s.Address) {
			others = append(others, s)
		} else {
			servers = append(servers, s)
		}
	}
	p.entries(servers)
	p.services(servers, f.taken, now)
	if len(others) > 0 {
		p.line("")
		p.line("# Not proposed, for nothing says that it is FHIR (ward doctor --discover --probe asks for /metadata):")
		for _, s := range others {
			p.line("#   %s: %s%s", plain(s.Address), plain(s.Why), whose(s.Who))
		}
	}
	return []byte(p.text.String())
}

type proposal struct {
	text      strings.Builder
	names     map[string]int
	workloads map[Party]string // → path of the ID
}

func (p *proposal) line(format string, args ...any) { fmt.Fprintf(&p.text, format+"\n", args...) }

// key is what tells parties apart.
func (p Party) key() Party { return Party{UID: p.UID, Unit: p.Unit} }

func (p *proposal) entries(servers []Server) {
	var lines, refused []string
	for _, s := range servers {
		for _, c := range s.Callers {
			if p.workloads[c.key()] != "" {
				continue
			}
			note := "seen with " + plural(c.Connections, "connection")
			switch {
			case c.Guess:
				note += "; the unit is a guess: this user runs in no other"
			case !lasts(c.Unit):
				note += "; every program of this user would be it: add systemd.unit"
			}
			if c.UID == 0 && !lasts(c.Unit) {
				refused = append(refused, fmt.Sprintf("  # root%s calls %s, and would be every program of root: give it a user or a unit, or mount a socket into its container", whose(c.Party), plain(s.Address)))
				continue
			}
			id := "/app/" + p.unique(slug(c.Party))
			p.workloads[c.key()] = id
			lines = append(lines, fmt.Sprintf("  - {id: %s, select: {%s}, proxy: true} # %s", id, selectors("unix.uid", "systemd.unit", c.Party), note))
		}
	}
	for _, r := range refused {
		p.line("%s", r)
	}
	if len(lines) == 0 {
		p.line("workloads: [] # nobody who can be told apart was connected to a server that was found")
		return
	}
	p.line("workloads:")
	p.line("%s", strings.Join(lines, "\n"))
}

func (p *proposal) services(servers []Server, taken map[uint16]bool, now time.Time) {
	if len(servers) == 0 {
		p.line("services: [] # no FHIR server was found on this host")
		return
	}
	p.line("services:")
	port := uint16(8442)
	for _, s := range servers {
		name := p.unique(slug(s.Who))
		for port++; taken[port]; port++ {
		}
		var callers []string
		for _, c := range s.Callers {
			if id := p.workloads[c.key()]; id != "" {
				callers = append(callers, id)
			}
		}
		p.line("  # %s: %s%s", plain(s.Address), plain(s.Why), whose(s.Who))
		for _, e := range s.Exposed {
			p.line("  # It also answers on %s, past Ward: bind it to loopback only (W0901).", plain(e))
		}
		for _, r := range s.Remote {
			p.line("  # %s calls it over the network: that host needs Ward, and addresses below one that it can reach.", plain(r))
		}
		p.line("  - name: %s.mesh.internal # a guess", name)
		p.line("    id: /ward/%s", name)
		p.line("    addresses: ['127.0.0.1:%d']", port)
		p.line("    callers: [%s]", strings.Join(callers, ", "))
		if s.Base != "" {
			p.line("    base: %s", s.Base)
		} else if s.FHIR != Answered {
			p.line("    # base: /fhir, where FHIR lives below a path; it was not asked")
		}
		p.line("    listen: 127.0.0.1:%d", port)
		if s.Network == "unix" {
			p.line("    upstream: {address: 'unix:%s'}", s.Address)
		} else {
			note := ""
			if s.Who.Guess {
				note = " # the unit is a guess"
			}
			p.line("    upstream: {address: '%s', process: {%s}}%s", s.Address, selectors("uid", "unit", s.Who), note)
		}
		p.line("    mode: observe")
		p.line("    observe_until: %s", now.UTC().AddDate(0, 0, observeFor).Format(time.DateOnly))
	}
}

func selectors(uid, unit string, who Party) string {
	out := uid + ": " + strconv.FormatUint(uint64(who.UID), 10)
	if lasts(who.Unit) {
		out += ", " + unit + ": '" + who.Unit + "'"
	}
	return out
}

// lasts reports whether a unit can stand in config: its name is one, and the next start of the program has it again.
// The scopes of containers and transient units do not.
func lasts(s string) bool {
	return isUnitName(s) && !regexp.MustCompile(`^(docker|libpod|crio|cri-containerd|run|session)-.*\.scope$`).MatchString(s)
}

func isUnitName(s string) bool {
	return len(s) <= 255 && regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]+)?\.(service|scope)$`).MatchString(s)
}

// safePath is what can stand in single quotes and is a plain path.
func safePath(s string) bool {
	return regexp.MustCompile(`^[A-Za-z0-9/._@-]+$`).MatchString(s) && filepath.Clean(s) == s && len(s) <= 100
}

func whose(p Party) string {
	if !p.Known {
		return " (whose it is needs root)"
	}
	out := " (uid " + strconv.FormatUint(uint64(p.UID), 10)
	if p.User != "" {
		out += " " + plain(p.User)
	}
	if p.Unit != "" {
		out += ", " + plain(p.Unit)
	}
	return out + ")"
}

// slug is a name for a party, of lower-case letters, digits and dashes.
func slug(p Party) string {
	name := p.Unit
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		name = name[:i]
	}
	if name == "" {
		name = p.Name
	}
	if name == "" {
		name = p.User
	}
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(name), "-"), "-")
	if len(name) > 40 {
		name = strings.TrimRight(name[:40], "-")
	}
	if name == "" {
		return "fhir"
	}
	return name
}

func (p *proposal) unique(name string) string {
	if p.names[name]++; p.names[name] > 1 {
		return p.unique(name + "-" + strconv.Itoa(p.names[name]))
	}
	return name
}
