package mesh_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/mesh"
)

// directory is a table of services.
type directory map[string]*proxy.Service

func (d directory) Service(name string) *proxy.Service { return d[name] }

func (d directory) Names() []string {
	var names []string
	for n := range d {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// deep is a name so long that an answer about it does not fit into 512 bytes.
var deep = strings.Repeat("abcdefghi.", 22) + "mesh.internal"

func newResponder(t testing.TB) *mesh.Responder {
	t.Helper()
	services := directory{}
	for _, n := range []string{"fhir.ehr.mesh.internal", "fhir.lab.mesh.internal", deep} {
		services[n] = &proxy.Service{Name: n}
	}
	r, err := mesh.New(mesh.Options{Zone: "Mesh.Internal", Egress: netip.MustParseAddrPort("127.1.2.3:8080"), Services: services,
		Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// serve runs a responder on loopback and gives its address.
func serve(t *testing.T) string {
	t.Helper()
	r := newResponder(t)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- r.Serve(ctx, "127.0.0.1:0", func(a net.Addr) { ready <- a }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-ready:
		return a.String()
	case err := <-done:
		done <- nil
		t.Fatal(err)
		return ""
	}
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

// edns adds an OPT record.
func edns(m *dns.Msg, version uint8, size uint16) *dns.Msg {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetVersion(version)
	opt.SetUDPSize(size)
	m.Extra = append(m.Extra, opt)
	return m
}

func TestAnswers(t *testing.T) {
	address := serve(t)
	const soa = "mesh.internal.	30	IN	SOA	ns.mesh.internal. hostmaster.mesh.internal. 1 3600 600 86400 30"
	const srv = "0 1 8080 fhir.ehr.mesh.internal."
	const a = "fhir.ehr.mesh.internal.	30	IN	A	127.1.2.3"
	for name, c := range map[string]struct {
		q             *dns.Msg
		rcode         int
		answer, extra string
		soa           bool // in the authority section
		silent        bool // AA is not set
	}{
		"RFC 1035 A":                               {q: question("fhir.ehr.mesh.internal.", dns.TypeA), answer: a},
		"RFC 2308 §2.2 AAAA is NODATA":             {q: question("fhir.ehr.mesh.internal.", dns.TypeAAAA), soa: true},
		"RFC 2308 §2.2 HTTPS is NODATA":            {q: question("fhir.ehr.mesh.internal.", dns.TypeHTTPS), soa: true},
		"RFC 2308 §2.2 TXT is NODATA":              {q: question("fhir.ehr.mesh.internal.", dns.TypeTXT), soa: true},
		"RFC 2782 SRV of _fhir":                    {q: question("_fhir._tcp.fhir.ehr.mesh.internal.", dns.TypeSRV), answer: "_fhir._tcp.fhir.ehr.mesh.internal.	30	IN	SRV	" + srv, extra: a},
		"RFC 2782 SRV of _http":                    {q: question("_http._tcp.fhir.ehr.mesh.internal.", dns.TypeSRV), answer: "_http._tcp.fhir.ehr.mesh.internal.	30	IN	SRV	" + srv, extra: a},
		"SRV of the name itself":                   {q: question("fhir.ehr.mesh.internal.", dns.TypeSRV), answer: "fhir.ehr.mesh.internal.	30	IN	SRV	" + srv, extra: a},
		"RFC 2308 §2.2 A of an SRV name":           {q: question("_fhir._tcp.fhir.ehr.mesh.internal.", dns.TypeA), soa: true},
		"RFC 2308 §2.1 a name that is not":         {q: question("fhir.x.mesh.internal.", dns.TypeA), rcode: dns.RcodeNameError, soa: true},
		"RFC 2308 §2.1 below a name that is":       {q: question("x.fhir.ehr.mesh.internal.", dns.TypeA), rcode: dns.RcodeNameError, soa: true},
		"RFC 2308 §2.1 another protocol":           {q: question("_fhir._udp.fhir.ehr.mesh.internal.", dns.TypeSRV), rcode: dns.RcodeNameError, soa: true},
		"RFC 2308 §2.1 an SRV name of an SRV name": {q: question("_fhir._tcp._http._tcp.fhir.ehr.mesh.internal.", dns.TypeSRV), rcode: dns.RcodeNameError, soa: true},
		"RFC 8020 an empty non-terminal":           {q: question("ehr.mesh.internal.", dns.TypeA), soa: true},
		"RFC 8020 its AAAA":                        {q: question("ehr.mesh.internal.", dns.TypeAAAA), soa: true},
		"RFC 8020 above the SRV names":             {q: question("_tcp.fhir.ehr.mesh.internal.", dns.TypeA), soa: true},
		"the zone's SOA":                           {q: question("mesh.internal.", dns.TypeSOA), answer: soa},
		"the zone's A":                             {q: question("mesh.internal.", dns.TypeA), soa: true},
		"another zone":                             {q: question("example.com.", dns.TypeA), rcode: dns.RcodeRefused, silent: true},
		"the zone above":                           {q: question("internal.", dns.TypeSOA), rcode: dns.RcodeRefused, silent: true},
		"the root":                                 {q: question(".", dns.TypeNS), rcode: dns.RcodeRefused, silent: true},
		"a name that only ends like the zone":      {q: question("evilmesh.internal.", dns.TypeA), rcode: dns.RcodeRefused, silent: true},
		"RFC 8482 §4.1 ANY":                        {q: question("fhir.ehr.mesh.internal.", dns.TypeANY), answer: a},
		"RFC 8482 §4.1 ANY of an SRV name":         {q: question("_fhir._tcp.fhir.ehr.mesh.internal.", dns.TypeANY), answer: "_fhir._tcp.fhir.ehr.mesh.internal.	30	IN	SRV	" + srv, extra: a},
		"RFC 8482 §4.1 ANY of the zone":            {q: question("mesh.internal.", dns.TypeANY), answer: soa},
		"RFC 5936 §2.2.1 AXFR":                     {q: question("mesh.internal.", dns.TypeAXFR), rcode: dns.RcodeRefused, silent: true},
		"RFC 1995 IXFR":                            {q: question("mesh.internal.", dns.TypeIXFR), rcode: dns.RcodeRefused, silent: true},
		"RFC 1035 §3.2.4 class CH": {q: &dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}, Question: []dns.Question{{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}}},
			rcode: dns.RcodeRefused, silent: true},
		"RFC 1035 §4.1.1 opcode NOTIFY": {q: new(dns.Msg).SetNotify("mesh.internal."), rcode: dns.RcodeNotImplemented, silent: true},
		"RFC 1035 §4.1.1 opcode UPDATE": {q: new(dns.Msg).SetUpdate("mesh.internal."), rcode: dns.RcodeNotImplemented, silent: true},
		"RFC 6891 §6.1.3 version 1":     {q: edns(question("fhir.ehr.mesh.internal.", dns.TypeA), 1, 4096), rcode: dns.RcodeBadVers, silent: true},
		"RFC 6891 §6.1.1 two OPTs": {q: edns(edns(question("fhir.ehr.mesh.internal.", dns.TypeA), 0, 4096), 0, 4096), rcode: dns.RcodeFormatError,
			silent: true},
		"RFC 6891 §6.1.1 OPT":     {q: edns(question("fhir.ehr.mesh.internal.", dns.TypeA), 0, 4096), answer: a},
		"RFC 6891 §6.2.3 size 0":  {q: edns(question("fhir.ehr.mesh.internal.", dns.TypeA), 0, 0), answer: a},
		"RFC 4343 the case in it": {q: question("FHIR.eHr.Mesh.INTERNAL.", dns.TypeA), answer: "FHIR.eHr.Mesh.INTERNAL.	30	IN	A	127.1.2.3"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				client := &dns.Client{Net: network, Timeout: time.Minute}
				m, _, err := client.Exchange(c.q.Copy(), address)
				if err != nil {
					t.Fatal(err)
				}
				if m.Rcode != c.rcode || m.Id != c.q.Id || !m.Response || m.Opcode != c.q.Opcode || m.Authoritative == c.silent || m.RecursionAvailable || m.Truncated {
					t.Errorf("%s", m)
				}
				// The question comes back as it was asked, to the letter: resolvers hide nonces in its case.
				// To an opcode that it does not know the engine answers by itself, with the header alone.
				if c.q.Opcode != dns.OpcodeUpdate && (len(m.Question) != 1 || m.Question[0] != c.q.Question[0]) {
					t.Errorf("question %v", m.Question)
				}
				if d := cmp.Diff(lines(c.answer), records(m.Answer)); d != "" {
					t.Errorf("answer (-want +got): %s", d)
				}
				if d := cmp.Diff(lines(c.extra), records(m.Extra)); d != "" {
					t.Errorf("additional (-want +got): %s", d)
				}
				var authority []string
				if c.soa {
					authority = []string{soa}
				}
				if d := cmp.Diff(authority, records(m.Ns)); d != "" {
					t.Errorf("authority (-want +got): %s", d)
				}
				// RFC 6891 §6.1.1: an OPT is answered by one, and only by one.
				if (m.IsEdns0() != nil) != (c.q.IsEdns0() != nil && c.rcode != dns.RcodeFormatError) {
					t.Errorf("OPT: %v", m.IsEdns0())
				}
			})
		}
	}
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// records are all but OPT, as text.
func records(rrs []dns.RR) (out []string) {
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr.String())
		}
	}
	return out
}

// RFC 9619: a query has one question. The engine answers these by itself.
func TestNotOneQuestion(t *testing.T) {
	address := serve(t)
	two := question("fhir.ehr.mesh.internal.", dns.TypeA)
	two.Question = append(two.Question, dns.Question{Name: "fhir.lab.mesh.internal.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	for name, q := range map[string]*dns.Msg{"two": two, "none": {MsgHdr: dns.MsgHdr{Id: 9}}} {
		m, _, err := (&dns.Client{Timeout: time.Minute}).Exchange(q, address)
		if err != nil || m.Rcode != dns.RcodeFormatError || m.Id != q.Id || len(m.Answer) > 0 {
			t.Errorf("%s: %v %v", name, m, err)
		}
		if m := newResponder(t).Answer(q); m.Rcode != dns.RcodeFormatError {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// RFC 1035 §4.2.1, RFC 6891 §6.2.3: over UDP an answer keeps to the size that the asker can take, and says when it did
// not fit; over TCP it is whole.
func TestTruncation(t *testing.T) {
	address := serve(t)
	q := func() *dns.Msg { return question(dns.Fqdn(deep), dns.TypeSRV) }
	for name, c := range map[string]struct {
		network   string
		q         *dns.Msg
		truncated bool
	}{
		"512 without EDNS":     {"udp", q(), true},
		"512 at least":         {"udp", edns(q(), 0, 100), true},
		"as large as is taken": {"udp", edns(q(), 0, 1232), false},
		"TCP":                  {"tcp", q(), false},
	} {
		m, _, err := (&dns.Client{Net: c.network, Timeout: time.Minute, UDPSize: 4096}).Exchange(c.q, address)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m.Compress = true
		if m.Truncated != c.truncated || c.truncated && m.Len() > 512 || !c.truncated && (len(m.Answer) != 1 || len(records(m.Extra)) != 1) {
			t.Errorf("%s: %d bytes, %s", name, m.Len(), m)
		}
	}
}

// What is no query is not answered: two responders must not talk to each other for ever.
func TestAResponseGetsNoAnswer(t *testing.T) {
	address := serve(t)
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	response := question("fhir.ehr.mesh.internal.", dns.TypeA)
	response.Response = true
	for _, m := range []*dns.Msg{response, question("mesh.internal.", dns.TypeSOA)} {
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(packed); err != nil {
			t.Fatal(err)
		}
	}
	// Only the second is answered, and whatever the first had caused would have come before.
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 512)
	n, err := c.Read(b)
	var m dns.Msg
	if err != nil || m.Unpack(b[:n]) != nil || m.Question[0].Qtype != dns.TypeSOA {
		t.Errorf("%v %s", err, m.String())
	}
}

func TestNewRefuses(t *testing.T) {
	o := mesh.Options{Zone: "mesh.internal", Egress: netip.MustParseAddrPort("[::1]:80"), Services: directory{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}
	if _, err := mesh.New(o); err == nil {
		t.Error("an IPv6 address for egress was taken")
	}
	o.Egress = netip.MustParseAddrPort("127.0.0.1:80")
	if _, err := mesh.New(o); err != nil {
		t.Error(err)
	}
	if _, err := mesh.New(o); err == nil {
		t.Error("metrics were registered twice")
	}
}

func TestServeSaysWhyItCannot(t *testing.T) {
	address := serve(t)
	if err := newResponder(t).Serve(t.Context(), address, func(net.Addr) { t.Error("ready") }); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("%v", err)
	}
}

// Whatever message comes, its answer can be sent, is an answer to it, and gives nothing but the zone's own.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{question("fhir.ehr.mesh.internal.", dns.TypeA), question("_fhir._tcp.fhir.ehr.mesh.internal.", dns.TypeSRV),
		question("mesh.internal.", dns.TypeANY), question("mesh.internal.", dns.TypeAXFR), question("EHR.mesh.internal.", dns.TypeAAAA), question(".", dns.TypeNS),
		question(dns.Fqdn(deep), dns.TypeSRV), edns(question("x.mesh.internal.", dns.TypeA), 1, 0), new(dns.Msg).SetNotify("mesh.internal."),
		{Question: []dns.Question{{Name: "a.", Qtype: 1, Qclass: 1}, {Name: "b.", Qtype: 1, Qclass: 1}}}, {}} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	r := newResponder(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var q dns.Msg
		if q.Unpack(b) != nil {
			return
		}
		m := r.Answer(&q)
		if !m.Response || m.Id != q.Id || m.Opcode != q.Opcode {
			t.Fatalf("%v", m.MsgHdr)
		}
		if len(q.Question) > 0 && (len(m.Question) != 1 || m.Question[0] != q.Question[0]) {
			t.Fatalf("question %v of %v", m.Question, q.Question)
		}
		for _, rr := range append(append(slices.Clone(m.Answer), m.Ns...), m.Extra...) {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT && !dns.IsSubDomain("mesh.internal.", h.Name) {
				t.Fatalf("%v", rr)
			}
		}
		m.Truncate(512)
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("%v: %v", err, m)
		}
		if len(out) > 512 && len(m.Answer)+len(m.Ns)+len(m.Extra) > 1 {
			t.Fatalf("%d bytes", len(out))
		}
	})
}
