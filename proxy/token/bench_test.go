package token

import (
	"context"
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
