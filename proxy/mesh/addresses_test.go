package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/mesh"
)

func openAddresses(t *testing.T, dir, rng string, now func() time.Time) *mesh.Addresses {
	t.Helper()
	a, err := mesh.OpenAddresses(dir, netip.MustParsePrefix(rng), now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func TestAddressesStayWithTheirServices(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	clock := func() time.Time { return now }
	a := openAddresses(t, dir, "127.128.0.0/29", clock) // six addresses
	names := []string{"a", "b", "c", "d"}
	if err := a.Assign(names); err != nil {
		t.Fatal(err)
	}
	first := a.All()
	seen := map[netip.Addr]bool{}
	for _, at := range first {
		if seen[at] || at == netip.MustParseAddr("127.128.0.0") || at == netip.MustParseAddr("127.128.0.7") || !netip.MustParsePrefix("127.128.0.0/29").Contains(at) {
			t.Errorf("%s", at)
		}
		seen[at] = true
	}
	if _, err := mesh.OpenAddresses(dir, netip.MustParsePrefix("127.128.0.0/29"), clock); err == nil {
		t.Error("opened twice")
	}
	_ = a.Close()
	a = openAddresses(t, dir, "127.128.0.0/29", clock)
	if err := a.Assign([]string{"a", "c", "d", "e", "f"}); err != nil {
		t.Fatal(err)
	}
	if a.Address("b").IsValid() {
		t.Error("a service that is gone has an address")
	}
	for _, n := range []string{"a", "c", "d"} {
		if a.Address(n) != first[n] {
			t.Errorf("%s moved from %s to %s", n, first[n], a.Address(n))
		}
	}
	// b's address is the only one left, and is b's.
	before := a.All()
	if err := a.Assign([]string{"a", "c", "d", "e", "f", "g"}); err == nil {
		t.Errorf("g has %s, b's", a.Address("g"))
	}
	if diff := cmp.Diff(before, a.All(), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Error("a refusal changed the table:", diff)
	}
	now = now.Add(mesh.Quarantine + time.Hour)
	if err := a.Assign([]string{"a", "c", "d", "e", "f", "g"}); err != nil {
		t.Fatal(err)
	}
	if a.Address("g") != first["b"] {
		t.Errorf("g at %s, want %s", a.Address("g"), first["b"])
	}
	// A service that comes back within the quarantine finds its address.
	at := a.Address("d")
	for _, names := range [][]string{{"a"}, {"a", "d"}} {
		if err := a.Assign(names); err != nil {
			t.Fatal(err)
		}
	}
	if a.Address("d") != at {
		t.Errorf("d at %s, want %s", a.Address("d"), at)
	}
}

// A host that has lost its table gives the same addresses again, as long as no two names fall together.
func TestAddressesDependOnNames(t *testing.T) {
	a := openAddresses(t, t.TempDir(), "127.128.0.0/10", time.Now)
	b := openAddresses(t, t.TempDir(), "127.128.0.0/10", time.Now)
	if err := a.Assign([]string{"fhir.ehr.mesh.internal", "fhir.lab.mesh.internal"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Assign([]string{"fhir.lab.mesh.internal"}); err != nil {
		t.Fatal(err)
	}
	if x, y := a.Address("fhir.lab.mesh.internal"), b.Address("fhir.lab.mesh.internal"); x != y {
		t.Errorf("%s and %s", x, y)
	}
}

func TestDamagedTableIsAnError(t *testing.T) {
	dir := t.TempDir()
	a := openAddresses(t, dir, "127.128.0.0/10", time.Now)
	if err := a.Assign([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	file := filepath.Join(dir, "addresses")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	try := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := mesh.OpenAddresses(dir, netip.MustParsePrefix("127.128.0.0/10"), time.Now)
		var damaged *mesh.TableError
		if !errors.As(err, &damaged) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = a.Close()
		}
		if left, err := os.ReadFile(file); err != nil || string(left) != string(b) {
			t.Errorf("%s: the table was changed: %v", name, err)
		}
	}
	for n := range whole {
		try(fmt.Sprintf("cut at %d", n), whole[:n])
		flipped := append([]byte(nil), whole...)
		flipped[n] ^= 0x10
		try(fmt.Sprintf("flipped at %d", n), flipped)
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte("ward mesh addresses 1 sha256 \n{}"))
	f.Add([]byte(`{"a":{"address":"127.128.0.1"},"b":{"address":"127.128.0.1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := mesh.ParseBody(b)
		if err != nil {
			return
		}
		seen := map[netip.Addr]bool{}
		for name, at := range records {
			if name == "" || !at.Is4() || seen[at] {
				t.Fatalf("%q at %s", name, at)
			}
			seen[at] = true
		}
	})
}

// Names lead to virtual addresses where there are some, on sockets that were handed in.
func TestVirtualAddressesAreTold(t *testing.T) {
	a := openAddresses(t, t.TempDir(), "127.128.0.0/10", time.Now)
	if err := a.Assign([]string{"fhir.ehr.mesh.internal"}); err != nil {
		t.Fatal(err)
	}
	services := directory{"fhir.ehr.mesh.internal": &proxy.Service{}, "fhir.new.mesh.internal": &proxy.Service{}}
	r, err := mesh.New(mesh.Options{Zone: "mesh.internal", Egress: netip.MustParseAddrPort("127.77.0.1:80"), Virtual: a, Services: services,
		Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- r.ServeOn(ctx, []net.PacketConn{pc}, []net.Listener{l}, func() { close(ready) })
	}()
	<-ready
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	at := a.Address("fhir.ehr.mesh.internal").String()
	for _, c := range []struct {
		net, address, name string
		qtype              uint16
		want               string
		rcode              int
	}{
		{"udp", pc.LocalAddr().String(), "fhir.ehr.mesh.internal.", dns.TypeA, "fhir.ehr.mesh.internal.\t30\tIN\tA\t" + at, 0},
		{"tcp", l.Addr().String(), "fhir.ehr.mesh.internal.", dns.TypeA, "fhir.ehr.mesh.internal.\t30\tIN\tA\t" + at, 0},
		{"udp", pc.LocalAddr().String(), "fhir.ehr.mesh.internal.", dns.TypeSRV, "fhir.ehr.mesh.internal.\t30\tIN\tSRV\t0 1 80 fhir.ehr.mesh.internal.", 0},
		{"udp", pc.LocalAddr().String(), "fhir.ehr.mesh.internal.", dns.TypeAAAA, "", 0},
		{"udp", pc.LocalAddr().String(), "fhir.new.mesh.internal.", dns.TypeA, "", dns.RcodeServerFailure},
	} {
		m, _, err := (&dns.Client{Net: c.net}).Exchange(question(c.name, c.qtype), c.address)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if len(m.Answer) > 0 {
			got = m.Answer[0].String()
		}
		if got != c.want || m.Rcode != c.rcode {
			t.Errorf("%s %s: %q, rcode %d", c.net, c.name, got, m.Rcode)
		}
	}
}
