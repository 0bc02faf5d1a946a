//go:build !race

// Under the race detector sync.Pool forgets on purpose.

package proxy_test

import (
	"bufio"
	"testing"
)

// PROXY, Budget: a whole call through both hops costs 40 allocations at most, with a cached token, policy, the audit trail
// and metrics. The caller and the FHIR server, which are in this process, too, make none.
func TestCallAllocations(t *testing.T) {
	w := newWorld(t, setup{upstream: canned(t, reply(200, observation("1", "a"))), plain: true})
	conn, raw := w.dialEgress(w.portal), []byte(request("GET /fhir/Observation/1", "", bearer(w.token())))
	in := bufio.NewReader(conn)
	n := testing.AllocsPerRun(300, func() {
		if _, err := conn.Write(raw); err != nil {
			t.Fatal(err)
		}
		if err := skip(in); err != nil {
			t.Fatal(err)
		}
	})
	if n > 40 {
		t.Errorf("%.0f allocations a call, 40 allowed", n)
	}
	t.Logf("%.0f allocations a call", n)
}
