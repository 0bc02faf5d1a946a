package main

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
)

// What records and daemons hold may come from an attacker's token, certificate or server: it must not move the
// operator's cursor, turn text round, or make up lines.
func TestNothingHostileReachesTheTerminal(t *testing.T) {
	const evil = "x\x1b[2J\u202egnp\u200b\r\nforged\x9b"
	rec := proxy.Record{Time: time.Unix(0, 0), Decision: evil, Peer: evil, Caller: "spiffe://" + evil, User: evil, Purpose: evil, PolicySet: evil,
		Stage: proxy.StageEgress, Cause: evil, Detail: evil, Interactions: []proxy.Acted{{Kind: evil, Type: evil, ID: evil}}}
	for name, show := range map[string]func(*strings.Builder) error{
		"policy explain": func(b *strings.Builder) error { return explain(b, &config.Config{}, []proxy.Record{rec}) },
		"status": func(b *strings.Builder) error {
			return writeStatus(b, admin.Status{Host: evil, Version: evil, Problems: []string{evil}, Issuers: []admin.Issuer{{Issuer: evil, State: evil}},
				Expires: []admin.Expiring{{What: evil}}, Audit: admin.Audit{Dir: evil, Error: evil}}, time.Unix(0, 0))
		},
		"entries": func(b *strings.Builder) error {
			return writeEntries(b, admin.Entries{Entries: []admin.Entry{{ID: evil, Name: evil, Error: evil, Selectors: []string{evil}}}}, time.Unix(0, 0))
		},
	} {
		var b strings.Builder
		if err := show(&b); err != nil {
			t.Fatal(name, err)
		}
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSuffix(line, "\n")
			if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.HasPrefix(line, "forged") {
				t.Errorf("%s: %q", name, line)
			}
		}
	}
}
