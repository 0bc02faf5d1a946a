package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// The scopes that the checks ask the provider for.
const (
	scopeEHR     = "openid user/*.cruds"
	scopePortal  = "openid user/*.rs"
	scopePatient = "openid patient/*.rs"
)

// checks runs everything, in an order in which each group finds the clinic as the one before left it.
func (w *world) checks(ctx context.Context) {
	for _, group := range []func(context.Context){
		w.checkIdentity, w.checkNames, w.checkKit, w.checkCurl, w.checkRefusals, w.checkPatient, w.checkForgery,
		w.checkOperator, w.checkRollOver, w.checkDrain, w.checkTrail, w.checkPrivacy,
	} {
		if ctx.Err() != nil {
			return
		}
		group(ctx)
	}
}

// checkIdentity has foreign and own clients of the Workload API ask who they are.
func (w *world) checkIdentity(ctx context.Context) {
	type identity struct {
		ID         string   `json:"id"`
		URISANs    []string `json:"uri_sans"`
		Chain      int      `json:"chain"`
		KeyMatches bool     `json:"key_matches"`
		Domains    []string `json:"domains"`
		Roots      int      `json:"roots"`
		ContextID  string   `json:"context_id"`
		Error      string   `json:"error"`
	}
	ask := func(uid int) (got identity, err error) {
		r, err := w.run(ctx, program{uid: uid, argv: []string{w.at("python", "home", "bin", "python3"), "-IS", w.at("python", "identity.py"), w.at("python", "site")},
			env: []string{"SPIFFE_ENDPOINT_SOCKET=" + w.workloadAPI(), "LD_LIBRARY_PATH=" + w.at("python", "home", "lib")}})
		if err != nil {
			return got, err
		}
		if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
			return got, fmt.Errorf("%w: %s", err, r.stderr)
		}
		return got, nil
	}
	w.report.check("foreign Workload API client", func() (string, error) {
		got, err := ask(uidAuditor)
		want := "spiffe://" + domain + "/tool/auditor"
		switch {
		case err != nil:
			return "", err
		case got.Error != "":
			return "", errors.New(got.Error)
		case got.ID != want || got.ContextID != want || len(got.URISANs) != 1 || got.URISANs[0] != want:
			return "", fmt.Errorf("the SVID is %s (%s, %v), not %s", got.ID, got.ContextID, got.URISANs, want)
		case !got.KeyMatches || got.Chain < 2 || got.Roots < 1 || strings.Join(got.Domains, " ") != domain:
			return "", fmt.Errorf("key %v, chain of %d, %d roots, domains %v", got.KeyMatches, got.Chain, got.Roots, got.Domains)
		}
		return fmt.Sprintf("spiffe %s (uid %d) fetched X.509-SVID %s and the bundle of %s; its own chain check of %d certificates passed",
			w.What["spiffe"], uidAuditor, got.ID, domain, got.Chain), nil
	})
	w.report.check("foreign Workload API client, not enrolled", func() (string, error) {
		got, err := ask(uidStranger)
		if err != nil {
			return "", err
		}
		if !strings.Contains(got.Error, "no identity") && !strings.Contains(strings.ToLower(got.Error), "permission") {
			return "", fmt.Errorf("it got %q (%s)", got.ID, got.Error)
		}
		return fmt.Sprintf("spiffe (uid %d) got %s", uidStranger, got.Error), nil
	})
	w.report.check("ward svid x509", func() (string, error) {
		r, err := w.run(ctx, program{uid: uidEHR, argv: []string{w.at("bin", "ward"), "svid", "x509"}, env: []string{"SPIFFE_ENDPOINT_SOCKET=" + w.workloadAPI()}})
		if err != nil {
			return "", err
		}
		if r.code != 0 || !strings.HasPrefix(r.stdout, "spiffe://"+domain+"/app/ehr ") {
			return "", fmt.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		return fmt.Sprintf("uid %d is spiffe://%s/app/ehr", uidEHR, domain), nil
	})
	w.report.check("ward svid x509, not enrolled", func() (string, error) {
		r, err := w.run(ctx, program{uid: uidStranger, argv: []string{w.at("bin", "ward"), "svid", "x509"}, env: []string{"SPIFFE_ENDPOINT_SOCKET=" + w.workloadAPI()}})
		if err != nil {
			return "", err
		}
		if own := fmt.Sprintf("unix.uid: %d", uidStranger); r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, own) {
			return "", fmt.Errorf("exit %d, and its own selector %s is not named: %s%s", r.code, own, r.stdout, r.stderr)
		}
		return fmt.Sprintf("uid %d is told its own selectors: %s", uidStranger, strings.TrimSpace(r.stderr)), nil
	})
}

// checkNames asks the C library, as every application does, and tries the ways round Ward.
func (w *world) checkNames(ctx context.Context) {
	w.report.check("mesh name", func() (string, error) {
		r, err := w.run(ctx, program{uid: uidPortal, argv: []string{"getent", "ahosts", mesh}})
		if err != nil {
			return "", err
		}
		f := strings.Fields(r.stdout)
		if r.code != 0 || len(f) == 0 || f[0] != "127.77.0.1" {
			return "", fmt.Errorf("exit %d: %s", r.code, r.stdout)
		}
		return fmt.Sprintf("getent (uid %d) resolved %s to %s by Ward's DNS", uidPortal, mesh, f[0]), nil
	})
	w.report.check("names outside of the mesh", func() (string, error) {
		r, err := w.run(ctx, program{uid: uidPortal, argv: []string{"getent", "ahosts", "nobody.mesh.internal"}})
		if err != nil {
			return "", err
		}
		if r.code == 0 {
			return "", fmt.Errorf("nobody.mesh.internal is %s", r.stdout)
		}
		return "nobody.mesh.internal does not exist", nil
	})
	w.report.check("no way round", func() (string, error) {
		a, err := w.curl(ctx, uidPortal, "", nil, "--unix-socket", w.fhirSocket(), base+"/Patient/example")
		if err != nil {
			return "", err
		}
		if a.Error == "" {
			return "", fmt.Errorf("the FHIR server answered %d to curl itself", a.Status)
		}
		return fmt.Sprintf("curl (uid %d) cannot open the FHIR server's own socket", uidPortal), nil
	})
}

// checkKit lets an unmodified FHIR library do all that FHIR can do here.
func (w *world) checkKit(ctx context.Context) {
	lib := fmt.Sprintf("fhir-kit-client %s (uid %d)", w.What["fhir-kit-client"], uidEHR)
	var lee, rosa string
	w.report.check("sign-in", func() (said string, err error) {
		if lee, err = w.login(ctx, "ehr", "dr.lee", scopeEHR, w.clinic.Audience); err != nil {
			return "", err
		}
		if rosa, err = w.login(ctx, "ehr", "rosa.records", scopeEHR, w.clinic.Audience); err != nil {
			return "", err
		}
		h, c, err := claims(lee)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("oidc-provider %s gave dr.lee and rosa.records an access token each by authorization code: typ %v, aud %v, scope %q",
			w.What["oidc-provider"], h["typ"], c["aud"], c["scope"]), nil
	})
	var id, version string
	// do makes one call and lets look judge the answer.
	do := func(name, token string, call kitCall, status int, look func(resource) (string, error)) {
		w.report.check(name, func() (string, error) {
			a, err := w.kitOne(ctx, uidEHR, token, call)
			if err != nil {
				return "", err
			}
			if err := a.allowed(status); err != nil {
				return "", err
			}
			r, err := a.resource()
			if err != nil {
				return "", err
			}
			said, err := look(r)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%s through %s: %d, %s", lib, base, status, said), nil
		})
	}
	is := func(r resource, typ, id string) error {
		if r.ResourceType != typ || id != "" && r.ID != id {
			return fmt.Errorf("it is %s/%s, not %s/%s", r.ResourceType, r.ID, typ, id)
		}
		return nil
	}
	search := url.Values{"patient": {"Patient/example"}, "_count": {"5"}}
	params := map[string]string{"patient": search.Get("patient"), "_count": search.Get("_count")}
	found := func(r resource) (string, error) {
		if r.Type != "searchset" || len(r.Entry) != 5 {
			return "", fmt.Errorf("a %s of %d", r.Type, len(r.Entry))
		}
		for _, e := range r.Entry {
			if e.Resource.Subject.Reference != "Patient/example" || !strings.HasPrefix(e.FullURL, base+"/Observation/") {
				return "", fmt.Errorf("%s of %s", e.FullURL, e.Resource.Subject.Reference)
			}
		}
		return "5 Observations of Patient/example, with the mesh's URLs", nil
	}
	observation := map[string]any{"resourceType": "Observation", "status": "preliminary", "subject": map[string]any{"reference": "Patient/example"},
		"code":          map[string]any{"coding": []any{map[string]any{"system": "http://loinc.org", "code": "8867-4"}}},
		"valueQuantity": map[string]any{"value": 61, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"}}

	do("capabilities", lee, kitCall{"method": "capabilityStatement"}, 200, func(r resource) (string, error) {
		return "a CapabilityStatement", is(r, "CapabilityStatement", "")
	})
	do("capabilities without a token", "", kitCall{"method": "capabilityStatement"}, 200, func(r resource) (string, error) {
		return "a CapabilityStatement", is(r, "CapabilityStatement", "")
	})
	do("read", lee, kitCall{"method": "read", "resourceType": "Patient", "id": "example"}, 200, func(r resource) (string, error) {
		return "Patient/example", is(r, "Patient", "example")
	})
	do("search by GET", lee, kitCall{"method": "search", "resourceType": "Observation", "searchParams": params}, 200, found)
	do("search by POST", lee, kitCall{"method": "search", "resourceType": "Observation", "searchParams": params, "options": map[string]any{"postSearch": true}}, 200, found)
	do("create", lee, kitCall{"method": "create", "resourceType": "Observation", "body": observation}, 201, func(r resource) (string, error) {
		id, version = r.ID, r.Meta.VersionID
		return "Observation/" + id, is(r, "Observation", "")
	})
	do("update", lee, kitCall{"method": "update", "resourceType": "Observation", "id": id, "body": amended(observation, id)}, 200, func(r resource) (string, error) {
		if r.Meta.VersionID == version {
			return "", errors.New("the version is the old one")
		}
		return "a new version of Observation/" + id, is(r, "Observation", id)
	})
	do("vread", lee, kitCall{"method": "vread", "resourceType": "Observation", "id": id, "version": version}, 200, func(r resource) (string, error) {
		if r.Meta.VersionID != version {
			return "", fmt.Errorf("it is version %s", r.Meta.VersionID)
		}
		return "the first version of Observation/" + id, is(r, "Observation", id)
	})
	do("history", lee, kitCall{"method": "history", "resourceType": "Observation", "id": id}, 200, func(r resource) (string, error) {
		if r.Type != "history" || len(r.Entry) != 2 {
			return "", fmt.Errorf("a %s of %d", r.Type, len(r.Entry))
		}
		return "two versions", nil
	})
	w.report.check("delete by a physician", func() (string, error) {
		a, err := w.kitOne(ctx, uidEHR, lee, kitCall{"method": "delete", "resourceType": "Observation", "id": id})
		if err != nil {
			return "", err
		}
		return w.refused(ctx, a, 403, "policy")
	})
	do("delete by the records officer", rosa, kitCall{"method": "delete", "resourceType": "Observation", "id": id}, 200, func(resource) (string, error) {
		return "Observation/" + id + " is gone", nil
	})
	do("read what is gone", lee, kitCall{"method": "read", "resourceType": "Observation", "id": id}, 404, func(r resource) (string, error) {
		return "the FHIR server's own OperationOutcome", is(r, "OperationOutcome", "")
	})
}

// amended is the observation as it is put in place of the first.
func amended(o map[string]any, id string) map[string]any {
	out := map[string]any{"id": id}
	for k, v := range o {
		out[k] = v
	}
	out["status"] = "final"
	return out
}

// checkCurl comes in by each of the three doors, and as a machine.
func (w *world) checkCurl(ctx context.Context) {
	var lee, night string
	w.report.check("tokens for curl", func() (said string, err error) {
		if lee, err = w.login(ctx, "smart-portal", "dr.lee", scopePortal, w.clinic.Audience); err != nil {
			return "", err
		}
		if night, err = w.machine(ctx, "night-export", "system/*.rs", w.clinic.Audience); err != nil {
			return "", err
		}
		return "oidc-provider gave dr.lee one by authorization code and night-export one by client credentials", nil
	})
	for _, c := range []struct {
		name, token string
		uid         int
		env         []string
		args        []string
	}{
		{"curl by name", lee, uidPortal, nil, []string{base + "/Patient/example"}},
		{"curl by http_proxy", lee, uidPortal, []string{"http_proxy=http://" + egress}, []string{base + "/Patient/example"}},
		{"curl by Unix socket", lee, uidPortal, nil, []string{"--unix-socket", w.socket(), base + "/Patient/example"}},
		{"curl by Unix socket, to localhost", lee, uidPortal, nil, []string{"--unix-socket", w.socket(), "http://localhost/Patient/example"}},
		{"curl as a machine", night, uidNight, nil, []string{base + "/Patient/example"}},
	} {
		w.report.check(c.name, func() (string, error) {
			a, err := w.curl(ctx, c.uid, c.token, c.env, c.args...)
			if err != nil {
				return "", err
			}
			if err := a.allowed(200); err != nil {
				return "", err
			}
			if r, err := a.resource(); err != nil || r.ResourceType != "Patient" || r.ID != "example" {
				return "", fmt.Errorf("not Patient/example: %.200s", a.Body)
			}
			return fmt.Sprintf("curl %s (uid %d) read Patient/example, %d bytes, decision %s", w.Tools.CurlVersion, c.uid, len(a.Body), a.decision()), nil
		})
	}
}
