package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// The lenient server is pinned as the other parts are.
func TestLenientServerIsPinned(t *testing.T) {
	lock, err := files.ReadFile("lenient/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var l struct {
		Packages map[string]struct{ Version, Integrity, Resolved string }
	}
	if err := json.Unmarshal(lock, &l); err != nil {
		t.Fatal(err)
	}
	for name, p := range l.Packages {
		if name != "" && (p.Version == "" || !strings.HasPrefix(p.Integrity, "sha512-")) {
			t.Errorf("%s is not pinned by its hash", name)
		}
		if p.Resolved != "" {
			t.Errorf("%s comes from %s", name, p.Resolved)
		}
	}
}

func TestTricksHaveNamesOfTheirOwn(t *testing.T) {
	rows, names := map[int]bool{}, map[string]bool{}
	for _, k := range tricks() {
		if names[k.name] {
			t.Errorf("%q is there twice", k.name)
		}
		names[k.name], rows[k.row] = true, true
		if k.like != "" && !names[k.like] {
			t.Errorf("%q is compared with what has not been tried before it", k.name)
		}
		if (k.cause == "") != (k.reaches != "") && k.cause != "reply-outside" {
			t.Errorf("%q is neither refused nor passed on", k.name)
		}
	}
	for _, row := range []int{1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 22, 24, 25, 26} {
		if !rows[row] {
			t.Errorf("row %d is not tried", row)
		}
	}
}
