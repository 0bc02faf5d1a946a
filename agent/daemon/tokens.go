package daemon

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"os"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/bind"
	"github.com/wardmesh/ward/proxy/token"
)

// issuers are those whose tokens are accepted.
func issuers(cfg *config.Config) ([]token.Issuer, error) {
	var issuers []token.Issuer
	for _, t := range cfg.Tokens {
		i := token.Issuer{Issuer: t.Issuer, Audience: t.Audience, Algorithms: t.Algorithms, Discovery: t.Discovery, JWKSURI: t.JWKSURI,
			JWKSFile: t.JWKSFile, Types: t.Types, Leeway: t.Leeway, FHIRBases: fhirBases(cfg, t),
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
	return issuers, nil
}

// fhirBases are the URLs below which an issuer's fhirUser is ours: the services' own, and the audiences that are URLs,
// because SMART apps name the FHIR server there as the issuer knows it. Other audiences are mere names.
func fhirBases(cfg *config.Config, t config.Issuer) []string {
	var out []string
	for _, s := range cfg.Services {
		out = append(out, "http://"+s.Name+s.Base)
	}
	for _, a := range t.Audience {
		u, err := url.Parse(a)
		if err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" {
			out = append(out, a)
		}
	}
	return out
}

// newBindings makes the map of which workloads may carry which client's tokens.
func newBindings(cfg *config.Config) (*bind.Map, error) {
	var maps []bind.ClientMap
	for _, b := range cfg.Bindings {
		maps = append(maps, bind.ClientMap{Issuer: b.Issuer, ClientID: b.ClientID, Workloads: b.Workloads})
	}
	return bind.New(maps)
}
