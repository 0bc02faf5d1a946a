package proxy_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

var update = flag.Bool("update", false, "write what was got into the golden files")

// Each cause, by its word, and what a caller gets for it: INTERFACE, On the wire.
var causes = map[proxy.Cause]struct {
	status    int
	code      string
	challenge string
}{
	"no-identity":      {401, "login", "SPIFFE"},
	"peer-changed":     {401, "login", "SPIFFE"},
	"identity-ending":  {503, "transient", ""},
	"deny-list":        {403, "forbidden", ""},
	"unknown-service":  {404, "not-found", ""},
	"not-a-caller":     {403, "forbidden", ""},
	"malformed":        {400, "structure", ""},
	"method":           {405, "not-supported", ""},
	"unsupported":      {501, "not-supported", ""},
	"media-type":       {415, "not-supported", ""},
	"head-too-large":   {431, "too-long", ""},
	"too-large":        {413, "too-long", ""},
	"invalid":          {422, "invalid", ""},
	"headers":          {400, "structure", ""},
	"token-missing":    {401, "login", "Bearer"},
	"token-malformed":  {401, "login", `Bearer error="invalid_token"`},
	"token-signature":  {401, "login", `Bearer error="invalid_token"`},
	"token-issuer":     {401, "login", `Bearer error="invalid_token"`},
	"token-audience":   {401, "login", `Bearer error="invalid_token"`},
	"token-expired":    {401, "expired", `Bearer error="invalid_token"`},
	"token-claims":     {401, "login", `Bearer error="invalid_token"`},
	"token-binding":    {403, "forbidden", ""},
	"issuer-down":      {503, "transient", ""},
	"scope":            {403, "forbidden", `Bearer error="insufficient_scope"`},
	"patient":          {403, "forbidden", ""},
	"limit":            {429, "throttled", ""},
	"policy":           {403, "forbidden", ""},
	"policy-error":     {403, "forbidden", ""},
	"needs-image":      {501, "not-supported", ""},
	"audit":            {503, "transient", ""},
	"upstream":         {502, "transient", ""},
	"upstream-down":    {503, "transient", ""},
	"upstream-peer":    {502, "transient", ""},
	"upstream-timeout": {504, "timeout", ""},
	"upstream-reply":   {502, "processing", ""},
	"reply-outside":    {404, "not-found", ""},
	"timeout":          {408, "timeout", ""},
	"restarting":       {503, "transient", ""},
	"internal":         {500, "exception", ""},
}

const (
	someDecision = "01JD7Q00000000000000000000"
	// secrets stand for what operators may read and callers may not.
	secrets = "policy own-department, patient 4711, threshold 70, client portal"
)

func TestEveryCauseHasItsAnswer(t *testing.T) {
	declared := declaredCauses(t)
	for _, c := range declared {
		if _, ok := causes[c]; !ok {
			t.Errorf("cause %s is not in this test's table", c)
		}
	}
	if len(declared) != len(causes) {
		t.Errorf("%d causes are declared, and %d stand in this test's table", len(declared), len(causes))
	}
	for cause, want := range causes {
		t.Run(string(cause), func(t *testing.T) {
			// However deep it is wrapped, and whatever is beneath it.
			err := fmt.Errorf("on the way: %w", proxy.Refuse(cause, "%s: %w", secrets, errors.New(secrets)))
			got := proxy.Fault(err, someDecision)
			body, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			a := &answer{status: got.Status, body: string(body)}
			if a.status != want.status || a.code(t) != want.code || got.Header.Get("WWW-Authenticate") != want.challenge {
				t.Errorf("got %d %s %q, want %v", got.Status, a.code(t), got.Header.Get("WWW-Authenticate"), want)
			}
			if got.Length != int64(len(body)) {
				t.Errorf("length %d of %d bytes", got.Length, len(body))
			}
			// RFC 9110 §15.5.2: a 401 has a challenge. §15.5.6: a 405 says what is allowed. INTERFACE: 429 and 503 say when.
			for field, needed := range map[string]bool{"Retry-After": want.status == 429 || want.status == 503, "Allow": want.status == 405,
				"WWW-Authenticate": want.challenge != ""} {
				if got.Header.Has(field) != needed {
					t.Errorf("%s: %q", field, got.Header.Get(field))
				}
			}
			for word := range strings.FieldsFuncSeq(secrets, func(r rune) bool { return r == ',' || r == ' ' }) {
				if len(word) > 1 && word != "policy" && word != "client" && contains(a.body, word) {
					t.Errorf("%q is told to the caller: %s", word, a.body)
				}
			}
			golden(t, "faults/"+string(cause), text(got.Status, got.Header, body))
		})
	}
}

// What is wrong with the form of a request is its client's own, and it is told; what lies outside a compartment is not.
func TestFHIRErrorsTellPlaces(t *testing.T) {
	for class, cause := range map[fhir.Class]proxy.Cause{
		fhir.Malformed: proxy.CauseMalformed, fhir.Unsupported: proxy.CauseUnsupported, fhir.Media: proxy.CauseMedia,
		fhir.TooLarge: proxy.CauseTooLarge, fhir.Invalid: proxy.CauseInvalid, fhir.Outside: proxy.CausePatient, fhir.Method: proxy.CauseMethod,
		fhir.Class(0): proxy.CauseInternal, fhir.Class(200): proxy.CauseInternal,
	} {
		r := proxy.FromFHIR(&fhir.Error{Class: class, Text: "the id is not one", Expression: "Patient.id"})
		if r.Cause != cause {
			t.Errorf("class %d is cause %s, want %s", class, r.Cause, cause)
		}
		body, _ := io.ReadAll(proxy.Fault(r, someDecision).Body)
		told := contains(string(body), "The id is not one (Patient.id).")
		if told != (cause != proxy.CausePatient && cause != proxy.CauseInternal) {
			t.Errorf("class %d: %s", class, body)
		}
	}
	if r := proxy.FromFHIR(io.ErrUnexpectedEOF); r.Cause != proxy.CauseInternal {
		t.Errorf("another error is cause %s", r.Cause)
	}
}

// An error that nobody has given a cause is a defect, and its words stay here.
func TestUnknownErrorIsADefect(t *testing.T) {
	for _, err := range []error{errors.New(secrets), proxy.Refuse("no-such-cause", secrets)} {
		got := proxy.Fault(err, someDecision)
		body, _ := io.ReadAll(got.Body)
		if got.Status != 500 || contains(string(body), "4711") {
			t.Errorf("%d %s", got.Status, body)
		}
	}
}

// declaredCauses reads the constants from the source, so that a new one cannot be forgotten.
func declaredCauses(t *testing.T) (out []proxy.Cause) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Cause" {
			return true
		}
		word, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, proxy.Cause(word))
		return true
	})
	return out
}

// text is a reply as it is read.
func text(status int, header interface{ Values(string) []string }, body []byte) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d %s\n", status, http.StatusText(status))
	for _, name := range []string{"Content-Type", "Cache-Control", "Ward-Decision", "WWW-Authenticate", "Retry-After", "Allow"} {
		for _, v := range header.Values(name) {
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", body)
	return b.String()
}

// golden compares got with testdata/NAME.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(name)+".txt")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An application may keep its connection for days, and its identity may be a second late.
func TestRefusalForNowEndsTheConnection(t *testing.T) {
	for cause, ends := range map[proxy.Cause]bool{proxy.CauseRestarting: true, proxy.CausePeerChanged: true, proxy.CauseMalformed: true,
		proxy.CauseNoIdentity: false, proxy.CausePolicy: false} {
		if got := proxy.Fault(proxy.Refuse(cause, "x"), "01M8").Close; got != ends {
			t.Errorf("%s: ends the connection: %t, want %t", cause, got, ends)
		}
	}
}
