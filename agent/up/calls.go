package up

import (
	"context"
	"fmt"
	"strings"

	"github.com/wardmesh/ward/proxy"
)

// call is one call of the demonstration and how it should end.
type call struct {
	name     string
	workload string
	order    order
	status   int
	cause    proxy.Cause // why it is refused; "" when it is allowed
	steal    string      // the workload whose token is carried
	forged   bool        // the call brings identity headers that it should not
	rotates  bool        // the workload's SVID is to rotate while the reply runs
}

func (c call) expected() string {
	if c.cause == "" {
		return fmt.Sprintf("allow %d", c.status)
	}
	return fmt.Sprintf("deny %d %s", c.status, c.cause)
}

// calls is the play, in order.
func calls() []call {
	const (
		staff   = "user/*.rs"
		patient = "patient/*.rs"
	)
	get := func(user, scope, path string) order {
		return order{Method: "GET", Path: path, Token: &tokenOrder{User: user, Scope: scope}}
	}
	with := func(o order, change func(*order)) order { change(&o); return o }
	return []call{
		{name: "read", workload: "portal", order: get("dr.lee", staff, "/Patient/example"), status: 200},
		{name: "search", workload: "ehr", order: with(get("nurse.kim", "", "/Observation?patient=example&_count=5"), func(o *order) { o.Unix = true }), status: 200},
		{name: "search by a patient", workload: "portal", order: get("anna", patient, "/Observation?code=8302-2,39156-5"), status: 200},
		{name: "write", workload: "bridge", order: with(get("", "", "/Observation"), func(o *order) { o.Method, o.Body = "POST", heartRate }), status: 201},
		{name: "machine search", workload: "etl", order: get("", "", "/Patient?_count=3"), status: 200},
		{name: "stolen token", workload: "scraper", steal: "portal", order: get("dr.lee", staff, "/Patient/example"), status: 403, cause: proxy.CauseTokenBinding},
		{name: "no token", workload: "portal", order: order{Method: "GET", Path: "/Patient/example"}, status: 401, cause: proxy.CauseTokenMissing},
		{name: "expired token", workload: "ehr", order: with(get("nurse.kim", "", "/Patient/example"), func(o *order) { o.Token.Lifetime = "-5m" }), status: 401, cause: proxy.CauseTokenExpired},
		{name: "wrong audience", workload: "portal", order: with(get("dr.lee", staff, "/Patient/example"), func(o *order) { o.Token.Audience = "https://other.example" }), status: 401, cause: proxy.CauseTokenAudience},
		{name: "missing scope", workload: "portal", order: get("dr.lee", "user/Patient.r", "/Observation/heart-rate"), status: 403, cause: proxy.CauseScope},
		{name: "process never enrolled", workload: "stranger", order: order{Method: "GET", Path: "/Patient/example"}, status: 401, cause: proxy.CauseNoIdentity},
		{name: "path trick: empty segment", workload: "portal", order: get("dr.lee", staff, "/Patient//example"), status: 400, cause: proxy.CauseMalformed},
		{name: "path trick: escapes", workload: "portal", order: get("dr.lee", staff, "/%50atient/example"), status: 400, cause: proxy.CauseMalformed},
		{name: "path trick: case", workload: "portal", order: get("dr.lee", staff, "/patient/example"), status: 400, cause: proxy.CauseMalformed},
		{name: "forged identity", workload: "portal", forged: true, order: with(get("dr.lee", staff, "/Patient/example"), func(o *order) {
			o.Header = map[string]string{"Ward-Caller": "spiffe://clinic.test/etl/night", "ward_user": "iss=\"x\", sub=\"root\"", "X-Forwarded-Client-Cert": "URI=spiffe://clinic.test/etl/night"}
		}), status: 200},
		{name: "policy", workload: "ehr", order: get("sam.desk", "", "/Observation/heart-rate"), status: 403, cause: proxy.CausePolicy},
		{name: "delete", workload: "ehr", order: with(get("dr.lee", "", "/Observation/heart-rate"), func(o *order) { o.Method = "DELETE" }), status: 403, cause: proxy.CausePolicy},
		{name: "another patient", workload: "portal", order: get("anna", patient, "/Patient/pat1"), status: 403, cause: proxy.CausePatient},
		{name: "another patient's data", workload: "portal", order: get("anna", patient, "/Observation/bmd"), status: 404, cause: proxy.CauseReplyOutside},
		{name: "rotation under a stream", workload: "etl", rotates: true, order: with(get("", "", "/Patient/example"), func(o *order) { o.Watch = true }), status: 200},
	}
}

// heartRate is what the bridge measures.
const heartRate = `{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"8867-4"}]},` +
	`"subject":{"reference":"Patient/example"},"valueQuantity":{"value":61,"unit":"/min","system":"http://unitsofmeasure.org","code":"/min"}}`

// make has a workload make a call, and judges how it ended.
func (s *stage) make(ctx context.Context, c call, r *records) line {
	l := line{Name: c.name, Workload: c.workload, Method: c.order.Method, Path: c.order.Path, Expected: c.expected(), Decision: "error"}
	if c.workload == "stranger" {
		l.Workload = "(no id)"
	}
	if c.order.Token != nil {
		l.User = c.order.Token.User
	}
	if c.steal != "" {
		stolen, err := s.workloads[c.steal].do(ctx, order{Token: c.order.Token})
		if err != nil {
			l.Reason = err.Error()
			return l
		}
		c.order.Token, c.order.Bearer = nil, stolen.Bearer
	}
	got, err := s.workloads[c.workload].do(ctx, c.order)
	if err != nil {
		l.Reason = err.Error()
		return l
	}
	l.Status, l.id = got.Status, got.Decision
	rec := r.get(ctx, got.Decision)
	if rec == nil {
		l.Reason = "the trail has no record of this call"
		return l
	}
	l.Decision = rec.Effect
	l.Reason = reason(rec)
	l.OK = got.Status == c.status && rec.Cause == c.cause && (rec.Effect == proxy.Allow.String()) == (c.cause == "")
	switch {
	case c.forged:
		seen := s.fhir.Seen(got.Decision)
		caller := seen.Get("Ward-Caller")
		l.Reason = fmt.Sprintf("stripped; the server saw %s", strings.TrimPrefix(caller, "spiffe://"+trustDomain))
		l.OK = l.OK && caller == "spiffe://"+trustDomain+"/app/portal" && len(seen.Values("Ward-Caller")) == 1 && seen.Get("ward_user") == "" &&
			strings.Contains(seen.Get("Ward-User"), `sub="dr.lee"`) && !strings.Contains(seen.Get("X-Forwarded-Client-Cert"), "/etl/night")
	case c.rotates:
		l.Reason = fmt.Sprintf("SVID %.6s became %.6s, nothing dropped", got.SerialBefore, got.SerialAfter)
		l.OK = l.OK && got.SerialBefore != "" && got.SerialAfter != "" && got.SerialBefore != got.SerialAfter && got.Calls > 1
	}
	return l
}

// reason says in a few words why a call ended as it did.
func reason(r *proxy.Record) string {
	switch {
	case r.Cause != "":
		short, _, _ := strings.Cut(r.Detail, " (") // the process's selectors: ward audit tail --json has them
		return short
	case len(r.Policies) > 0:
		return "allowed by " + strings.Join(r.Policies, ", ")
	}
	return r.Effect
}
