package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/agent/authority"
)

// turn replaces the CA again and again, issuing after each step. It prints what it has issued, as `svid`, and what it
// has seen in the bundle, as `ca`. Only the killing ends it.
func turn(a *authority.Authority, say func(string, []byte), fail func(error)) {
	ctx := context.Background()
	issue := func() {
		chain, err := a.IssueX509(ctx, request(&testing.T{}, "/app/portal"))
		if err != nil {
			fail(err)
		}
		say("svid", chain[0].Raw)
	}
	for {
		for _, step := range []func(context.Context, authority.Order) error{a.Prepare, a.Activate, a.Retire} {
			issue()
			// Force stands for the waiting; a step that an earlier life has taken is refused.
			if err := step(ctx, authority.Order{Force: true}); err != nil && !errors.Is(err, authority.ErrTransition) {
				fail(err)
			}
			for _, c := range a.X509Bundle().X509Authorities() {
				say("ca", c.Raw)
			}
		}
	}
}

// turned opens what a killed child has left, and checks that it is whole: one CA signs, whatever the child's bundle had
// and was not retired is there, no key is left that signs nothing, and a rotation can go on to its end.
func turned(t *testing.T, dir string, svids []*x509.Certificate) {
	t.Helper()
	ctx := context.Background()
	a, err := authority.Open(ctx, options(dir))
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	defer a.Close()
	for _, c := range svids {
		if id, err := a.Issued(ctx, c); err != nil || id != c.URIs[0].String() {
			t.Errorf("a certificate that was returned is not in the journal: %q, %v", id, err)
		}
	}
	files := map[string]bool{"journal.db": true, "lock": true}
	for _, g := range a.Rotation().Generations {
		name := authority.KeyName{Class: authority.X509CA, Generation: g.Number}.String()
		files[name+".crt"], files[name+".key"] = true, g.State != authority.Old
	}
	newest := a.Rotation().Generations[len(a.Rotation().Generations)-1].Number
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		unborn := strings.HasPrefix(e.Name(), authority.KeyName{Class: authority.X509CA, Generation: newest + 1}.String()+".")
		if !files[e.Name()] && !unborn {
			t.Errorf("after a kill %s is there, and the CAs are %v", e.Name(), states(a))
		}
	}
	for _, step := range []func(context.Context, authority.Order) error{a.Prepare, a.Activate, a.Retire} {
		if err := step(ctx, authority.Order{Force: true}); err != nil && !errors.Is(err, authority.ErrTransition) {
			t.Fatalf("after a kill: %v", err)
		}
		if s := issue(t, a); !verifies(a, s, time.Now()) {
			t.Errorf("after a kill an SVID is not vouched for: %v", states(a))
		}
	}
}

// TestKilledInRotation kills a rotation after each of its moments, and at random ones.
func TestKilledInRotation(t *testing.T) {
	t.Setenv(childTurn, "1")
	for step, want := range map[string][]string{
		"prepare: key":            {"1 active"},
		"prepare: certificate":    {"1 active"},
		"prepare: record":         {"1 active", "2 prepared"},
		"activate: record":        {"1 old", "2 active"},
		"activate: key destroyed": {"1 old", "2 active"},
		"retire: record":          {"2 active"},
		"retire: files":           {"2 active"},
	} {
		t.Run("after "+step, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			cas, svids := killed(t, dir, step, func(string, func()) {})
			a, err := authority.Open(context.Background(), options(dir))
			if err != nil {
				t.Fatal(err)
			}
			if got := states(a); !slices.Equal(got, want) {
				t.Errorf("the CAs are %v, want %v", got, want)
			}
			if want[0] != "2 active" { // nothing that was seen and not retired is gone
				for _, ca := range cas {
					if !a.X509Bundle().HasX509Authority(ca) {
						t.Error("a CA that was in the bundle is gone")
					}
				}
				for _, s := range svids {
					if !verifies(a, s, time.Now()) {
						t.Error("an SVID is not vouched for")
					}
				}
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			turned(t, dir, svids)
			turned(t, dir, svids)
		})
	}
	t.Run("at random", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "ca")
		for range 20 {
			left := mathrand.IntN(40)
			_, svids := killed(t, dir, "", func(line string, kill func()) {
				if left--; left < 0 {
					kill()
				}
			})
			turned(t, dir, svids)
		}
	})
}
