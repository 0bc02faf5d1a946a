package daemon

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/bind"
	"github.com/wardmesh/ward/proxy/token"
)

// newTokens makes the verifier of the configured issuers' tokens.
func newTokens(cfg *config.Config, log *zap.Logger, reg prometheus.Registerer) (*token.Verifier, error) {
	var bases []string
	for _, s := range cfg.Services {
		bases = append(bases, "http://"+s.Name+s.Base)
	}
	var issuers []token.Issuer
	for _, t := range cfg.Tokens {
		i := token.Issuer{Issuer: t.Issuer, Audience: t.Audience, Algorithms: t.Algorithms, Discovery: t.Discovery, JWKSURI: t.JWKSURI,
			JWKSFile: t.JWKSFile, Types: t.Types, Leeway: t.Leeway, FHIRBases: append(bases, t.Audience...),
			Claims: token.Claims{Roles: t.Claims.Roles, Purpose: t.Claims.Purpose, Name: t.Claims.Name, Patient: t.Claims.Patient, FHIRUser: t.Claims.FHIRUser}}
		if t.CAFile != "" {
			pem, err := os.ReadFile(t.CAFile)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", cfg.At("tokens"), err)
			}
			i.RootCAs = x509.NewCertPool()
			if !i.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s: %s holds no certificate in PEM", cfg.At("tokens"), t.CAFile)
			}
		}
		issuers = append(issuers, i)
	}
	return token.New(token.Options{Issuers: issuers, Logger: log, Registerer: reg})
}

// newBindings makes the map of which workloads may carry which client's tokens.
func newBindings(cfg *config.Config) (*bind.Map, error) {
	var maps []bind.ClientMap
	for _, b := range cfg.Bindings {
		maps = append(maps, bind.ClientMap{Issuer: b.Issuer, ClientID: b.ClientID, Workloads: b.Workloads})
	}
	return bind.New(maps)
}
