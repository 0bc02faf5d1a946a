package doctor

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// A check that hangs is left behind, and the others are made.
func TestHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		gone := make(chan struct{})
		f.host.Space = func(string) (Space, error) { <-gone; return Space{}, os.ErrClosed }
		began := time.Now()
		r := f.examine()
		took := time.Since(began)
		close(gone)
		late := 0
		for _, res := range r.Results {
			if res.Reason == "take too long" {
				late++
			}
		}
		if len(r.Results) != len(checks()) || late < 2 || took > totalTime+checkTime+grace || r.Failures != 0 {
			t.Errorf("%d late, %s: %+v", late, took, r.Results)
		}
	})
}

func TestDate(t *testing.T) {
	want := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.Header.Get("Authorization") != "" {
			t.Errorf("%s %v", r.Method, r.Header)
		}
		w.Header().Set("Date", want.Format(http.TimeFormat))
	}))
	defer server.Close()
	roots := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ThisHost().Date(t.Context(), server.URL, roots); err != nil || !got.Equal(want) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := ThisHost().Date(t.Context(), server.URL, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("roots that cannot be read were left out")
	}
}

func TestAsk(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name {
		case "fhir.mesh.internal.":
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 128, 0, 1)}}
		case "none.mesh.internal.":
			m.Rcode = dns.RcodeNameError
		default:
			m.Rcode = dns.RcodeRefused
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	server := netip.MustParseAddrPort(c.LocalAddr().String())
	ask := ThisHost().Ask
	if got, err := ask(t.Context(), server, "fhir.mesh.internal"); err != nil || len(got) != 1 || got[0] != netip.MustParseAddr("127.128.0.1") {
		t.Errorf("%v %v", got, err)
	}
	if got, err := ask(t.Context(), server, "none.mesh.internal"); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
	if _, err := ask(t.Context(), server, "example.org"); err == nil {
		t.Error("a refusal is no answer")
	}
	if err := s.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := ask(t.Context(), server, "fhir.mesh.internal"); err == nil {
		t.Error("nobody answered, and no error")
	}
}
