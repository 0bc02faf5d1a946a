package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// checkRefusals makes the calls that must not be served, each for one reason.
func (w *world) checkRefusals(ctx context.Context) {
	type tokens map[string]string
	get := tokens{}
	w.report.check("tokens for refusals", func() (string, error) {
		for _, t := range []struct {
			name                          string
			client, user, scope, resource string
		}{
			{"portal", "smart-portal", "dr.lee", scopePortal, w.clinic.Audience},
			{"patients only", "smart-portal", "dr.lee", "openid user/Patient.r", w.clinic.Audience},
			{"elsewhere", "smart-portal", "dr.lee", scopePortal, w.clinic.Elsewhere},
			{"opaque", "smart-portal", "dr.lee", "openid", ""},
			{"desk", "ehr", "sam.desk", scopeEHR, w.clinic.Audience},
			{"short", "kiosk", "dr.lee", "openid user/*.rs", w.clinic.Audience},
		} {
			token, err := w.login(ctx, t.client, t.user, t.scope, t.resource)
			if err != nil {
				return "", err
			}
			get[t.name] = token
		}
		if _, _, err := claims(get["opaque"]); err == nil {
			return "", errors.New("the opaque token is a JWT")
		}
		ends, err := expiry(get["short"])
		if err != nil {
			return "", err
		}
		select { // until it has ended
		case <-time.After(time.Until(ends.Add(time.Second))):
		case <-ctx.Done():
			return "", ctx.Err()
		}
		return fmt.Sprintf("oidc-provider gave six: one opaque, one for %s, one that ended at %s", w.clinic.Elsewhere, ends.UTC().Format(time.RFC3339)), nil
	})
	read := base + "/Patient/example"
	for _, c := range []struct {
		name   string
		uid    int
		token  string
		args   []string
		status int
		cause  string
	}{
		{"process not enrolled", uidStranger, get["portal"], []string{read}, 401, "no-identity"},
		{"process not enrolled, by socket", uidStranger, get["portal"], []string{"--unix-socket", w.socket(), read}, 401, "no-identity"},
		{"enrolled, but lends no identity to the proxy", uidAuditor, get["portal"], []string{read}, 401, "no-identity"},
		{"token of another workload", uidScraper, get["portal"], []string{read}, 403, "token-binding"},
		{"no token", uidPortal, "", []string{read}, 401, "token-missing"},
		{"expired token", uidPortal, get["short"], []string{read}, 401, "token-expired"},
		{"token for another service", uidPortal, get["elsewhere"], []string{read}, 401, "token-audience"},
		{"opaque token", uidPortal, get["opaque"], []string{read}, 401, "token-malformed"},
		{"altered token", uidPortal, altered(get["portal"]), []string{read}, 401, "token-signature"},
		{"two Authorization fields", uidPortal, get["portal"], []string{"--header", "Authorization: Bearer x", read}, 401, "token-malformed"},
		{"missing scope", uidPortal, get["patients only"], []string{base + "/Observation/example"}, 403, "scope"},
		{"policy", uidEHR, get["desk"], []string{base + "/Observation/example"}, 403, "policy"},
		{"unknown service", uidPortal, get["portal"], []string{"--header", "Host: other.mesh.internal", read}, 404, "unknown-service"},
		{"empty path segment", uidPortal, get["portal"], []string{base + "/Patient//example"}, 400, "malformed"},
		{"dot segments", uidPortal, get["portal"], []string{base + "/Observation/../Patient/example"}, 400, "malformed"},
		{"escaped path", uidPortal, get["portal"], []string{base + "/%50atient/example"}, 400, "malformed"},
		{"type in lower case", uidPortal, get["portal"], []string{base + "/patient/example"}, 400, "malformed"},
		{"XML", uidPortal, get["portal"], []string{read + "?_format=xml"}, 415, "media-type"},
		{"operation", uidPortal, get["portal"], []string{read + "/$everything"}, 501, "unsupported"},
		{"method of HTTP that FHIR does not have", uidPortal, get["portal"], []string{"--request", "TRACE", read}, 405, "method"},
	} {
		w.report.check(c.name, func() (string, error) {
			a, err := w.curl(ctx, c.uid, c.token, nil, c.args...)
			if err != nil {
				return "", err
			}
			said, err := w.refused(ctx, a, c.status, c.cause)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("curl (uid %d) got %s", c.uid, said), nil
		})
	}
}

// altered is a JWT whose signature no longer fits.
func altered(token string) string {
	head, sig, ok := cutLast(token, ".")
	if !ok || sig == "" {
		return token
	}
	other := byte('A')
	if sig[0] == other {
		other = 'B'
	}
	return head + "." + string(other) + sig[1:]
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// checkPatient keeps a patient's own token to that patient.
func (w *world) checkPatient(ctx context.Context) {
	var anna string
	w.report.check("a patient signs in", func() (said string, err error) {
		if anna, err = w.login(ctx, "smart-portal", "anna", scopePatient, w.clinic.Audience); err != nil {
			return "", err
		}
		_, c, err := claims(anna)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("oidc-provider says patient %v, fhirUser %v, scope %q", c["patient"], c["fhirUser"], c["scope"]), nil
	})
	w.report.check("a patient's own record", func() (string, error) {
		a, err := w.curl(ctx, uidPortal, anna, nil, base+"/Patient/example")
		if err == nil {
			err = a.allowed(200)
		}
		return fmt.Sprintf("curl (uid %d) read Patient/example", uidPortal), err
	})
	for _, c := range []struct {
		name, path string
		status     int
		cause      string
	}{
		{"another patient", "/Patient/pat1", 403, "patient"},
		{"another patient's data", "/Observation/f001", 404, "reply-outside"},
		{"a search for another patient", "/Observation?patient=Patient/f001", 403, "patient"},
	} {
		w.report.check(c.name, func() (string, error) {
			a, err := w.curl(ctx, uidPortal, anna, nil, base+c.path)
			if err != nil {
				return "", err
			}
			said, err := w.refused(ctx, a, c.status, c.cause)
			return fmt.Sprintf("curl (uid %d) got %s", uidPortal, said), err
		})
	}
	for _, c := range []struct {
		name string
		call kitCall
	}{
		{"a patient's search is narrowed", kitCall{"method": "search", "resourceType": "Observation", "searchParams": map[string]string{"status": "final"}}},
		{"a patient's search by POST is narrowed", kitCall{"method": "search", "resourceType": "Observation", "searchParams": map[string]string{"status": "final"},
			"options": map[string]any{"postSearch": true}}},
	} {
		w.report.check(c.name, func() (string, error) {
			a, err := w.kitOne(ctx, uidPortal, anna, c.call)
			if err != nil {
				return "", err
			}
			if err := a.allowed(200); err != nil {
				return "", err
			}
			r, err := a.resource()
			if err != nil {
				return "", err
			}
			for _, e := range r.Entry {
				if e.Resource.Subject.Reference != "Patient/example" {
					return "", fmt.Errorf("found Observation/%s, which is about %s", e.Resource.ID, e.Resource.Subject.Reference)
				}
			}
			s, err := w.seen(a.decision())
			if err != nil || s == nil {
				return "", errors.Join(err, errors.New("the FHIR server did not see it"))
			}
			if asked := s.URL + " " + s.Form; !strings.Contains(asked, "Patient/example") && !strings.Contains(asked, "Patient%2Fexample") {
				return "", fmt.Errorf("the FHIR server was asked %s", asked)
			}
			if len(r.Entry) == 0 {
				return "", errors.New("nothing was found")
			}
			return fmt.Sprintf("fhir-kit-client (uid %d) asked for status=final; the FHIR server was asked %s %s; all %d found are about Patient/example",
				uidPortal, s.URL, s.Form, len(r.Entry)), nil
		})
	}
}

// checkForgery sends what claims to be somebody else, and looks at what reached the FHIR server.
func (w *world) checkForgery(ctx context.Context) {
	w.report.check("forged identity headers", func() (string, error) {
		lee, err := w.login(ctx, "smart-portal", "dr.lee", scopePortal, w.clinic.Audience)
		if err != nil {
			return "", err
		}
		const forged = "etl/night"
		args := []string{base + "/Patient/example"}
		for _, name := range []string{"Ward-Caller", "ward-caller", "WARD_CALLER", "Ward-User", "Ward_User", "Ward-Purpose", "Ward-Decision", "X-Forwarded-Client-Cert",
			"X_Forwarded_Client_Cert", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Authorization-Subject", "X-Patient-id", "X-Remote-User", "X-Original-URL",
			"X-HTTP-Method-Override"} {
			args = append(args, "--header", name+": "+forged)
		}
		a, err := w.curl(ctx, uidPortal, lee, nil, args...)
		if err != nil {
			return "", err
		}
		if err := a.allowed(200); err != nil {
			return "", err
		}
		s, err := w.seen(a.decision())
		if err != nil || s == nil {
			return "", errors.Join(err, errors.New("the FHIR server did not see it"))
		}
		for name, values := range s.Headers {
			if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, forged) }) {
				return "", fmt.Errorf("the FHIR server got %s: %s", name, values)
			}
		}
		caller, user, cert := s.Headers["ward-caller"], s.Headers["ward-user"], s.Headers["x-forwarded-client-cert"]
		portal := "spiffe://" + domain + "/app/portal"
		switch {
		case !slices.Equal(caller, []string{portal}):
			return "", fmt.Errorf("Ward-Caller is %q", caller)
		case !slices.Equal(user, []string{fmt.Sprintf(`iss="%s", sub="dr.lee"`, issuer)}):
			return "", fmt.Errorf("Ward-User is %q", user)
		case len(cert) != 1 || !strings.HasSuffix(cert[0], ";URI="+portal):
			return "", fmt.Errorf("X-Forwarded-Client-Cert is %q", cert)
		}
		return fmt.Sprintf("curl (uid %d) sent 17; the FHIR server saw none of them, and Ward-Caller %s, Ward-User %s, one X-Forwarded-Client-Cert",
			uidPortal, caller[0], user[0]), nil
	})
}
