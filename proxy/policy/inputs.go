package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

// inputsModel numbers the shape of inputs. Attributes are only ever added to it; a change of meaning gets a new
// number, so that old records are never explained wrongly.
const inputsModel = 1

// inputs is one call as policy sees it. Decisions rest on nothing else, so a recorded inputs decides again, offline,
// as it did at the time. It holds identifiers only: no names of people, no values of search parameters but the ids of
// patients.
type inputs struct {
	Model     int       `json:"model"`
	Principal principal `json:"principal"`
	Context   shared    `json:"context"`
	Requests  []request `json:"requests"`
}

type principal struct {
	// Name is the path of an ID in this ward's own trust domain, and the full SPIFFE ID of any other: a workload
	// of a federated domain is never mistaken for ours.
	Name string `json:"name"`
	ID   string `json:"id"`
}

// shared is what holds for every interaction of the call.
type shared struct {
	Service  string   `json:"service"`
	Client   client   `json:"client"`
	User     *user    `json:"user,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	Level    string   `json:"level,omitempty"`
	Confined bool     `json:"confined,omitempty"`
	Purpose  string   `json:"purpose,omitempty"`
	Risk     int64    `json:"risk,omitempty"`
}

type client struct {
	Issuer string `json:"issuer"`
	ID     string `json:"id"`
}

type user struct {
	Issuer   string `json:"issuer"`
	Subject  string `json:"subject"`
	FHIRUser string `json:"fhirUser,omitempty"`
	Patient  string `json:"patient,omitempty"`
}

// request is one interaction.
type request struct {
	Action   string   `json:"action"`
	Type     string   `json:"type"`
	ID       string   `json:"id,omitempty"`
	Patients []string `json:"patients,omitzero"` // of the resource; nil when nobody has looked
	Labels   []string `json:"labels,omitzero"`   // likewise
	Params   []string `json:"params,omitempty"`
	Named    []string `json:"named,omitempty"` // the patients whom the request names
	Body     *body    `json:"body,omitempty"`
}

type body struct {
	Patients    []string `json:"patients,omitempty"`
	Labels      []string `json:"labels,omitempty"`
	Carries     []string `json:"carries,omitempty"`
	Foreign     bool     `json:"foreign,omitempty"`
	Conditional bool     `json:"conditional,omitempty"`
}

// view is a call on its way through Decide: what policy sees of it, and the room that deciding takes, in one piece of
// memory.
type view struct {
	inputs
	person   user
	single   [1]request
	params   [8]string
	patients [2]string
	call     call
}

// see gives f as policy sees it. What cannot be seen whole is an error, and an error denies.
func (m *model) see(f *proxy.Facts, v *view) error {
	v.inputs = inputs{
		Model:     inputsModel,
		Principal: principal{Name: name(f.Caller, f.Self), ID: f.Caller.String()},
		Context: shared{Service: f.Service, Client: client(f.Client), Level: f.Grant.Level.String(),
			Confined: f.Grant.Confined, Purpose: f.Purpose, Risk: int64(f.Risk.Score)},
	}
	if u := f.User; u != nil {
		v.person = user{Issuer: u.Issuer, Subject: u.Subject, FHIRUser: u.FHIRUser.String(), Patient: u.Patient}
		v.Context.User, v.Context.Roles = &v.person, u.Roles
	}
	if len(f.Interactions) == 1 {
		v.Requests = v.single[:]
		if err := m.request(&v.Requests[0], f, &f.Interactions[0], v.params[:0], v.patients[:0:1], v.patients[1:1]); err != nil {
			return err
		}
		return v.check(m)
	}
	v.Requests = make([]request, len(f.Interactions))
	for i := range f.Interactions {
		if err := m.request(&v.Requests[i], f, &f.Interactions[i], nil, nil, nil); err != nil {
			return err
		}
	}
	return v.check(m)
}

func name(id, self spiffeid.ID) string {
	if !self.IsZero() && id.TrustDomain() == self.TrustDomain() {
		return id.Path()
	}
	return id.String()
}

// request fills r; params, named and own are room for its lists.
func (m *model) request(r *request, f *proxy.Facts, act *fhir.Interaction, params, named, own []string) error {
	*r = request{Action: act.Kind.String(), Type: act.Type, ID: act.ID, Params: paramNames(params, act.Params), Named: fhir.AppendPatients(named, act)}
	if r.Type == "" {
		r.Type = systemType
	}
	if m.actions[r.Action].body {
		// One body cannot be told to belong to one of several interactions.
		if f.Content == nil || len(f.Interactions) != 1 {
			return errors.New("a " + r.Action + " whose resource is not known")
		}
		r.Body = &body{Patients: f.Content.Patients, Labels: labels(f.Content.Labels), Carries: f.Content.Carries,
			Foreign: f.Content.Foreign, Conditional: f.Content.Conditional}
		r.Named = union(union(r.Named, r.Body.Patients), r.Body.Carries)
	}
	r.Patients, r.Labels = image(r, own)
	return nil
}

// image is what is known of the resource as the server holds it, nil where nobody has looked. Only four things are
// known without looking: a new resource is what its body says; the server's own capabilities concern nobody; a
// Patient is its own patient, before an update and after it; and some types cannot refer to a patient at all.
func image(r *request, own []string) (patients, labels []string) {
	switch {
	case r.Action == fhir.Create.String():
		return orEmpty(r.Body.Patients), orEmpty(r.Body.Labels)
	case r.Action == fhir.Capabilities.String():
		return []string{}, []string{}
	case r.Type == "Patient" && r.ID != "":
		return append(own, r.ID), nil
	case r.Type != systemType && !fhir.RefersToPatient(r.Type):
		return []string{}, nil
	}
	return nil, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// paramNames strips modifiers and chains (`subject:Patient.name` is subject), so that a policy which names a
// parameter cannot be passed by with a modifier.
func paramNames(names []string, params []fhir.Param) []string {
	for _, p := range params {
		n := p.Name
		if i := strings.IndexAny(n, ":."); i >= 0 {
			n = n[:i]
		}
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func labels(codings []fhir.Coding) []string {
	if len(codings) == 0 {
		return nil
	}
	out := make([]string, len(codings))
	for i, c := range codings {
		out[i] = c.System + "|" + c.Code
	}
	return out
}

func union(a, b []string) []string {
	if len(a) == 0 {
		return b
	}
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// check refuses interactions that the model does not have, whether from a journey or from a record.
func (in *inputs) check(m *model) error {
	if len(in.Requests) == 0 {
		return errors.New("a call without an interaction")
	}
	for i := range in.Requests {
		r := &in.Requests[i]
		a, ok := m.actions[r.Action]
		switch {
		case !ok || !a.typed && !a.system:
			return fmt.Errorf("an unknown interaction %q", r.Action)
		case r.Type == systemType && !a.system, r.Type != systemType && (!a.typed || !fhir.IsType(r.Type)):
			return fmt.Errorf("the interaction %s does not apply to %q", r.Action, r.Type)
		case a.body != (r.Body != nil):
			return fmt.Errorf("only create and update have a body, and always; this is %s", r.Action)
		}
	}
	return nil
}

// parseInputs reads what append wrote, and nothing else.
func (m *model) parseInputs(b []byte) (*inputs, error) {
	var in inputs
	if err := json.Unmarshal(b, &in, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("these are no recorded inputs of a decision: %w", err)
	}
	if in.Model != inputsModel {
		return nil, fmt.Errorf("the inputs are of model %d, and this ward knows model %d only", in.Model, inputsModel)
	}
	return &in, in.check(m)
}

// append adds in to b as one compact JSON object. It is written by hand because every call needs it, and must say what
// the tags of the struct say.
func (in *inputs) append(b []byte) ([]byte, error) {
	w := writer{b: b}
	w.raw(`{"model":`)
	w.int(int64(in.Model))
	w.string(`,"principal":{"name":`, in.Principal.Name)
	w.string(`,"id":`, in.Principal.ID)
	c := &in.Context
	w.string(`},"context":{"service":`, c.Service)
	w.string(`,"client":{"issuer":`, c.Client.Issuer)
	w.string(`,"id":`, c.Client.ID)
	w.raw(`}`)
	if u := c.User; u != nil {
		w.string(`,"user":{"issuer":`, u.Issuer)
		w.string(`,"subject":`, u.Subject)
		w.optional(`,"fhirUser":`, u.FHIRUser)
		w.optional(`,"patient":`, u.Patient)
		w.raw(`}`)
	}
	w.strings(`,"roles":`, c.Roles, false)
	w.optional(`,"level":`, c.Level)
	w.flag(`,"confined":true`, c.Confined)
	w.optional(`,"purpose":`, c.Purpose)
	if c.Risk != 0 {
		w.raw(`,"risk":`)
		w.int(c.Risk)
	}
	w.raw(`},"requests":[`)
	for i := range in.Requests {
		if i > 0 {
			w.raw(`,`)
		}
		in.Requests[i].append(&w)
	}
	w.raw(`]}`)
	return w.b, w.err
}

func (r *request) append(w *writer) {
	w.string(`{"action":`, r.Action)
	w.string(`,"type":`, r.Type)
	w.optional(`,"id":`, r.ID)
	w.strings(`,"patients":`, r.Patients, true)
	w.strings(`,"labels":`, r.Labels, true)
	w.strings(`,"params":`, r.Params, false)
	w.strings(`,"named":`, r.Named, false)
	if b := r.Body; b != nil {
		w.raw(`,"body":{`)
		mark := len(w.b)
		w.strings(`,"patients":`, b.Patients, false)
		w.strings(`,"labels":`, b.Labels, false)
		w.strings(`,"carries":`, b.Carries, false)
		w.flag(`,"foreign":true`, b.Foreign)
		w.flag(`,"conditional":true`, b.Conditional)
		if len(w.b) > mark {
			w.b = slices.Delete(w.b, mark, mark+1) // the first member's comma
		}
		w.raw(`}`)
	}
	w.raw(`}`)
}

// writer appends JSON; label is the raw text up to the value. The first string that is no UTF-8 is its error.
type writer struct {
	b   []byte
	err error
}

func (w *writer) raw(s string) { w.b = append(w.b, s...) }

func (w *writer) int(i int64) { w.b = strconv.AppendInt(w.b, i, 10) }

func (w *writer) string(label, s string) {
	w.raw(label)
	b, err := jsontext.AppendQuote(w.b, s)
	if err != nil && w.err == nil {
		w.err = errors.New("a verified value is not UTF-8")
	}
	w.b = b
}

func (w *writer) optional(label, s string) {
	if s != "" {
		w.string(label, s)
	}
}

func (w *writer) flag(label string, on bool) {
	if on {
		w.raw(label)
	}
}

// strings writes a list; an empty one only when it says something that its absence does not.
func (w *writer) strings(label string, list []string, empty bool) {
	if len(list) == 0 && (!empty || list == nil) {
		return
	}
	for i, s := range list {
		if i == 0 {
			w.raw(label)
			w.string(`[`, s)
		} else {
			w.string(`,`, s)
		}
	}
	if len(list) == 0 {
		w.raw(label)
		w.raw(`[`)
	}
	w.raw(`]`)
}
