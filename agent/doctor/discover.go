package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// DiscoverSchema names the shape of what Discover finds; fields are only ever added.
const DiscoverSchema = "ward.discover/1"

// How sure it is that a server speaks FHIR.
const (
	Answered = "answered" // it gave its CapabilityStatement
	Likely   = "likely"   // its name says so
	Possible = "possible" // its port is one that FHIR servers like
)

// Found is who serves and who calls on this host, at one moment.
type Found struct {
	Schema  string   `json:"schema"`
	Domain  string   `json:"domain"` // this host's, a guess at the trust domain
	Probed  bool     `json:"probed"`
	Servers []Server `json:"servers"`

	taken map[uint16]bool // ports on which something listens
}

// Server is a process that listens and may be a FHIR server.
type Server struct {
	Network string   `json:"network"` // tcp or unix
	Address string   `json:"address"`
	FHIR    string   `json:"fhir"`
	Why     string   `json:"why"`
	Base    string   `json:"base,omitempty"` // path of FHIR, where it answered
	Who     Party    `json:"who"`
	Exposed []string `json:"exposed,omitempty"` // where the network reaches it
	Callers []Caller `json:"callers,omitempty"`
	Remote  []string `json:"remote,omitempty"` // other hosts that are connected to it
}

// Party is the processes of one user in one unit.
type Party struct {
	UID   uint32 `json:"uid"`
	User  string `json:"user,omitempty"`
	Known bool   `json:"known"` // who it is has been seen; otherwise UID means nothing
	Unit  string `json:"unit,omitempty"`
	Name  string `json:"name,omitempty"`
	// Guess: the unit is the only one in which the user runs anything, and was not seen to hold the socket.
	Guess bool `json:"guess,omitempty"`
}

// Caller is a local party that has connections to a server.
type Caller struct {
	Party
	Connections int `json:"connections"`
}

// DiscoverOptions says how far Discover goes. The zero value sends nothing.
type DiscoverOptions struct {
	Probe bool // ask for /metadata over loopback
}

// Discover looks at the sockets of this host. Without root it sees which user a socket belongs to, and mostly not
// which unit.
func Discover(ctx context.Context, h Host, o DiscoverOptions) (*Found, error) {
	ctx, cancel := context.WithTimeout(ctx, totalTime)
	defer cancel()
	sockets, err := h.Sockets()
	if err != nil {
		return nil, fmt.Errorf("the host's sockets cannot be read: %w", err)
	}
	d := &discovery{host: h, sockets: sockets, processes: readProcesses(h.Proc), held: map[uint64][]Process{}, local: map[netip.Addr]bool{}}
	var inodes []uint64
	for _, s := range sockets {
		inodes = append(inodes, s.Inode)
		d.local[s.Local.Addr()] = true
	}
	d.held = socketHolders(ctx, h.Proc, d.processes, inodes)
	f := &Found{Schema: DiscoverSchema, Domain: domain(), Probed: o.Probe, Servers: d.servers(ctx), taken: map[uint16]bool{}}
	for _, s := range sockets {
		if s.Listening {
			f.taken[s.Local.Port()] = true
		}
	}
	if o.Probe {
		for i := range f.Servers {
			f.Servers[i].probe(ctx)
		}
	}
	for i := range f.Servers {
		d.callers(&f.Servers[i])
	}
	return f, nil
}

type discovery struct {
	host      Host
	sockets   []Socket
	processes []Process
	held      map[uint64][]Process
	local     map[netip.Addr]bool
}

// servers lists the listeners that may speak FHIR, one for each port.
func (d *discovery) servers(ctx context.Context) []Server {
	var out []Server
	for _, s := range d.sockets {
		if !s.Listening {
			continue
		}
		who := d.party(s)
		if who.Name == "ward" || strings.HasPrefix(who.Unit, "ward-") || who.Unit == "ward.service" {
			continue
		}
		sure, why := d.looks(s.Local.Port(), who, d.held[s.Inode])
		if sure == "" {
			continue
		}
		address := s.Local
		if !address.Addr().IsLoopback() {
			address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.Local.Port())
		}
		i := slices.IndexFunc(out, func(o Server) bool { return o.Address == address.String() })
		if i < 0 {
			i = len(out)
			out = append(out, Server{Network: "tcp", Address: address.String(), FHIR: sure, Why: why, Who: who})
		}
		if !s.Local.Addr().IsLoopback() {
			out[i].Exposed = append(out[i].Exposed, s.Local.String())
		}
	}
	out = append(out, d.unixServers(ctx)...)
	slices.SortStableFunc(out, func(a, b Server) int {
		rank := []string{Answered, Likely, Possible}
		return cmp.Or(cmp.Compare(slices.Index(rank, a.FHIR), slices.Index(rank, b.FHIR)), strings.Compare(a.Address, b.Address))
	})
	return out
}

// named is what FHIR servers are called.
var named = regexp.MustCompile(`(?i)fhir|\bhapi\b|smilecdr|\bblaze\b|firely|\bvonk\b|aidbox|medplum|healthlake|spark-server|openmrs`)

// looks says how much a listener looks like a FHIR server.
func (d *discovery) looks(port uint16, who Party, held []Process) (sure, why string) {
	for _, text := range []struct{ what, text string }{{"unit", who.Unit}, {"process", who.Name}} {
		if named.MatchString(text.text) {
			return Likely, "its " + text.what + " is called " + text.text
		}
	}
	// The words of a command line are matched and never shown: some carry passwords.
	for _, p := range held {
		if f, err := procfs.NewFS(d.host.Proc); err == nil {
			if one, err := f.Proc(p.PID); err == nil {
				if args, err := one.CmdLine(); err == nil && named.MatchString(strings.Join(args, " ")) {
					return Likely, "its command line says so"
				}
			}
		}
	}
	if slices.Contains([]uint16{80, 3000, 8000, 8080, 8081, 8090, 8888, 9080, 52773}, port) {
		return Possible, fmt.Sprintf("it listens on port %d", port)
	}
	return "", ""
}

func (d *discovery) unixServers(ctx context.Context) []Server {
	f, err := procfs.NewFS(d.host.Proc)
	if err != nil {
		return nil
	}
	all, err := f.NetUNIX()
	if err != nil {
		return nil
	}
	var out []Server
	for _, l := range all.Rows {
		if l.Flags&unixListens == 0 || !filepath.IsAbs(l.Path) || strings.HasPrefix(l.Path, "/run/ward/") || !named.MatchString(l.Path) {
			continue
		}
		who := Party{}
		if held := socketHolders(ctx, d.host.Proc, d.processes, []uint64{l.Inode})[l.Inode]; len(held) > 0 {
			who = Party{UID: held[0].UID, User: d.host.loginName(held[0].UID), Known: true, Unit: held[0].Unit, Name: held[0].Name}
		}
		if who.Name == "ward" {
			continue
		}
		out = append(out, Server{Network: "unix", Address: l.Path, FHIR: Likely, Why: "its socket is called so", Who: who})
	}
	return out
}

// party is whose a socket is.
func (d *discovery) party(s Socket) Party {
	out := Party{UID: s.UID, Known: true}
	if held := d.held[s.Inode]; len(held) > 0 {
		out.UID, out.Unit, out.Name = held[0].UID, held[0].Unit, held[0].Name
		out.User = d.host.loginName(out.UID)
		return out
	}
	out.User = d.host.loginName(out.UID)
	var units []string
	for _, p := range d.processes {
		if p.UID == s.UID && p.Unit != "" && !slices.Contains(units, p.Unit) {
			units = append(units, p.Unit)
		}
	}
	if len(units) == 1 && s.UID != 0 {
		out.Unit, out.Guess = units[0], true
	}
	return out
}

// callers adds who is connected to a server now.
func (d *discovery) callers(s *Server) {
	at, err := netip.ParseAddrPort(s.Address)
	if err != nil {
		return // a Unix socket does not tell who has it open
	}
	for _, c := range d.sockets {
		switch {
		case c.Listening:
		case c.Remote.Port() == at.Port() && (c.Remote.Addr().IsLoopback() || d.local[c.Remote.Addr()]):
			p := d.party(c)
			if p.Name == "ward" {
				continue
			}
			i := slices.IndexFunc(s.Callers, func(o Caller) bool { return o.UID == p.UID && o.Unit == p.Unit })
			if i < 0 {
				i = len(s.Callers)
				s.Callers = append(s.Callers, Caller{Party: p})
			}
			s.Callers[i].Connections++
		case c.Local.Port() == at.Port() && !c.Remote.Addr().IsLoopback() && !d.local[c.Remote.Addr()]:
			if from := c.Remote.Addr().String(); !slices.Contains(s.Remote, from) {
				s.Remote = append(s.Remote, from)
			}
		}
	}
	slices.SortFunc(s.Callers, func(a, b Caller) int { return cmp.Or(cmp.Compare(a.UID, b.UID), strings.Compare(a.Unit, b.Unit)) })
	slices.Sort(s.Remote)
}

// probe asks the usual places for a CapabilityStatement (FHIR R4 §3.1.0.13), over loopback or the Unix socket only.
func (s *Server) probe(ctx context.Context) {
	client := &http.Client{Timeout: 2 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, s.Network, s.Address)
		}}}
	host := "localhost"
	if s.Network == "tcp" {
		host = s.Address
	}
	for _, base := range []string{"", "/fhir", "/r4", "/fhir/r4", "/baseR4", "/fhir-server/api/v4", "/hapi-fhir-jpaserver/fhir", "/openmrs/ws/fhir2/R4"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+base+"/metadata", nil)
		if err != nil {
			return
		}
		req.Header.Set("Accept", "application/fhir+json")
		resp, err := client.Do(req)
		if err != nil {
			return // nobody there who speaks HTTP
		}
		yes := resp.StatusCode == http.StatusOK && statement(resp.Body)
		_ = resp.Body.Close()
		if yes {
			s.FHIR, s.Why, s.Base = Answered, "it answers "+base+"/metadata", base
			return
		}
	}
	if s.FHIR == Likely {
		s.FHIR, s.Why = Possible, s.Why+", but it gave no CapabilityStatement"
	}
}

// statement reports whether a body is a CapabilityStatement.
func statement(body io.Reader) bool {
	var of struct {
		ResourceType string `json:"resourceType"`
	}
	return json.NewDecoder(io.LimitReader(body, 8<<20)).Decode(&of) == nil && of.ResourceType == "CapabilityStatement"
}

// domain is this host's domain, where it has one that can be a trust domain.
func domain() string {
	name, _ := os.Hostname()
	_, domain, _ := strings.Cut(strings.ToLower(name), ".")
	if !regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)+$`).MatchString(domain) || len(domain) > 200 {
		return ""
	}
	return domain
}
