package mesh_test

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A local process opens connections to the responder and says nothing. It gets a few; names are answered meanwhile, and
// over TCP, too, once it lets go.
func TestAttackResponderHoldsFewConnections(t *testing.T) {
	address := serve(t)
	var held []net.Conn
	cut := 0
	for range 300 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		held = append(held, c)
	}
	for deadline := time.Now().Add(time.Minute); cut < 200 && time.Now().Before(deadline); {
		cut = 0
		for _, c := range held {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				cut++
			}
		}
	}
	if cut < 200 {
		t.Errorf("%d of %d silent connections were cut", cut, len(held))
	}
	ask := func(network string) error {
		m := new(dns.Msg).SetQuestion("fhir.ehr.mesh.internal.", dns.TypeA)
		_, _, err := (&dns.Client{Net: network, Timeout: time.Minute}).Exchange(m, address)
		return err
	}
	if err := ask("udp"); err != nil {
		t.Errorf("over UDP, meanwhile: %v", err)
	}
	for _, c := range held {
		_ = c.Close()
	}
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err = ask("tcp"); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("over TCP, afterwards: %v", err)
	}
}
