package token

import (
	"context"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func BenchmarkToken(b *testing.B) {
	now := time.Now()
	bench := func(name, key string, forget bool) {
		b.Run(name, func(b *testing.B) {
			v := stopped(b, Options{Logger: zap.NewNop()}, localIssuer(b, keyOf("es256"), keyOf("rs256")))
			raw := keyOf(key).token(local, now, members{
				"scope":        "openid fhirUser launch/patient patient/Patient.rs patient/Observation.rs user/Practitioner.r",
				"fhirUser":     audience + "/Practitioner/p1",
				"patient":      "p2",
				"realm_access": members{"roles": []string{"physician", "ward-3"}},
			})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(context.Background(), raw); err != nil {
					b.Fatal(err)
				}
				if forget {
					v.cache.InvalidateAll()
				}
			}
		})
	}
	bench("cached", "es256", false)
	bench("es256", "es256", true)
	bench("rs256", "rs256", true)
}

// A token that is remembered costs no allocation.
func TestCachedAllocations(t *testing.T) {
	v := stopped(t, Options{Logger: zap.NewNop()}, localIssuer(t, keyOf("es256")))
	authorization := []string{"Bearer " + keyOf("es256").token(local, time.Now(), members{"scope": "user/Patient.rs"})}
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := v.Authenticate(ctx, authorization); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%.0f allocations a call", n)
	}
}

func TestDigest(t *testing.T) {
	for _, n := range []int{0, 1, usualSize - 1, usualSize, usualSize + 1, MaxSize} {
		raw := strings.Repeat("x", n)
		if digest(raw) != sha256.Sum256([]byte(raw)) {
			t.Errorf("of %d bytes it is another", n)
		}
	}
}
