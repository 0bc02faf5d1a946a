package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/policy"
)

const (
	clinicOld = `@id("nurses") permit (principal, action in Action::"reads", resource) when { context.roles.contains("nurse") };`
	clinicNew = `@id("patients") permit (principal, action == Action::"read", resource is FHIR::Patient) when { context.roles.contains("nurse") };
@id("coverage") permit (principal == Workload::"/app/portal", action == Action::"read", resource is FHIR::Coverage);`
)

// trail writes an audit log with these records and gives its folder.
func trail(t *testing.T, records ...*proxy.Record) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	log, err := audit.Open(t.Context(), audit.Options{Dir: dir, Origin: "clinic.test/host", MinFree: 1, Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if _, err := log.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// say runs one command line.
func say(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = run(t.Context(), args, &out, &err)
	return status, out.String(), err.String()
}

// recordedAt is when the first call of the tests was made.
var recordedAt = time.Date(2025, 11, 23, 8, 40, 0, 0, time.UTC)

// decision is a recorded decision by clinicOld.
func decision(t *testing.T, n int, by, role, typ string) *proxy.Record {
	t.Helper()
	set, err := policy.Parse([]policy.File{{Name: "old.cedar", Content: []byte(clinicOld)}})
	if err != nil {
		t.Fatal(err)
	}
	caller, err := spiffeid.FromString("spiffe://clinic.test" + by)
	if err != nil {
		t.Fatal(err)
	}
	d := set.Decide(&proxy.Facts{Self: spiffeid.RequireFromString("spiffe://clinic.test/ward/ehr"), Caller: caller, Service: "fhir.ehr.mesh.internal",
		User: &proxy.User{Issuer: "https://op.test", Subject: role + ".kim", Roles: []string{role}}, Interactions: []fhir.Interaction{{Kind: fhir.Read, Type: typ, ID: "1"}}})
	r := &proxy.Record{Schema: proxy.RecordSchema, Hop: proxy.HopIngress, Stage: proxy.StageIntent, Effect: "allow", Decision: fmt.Sprintf("01JC%022d", n),
		Time: recordedAt.Add(time.Duration(n) * time.Hour), Inputs: d.Inputs}
	if d.Effect != proxy.Allow {
		r.Stage, r.Effect, r.Cause = proxy.StageRefusal, "deny", proxy.CausePolicy
	}
	return r
}

func TestPolicyReplay(t *testing.T) {
	log := trail(t, decision(t, 1, "/app/ward", "nurse", "Patient"), decision(t, 2, "/app/ward", "nurse", "Condition"),
		decision(t, 3, "/app/portal", "patient", "Coverage"), decision(t, 30, "/app/portal", "patient", "Condition"))
	sets := map[string]string{}
	for name, text := range map[string]string{"old": clinicOld, "new": clinicNew} {
		sets[name] = t.TempDir()
		if err := os.Chmod(sets[name], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sets[name], "clinic.cedar"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const changed = `4 calls, 1 day; 2 unchanged
newly refused  1 call
  1  /app/ward read Condition  1 user  e.g. 01JC0000000000000000000002
newly allowed  1 call
  1  /app/portal read Coverage  1 user  e.g. 01JC0000000000000000000003  <- review
`
	for _, c := range []struct {
		name   string
		args   []string
		status int
		out    string
	}{
		{"the same", []string{"--policy", sets["old"], "--fail-on", "changed"}, 0, "4 calls, 1 day; 4 unchanged\n"},
		{"changed", []string{"--policy", sets["new"]}, 0, changed},
		{"widened", []string{"--policy", sets["new"], "--fail-on", "widened"}, 1, changed},
		{"none so late", []string{"--policy", sets["new"], "--since", "1h"}, 0, "0 calls; 0 unchanged\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out, err := say(t, append([]string{"policy", "replay", "--audit", log}, c.args...)...)
			if diff := cmp.Diff(c.out, out); diff != "" || status != c.status || err != "" {
				t.Errorf("exit status %d\n%s%s", status, diff, err)
			}
		})
	}
	t.Run("json", func(t *testing.T) {
		status, out, _ := say(t, "policy", "replay", "--audit", log, "--policy", sets["new"], "--json")
		var got policy.ReplayReport
		if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
			t.Fatal(status, err)
		}
		if got.Schema != policy.ReplaySchema || got.Calls != 4 || len(got.Allowed) != 1 || got.Allowed[0].Caller != "spiffe://clinic.test/app/portal" {
			t.Errorf("%s", out)
		}
	})
	t.Run("what cannot be replayed", func(t *testing.T) {
		fold := &proxy.Record{Schema: proxy.RecordSchema, Stage: proxy.StageEvent, Time: recordedAt, Event: audit.EventFolded, Data: json.RawMessage(`{"count":40,"causes":{"policy":40},"kind":"verified"}`)}
		local := *fold
		local.Process = "uid 1000"
		refused := &proxy.Record{Schema: proxy.RecordSchema, Hop: proxy.HopIngress, Stage: proxy.StageRefusal, Time: recordedAt, Cause: proxy.CauseTokenMissing}
		_, out, _ := say(t, "policy", "replay", "--audit", trail(t, fold, &local, refused), "--policy", sets["new"])
		want := "0 calls; 0 unchanged\nnot replayed: 1 call refused before policy was asked\nnot replayed: 40 refusals recorded as a sum only\n"
		if diff := cmp.Diff(want, out); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("no such policies", func(t *testing.T) {
		if status, out, err := say(t, "policy", "replay", "--audit", log, "--policy", t.TempDir()); status != 1 || out != "" || err == "" {
			t.Errorf("exit status %d: %s%s", status, out, err)
		}
	})
	t.Run("wrong words", func(t *testing.T) {
		if status, _, _ := say(t, "policy", "replay", "--policy", sets["new"], "--fail-on", "anything"); status != 2 {
			t.Errorf("exit status %d", status)
		}
	})
}

// observedCall is how an observed call ended.
func observedCall(n int, by, user string, would *proxy.Would) *proxy.Record {
	return &proxy.Record{Schema: proxy.RecordSchema, Hop: proxy.HopIngress, Stage: proxy.StageOutcome, Effect: "allow", Status: 200, Observed: true, Would: would,
		Service: "fhir.ehr.mesh.internal", Caller: "spiffe://clinic.test" + by, Issuer: "https://op.test", User: user,
		Decision: fmt.Sprintf("01JC%022d", n), Time: recordedAt.Add(time.Duration(n) * time.Hour)}
}

func TestPolicyObserved(t *testing.T) {
	limit := &proxy.Would{Effect: "deny", Cause: proxy.CauseLimit, Status: 429, Also: []proxy.Cause{proxy.CauseScope}}
	missing := &proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMissing, Status: 401}
	failed := observedCall(7, "/etl/night", "", missing)
	failed.Status = 401 // by the FHIR server itself
	clean := observedCall(9, "/app/ehr", "kim", nil)
	clean.Service = "lab.mesh.internal"
	narrowed := observedCall(10, "/app/portal", "anna", &proxy.Would{Effect: proxy.EffectNarrow})
	enforced := observedCall(11, "/app/portal", "anna", nil)
	enforced.Observed = false
	for _, c := range []struct {
		name    string
		records []*proxy.Record
		want    string
	}{
		{"nothing", []*proxy.Record{enforced}, "no observed call is recorded; a service is observed with `mode: observe` and `observe_until`\n"},
		{"findings", []*proxy.Record{observedCall(1, "/app/ehr", "kim", nil), observedCall(2, "/app/portal", "anna", limit), observedCall(3, "/app/portal", "bert", limit),
			observedCall(4, "/app/portal", "anna", &proxy.Would{Effect: proxy.EffectNarrow, Cause: proxy.CausePatient}), observedCall(5, "/etl/night", "", missing), failed, clean, narrowed, enforced},
			`fhir.ehr.mesh.internal  7 calls observed from 2025-11-23T09:40:00Z to 2025-11-23T18:40:00Z
5 would be refused; of these 4 were served
WORKLOAD     CAUSE               CALLS                 SERVED  USERS  FIRST                 LAST                  EXAMPLE
/app/portal  limit               2                     2       2      2025-11-23T10:40:00Z  2025-11-23T11:40:00Z  01JC0000000000000000000003
/app/portal  scope               0 (2 behind another)  2       2      2025-11-23T10:40:00Z  2025-11-23T11:40:00Z  01JC0000000000000000000003
/etl/night   token-missing       2                     1       0      2025-11-23T13:40:00Z  2025-11-23T15:40:00Z  01JC0000000000000000000007
/app/portal  patient (narrowed)  1                     1       1      2025-11-23T12:40:00Z  2025-11-23T12:40:00Z  01JC0000000000000000000004
not yet: mend these, or enforcing takes calls away that work today; ward policy explain EXAMPLE says why

lab.mesh.internal  1 calls observed from 2025-11-23T17:40:00Z to 2025-11-23T17:40:00Z
0 would be refused; of these 0 were served
enforce: no application would lose a call
`},
		{"at zero", []*proxy.Record{failed, narrowed}, `fhir.ehr.mesh.internal  2 calls observed from 2025-11-23T15:40:00Z to 2025-11-23T18:40:00Z
1 would be refused; of these 0 were served
WORKLOAD    CAUSE          CALLS  SERVED  USERS  FIRST                 LAST                  EXAMPLE
/etl/night  token-missing  1      0       0      2025-11-23T15:40:00Z  2025-11-23T15:40:00Z  01JC0000000000000000000007
enforce: no application would lose a call
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := trail(t, c.records...)
			status, out, err := say(t, "policy", "observed", "--audit", log)
			if diff := cmp.Diff(c.want, out); diff != "" || status != 0 || err != "" {
				t.Errorf("exit status %d\n%s%s", status, diff, err)
			}
			status, out, _ = say(t, "policy", "observed", "--audit", log, "--json")
			var got proxy.ObserveReport
			if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 || got.Schema != proxy.ObserveSchema || got.Services == nil {
				t.Errorf("%d %v %s", status, err, out)
			}
		})
	}
}

// A call that was only observed is explained as what enforcing would have made of it.
func TestExplainObserved(t *testing.T) {
	for _, c := range []struct {
		name  string
		would *proxy.Would
		want  string
	}{
		{"token", &proxy.Would{Effect: "deny", Cause: proxy.CauseTokenMissing, Status: 401, Detail: "no Authorization field"},
			"WOULD REFUSE 401; only observed, and answered 200  2025-11-23T09:40:00Z\n/app/ehr for kim\nenforcing would have stopped at token-missing: no Authorization field\n"},
		{"two", &proxy.Would{Effect: "deny", Cause: proxy.CauseLimit, Status: 429, Detail: "spent", Also: []proxy.Cause{proxy.CauseScope}},
			"WOULD REFUSE 429; only observed, and answered 200  2025-11-23T09:40:00Z\n/app/ehr for kim\nenforcing would have stopped at limit: spent\nand then at scope\n"},
		{"narrow", &proxy.Would{Effect: proxy.EffectNarrow, Detail: "to the compartment of the token's patient"},
			"WOULD NARROW; only observed, and answered 200  2025-11-23T09:40:00Z\n/app/ehr for kim\nenforcing would have narrowed the search to the compartment of the token's patient, and the reply is within it\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b strings.Builder
			if err := explain(&b, nil, []proxy.Record{*observedCall(1, "/app/ehr", "kim", c.would)}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, b.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRecordedTextIsEscaped(t *testing.T) {
	const evil = "x\x1b[2J\u202egnp\r\nforged"
	r := observedCall(1, "/"+evil, evil, &proxy.Would{Effect: evil, Cause: evil, Detail: evil, Also: []proxy.Cause{evil}})
	r.Service, r.Decision = evil, evil
	report := proxy.NewObserveReport()
	report.Add(r)
	var b strings.Builder
	if err := writeObserved(&b, report.Finish()); err != nil {
		t.Fatal(err)
	}
	if err := explain(&b, nil, []proxy.Record{*r}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if line = strings.TrimSuffix(line, "\n"); strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.HasPrefix(line, "forged") {
			t.Errorf("%q", line)
		}
	}
}
