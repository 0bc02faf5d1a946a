package proxy_test

import (
	"testing"
)

func TestCallReachesTheServerAsItself(t *testing.T) {
	w := newWorld(t, setup{})
	a := w.call(w.portal, request("GET /fhir/Observation/1", "", bearer(w.token())))
	if a.status != 200 || a.body != observation("1", "a") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	t.Logf("%s", w.upstream.only(t).raw)
}
