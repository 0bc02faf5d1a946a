package config

import (
	"fmt"
	"slices"
)

func (d *decoder) tokens(c *Config) {
	issuers := make(map[string]string)
	for i := range c.Tokens {
		t, at := &c.Tokens[i], fmt.Sprintf("tokens[%d]", i)
		if t.Issuer != "" && d.ok(at+".issuer") {
			d.unique(issuers, t.Issuer, at+".issuer", codeSameName, "the issuer "+quote(t.Issuer)+" is already configured")
		}
		d.noRepeats(t.Audience, at+".audience")
		d.noRepeats(t.Algorithms, at+".algorithms")
		d.noRepeats(t.Types, at+".types")

		uri, file, found := d.set(at+".jwks_uri"), d.set(at+".jwks_file"), d.set(at+".discovery")
		switch {
		case uri && file:
			d.failAt(at+".jwks_file", fault{codeKeySource, "the issuer has both jwks_uri and jwks_file", "keep one of them"})
		case (uri || file) && found && t.Discovery != DiscoverNone && d.ok(at+".discovery"):
			d.failAt(at+".discovery", fault{codeKeySource, "the issuer's keys are given, so discovery is not used", "remove discovery, or remove jwks_uri and jwks_file"})
		case !uri && !file && t.Discovery == DiscoverNone:
			d.failAt(at+".discovery", fault{codeKeySource, "the issuer has neither discovery nor keys", "add jwks_uri or jwks_file, or write discovery: openid"})
		}
		if !found {
			t.Discovery = DiscoverOpenID
			if uri || file {
				t.Discovery = DiscoverNone
			}
		}
	}
}

func (d *decoder) bindings(c *Config, dir directory) {
	clients := make(map[string]string)
	issuers := make([]string, len(c.Tokens))
	whole := d.ok("tokens")
	for i, t := range c.Tokens {
		issuers[i] = t.Issuer
	}
	for i := range c.Bindings {
		b, at := &c.Bindings[i], fmt.Sprintf("bindings[%d]", i)
		d.references(b.Workloads, at+".workloads", dir, c)
		switch {
		case !whole || !d.ok(at+".issuer"):
		case len(issuers) == 0:
			d.failAt(at, fault{codeNoIssuer, "there is no issuer whose tokens could be bound", "add one under tokens"})
			continue
		case b.Issuer == "" && len(issuers) > 1:
			d.failAt(at, fault{codeNoIssuer, "the binding does not say which of the issuers it is for", "add issuer: " + issuers[0]})
			continue
		case b.Issuer == "":
			b.Issuer = issuers[0]
		case !slices.Contains(issuers, b.Issuer):
			d.failAt(at+".issuer", fault{codeNoIssuer, quote(b.Issuer) + " is not an issuer under tokens", suggest(b.Issuer, issuers, "the issuers are ")})
			continue
		}
		if b.ClientID != "" && d.ok(at+".client_id") {
			d.unique(clients, b.Issuer+" "+b.ClientID, at+".client_id", codeSameName, "the client "+quote(b.ClientID)+" already has a binding")
		}
	}
}
