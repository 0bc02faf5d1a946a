package daemon

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/token"
)

// Audiences need not be URLs, and what one issuer calls the FHIR server is nothing to another.
func TestTokensOfSeveralIssuers(t *testing.T) {
	cfg := &config.Config{
		Services: []config.Service{{Name: "a.mesh.internal"}, {Name: "b.mesh.internal", Base: "/fhir"}, {Name: "c.mesh.internal"}},
		Tokens: []config.Issuer{
			{Issuer: "https://one.example", Audience: []string{"account", "https://ehr.example/r4"}},
			{Issuer: "https://two.example", Audience: []string{"https://lab.example/r4", "urn:example:lab"}},
		},
	}
	known, err := issuers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := token.New(token.Options{Issuers: known, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}); err != nil {
		t.Error(err)
	} else if err := v.Close(); err != nil {
		t.Error(err)
	}
	services := []string{"http://a.mesh.internal", "http://b.mesh.internal/fhir", "http://c.mesh.internal"}
	var got [][]string
	for _, is := range cfg.Tokens {
		got = append(got, fhirBases(cfg, is))
	}
	want := [][]string{append(services[:3:3], "https://ehr.example/r4"), append(services[:3:3], "https://lab.example/r4")}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
