// Package mesh answers DNS for the mesh zone, so that an application reaches a service by its mesh name and nothing
// else about it has to change.
//
// It is an authoritative responder for one zone, on a loopback address, and nothing more: no recursion, no
// forwarding, no zone transfer, no cache. A names the service's virtual address, where packet rules lead what is sent to
// them to egress (see [Addresses]), and otherwise the address on which egress listens; egress routes by the name in the
// request. SRV adds the port; AAAA is an empty answer with an SOA, so that resolvers do not wait or look
// elsewhere; names outside the zone are REFUSED, unknown names inside are NXDOMAIN with an SOA.
//
// Names route, identities authenticate: a wrong answer here costs availability, never identity. What the responder
// parses comes from local processes only; miekg/dns parses it. Answers are small and UDP comes from loopback, so it
// amplifies nothing.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// Directory knows the services of the mesh. Implemented by proxy.Routes.
type Directory interface {
	proxy.Services
	Names() []string
}

// Locator knows the virtual addresses of services. Implemented by *Addresses.
type Locator interface {
	// Address is where the service of this name is reached; not valid when it has no address.
	Address(service string) netip.Addr
}

// Options configures a Responder. All fields must be set, but for Virtual.
type Options struct {
	Zone   string         // `mesh.internal`
	Egress netip.AddrPort // where egress listens
	// Virtual is set where packet rules lead virtual addresses to egress. Without it names lead to Egress itself.
	Virtual  Locator
	Services Directory
	Log      *zap.Logger
	Metrics  prometheus.Registerer
}

// Responder answers for one mesh zone.
type Responder struct {
	zone     string // fully qualified, lower case
	egress   netip.AddrPort
	virtual  Locator
	services Directory
	log      *zap.Logger
	queries  *prometheus.CounterVec
}

// Short enough that a service that moves is followed within a minute.
const ttl = 30

// New makes a responder.
func New(o Options) (*Responder, error) {
	if !o.Egress.Addr().Is4() {
		return nil, fmt.Errorf("mesh: egress must listen on an IPv4 address to be reached by name, not on %s", o.Egress)
	}
	r := &Responder{zone: dns.CanonicalName(o.Zone), egress: o.Egress, virtual: o.Virtual, services: o.Services, log: o.Log,
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ward_dns_queries_total", Help: "Mesh DNS queries by answer."}, []string{"rcode"})}
	return r, o.Metrics.Register(r.queries)
}

// Serve answers on address, by UDP and TCP, until ctx ends. ready is called once both sockets are open.
func (r *Responder) Serve(ctx context.Context, address string, ready func(net.Addr)) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	// With port 0 UDP must follow TCP to the port that the kernel chose: among TCP's ports far more are taken.
	pc, err := lc.ListenPacket(ctx, "udp", l.Addr().String())
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("mesh: %w", err)
	}
	return r.ServeOn(ctx, []net.PacketConn{pc}, []net.Listener{l}, func() { ready(pc.LocalAddr()) })
}

// ServeOn answers on sockets that are open already, as the service manager hands them over, until ctx ends. It closes
// them. ready is called once all are served.
func (r *Responder) ServeOn(ctx context.Context, udp []net.PacketConn, tcp []net.Listener, ready func()) error {
	var servers []*dns.Server
	for _, pc := range udp {
		servers = append(servers, &dns.Server{PacketConn: pc, Handler: r, UDPSize: dns.DefaultMsgSize})
	}
	for _, l := range tcp {
		servers = append(servers, &dns.Server{Listener: newBounded(l, mostTCP), Handler: r, ReadTimeout: 5 * time.Second,
			IdleTimeout: func() time.Duration { return 10 * time.Second }, MaxTCPQueries: 64})
	}
	if len(udp) == 0 || len(tcp) == 0 {
		return errors.Join(errors.New("mesh: DNS needs a UDP and a TCP socket"), closeAll(udp, tcp)) // RFC 7766 §5
	}
	done := make(chan error, len(servers))
	started := make(chan struct{}, len(servers))
	for _, s := range servers {
		s.NotifyStartedFunc = func() { started <- struct{}{} }
		go func() { done <- s.ActivateAndServe() }()
	}
	for range servers {
		select {
		case <-started:
		case err := <-done:
			_ = closeAll(udp, tcp)
			return fmt.Errorf("mesh: %w", err)
		}
	}
	ready()
	var err error
	select {
	case <-ctx.Done():
	case err = <-done:
	}
	for _, s := range servers {
		err = errors.Join(err, s.Shutdown())
	}
	return err
}

func closeAll(udp []net.PacketConn, tcp []net.Listener) (err error) {
	for _, pc := range udp {
		err = errors.Join(err, pc.Close())
	}
	for _, l := range tcp {
		err = errors.Join(err, l.Close())
	}
	return err
}

// ServeDNS answers one query.
func (r *Responder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := r.Answer(q)
	r.queries.WithLabelValues(dns.RcodeToString[m.Rcode]).Inc()
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, min(int(opt.UDPSize()), dns.DefaultMsgSize))
		}
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		r.log.Debug("dns answer not sent", zap.Error(err))
	}
}

// Answer gives the reply to q.
func (r *Responder) Answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Compress = true
	if options(q) > 1 { // RFC 6891 §6.1.1
		m.Rcode = dns.RcodeFormatError
		return m
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, false)
		if opt.Version() != 0 { // RFC 6891 §6.1.3
			m.Rcode = dns.RcodeBadVers
			return m
		}
	}
	if q.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented // RFC 1035 §4.1.1
		return m
	}
	if len(q.Question) != 1 { // RFC 9619
		m.Rcode = dns.RcodeFormatError
		return m
	}
	name := dns.CanonicalName(q.Question[0].Name)
	qtype := q.Question[0].Qtype
	if q.Question[0].Qclass != dns.ClassINET || !dns.IsSubDomain(r.zone, name) || qtype == dns.TypeAXFR || qtype == dns.TypeIXFR {
		m.Rcode = dns.RcodeRefused // RFC 5936 §2.2.1: nobody may transfer the zone
		return m
	}
	m.Authoritative = true
	r.fill(m, q.Question[0], name)
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{r.soa()} // RFC 2308 §3: without it nobody may remember the empty answer
	}
	return m
}

// options counts the OPT records of q.
func options(q *dns.Msg) (n int) {
	for _, rr := range q.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// fill answers for a name inside the zone. ANY gets one of the name's RRsets (RFC 8482 §4.1).
func (r *Responder) fill(m *dns.Msg, q dns.Question, name string) {
	header := func(owner string, t uint16) dns.RR_Header {
		return dns.RR_Header{Name: owner, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
	}
	address := func(owner string, at netip.AddrPort) dns.RR {
		return &dns.A{Hdr: header(owner, dns.TypeA), A: at.Addr().AsSlice()}
	}
	asks := func(t uint16) bool { return q.Qtype == t || q.Qtype == dns.TypeANY }
	if name == r.zone {
		if asks(dns.TypeSOA) {
			m.Answer = []dns.RR{r.soa()}
		}
		return
	}
	host, srv := service(name)
	if r.services.Service(strings.TrimSuffix(host, ".")) == nil {
		if !r.above(name) {
			m.Rcode = dns.RcodeNameError
		}
		return
	}
	at := r.where(strings.TrimSuffix(host, "."))
	switch {
	case !at.IsValid():
		m.Rcode = dns.RcodeServerFailure // an address that is not the service's would be worse than none
	case !srv && asks(dns.TypeA):
		m.Answer = []dns.RR{address(q.Name, at)}
	case q.Qtype == dns.TypeSRV, srv && asks(dns.TypeSRV):
		m.Answer = []dns.RR{&dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Priority: 0, Weight: 1, Port: at.Port(), Target: host}}
		m.Extra = append(m.Extra, address(host, at))
	}
}

// virtualPort is the port named with a virtual address. All of its ports lead to egress; this one needs no mention in
// a URL.
const virtualPort = 80

// where is the address of a service.
func (r *Responder) where(name string) netip.AddrPort {
	if r.virtual == nil {
		return r.egress
	}
	a := r.virtual.Address(name)
	if !a.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, virtualPort)
}

// service gives the service's name within a name: `_fhir._tcp.NAME` and `_http._tcp.NAME` are the SRV names of NAME
// (RFC 2782).
func service(name string) (host string, srv bool) {
	for _, prefix := range [...]string{"_fhir._tcp.", "_http._tcp."} {
		if host, ok := strings.CutPrefix(name, prefix); ok {
			return host, true
		}
	}
	return name, false
}

// above reports whether services, or their SRV names, lie below name: then it exists, though it has no data. To deny it
// would be to deny all that lies below (RFC 8020 §2).
func (r *Responder) above(name string) bool {
	if host, ok := strings.CutPrefix(name, "_tcp."); ok && r.services.Service(strings.TrimSuffix(host, ".")) != nil {
		return true
	}
	for _, n := range r.services.Names() {
		if dns.IsSubDomain(name, dns.Fqdn(n)) {
			return true
		}
	}
	return false
}

func (r *Responder) soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: r.zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "ns." + r.zone, Mbox: "hostmaster." + r.zone, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}
