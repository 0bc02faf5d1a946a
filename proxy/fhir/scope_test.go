package fhir

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The interactions that the scope tables speak of, by FHIR's words.
var scopeCalls = map[string]Interaction{
	"capabilities":     {Kind: Capabilities},
	"read":             {Kind: Read, Type: "Observation", ID: "1"},
	"vread":            {Kind: VRead, Type: "Observation", ID: "1", Version: "2"},
	"search":           {Kind: Search, Type: "Observation"},
	"create":           {Kind: Create, Type: "Observation"},
	"update":           {Kind: Update, Type: "Observation", ID: "1"},
	"delete":           {Kind: Delete, Type: "Observation", ID: "1"},
	"history-instance": {Kind: HistoryInstance, Type: "Observation", ID: "1"},
	"history-type":     {Kind: HistoryType, Type: "Observation"},
	"history-system":   {Kind: HistorySystem},
	"search-system":    {Kind: Search},
	"other type":       {Kind: Read, Type: "Patient", ID: "1"},
	"none":             {},
	"typeless read":    {Kind: Read},
}

func TestScopePermissions(t *testing.T) {
	const (
		typed  = "read vread history-instance search history-type create update delete"
		nobody = ""
	)
	tests := []struct{ name, scopes, allowed string }{
		{"SMART 2.2 c", "system/Observation.c", "create"},
		{"SMART 2.2 r", "system/Observation.r", "read vread history-instance"},
		{"SMART 2.2 u", "system/Observation.u", "update"},
		{"SMART 2.2 d", "system/Observation.d", "delete"},
		{"SMART 2.2 s", "system/Observation.s", "search history-type"},
		{"SMART 2.2 cruds", "system/Observation.cruds", typed},
		{"SMART 2.2 wildcard type", "system/*.s", "search history-type history-system search-system"},
		{"SMART 2.2 wildcard reads every type", "system/*.r", "read vread history-instance other type"},
		{"SMART 2.2 union", "system/Observation.r system/Observation.c", "read vread history-instance create"},
		{"SMART 2.2 repeated", "system/Observation.r system/Observation.r", "read vread history-instance"},
		{"SMART 1.0 read", "system/Observation.read", "read vread history-instance search history-type"},
		{"SMART 1.0 write", "system/Observation.write", "create update delete"},
		{"SMART 1.0 *", "system/Observation.*", typed},
		{"SMART 1.0 *.*", "system/*.*", typed + " history-system search-system other type"},
		{"SMART 2.2 order", "system/Observation.dus", nobody},
		{"SMART 2.2 letters repeated", "system/Observation.rr", nobody},
		{"SMART 2.2 no permission", "system/Observation.", nobody},
		{"SMART 2.2 no dot", "system/Observation", nobody},
		{"SMART 2.2 unknown letter", "system/Observation.rx", nobody},
		{"SMART 2.2 upper case", "system/Observation.RS", nobody},
		{"SMART 1.0 mixed", "system/Observation.readwrite", nobody},
		{"SMART 1.0 takes no parameters", "system/Observation.read?category=x", nobody},
		{"lower-case type", "system/observation.r", nobody},
		{"no type", "system/.r", nobody},
		{"prefix wildcard", "system/Obs*.r", nobody},
		{"other level", "practitioner/Observation.r", nobody},
		{"level in capitals", "System/Observation.r", nobody},
		{"SMART 2.2 launch and identity scopes", "openid fhirUser launch launch/patient offline_access profile", nobody},
		{"no scope", "", nobody},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseScopes(tt.scopes)
			if err != nil {
				t.Fatal(err)
			}
			for name, in := range scopeCalls {
				want := NotGranted
				if name == "capabilities" || listed(tt.allowed, name) {
					want = Granted
				}
				if _, got := s.Permit(in); got != want {
					t.Errorf("%s: verdict %d, want %d", name, got, want)
				}
			}
		})
	}
}

// listed reports whether name is one of the words of list; "other type" is two.
func listed(list, name string) bool {
	if name == "other type" {
		return strings.Contains(list, name)
	}
	for w := range strings.FieldsSeq(list) {
		if w == name {
			return true
		}
	}
	return false
}

func TestScopeLevels(t *testing.T) {
	read := scopeCalls["read"]
	tests := []struct {
		name, scopes string
		grant        Grant
		verdict      Verdict
	}{
		{"patient only is confined", "patient/Observation.r", Grant{PatientLevel, true}, Granted},
		{"user is not", "user/Observation.r", Grant{UserLevel, false}, Granted},
		{"system is not", "system/Observation.r", Grant{SystemLevel, false}, Granted},
		{"user lifts patient's confinement", "patient/Observation.r user/Observation.r", Grant{UserLevel, false}, Granted},
		{"user for other types does not", "patient/Observation.r user/Patient.r", Grant{PatientLevel, true}, Granted},
		{"user for other permissions does not", "patient/*.rs user/Observation.s", Grant{PatientLevel, true}, Granted},
		{"system asks least", "user/*.r system/*.r patient/*.r", Grant{SystemLevel, false}, Granted},
		{"parameters grant nothing", "user/Observation.rs?category=laboratory", Grant{}, NeedsNarrowing},
		{"parameters on a wildcard", "patient/*.rs?_lastUpdated=ge2020", Grant{}, NeedsNarrowing},
		{"several parameters", "patient/Observation.rs?category=http://x|y&status=final", Grant{}, NeedsNarrowing},
		{"parameters of another permission", "user/Observation.c?category=laboratory", Grant{}, NotGranted},
		{"parameters do not lift confinement", "user/Observation.rs?category=laboratory patient/Observation.rs",
			Grant{PatientLevel, true}, Granted},
		{"modifier", "user/Observation.rs?code:in=x", Grant{}, NotGranted},
		{"chain", "user/Observation.rs?subject.name=x", Grant{}, NotGranted},
		{"reverse chain", "user/Observation.rs?_has:Group:member:_id=1", Grant{}, NotGranted},
		{"_filter", "user/Observation.rs?_filter=x", Grant{}, NotGranted},
		{"parameter without value", "user/Observation.rs?category=", Grant{}, NotGranted},
		{"parameter without equals", "user/Observation.rs?category", Grant{}, NotGranted},
		{"empty query", "user/Observation.rs?", Grant{}, NotGranted},
		{"empty pair", "user/Observation.rs?category=x&", Grant{}, NotGranted},
		{"too many parameters", "user/Observation.rs?a=1" + strings.Repeat("&a=1", 16), Grant{}, NotGranted},
		{"one too long", "user/Observation.rs?a=" + strings.Repeat("1", 600), Grant{}, NotGranted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseScopes(tt.scopes)
			if err != nil {
				t.Fatal(err)
			}
			g, v := s.Permit(read)
			if g != tt.grant || v != tt.verdict {
				t.Errorf("got %+v, %d; want %+v, %d", g, v, tt.grant, tt.verdict)
			}
		})
	}
}

func TestScopesIgnored(t *testing.T) {
	s, err := ParseScopes("openid launch/patient patient/Observation.dus user/Observation.rs?code:in=secret system/" + strings.Repeat("X", 80))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"patient/Observation.dus", "user/Observation.rs", "system/" + strings.Repeat("X", 57) + "..."}
	if d := cmp.Diff(want, s.Ignored()); d != "" {
		t.Error(d)
	}
	many, err := ParseScopes(strings.TrimSpace(strings.Repeat("user/x ", 200)))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(many.Ignored()); n != 16 {
		t.Errorf("%d ignored scopes kept", n)
	}
}

func TestScopeClaimRefused(t *testing.T) {
	for name, claim := range map[string]string{
		"RFC 6749 3.3 leading space":   " user/*.r",
		"RFC 6749 3.3 trailing space":  "user/*.r ",
		"RFC 6749 3.3 double space":    "user/*.r  openid",
		"RFC 6749 3.3 tab":             "user/*.r\topenid",
		"RFC 6749 3.3 quote":           `user/*.r "openid"`,
		"RFC 6749 3.3 backslash":       `user\*.r`,
		"RFC 6749 3.3 beyond ASCII":    "user/*.r é",
		"RFC 6749 3.3 control":         "user/*.r\x00",
		"too many scopes":              strings.TrimSpace(strings.Repeat("a ", 257)),
		"too long":                     strings.Repeat("a", 8<<10+1),
		"RFC 6749 3.3 comma-separated": "user/*.r,\nopenid",
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := ParseScopes(claim); err == nil {
				t.Errorf("accepted: %+v", s)
			}
		})
	}
}

func TestPermitDoesNotAllocate(t *testing.T) {
	s, err := ParseScopes("patient/*.rs user/Observation.c")
	if err != nil {
		t.Fatal(err)
	}
	in := scopeCalls["create"]
	if n := testing.AllocsPerRun(100, func() { s.Permit(in) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What two claims allow together is what either allows, at the level that asks least.
func TestScopesUnion(t *testing.T) {
	scope := rapid.Custom(func(t *rapid.T) string {
		return fmt.Sprintf("%s/%s.%s", rapid.SampledFrom([]string{"patient", "user", "system"}).Draw(t, "level"),
			rapid.SampledFrom([]string{"*", "Observation", "Patient"}).Draw(t, "type"),
			rapid.SampledFrom([]string{"c", "r", "rs", "cud", "cruds", "read", "write", "*", "dus", "rs?a=b"}).Draw(t, "perms"))
	})
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(scope, 1, 8).Draw(t, "scopes")
		union, err := ParseScopes(strings.Join(all, " "))
		if err != nil {
			t.Fatal(err)
		}
		for name, in := range scopeCalls {
			var want Grant
			verdict := NotGranted
			for _, one := range all {
				s, err := ParseScopes(one)
				if err != nil {
					t.Fatal(err)
				}
				g, v := s.Permit(in)
				switch {
				case v == Granted && (verdict != Granted || g.Level > want.Level):
					want, verdict = g, Granted
				case v == NeedsNarrowing && verdict == NotGranted:
					verdict = NeedsNarrowing
				}
			}
			if g, v := union.Permit(in); g != want || v != verdict {
				t.Fatalf("%s: got %+v, %d; want %+v, %d", name, g, v, want, verdict)
			}
		}
	})
}

func FuzzScopes(f *testing.F) {
	for _, s := range []string{"", "openid", "patient/*.rs", "user/Observation.cruds?category=a|b&code=c", "system/*.*", "patient/Observation.dus", "user/x?"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, claim string) {
		s, err := ParseScopes(claim)
		if err != nil {
			return
		}
		for name, in := range scopeCalls {
			g, v := s.Permit(in)
			if v == Granted && name != "capabilities" && g.Level == 0 {
				t.Errorf("%s allowed at no level by %q", name, claim)
			}
			if (v != Granted) && g != (Grant{}) {
				t.Errorf("%s: a grant without permission from %q", name, claim)
			}
			if g.Confined != (g.Level == PatientLevel) {
				t.Errorf("%s: level %v, confined %v", name, g.Level, g.Confined)
			}
		}
		for _, i := range s.Ignored() {
			if !strings.Contains(claim, strings.TrimSuffix(i, "...")) {
				t.Errorf("ignored %q is not in %q", i, claim)
			}
		}
	})
}

func BenchmarkScopes(b *testing.B) {
	const claim = "openid fhirUser launch/patient offline_access patient/Patient.rs patient/Observation.rs patient/Condition.rs " +
		"patient/MedicationRequest.rs patient/Encounter.rs user/Practitioner.r user/Observation.c"
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParseScopes(claim); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("permit", func(b *testing.B) {
		s, err := ParseScopes(claim)
		if err != nil {
			b.Fatal(err)
		}
		in := Interaction{Kind: Create, Type: "Observation"}
		b.ReportAllocs()
		for b.Loop() {
			if _, v := s.Permit(in); v != Granted {
				b.Fatal("refused")
			}
		}
	})
}
