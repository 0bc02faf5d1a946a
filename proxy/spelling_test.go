package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy/wire"
)

// drawName draws a field's name, often one that matters, in any spelling, and sometimes what is no name at all.
func drawName(t *rapid.T) string {
	name := rapid.SampledFrom([]string{"Ward-Caller", "X-Forwarded-For", "x_spiffe_id", "Authorization", "Connection", "Upgrade", "ETag", "Location",
		"Content-Type", "WWW-Authenticate", "Ward-Decision", "Prefer", "Via", "Accept", strings.Repeat("X-Long-", 20)}).Draw(t, "name")
	switch rapid.IntRange(0, 4).Draw(t, "form") {
	case 0:
		return strings.ToUpper(name)
	case 1:
		return strings.ReplaceAll(strings.ToLower(name), "-", "_")
	case 2:
		return strings.ReplaceAll(name, "k", "\u212a") + rapid.SampledFrom([]string{"", "\u017f", "\xff", "É"}).Draw(t, "tail")
	case 3:
		return rapid.String().Draw(t, "any")
	}
	return name
}

// The spelling of a name is the same without a copy of it.
func TestSpellIsSpelling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := drawName(t)
		var room [64]byte
		if got, want := string(spell(room[:0], name)), spelling(name); got != want {
			t.Fatalf("%q is spelled %q, want %q", name, got, want)
		}
		if got := string(spell([]byte("before "), name)); got != "before "+spelling(name) {
			t.Fatalf("%q is appended as %q", name, got)
		}
	})
}

// A header gives the same, whether it is asked by itself or by what costs nothing.
func TestValuesAreTheHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h wire.Header
		for range rapid.IntRange(0, 6).Draw(t, "fields") {
			h = append(h, wire.Field{Name: drawName(t), Value: rapid.SampledFrom([]string{"", "a", "b, Ward-Caller", "close"}).Draw(t, "value")})
		}
		name := drawName(t)
		want := h.Values(name)
		if got := values(nil, h, name); !slices.Equal(got, want) {
			t.Fatalf("%q has %q, want %q", name, got, want)
		}
		only := ""
		if len(want) == 1 {
			only = want[0]
		}
		if got := sole(h, name); got != only {
			t.Fatalf("%q has the one value %q, want %q", name, got, only)
		}
		before := slices.Clone(h)
		fresh := endToEnd(nil, h)
		if !slices.Equal(before, h) {
			t.Fatal("the header was changed")
		}
		if got := endToEnd(h[:0], h); !slices.Equal(got, fresh) {
			t.Fatalf("in its own place it is %q, want %q", got, fresh)
		}
	})
}

// Only what netip reads is an address.
func TestIsAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[0-9]{1,4}(\.[0-9]{1,4}){0,4}|[a-z0-9.-]{0,12}|[0-9.]{0,16}`).Draw(t, "name")
		_, err := netip.ParseAddr(name)
		if isAddress(name) != (err == nil) {
			t.Fatalf("%q: %v", name, err)
		}
	})
}

// RFC 8941 §3.3.3 and §3.3.5.
func TestSFString(t *testing.T) {
	for s, want := range map[string]string{
		"": `""`, "lee": `"lee"`, `o"brien\x`: `"o\"brien\\x"`, "a b~": `"a b~"`, "Müller": ":TcO8bGxlcg==:", "\x7f": ":fw==:", "a\nb": ":YQpi:",
	} {
		if got := string(appendSFString([]byte("sub="), s)); got != "sub="+want {
			t.Errorf("%q is written %s, want %s", s, got, want)
		}
	}
}
