package token

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// The verifier that replaces another one begins with its keys, where they would be read from the same place, and with
// none elsewhere.
func TestKeysAreInherited(t *testing.T) {
	made := func(before *Verifier, change func(*Issuer)) *Verifier {
		i := Issuer{Issuer: "https://op.clinic.test", Audience: []string{"a"}, JWKSURI: "https://op.clinic.test/keys"}
		change(&i)
		v, err := New(Options{Issuers: []Issuer{i}, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry(), Before: before})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = v.Close() })
		return v
	}
	old := made(nil, func(*Issuer) {})
	set := &keySet{read: time.Now()}
	old.issuers["https://op.clinic.test"].keys.current.Store(set)
	for name, c := range map[string]struct {
		change   func(*Issuer)
		inherits bool
	}{
		"another audience":   {func(i *Issuer) { i.Audience = []string{"b"} }, true},
		"another FHIR base":  {func(i *Issuer) { i.FHIRBases = []string{"https://fhir.clinic.test"} }, true},
		"other algorithms":   {func(i *Issuer) { i.Algorithms = []string{"ES256"} }, false},
		"another place":      {func(i *Issuer) { i.JWKSURI = "https://op.clinic.test/other" }, false},
		"discovered instead": {func(i *Issuer) { i.JWKSURI = "" }, false},
		"another issuer":     {func(i *Issuer) { i.Issuer = "https://op2.clinic.test" }, false},
	} {
		v := made(old, c.change)
		for _, is := range v.issuers {
			got := is.keys.current.Load()
			if inherited := got != nil && got.read.Equal(set.read); inherited != c.inherits {
				t.Errorf("%s: inherits %v", name, inherited)
			}
		}
	}
}
