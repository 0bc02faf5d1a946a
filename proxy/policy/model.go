package policy

import (
	"github.com/cedar-policy/cedar-go/types"

	"github.com/wardmesh/ward/proxy/fhir"
)

// The names that policies write.
const (
	workloadType = types.EntityType("Workload")
	actionType   = types.EntityType("Action")
	fhirPrefix   = "FHIR::"
	systemType   = "System" // the resource of a call that concerns no one type

	groupReads   = "reads"
	groupWrites  = "writes"
	groupHistory = "history"
)

// action is one thing that a call can do, or a group of them.
type action struct {
	name   string
	in     []string // the groups it belongs to; a group itself has none
	typed  bool     // applies to resources of the R4 types
	system bool     // applies to FHIR::System
	body   bool     // brings a resource: context.body is there
	doc    string
}

// actions are FHIR's interactions by FHIR's names, as [fhir.Kind] spells them.
func actions() []action {
	return []action{
		{name: groupReads, doc: "every way of reading: read, vread, search and the histories"},
		{name: groupWrites, doc: "every way of changing: create, update and delete"},
		{name: groupHistory, doc: "the histories alone"},
		{name: "capabilities", system: true, doc: "what the server can do; the only call that needs no token"},
		{name: "read", in: []string{groupReads}, typed: true, doc: "one resource, as it is now"},
		{name: "vread", in: []string{groupReads}, typed: true, doc: "one resource, as it was in one version"},
		{name: "search", in: []string{groupReads}, typed: true, system: true, doc: "all resources of a type that match the parameters"},
		{name: "history-instance", in: []string{groupReads, groupHistory}, typed: true, doc: "all versions of one resource"},
		{name: "history-type", in: []string{groupReads, groupHistory}, typed: true, doc: "all versions of all resources of a type"},
		{name: "history-system", in: []string{groupReads, groupHistory}, system: true, doc: "all versions of everything"},
		{name: "create", in: []string{groupWrites}, typed: true, body: true, doc: "a new resource; the server gives it its id"},
		{name: "update", in: []string{groupWrites}, typed: true, body: true, doc: "a resource replaced, or made under a given id"},
		{name: "delete", in: []string{groupWrites}, typed: true, doc: "a resource removed"},
	}
}

// attribute is one row of the table from which the schema, its documentation, the values that Cedar sees and the
// analysis of what a policy reads all follow.
type attribute struct {
	name     string
	typ      string // in Cedar; of a record, the name under which the schema declares it
	optional bool
	writes   bool // only in the context of actions that bring a body
	image    bool // describes the stored resource, so it can be unknown
	varies   bool // from call to call of one user
	doc      string

	// Where its value comes from: one of these. Both what Cedar sees and the key under which that is remembered follow.
	text   func(*call) string   // when optional, absent if empty
	list   func(*call) []string // of an image, absent if nil: nobody has looked
	flag   func(*call) bool
	number func(*call) int64
	fields []attribute // of a record

	present func(*call) bool // of a record; nil: it is always there

	bit mask // this attribute's own
	all mask // its own and its fields'
}

// mask is a set of attributes.
type mask uint64

func (m mask) has(o mask) bool { return m&o != 0 }

// model is what policies can speak of.
type model struct {
	actions                      map[string]action
	principal, resource, context []attribute
	patients, labels             mask // the attributes of a resource that can be unknown
	varying                      mask // those of the context that differ from call to call of one user
	body                         mask // those of them that a body brings
	ofPrincipal, ofContext       mask
	everything                   mask
	entities                     map[types.EntityUID]types.Entity // the actions, with their groups
	types                        map[string]types.EntityType      // of resources, by FHIR's names
}

func newModel() *model {
	m := &model{actions: map[string]action{}, principal: principalTable(), resource: resourceTable(),
		context: contextTable(), entities: map[types.EntityUID]types.Entity{}, types: map[string]types.EntityType{systemType: fhirPrefix + systemType}}
	for _, t := range fhir.Types() {
		m.types[t] = types.EntityType(fhirPrefix + t)
	}
	for _, a := range actions() {
		groups := make([]types.EntityUID, len(a.in))
		for i, g := range a.in {
			groups[i] = types.NewEntityUID(actionType, types.String(g))
		}
		uid := types.NewEntityUID(actionType, types.String(a.name))
		m.actions[a.name] = a
		m.entities[uid] = types.Entity{UID: uid, Parents: types.NewEntityUIDSet(groups...)}
	}
	next := mask(1)
	m.ofPrincipal = number(m.principal, &next)
	m.everything = m.ofPrincipal | number(m.resource, &next)
	m.ofContext = number(m.context, &next)
	m.everything |= m.ofContext
	for _, a := range m.context {
		if a.varies {
			m.varying |= a.all
		}
	}
	m.body = find(m.context, "body").all
	m.patients, m.labels = find(m.resource, "patients").bit, find(m.resource, "labels").bit
	return m
}

// number gives each attribute of table its bit and returns them all.
func number(table []attribute, next *mask) mask {
	var all mask
	for i := range table {
		a := &table[i]
		a.bit = *next
		*next <<= 1
		a.all = a.bit | number(a.fields, next)
		all |= a.all
	}
	return all
}

// find is the attribute of that name, or nil.
func find(table []attribute, name string) *attribute {
	for i := range table {
		if table[i].name == name {
			return &table[i]
		}
	}
	return nil
}

func principalTable() []attribute {
	return []attribute{
		{name: "id", typ: "String", doc: "the full SPIFFE ID, spiffe://clinic.example/app/portal",
			text: func(c *call) string { return c.in.Principal.ID }},
	}
}

func resourceTable() []attribute {
	return []attribute{
		{name: "id", typ: "String", optional: true, doc: "the id that the request names; absent for a search, a create, the history of a type",
			text: func(c *call) string { return c.req.ID }},
		{name: "patients", typ: "Set<String>", image: true, doc: "ids of the patients in whose compartment it is",
			list: func(c *call) []string { return c.req.Patients }},
		{name: "labels", typ: "Set<String>", image: true, doc: "its security labels, each as system|code",
			list: func(c *call) []string { return c.req.Labels }},
	}
}

func contextTable() []attribute {
	return []attribute{
		{name: "service", typ: "String", doc: "the mesh name of the service that is called",
			text: func(c *call) string { return c.in.Context.Service }},
		{name: "client", typ: "Client", doc: "the OAuth client to which the token was issued",
			fields: []attribute{
				{name: "issuer", typ: "String", doc: "of the token; empty without a token",
					text: func(c *call) string { return c.in.Context.Client.Issuer }},
				{name: "id", typ: "String", doc: "unique only within its issuer; empty without a token",
					text: func(c *call) string { return c.in.Context.Client.ID }},
			}},
		{name: "user", typ: "User", optional: true, doc: "the person for whom the call is made; absent when the client acts for itself",
			present: func(c *call) bool { return c.in.Context.User != nil },
			fields: []attribute{
				{name: "issuer", typ: "String", doc: "who vouches for the subject",
					text: func(c *call) string { return c.in.Context.User.Issuer }},
				{name: "subject", typ: "String", doc: "unique only within its issuer",
					text: func(c *call) string { return c.in.Context.User.Subject }},
				{name: "fhirUser", typ: "String", optional: true, doc: "the resource that is this person: Practitioner/lee",
					text: func(c *call) string { return c.in.Context.User.FHIRUser }},
				{name: "patient", typ: "String", optional: true, doc: "id of the patient for whom the application was launched",
					text: func(c *call) string { return c.in.Context.User.Patient }},
			}},
		{name: "roles", typ: "Set<String>", doc: "the user's roles, from the claim that the config names; empty without a user",
			list: func(c *call) []string { return c.in.Context.Roles }},
		{name: "level", typ: "String", doc: "whose access the token's scopes speak of: patient, user or system; empty for capabilities",
			text: func(c *call) string { return c.in.Context.Level }},
		{name: "confined", typ: "Bool", doc: "the scopes confine the call to the launch patient's compartment, and Ward checks the reply for it",
			flag: func(c *call) bool { return c.in.Context.Confined }},
		{name: "purpose", typ: "String", optional: true, doc: "purpose of use, an HL7 v3 ActReason code (TREAT, HPAYMT, …), when the token states one",
			text: func(c *call) string { return c.in.Context.Purpose }},
		{name: "risk", typ: "Long", doc: "how unusual the call is: 0 (nothing) to 100",
			number: func(c *call) int64 { return c.in.Context.Risk }},
		{name: "params", typ: "Set<String>", varies: true, doc: "names of the search parameters, without modifiers and chains",
			list: func(c *call) []string { return c.req.Params }},
		{name: "patients", typ: "Set<String>", varies: true, doc: "ids of the patients whom the request itself names: in its path, parameters or body",
			list: func(c *call) []string { return c.req.Named }},
		{name: "body", typ: "Body", writes: true, varies: true, doc: "the resource that a create or an update brings",
			present: func(c *call) bool { return c.req.Body != nil },
			fields: []attribute{
				{name: "patients", typ: "Set<String>", doc: "ids of the patients in whose compartment it would be",
					list: func(c *call) []string { return c.req.Body.Patients }},
				{name: "labels", typ: "Set<String>", doc: "its security labels, each as system|code",
					list: func(c *call) []string { return c.req.Body.Labels }},
				{name: "carries", typ: "Set<String>", doc: "ids of the patients in whose compartment a resource within it would be: contained, or in a Bundle",
					list: func(c *call) []string { return c.req.Body.Carries }},
				{name: "foreign", typ: "Bool", doc: "it refers to somebody who is no patient of this server by id, so patients may not be all",
					flag: func(c *call) bool { return c.req.Body.Foreign }},
				{name: "conditional", typ: "Bool", doc: "it refers to something by a search, which the server would resolve",
					flag: func(c *call) bool { return c.req.Body.Conditional }},
			}},
	}
}
