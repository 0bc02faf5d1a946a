package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// What is installed is pinned, so that a run today and a run in a year try the same parts; and the lists name no
// place to download from, so that each machine uses its own registry.
func TestPartsArePinned(t *testing.T) {
	lock, err := files.ReadFile("node/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var l struct {
		Packages map[string]struct {
			Version, Integrity, Resolved string
			Dependencies                 map[string]string
		}
	}
	if err := json.Unmarshal(lock, &l); err != nil {
		t.Fatal(err)
	}
	for name, p := range l.Packages {
		if name != "" && (p.Version == "" || !strings.HasPrefix(p.Integrity, "sha512-")) {
			t.Errorf("package-lock.json: %s is not pinned by its hash", name)
		}
		if p.Resolved != "" {
			t.Errorf("package-lock.json: %s comes from %s", name, p.Resolved)
		}
	}
	what, err := versions()
	if err != nil {
		t.Fatal(err)
	}
	exact := regexp.MustCompile(`^[0-9]+(\.[0-9]+)+$`)
	for name, version := range what {
		if !exact.MatchString(version) {
			t.Errorf("%s %s is not one version", name, version)
		}
	}
	for name, version := range l.Packages[""].Dependencies {
		if got := l.Packages["node_modules/"+name].Version; got != version || what[name] != version {
			t.Errorf("package.json has %s %s, package-lock.json %s", name, what[name], got)
		}
	}
	requirements, err := files.ReadFile("python/requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	pinned := regexp.MustCompile(`^[A-Za-z0-9_.-]+==[0-9.]+$`)
	for line := range strings.Lines(string(requirements)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") && !pinned.MatchString(line) {
			t.Errorf("requirements.txt: %q is not pinned", line)
		}
	}
}

func TestAlteredTokenIsAnother(t *testing.T) {
	for _, token := range []string{"a.b.Axyz", "a.b.xyz"} {
		if got := altered(token); got == token || len(got) != len(token) || !strings.HasPrefix(got, "a.b.") {
			t.Errorf("altered(%q) = %q", token, got)
		}
	}
}
