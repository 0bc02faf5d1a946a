package audit

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
)

func TestLineGolden(t *testing.T) {
	read := []proxy.Acted{{Kind: "read", Type: "Patient", ID: "example-123"}}
	base := proxy.Record{Stage: proxy.StageOutcome, Time: testTime, Decision: "01JD7Q0000000000000000000A", Caller: "spiffe://clinic.test/app/portal",
		User: "dr.lee", Name: "Dr. Leonora Lee", Interactions: read, Patients: []string{"example-123"}, Effect: "allow", Policies: []string{"own-department"}, Micros: 1234, Complete: true}
	with := func(change func(*proxy.Record)) proxy.Record {
		r := base
		change(&r)
		return r
	}
	for _, c := range []struct {
		name string
		r    proxy.Record
		o    LineOptions
		want string
	}{
		{"allowed", base, LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Patient/•••123      own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"patients shown", base, LineOptions{ShowPatients: true, TimeFormat: time.RFC3339, Location: time.FixedZone("", 3600)},
			"2026-11-23T09:40:04+01:00 ALLOW  /app/portal  dr.lee  read Patient/example-123 own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"refused", with(func(r *proxy.Record) {
			r.Stage, r.Effect, r.Cause, r.Detail, r.Micros = proxy.StageRefusal, "deny", proxy.CausePolicy, "no permit matched", 310
		}), LineOptions{},
			"08:40:04 REFUSE /app/portal  dr.lee  read Patient/•••123      policy: no permit matched 0.3ms 01JD7Q0000000000000000000A"},
		{"refused after the intent", with(func(r *proxy.Record) { r.Effect, r.Cause = "deny", proxy.CauseReplyOutside }), LineOptions{},
			"08:40:04 REFUSE /app/portal  dr.lee  read Patient/•••123      reply-outside  1.2ms 01JD7Q0000000000000000000A"},
		{"not served", with(func(r *proxy.Record) { r.Effect, r.Cause = "error", proxy.CauseUpstream }), LineOptions{},
			"08:40:04 ERROR  /app/portal  dr.lee  read Patient/•••123      upstream       1.2ms 01JD7Q0000000000000000000A"},
		{"cut off", with(func(r *proxy.Record) { r.Complete, r.Micros = false, 75_000_000 }), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Patient/•••123      not delivered whole 75.0s 01JD7Q0000000000000000000A"},
		{"only observed", with(func(r *proxy.Record) {
			r.Observed, r.Would = true, &proxy.Would{Effect: "deny", Cause: proxy.CauseLimit, Detail: "user", Status: 429}
		}), LineOptions{},
			"08:40:04 WOULD  /app/portal  dr.lee  read Patient/•••123      limit: user    1.2ms 01JD7Q0000000000000000000A"},
		{"observed, and nothing found", with(func(r *proxy.Record) { r.Observed, r.Would = true, &proxy.Would{Effect: proxy.EffectNarrow} }), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Patient/•••123      own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"intent", with(func(r *proxy.Record) { r.Stage, r.Micros = proxy.StageIntent, 0 }), LineOptions{},
			"08:40:04 INTENT /app/portal  dr.lee  read Patient/•••123      own-department -     01JD7Q0000000000000000000A"},
		{"event", proxy.Record{Stage: proxy.StageEvent, Time: testTime, Event: "start", Detail: "ward 1.0"}, LineOptions{},
			"08:40:04 EVENT  -            -       -                        start: ward 1.0 -     -"},
		{"no identity", proxy.Record{Stage: proxy.StageRefusal, Time: testTime, Remote: "10.0.0.7:4711", Method: "GET", Effect: "deny", Cause: proxy.CauseHeaders}, LineOptions{},
			"08:40:04 REFUSE 10.0.0.7:4711 -       GET                      headers        -     -"},
		{"many searches", with(func(r *proxy.Record) {
			r.Interactions = []proxy.Acted{{Kind: "search", Type: "Observation"}, {Kind: "search", Type: "Observation"}}
		}), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  search Observation ×2    own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"mixed", with(func(r *proxy.Record) { r.Interactions = append(read[:1:1], proxy.Acted{Kind: "create", Type: "Task"}) }), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Patient/•••123 +1   own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"a short id, and a version", with(func(r *proxy.Record) {
			r.Interactions = []proxy.Acted{{Kind: "vread", Type: "Patient", ID: "1234", Version: "2"}}
		}), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  vread Patient/•••/_history/2 own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"an id that holds the patient's", with(func(r *proxy.Record) {
			r.Interactions = []proxy.Acted{{Kind: "read", Type: "Observation", ID: "example-123.bp"}}
		}), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Observation/•••.bp  own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"another resource", with(func(r *proxy.Record) { r.Interactions = []proxy.Acted{{Kind: "read", Type: "Task", ID: "t-1"}} }), LineOptions{},
			"08:40:04 ALLOW  /app/portal  dr.lee  read Task/t-1            own-department 1.2ms 01JD7Q0000000000000000000A"},
		{"hostile", with(func(r *proxy.Record) {
			r.User, r.Caller, r.Policies = "eve\x1b[2J\u202e\xff", "spiffe://clinic.test/app/\r\npor\u2066tal", []string{"a\tb\U000e0001"}
		}), LineOptions{},
			`08:40:04 ALLOW  spiffe://clinic.test/app/\u000d\u000apor\u2066tal eve\u001b[2J\u202e\xff read Patient/•••123      a\u0009b\U000e0001 1.2ms 01JD7Q0000000000000000000A`},
		{"wide", with(func(r *proxy.Record) { r.User = "李医生" }), LineOptions{},
			"08:40:04 ALLOW  /app/portal  李医生  read Patient/•••123      own-department 1.2ms 01JD7Q0000000000000000000A"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Line(c.r, c.o); got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
		})
	}
}

// Whatever a record holds, its line is one line, shows all that it holds, and keeps the patient's id to itself.
func TestLineIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		any := rapid.String()
		patient := rapid.StringMatching(`[A-Za-z0-9.-]{8,64}`).Draw(t, "patient")
		r := proxy.Record{Stage: proxy.StageOutcome, Time: testTime, Caller: any.Draw(t, "caller"), User: any.Draw(t, "user"), Detail: any.Draw(t, "detail"),
			Interactions: []proxy.Acted{{Kind: "read", Type: rapid.SampledFrom([]string{"Patient", "Observation"}).Draw(t, "type"), ID: patient}}, Patients: []string{patient}}
		line := Line(r, LineOptions{})
		if strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Fatalf("%q", line)
		}
		if strings.Contains(line, "/"+patient) {
			t.Fatalf("%s shows %s", line, patient)
		}
	})
}
