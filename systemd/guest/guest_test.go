package main

import (
	"os"
	"strings"
	"testing"

	"github.com/wardmesh/ward/systemd"
)

// The words that the guest follows are there to be followed.
func TestWords(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := shellAfter(string(text), "## First call")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"apt-get install", "ward check", "systemctl restart ward.target", "curl"} {
		if !strings.Contains(script, want) {
			t.Errorf("the first call does without %q:\n%s", want, script)
		}
	}
	for _, bad := range []string{"", "\n## First call\n", "\n## First call\n\n```sh\nnever closed\n"} {
		if got, err := shellAfter(bad, "## First call"); err == nil {
			t.Errorf("%q has the words %q", bad, got)
		}
	}
}

// Each check has a name of its own, by which it can be asked for.
func TestChecks(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range checks() {
		if seen[c.name] || c.try == nil {
			t.Errorf("check %q", c.name)
		}
		seen[c.name] = true
	}
}

// What the table says to be seen by a call can be seen in the guest: it runs these units, and no others.
func TestTriedUnitsRun(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	table, err := systemd.Table(string(text))
	if err != nil {
		t.Fatal(err)
	}
	runs := map[string]bool{}
	for _, role := range roles {
		runs["ward-"+role] = true
	}
	for _, p := range table {
		if tried := p.Socket != "" || p.TCP != ""; tried != runs[p.Unit] {
			t.Errorf("%s, %s: tried is %v", p.Unit, p.Name, tried)
		}
	}
}
