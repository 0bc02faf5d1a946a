package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// answer is what an application got.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
	Error  string // when there was no answer
}

func (a answer) decision() string { return a.Header.Get("Ward-Decision") }

// resource is the little that the checks read of a FHIR resource.
type resource struct {
	ResourceType string `json:"resourceType"`
	ID           string `json:"id"`
	Meta         struct {
		VersionID string `json:"versionId"`
	} `json:"meta"`
	Type    string `json:"type"`
	Subject struct {
		Reference string `json:"reference"`
	} `json:"subject"`
	Entry []struct {
		FullURL  string   `json:"fullUrl"`
		Resource resource `json:"resource"`
	} `json:"entry"`
	Issue []struct {
		Severity    string `json:"severity"`
		Code        string `json:"code"`
		Diagnostics string `json:"diagnostics"`
	} `json:"issue"`
}

func (a answer) resource() (r resource, err error) {
	if err := json.Unmarshal(a.Body, &r); err != nil {
		return r, fmt.Errorf("the reply of %d is not JSON: %w", a.Status, err)
	}
	return r, nil
}

// kitCall is one call of fhir-kit-client's: a method of its Client and the arguments.
type kitCall map[string]any

// kit has an application that uses fhir-kit-client make calls.
func (w *world) kit(ctx context.Context, uid int, token string, calls ...kitCall) ([]answer, error) {
	in, err := json.Marshal(map[string]any{"base": base, "token": token, "calls": calls})
	if err != nil {
		return nil, err
	}
	r, err := w.run(ctx, program{uid: uid, argv: []string{w.at("bin", "node"), w.at("node", "app.mjs")}, stdin: bytes.NewReader(in)})
	if err != nil {
		return nil, err
	}
	var out []answer
	for line := range strings.Lines(r.stdout) {
		var l struct {
			Status  int
			Headers map[string]string
			Body    json.RawMessage
			Error   string
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			return nil, err
		}
		a := answer{Status: l.Status, Header: http.Header{}, Body: l.Body, Error: l.Error}
		for n, v := range l.Headers {
			a.Header.Set(n, v)
		}
		w.hear(a)
		w.report.note("fhir-kit-client (uid %d) %v: %s", uid, calls[min(len(out), len(calls)-1)], a.brief())
		out = append(out, a)
	}
	if r.code != 0 || len(out) != len(calls) {
		return nil, fmt.Errorf("the application ended with %d after %d of %d calls: %s", r.code, len(out), len(calls), strings.TrimSpace(r.stderr))
	}
	return out, nil
}

// kitOne is kit for one call.
func (w *world) kitOne(ctx context.Context, uid int, token string, call kitCall) (answer, error) {
	out, err := w.kit(ctx, uid, token, call)
	if err != nil {
		return answer{}, err
	}
	return out[0], nil
}

// curl runs curl as uid, with a token unless it is "". The token does not stand on the command line.
func (w *world) curl(ctx context.Context, uid int, token string, env []string, args ...string) (answer, error) {
	argv := []string{w.Tools.Curl, "--silent", "--show-error", "--include", "--raw", "--path-as-is", "--globoff", "--http1.1", "--max-time", "15", "--config", "-"}
	var config strings.Builder
	if token != "" {
		fmt.Fprintf(&config, "header = \"Authorization: Bearer %s\"\n", token)
	}
	r, err := w.run(ctx, program{uid: uid, argv: append(argv, args...), stdin: strings.NewReader(config.String()), env: env})
	if err != nil {
		return answer{}, err
	}
	if r.code != 0 {
		return answer{Error: strings.TrimSpace(r.stderr)}, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(r.stdout)), nil)
	if err != nil {
		return answer{}, fmt.Errorf("curl's reply: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("curl's reply: %w", err)
	}
	a := answer{Status: resp.StatusCode, Header: resp.Header, Body: body}
	w.hear(a)
	w.report.note("curl (uid %d) %s: %s", uid, strings.Join(args, " "), a.brief())
	return a, nil
}

// hear remembers that a caller was answered.
func (w *world) hear(a answer) {
	if d := a.decision(); d != "" {
		w.answered = append(w.answered, d)
	}
}

func (a answer) brief() string {
	if a.Error != "" {
		return a.Error
	}
	return fmt.Sprintf("%d %s %.120s", a.Status, a.decision(), a.Body)
}

// allowed checks that a call was answered by the FHIR server, through Ward.
func (a answer) allowed(status int) error {
	switch {
	case a.Error != "":
		return errors.New(a.Error)
	case a.Status != status:
		return fmt.Errorf("status %d instead of %d: %.300s", a.Status, status, a.Body)
	case a.decision() == "":
		return errors.New("the answer bears no Ward-Decision")
	}
	return nil
}

// record is the little that the checks read of the audit trail.
type record struct {
	Schema       string    `json:"schema"`
	Stage        string    `json:"stage"`
	Time         time.Time `json:"time"`
	Decision     string    `json:"decision"`
	Caller       string    `json:"caller"`
	User         string    `json:"user"`
	Client       string    `json:"client"`
	Effect       string    `json:"effect"`
	Cause        string    `json:"cause"`
	Detail       string    `json:"detail"`
	Policies     []string  `json:"policies"`
	Patients     []string  `json:"patients"`
	Status       int       `json:"status"`
	Complete     bool      `json:"complete"`
	Interactions []struct {
		Kind string `json:"kind"`
		Type string `json:"type"`
	} `json:"interactions"`
}

// trail reads the whole audit trail with `ward audit tail --json`, by decision.
func (w *world) trail(ctx context.Context) (map[string][]record, error) {
	r, err := w.run(ctx, program{argv: []string{w.at("bin", "ward"), "audit", "tail", "-n", "1000000", "--json"}, env: []string{"WARD_CONFIG=" + w.config()}})
	if err != nil {
		return nil, err
	}
	if r.code != 0 {
		return nil, fmt.Errorf("ward audit tail: exit %d: %s", r.code, r.stderr)
	}
	out := map[string][]record{}
	for line := range strings.Lines(r.stdout) {
		var rec record
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			return nil, err
		}
		if rec.Schema != "ward.audit/1" {
			return nil, fmt.Errorf("a record of schema %q", rec.Schema)
		}
		out[rec.Decision] = append(out[rec.Decision], rec)
	}
	return out, nil
}

// refused checks that a call was refused as it should be: an OperationOutcome that names the decision, with the
// cause in the trail, and nothing at the FHIR server unless the reply was what could not be shown.
func (w *world) refused(ctx context.Context, a answer, status int, cause string) (string, error) {
	if a.Error != "" {
		return "", errors.New(a.Error)
	}
	if a.Status != status {
		return "", fmt.Errorf("status %d instead of %d: %.300s", a.Status, status, a.Body)
	}
	d := a.decision()
	r, err := a.resource()
	switch {
	case err != nil:
		return "", err
	case d == "":
		return "", errors.New("the answer bears no Ward-Decision")
	case r.ResourceType != "OperationOutcome" || len(r.Issue) != 1 || !strings.Contains(r.Issue[0].Diagnostics, d):
		return "", fmt.Errorf("not an OperationOutcome that names its decision: %s", a.Body)
	case !strings.HasPrefix(a.Header.Get("Content-Type"), "application/fhir+json"):
		return "", fmt.Errorf("content type %q", a.Header.Get("Content-Type"))
	case status == 401 && a.Header.Get("Www-Authenticate") == "": // RFC 9110 §11.6.1
		return "", errors.New("a 401 without WWW-Authenticate")
	}
	trail, err := w.trail(ctx)
	if err != nil {
		return "", err
	}
	records := trail[d]
	if len(records) == 0 {
		return "", fmt.Errorf("the trail has no record of %s", d)
	}
	rec := records[len(records)-1]
	if rec.Cause != cause || rec.Effect != "deny" || rec.Status != status {
		return "", fmt.Errorf("the trail says %s %s %d (%s), not %s", rec.Effect, rec.Cause, rec.Status, rec.Detail, cause)
	}
	s, err := w.seen(d)
	if err != nil {
		return "", err
	}
	if s != nil && cause != "reply-outside" {
		return "", fmt.Errorf("the FHIR server saw %s %s", s.Method, s.URL)
	}
	return fmt.Sprintf("%d %s (%s), an OperationOutcome; decision %s is in the trail", status, cause, rec.Detail, d), nil
}
