package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// clinicFolder is the starter set that operators copy. Load's rule about who may write files is not for a checkout, so
// the tests here read it by hand.
const clinicFolder = "../../examples/clinic/policy"

// TestClinic is the starter set as a privacy officer would ask about it: who, by what, does what, with which outcome.
func TestClinic(t *testing.T) {
	set := clinic(t)
	const restricted = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality|R"
	for _, tc := range []struct {
		who, by, does string
		with          func(f *proxy.Facts)
		want          string // the policies that decide, with + before permits and - before forbids; "" when none permits
	}{
		{"physician", "/app/ehr", "read Patient/1", nil, "+care-read"},
		{"physician", "/app/portal", "read Patient/1", nil, "+care-read"},
		{"physician", "/app/ehr", "search Observation", nil, "+care-read"},
		{"physician", "/app/ehr", "vread Condition/1", nil, "+care-read"},
		{"physician", "/app/ehr", "history-instance Condition/1", nil, "+care-read"},
		{"physician", "/app/ehr", "history-type Condition", nil, ""},
		{"physician", "/app/ehr", "history-system", nil, ""},
		{"physician", "/app/ehr", "read Claim/1", nil, ""},
		{"physician", "/app/ehr", "read AuditEvent/1", nil, ""},
		{"physician", "/app/scraper", "read Patient/1", nil, ""},
		{"physician", "/etl/night", "read Patient/1", nil, ""},
		{"physician", "/app/ehr", "create Condition", nil, "+physicians-write"},
		{"physician", "/app/ehr", "update Condition/1", nil, "+physicians-write"},
		{"physician", "/app/portal", "update Condition/1", nil, ""},
		{"physician", "/app/ehr", "create Condition", labelled(restricted), "+physicians-write"},
		{"physician", "/app/ehr", "delete Condition/1", nil, "-deletes"},
		{"physician", "/app/ehr", "read Patient/1", purpose(""), "+care-read"},
		{"physician", "/app/ehr", "read Patient/1", purpose("ETREAT"), "+care-read"},
		{"physician", "/app/ehr", "read Patient/1", purpose("HRESCH"), "-other-purposes"},
		{"physician", "/app/ehr", "read Patient/1", risk(95), "-unusual"},
		{"physician", "/app/ehr", "read Patient/1", func(f *proxy.Facts) { risk(95)(f); purpose("ETREAT")(f) }, "+care-read"},

		{"nurse", "/app/ehr", "read Patient/1", nil, "+care-read"},
		{"nurse", "/app/ehr", "search Slot", nil, "+care-directory"},
		{"nurse", "/app/ehr", "create Observation", nil, "+nurses-write"},
		{"nurse", "/app/ehr", "create Observation", labelled(restricted), "-restricted-labels"},
		{"nurse", "/app/ehr", "create Observation", labelled("http://terminology.hl7.org/CodeSystem/v3-Confidentiality|N"), "+nurses-write"},
		{"nurse", "/app/ehr", "create MedicationRequest", nil, ""},

		{"patient", "/app/portal", "read Patient/me", confined, "+own-record"},
		{"patient", "/app/portal", "search Observation", confined, "+own-record"},
		{"patient", "/app/portal", "read Patient/me", nil, ""}, // a token that is not for one patient
		{"patient", "/app/ehr", "read Patient/me", confined, ""},
		{"patient", "/app/portal", "create Observation", func(f *proxy.Facts) { confined(f); about("me")(f) }, "+own-measurements"},
		{"patient", "/app/portal", "create Observation", func(f *proxy.Facts) { confined(f); about("me", "you")(f) }, ""},
		{"patient", "/app/portal", "create Observation", func(f *proxy.Facts) { confined(f); about()(f) }, ""},
		{"patient", "/app/portal", "update Observation/1", func(f *proxy.Facts) { confined(f); about("me")(f) }, ""},
		{"patient", "/app/portal", "delete Observation/1", confined, "-deletes"},

		{"frontdesk", "/app/ehr", "search Patient", nil, "+frontdesk"},
		{"frontdesk", "/app/ehr", "create Patient", nil, "+frontdesk"},
		{"frontdesk", "/app/ehr", "update Coverage/1", nil, "+frontdesk"},
		{"frontdesk", "/app/ehr", "search Appointment", nil, "+care-directory +frontdesk"},
		{"frontdesk", "/app/ehr", "read Observation/1", nil, ""},
		{"frontdesk", "/app/portal", "read Patient/1", nil, ""},

		{"billing", "/app/ehr", "search Claim", nil, "+billing-read"},
		{"billing", "/app/ehr", "create Claim", nil, "+billing-write"},
		{"billing", "/app/ehr", "read Observation/1", nil, ""},
		{"billing", "/app/ehr", "update Patient/1", nil, ""},

		{"records-officer", "/app/ehr", "delete Observation/1", nil, "+records-officer"},
		{"records-officer", "/app/portal", "delete Observation/1", nil, ""},
		{"records-officer", "/app/ehr", "read Observation/1", nil, ""},

		{"", "/bridge/icu", "create Observation", about("1"), "+bridges"},
		{"", "/bridge/icu", "create Observation", about(), ""},
		{"", "/bridge/icu", "create Observation", func(f *proxy.Facts) { about("1")(f); f.Content.Foreign = true }, ""},
		{"", "/bridge/icu", "create Observation", func(f *proxy.Facts) { about("1")(f); labelled(restricted)(f) }, "-restricted-labels"},
		{"", "/bridge/icu", "create Patient", nil, ""},
		{"", "/bridge/icu", "update Observation/1", nil, ""},
		{"", "/bridge/icu", "read Observation/1", nil, ""},
		{"", "/bridge/icu", "search Patient", nil, ""},

		{"", "/etl/night", "read Patient/1", nil, "+backup"},
		{"", "/etl/night", "search Observation", nil, "+backup"},
		{"", "/etl/night", "history-type Observation", nil, "+backup"},
		{"", "/etl/night", "history-system", nil, "+backup"},
		{"", "/etl/night", "create Observation", nil, ""},

		{"", "/app/scraper", "search Practitioner", nil, "+scraper"},
		{"", "/app/scraper", "search Patient", nil, ""},
		{"", "/app/scraper", "capabilities", nil, "+capabilities"},
		{"", "/app/other", "read Patient/1", nil, ""},
		{"", "/app/other", "capabilities", nil, "+capabilities"},
	} {
		name := tc.who + " by " + tc.by + " " + tc.does
		f := clinicFacts(t, tc.who, tc.by, tc.does)
		if tc.with != nil {
			tc.with(f)
		}
		d := set.Decide(f)
		got, sign := "", map[proxy.Effect]string{proxy.Allow: "+", proxy.Deny: "-", proxy.NeedsImage: "?"}[d.Effect]
		for i, p := range d.Policies {
			if i > 0 {
				got += " "
			}
			got += sign + p
		}
		if got != tc.want || len(d.Errors) > 0 || (d.Effect == proxy.Allow) != (tc.want != "" && tc.want[0] == '+') {
			t.Errorf("%s: %s by %q, errors %v; want %q", name, d.Effect, got, d.Errors, tc.want)
		}
	}
}

// Every policy of the starter set says in a sentence what it is for, and none needs what Ward does not look up.
func TestClinicIsExemplary(t *testing.T) {
	set := clinic(t)
	for _, p := range set.policies {
		if p.description == "" {
			t.Errorf("%s:%d: %s has no @description", p.file, p.line, p.id)
		}
		if p.reads.has(set.model.patients | set.model.labels) {
			t.Errorf("%s:%d: %s reads the stored resource", p.file, p.line, p.id)
		}
	}
}

func clinic(tb testing.TB) *Set {
	tb.Helper()
	set, err := Parse(clinicFiles(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

func clinicFacts(t *testing.T, who, by, does string) *proxy.Facts {
	t.Helper()
	f := facts(interaction(t, does))
	f.Caller = workload(by)
	if who == "" {
		f.User, f.Grant.Level, f.Purpose = nil, fhir.SystemLevel, ""
	} else {
		f.User.Roles = []string{who}
	}
	if in := f.Interactions[0]; in.Kind == fhir.Create || in.Kind == fhir.Update {
		f.Content = &fhir.Content{Type: in.Type, ID: in.ID, Patients: []string{"1"}}
	}
	return f
}

func confined(f *proxy.Facts) {
	f.Grant = fhir.Grant{Level: fhir.PatientLevel, Confined: true}
	f.User.Patient = "me"
}

func about(patients ...string) func(*proxy.Facts) {
	return func(f *proxy.Facts) { f.Content.Patients = patients }
}

func purpose(code string) func(*proxy.Facts) { return func(f *proxy.Facts) { f.Purpose = code } }

func risk(score int) func(*proxy.Facts) { return func(f *proxy.Facts) { f.Risk.Score = score } }

func labelled(label string) func(*proxy.Facts) {
	return func(f *proxy.Facts) {
		system, code, _ := strings.Cut(label, "|")
		f.Content.Labels = []fhir.Coding{{System: system, Code: code}}
	}
}

// interaction reads `read Patient/1`.
func interaction(t *testing.T, s string) fhir.Interaction {
	t.Helper()
	kind, what, _ := strings.Cut(s, " ")
	typ, id, _ := strings.Cut(what, "/")
	for k := fhir.Capabilities; k.String() != ""; k++ {
		if k.String() == kind {
			return fhir.Interaction{Kind: k, Type: typ, ID: id}
		}
	}
	t.Fatalf("no interaction %q", kind)
	return fhir.Interaction{}
}

func clinicFiles(tb testing.TB) []File {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(clinicFolder, "*.cedar"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no policies in %s: %v", clinicFolder, err)
	}
	var files []File
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			tb.Fatal(err)
		}
		files = append(files, File{Name: filepath.Base(p), Content: b})
	}
	return files
}
