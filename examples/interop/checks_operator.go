package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// checkOperator uses the commands that an operator has.
func (w *world) checkOperator(ctx context.Context) {
	w.report.check("ward policy explain", func() (string, error) {
		desk, err := w.login(ctx, "ehr", "sam.desk", scopeEHR, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		a, err := w.curl(ctx, uidEHR, desk, nil, base+"/Observation/example")
		if err != nil {
			return "", err
		}
		if _, err := w.refused(ctx, a, 403, "policy"); err != nil {
			return "", err
		}
		said, err := w.ward(ctx, "policy", "explain", a.decision())
		if err != nil {
			return "", err
		}
		for _, want := range []string{"REFUSED 403", "/app/ehr", "no permit matched", "nearest", "FAILS", ".cedar:"} {
			if !strings.Contains(said, want) {
				return "", fmt.Errorf("%q is not said:\n%s", want, said)
			}
		}
		var failing string
		for line := range strings.Lines(said) {
			if strings.Contains(line, "FAILS") {
				failing = strings.Join(strings.Fields(line), " ")
				break
			}
		}
		return fmt.Sprintf("%s for sam.desk at /app/ehr: %s", a.decision(), failing), nil
	})
	w.report.check("ward status", func() (string, error) {
		said, err := w.ward(ctx, "status", "--json")
		if err != nil {
			return "", err
		}
		var s struct {
			Schema      string
			TrustDomain string `json:"trust_domain"`
			Calls       struct{ Allowed, Refused, Errors int }
			Issuers     []struct{ Issuer, State string }
			Problems    []string
		}
		if err := json.Unmarshal([]byte(said), &s); err != nil {
			return "", err
		}
		if s.Schema != "ward.status/1" || s.TrustDomain != domain || s.Calls.Allowed == 0 || s.Calls.Refused == 0 || s.Calls.Errors != 0 || len(s.Problems) > 0 || len(s.Issuers) != 1 {
			return "", errors.New(said)
		}
		return fmt.Sprintf("%d allowed, %d refused, issuer %s %s, no problems", s.Calls.Allowed, s.Calls.Refused, s.Issuers[0].Issuer, s.Issuers[0].State), nil
	})
	w.report.check("ward entries", func() (string, error) {
		said, err := w.ward(ctx, "entries")
		if err != nil {
			return "", err
		}
		for _, id := range []string{"/app/ehr", "/app/portal", "/app/scraper", "/etl/night", "/tool/auditor"} {
			if !strings.Contains(said, id) {
				return "", fmt.Errorf("%s is missing:\n%s", id, said)
			}
		}
		return "all five workloads are listed", nil
	})
	w.report.check("ward audit verify", func() (string, error) { return w.verify(ctx) })
	w.report.check("admin socket", func() (string, error) {
		a, err := w.curl(ctx, uidPortal, "", nil, "--unix-socket", w.at("run", "admin.sock"), "http://localhost/status")
		if err != nil {
			return "", err
		}
		if a.Error == "" {
			return "", fmt.Errorf("it answered %d to an application", a.Status)
		}
		return fmt.Sprintf("curl (uid %d) cannot open it", uidPortal), nil
	})
}

// verify runs `ward audit verify`, and gives its first line.
func (w *world) verify(ctx context.Context) (string, error) {
	said, err := w.ward(ctx, "audit", "verify")
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(said, "\n")
	if !strings.HasPrefix(line, "whole: ") {
		return "", errors.New(said)
	}
	return line, nil
}

// checkDrain stops ward while a reply is under way: the FHIR server is halted, so that it is; then it goes on.
func (w *world) checkDrain(ctx context.Context) {
	w.report.check("SIGTERM under a slow reply", func() (string, error) {
		lee, err := w.login(ctx, "smart-portal", "dr.lee", scopePortal, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		before, err := w.trail(ctx)
		if err != nil {
			return "", err
		}
		if err := w.fhir.signal(syscall.SIGSTOP); err != nil {
			return "", err
		}
		defer func() { _ = w.fhir.signal(syscall.SIGCONT) }()
		type result struct {
			a   answer
			err error
		}
		slow := make(chan result, 1)
		go func() {
			a, err := w.curl(ctx, uidPortal, lee, nil, base+"/Patient/example")
			slow <- result{a, err}
		}()
		under, err := w.intent(ctx, before)
		if err != nil {
			return "", err
		}
		if err := w.daemon.signal(syscall.SIGTERM); err != nil {
			return "", err
		}
		_, err = w.daemon.ready(ctx, func(line string) bool { return strings.Contains(line, `"draining`) })
		if err != nil {
			return "", err
		}
		select {
		case <-w.daemon.exited:
			return "", errors.New("ward ended under the call")
		case r := <-slow:
			return "", fmt.Errorf("the call ended early: %s", r.a.brief())
		default:
		}
		if err := w.fhir.signal(syscall.SIGCONT); err != nil {
			return "", err
		}
		r := <-slow
		if r.err != nil {
			return "", r.err
		}
		if err := r.a.allowed(200); err != nil {
			return "", err
		}
		if r.a.decision() != under {
			return "", fmt.Errorf("the answer is to %s, not to %s", r.a.decision(), under)
		}
		code, err := w.daemon.end(ctx)
		if err != nil || code != 0 {
			return "", fmt.Errorf("ward ended with %d: %w", code, err)
		}
		after, err := w.trail(ctx)
		if err != nil {
			return "", err
		}
		if last := after[under][len(after[under])-1]; last.Stage != "outcome" || !last.Complete {
			return "", fmt.Errorf("the trail ends with %s, complete %v", last.Stage, last.Complete)
		}
		return fmt.Sprintf("curl (uid %d) got all %d bytes of a call that was under way, then ward ended with 0", uidPortal, len(r.a.Body)), nil
	})
	w.report.check("start again", func() (string, error) {
		if err := w.startWard(ctx); err != nil {
			return "", err
		}
		return w.verify(ctx)
	})
}

// intent waits for a decision that was not there before and whose intent is in the trail, and gives its id.
func (w *world) intent(ctx context.Context, before map[string][]record) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		now, err := w.trail(ctx)
		if err != nil {
			return "", err
		}
		for d, records := range now {
			if before[d] == nil && records[0].Stage == "intent" {
				return d, nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", errors.New("the call does not get to the FHIR server")
		}
	}
}

// checkRollOver starts the provider again, which makes a new key: what the old one signed is worth nothing any more.
func (w *world) checkRollOver(ctx context.Context) {
	w.report.check("the provider's keys roll over", func() (string, error) {
		old, err := w.login(ctx, "smart-portal", "dr.lee", scopePortal, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		read := func(token string) (answer, error) { return w.curl(ctx, uidPortal, token, nil, base+"/Patient/example") }
		a, err := read(old)
		if err == nil {
			err = a.allowed(200)
		}
		if err != nil {
			return "", fmt.Errorf("before: %w", err)
		}
		if err := w.provider.signal(syscall.SIGTERM); err != nil {
			return "", err
		}
		if _, err := w.provider.end(ctx); err != nil {
			return "", err
		}
		if err := w.startProvider(ctx); err != nil {
			return "", err
		}
		fresh, err := w.login(ctx, "smart-portal", "dr.lee", scopePortal, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		// A key that ward does not know has it read the provider's keys again, but not at every call: strangers could
		// make it hammer the provider. So the first calls may come too early.
		first := time.Now()
		for a, err = read(fresh); err == nil && a.Status == 401 && time.Since(first) < patience; a, err = read(fresh) {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		if err == nil {
			err = a.allowed(200)
		}
		if err != nil {
			return "", fmt.Errorf("with the new key: %w", err)
		}
		waited := time.Since(first).Truncate(100 * time.Millisecond)
		if a, err = read(old); err != nil {
			return "", err
		}
		said, err := w.refused(ctx, a, 401, "token-signature")
		if err != nil {
			return "", fmt.Errorf("with the old key: %w", err)
		}
		return fmt.Sprintf("curl with a token of the new key got 200 after %s, then with one of the old key %s", waited, said), nil
	})
}

// checkTrail looks for every decision that any caller has read.
func (w *world) checkTrail(ctx context.Context) {
	w.report.check("every answered call is in the trail", func() (string, error) {
		said, err := w.missing(ctx)
		if err != nil {
			return "", err
		}
		whole, err := w.verify(ctx)
		return said + "; " + whole, err
	})
}

// missing is an error when a decision that a caller has read is not in the trail.
func (w *world) missing(ctx context.Context) (string, error) {
	trail, err := w.trail(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range w.answered {
		records := trail[d]
		if len(records) == 0 {
			return "", fmt.Errorf("the trail has no record of %s, which a caller was answered", d)
		}
	}
	return fmt.Sprintf("%d of %d", len(w.answered), len(w.answered)), nil
}
