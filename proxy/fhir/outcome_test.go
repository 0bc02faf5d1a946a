package fhir

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOutcome(t *testing.T) {
	got := string(Outcome(SeverityError, IssueForbidden, "This application may not make this request for this user.", "Decision 01JD7Q."))
	want := `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"forbidden",` +
		`"details":{"text":"This application may not make this request for this user."},"diagnostics":"Decision 01JD7Q."}]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = string(Outcome(SeverityFatal, IssueStructure, "", "", "", "Patient.id", "", "Patient.name[0]"))
	want = `{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"structure","expression":["Patient.id","Patient.name[0]"]}]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Whatever goes into an outcome comes out of it as text, and Ward accepts its own.
func TestOutcomeEscapes(t *testing.T) {
	nasty := "\"}]},\\\n\t\x00\x1f</script>\u2028\xff\U0001F600"
	b := Outcome(SeverityWarning, IssueProcessing, nasty, nasty, nasty)
	c, err := ParseResource(b, ContentOptions{})
	if err != nil || c.Type != "OperationOutcome" {
		t.Fatalf("Ward does not read its own outcome: %v\n%s", err, b)
	}
	var plain struct {
		Issue []struct {
			Details     struct{ Text string }
			Diagnostics string
			Expression  []string
		}
	}
	if err := json.Unmarshal(b, &plain); err != nil {
		t.Fatal(err)
	}
	want := "\"}]},\\\n\t\x00\x1f</script>\u2028\ufffd\U0001F600"
	is := plain.Issue[0]
	if diff := cmp.Diff([]string{want, want, want}, []string{is.Details.Text, is.Diagnostics, is.Expression[0]}); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The codes are HL7's: CodeSystem issue-type and issue-severity, R4 4.0.1.
func TestIssueCodes(t *testing.T) {
	hl7 := map[IssueCode]bool{"invalid": true, "structure": true, "required": true, "value": true, "invariant": true,
		"security": true, "login": true, "unknown": true, "expired": true, "forbidden": true, "suppressed": true,
		"processing": true, "not-supported": true, "duplicate": true, "multiple-matches": true, "not-found": true,
		"deleted": true, "too-long": true, "code-invalid": true, "extension": true, "too-costly": true,
		"business-rule": true, "conflict": true, "transient": true, "lock-error": true, "no-store": true,
		"exception": true, "timeout": true, "incomplete": true, "throttled": true, "informational": true}
	for _, c := range []IssueCode{IssueInvalid, IssueStructure, IssueSecurity, IssueLogin, IssueUnknown, IssueExpired,
		IssueForbidden, IssueSuppressed, IssueProcessing, IssueNotSupported, IssueNotFound, IssueTooLong, IssueTransient,
		IssueTimeout, IssueThrottled, IssueException} {
		if !hl7[c] {
			t.Errorf("%q is not an issue type of HL7's", c)
		}
	}
}
