package token

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

func TestUser(t *testing.T) {
	iua := func(v any) members { return members{"extensions": members{"ihe_iua": v}} }
	codes := func(codes ...string) []any {
		var out []any
		for _, c := range codes {
			out = append(out, members{"system": "urn:x", "code": c})
		}
		return out
	}
	is := localIssuer(t, keyOf("es256"))
	other := localIssuer(t, keyOf("es256"))
	other.Issuer = "https://iua.example"
	other.Claims = Claims{Roles: "extensions.ihe_iua.subject_role[].code", Purpose: "extensions.ihe_iua.purpose_of_use[].code",
		Name: "extensions.ihe_iua.subject_name", Patient: "https://clinic.example/patient", FHIRUser: "profile"}
	v := stopped(t, Options{}, is, other)
	type want = proxy.User
	tests := []struct {
		name   string
		issuer string
		claims members
		want   want
		reject string // the claim that the refusal names
	}{
		{name: "bare", want: want{}},
		{name: "SMART 2.2 patient", claims: members{"patient": "123"}, want: want{Patient: "123"}},
		{name: "SMART 2.2 patient as a reference", claims: members{"patient": "Patient/a-1.2"}, want: want{Patient: "a-1.2"}},
		{name: "patient null", claims: members{"patient": jsonNull{}}, want: want{}},
		{name: "patient empty", claims: members{"patient": ""}, want: want{}},
		{name: "patient of another type", claims: members{"patient": "Group/1"}, reject: "patient"},
		{name: "patient elsewhere", claims: members{"patient": "https://evil.example/Patient/1"}, reject: "patient"},
		{name: "patient with a query", claims: members{"patient": "1?x=y"}, reject: "patient"},
		{name: "patient too long", claims: members{"patient": strings.Repeat("a", 65)}, reject: "patient"},
		{name: "patient a number", claims: members{"patient": 1}, reject: "patient"},
		{name: "two patients", claims: members{"patient": []string{"1", "2"}}, reject: "patient"},
		{name: "SMART 2.2 fhirUser relative", claims: members{"fhirUser": "Practitioner/p"}, want: want{FHIRUser: fhir.Reference{Type: "Practitioner", ID: "p"}}},
		{name: "SMART 2.2 fhirUser absolute", claims: members{"fhirUser": audience + "/Practitioner/p"}, want: want{FHIRUser: fhir.Reference{Type: "Practitioner", ID: "p"}}},
		{name: "fhirUser elsewhere", claims: members{"fhirUser": "https://fhir.other.example/Practitioner/p"}, want: want{}},
		{name: "fhirUser on a longer base", claims: members{"fhirUser": audience + "2/Practitioner/p"}, want: want{}},
		{name: "fhirUser below the base", claims: members{"fhirUser": audience + "/x/Practitioner/p"}, want: want{}},
		{name: "fhirUser with a version", claims: members{"fhirUser": "Practitioner/p/_history/1"}, want: want{}},
		{name: "fhirUser of no person", claims: members{"fhirUser": "Observation/p"}, want: want{}},
		{name: "fhirUser a number", claims: members{"fhirUser": 1}, reject: "fhirUser"},
		{name: "roles", claims: members{"realm_access": members{"roles": []string{"a", "b", "a"}}}, want: want{Roles: []string{"a", "b"}}},
		{name: "role alone", claims: members{"realm_access": members{"roles": "a"}}, want: want{Roles: []string{"a"}}},
		{name: "no roles", claims: members{"realm_access": members{}}, want: want{}},
		{name: "roles not strings", claims: members{"realm_access": members{"roles": []any{"a", 1}}}, reject: "realm_access.roles"},
		{name: "roles an object", claims: members{"realm_access": members{"roles": members{}}}, reject: "realm_access.roles"},
		{name: "way to the roles not an object", claims: members{"realm_access": []string{"roles"}}, reject: "realm_access.roles"},
		{name: "role empty", claims: members{"realm_access": members{"roles": []string{""}}}, reject: "realm_access.roles"},
		{name: "role with a line break", claims: members{"realm_access": members{"roles": []string{"a\nb"}}}, reject: "realm_access.roles"},
		{name: "too many roles", claims: members{"realm_access": members{"roles": strings.Split(strings.Repeat("a,", 64)+"b", ",")}}, reject: "realm_access.roles"},
		{name: "name", claims: members{"name": "Dr. Lée 李"}, want: want{Name: "Dr. Lée 李"}},
		{name: "name with an escape sequence", claims: members{"name": "\x1b[2J"}, want: want{}},
		{name: "name right to left", claims: members{"name": "a\u202eb"}, want: want{}},
		{name: "name too long", claims: members{"name": strings.Repeat("a", 201)}, want: want{}},
		{name: "IUA subject_role", issuer: "https://iua.example", claims: iua(members{"subject_role": codes("112247003", "46255001")}), want: want{Roles: []string{"112247003", "46255001"}}},
		{name: "IUA subject_name", issuer: "https://iua.example", claims: iua(members{"subject_name": "Lee"}), want: want{Name: "Lee"}},
		{name: "IUA subject_role not an array", issuer: "https://iua.example", claims: iua(members{"subject_role": members{"code": "x"}}), reject: "subject_role"},
		{name: "IUA subject_role of strings", issuer: "https://iua.example", claims: iua(members{"subject_role": []string{"x"}}), reject: "subject_role"},
		{name: "claim named by a URL", issuer: "https://iua.example", claims: members{"https://clinic.example/patient": "7"}, want: want{Patient: "7"}},
		{name: "standard name when another is configured", issuer: "https://iua.example", claims: members{"patient": "7", "fhirUser": "Practitioner/p"}, want: want{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.issuer == "" {
				tt.issuer = local
			}
			got, err := v.Verify(t.Context(), keyOf("es256").token(tt.issuer, time.Now(), tt.claims))
			if tt.reject != "" {
				if r := wantRefusal(t, err, proxy.CauseTokenClaims); !strings.Contains(r.Detail, tt.reject) {
					t.Errorf("%q does not name %s", r.Detail, tt.reject)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Issuer, tt.want.Subject = tt.issuer, "dr.lee"
			if d := cmp.Diff(&tt.want, got.User); d != "" {
				t.Error(d)
			}
		})
	}
}

// RFC 9068 §2.2: without a user the subject is the client.
func TestNoUser(t *testing.T) {
	v := stopped(t, Options{}, localIssuer(t, keyOf("es256")))
	got, err := v.Verify(t.Context(), keyOf("es256").token(local, time.Now(), members{"sub": "portal", "patient": "1", "name": "x"}))
	if err != nil || got.User != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestPurpose(t *testing.T) {
	v := stopped(t, Options{}, localIssuer(t, keyOf("es256")))
	for _, tt := range []struct {
		claim any
		want  string
		ok    bool
	}{
		{"TREAT", "TREAT", true},
		{[]string{"BTG"}, "BTG", true},
		{nil, "", true},
		{[]string{}, "", true},
		{"treat", "", false},
		{"PUBLHTH", "", false},
		{"MARKETING", "", false},
		{[]string{"TREAT", "HMARKT"}, "", false},
		{1, "", false},
	} {
		got, err := v.Verify(t.Context(), keyOf("es256").token(local, time.Now(), members{"purpose_of_use": tt.claim}))
		if !tt.ok {
			wantRefusal(t, err, proxy.CauseTokenClaims)
			continue
		}
		if err != nil || got.Purpose != tt.want {
			t.Errorf("%v: got %+v, %v", tt.claim, got, err)
		}
	}
}
