package policy

import (
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// call is one interaction in Cedar's terms. Building Cedar's records costs more than evaluating policies does, so a
// call builds only the attributes in needs, and its entities only when a policy looks at them; with a memory it builds
// those of its user and workload only when they are not there yet.
type call struct {
	model  *model
	in     *inputs
	req    *request
	needs  mask
	memory *memory // nil: none

	principal, resource             types.EntityUID
	principalEntity, resourceEntity types.Entity // made at the first Get
}

func (m *model) call(in *inputs, req *request, needs mask) *call {
	c := &call{}
	c.set(m, in, req, needs)
	return c
}

// set makes c the call of one interaction.
func (c *call) set(m *model, in *inputs, req *request, needs mask) {
	*c = call{model: m, in: in, req: req, needs: needs,
		principal: types.NewEntityUID(workloadType, types.String(in.Principal.Name)),
		resource:  types.NewEntityUID(m.resourceType(req.Type), types.String(req.ID))}
}

func (m *model) resourceType(name string) types.EntityType {
	if t, ok := m.types[name]; ok {
		return t
	}
	return types.EntityType(fhirPrefix + name)
}

func (c *call) request() cedar.Request {
	return cedar.Request{
		Principal: c.principal,
		Action:    types.NewEntityUID(actionType, types.String(c.req.Action)),
		Resource:  c.resource,
		Context:   c.context(),
	}
}

// Get implements types.EntityGetter.
func (c *call) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case c.principal:
		if c.principalEntity.UID != uid {
			c.principalEntity = c.workload()
		}
		return c.principalEntity, true
	case c.resource:
		if c.resourceEntity.UID != uid {
			c.resourceEntity = types.Entity{UID: uid, Attributes: c.record(c.model.resource)}
		}
		return c.resourceEntity, true
	}
	e, ok := c.model.entities[uid]
	return e, ok
}

// folders are the names in which a workload is: `/bridge/icu` is in `/bridge`, and the workloads of a federated domain
// are in `spiffe://partner.example`.
func folders(name string) types.EntityUIDSet {
	var in []types.EntityUID
	rest, prefix := name, ""
	if after, ok := strings.CutPrefix(name, "spiffe://"); ok {
		rest, prefix = after, "spiffe://"
	}
	for i := 1; i < len(rest); i++ {
		if rest[i] == '/' {
			in = append(in, types.NewEntityUID(workloadType, types.String(prefix+rest[:i])))
		}
	}
	return types.NewEntityUIDSet(in...)
}

// record builds the attributes of table that are needed and there.
func (c *call) record(table []attribute) types.Record {
	// A map of at most eight is one small block; larger ones cost twice.
	m := make(types.RecordMap, min(len(table), 8))
	for i := range table {
		if a := &table[i]; c.needs.has(a.all) {
			if v := a.value(c); v != nil {
				m[types.String(a.name)] = v
			}
		}
	}
	return types.NewRecord(m)
}

// value is nil when the attribute is absent.
func (a *attribute) value(c *call) types.Value {
	switch {
	case a.text != nil:
		if s := a.text(c); s != "" || !a.optional {
			return types.String(s)
		}
	case a.list != nil:
		if list := a.list(c); list != nil || !a.image {
			values := make([]types.Value, len(list))
			for i, s := range list {
				values[i] = types.String(s)
			}
			return types.NewSet(values...)
		}
	case a.flag != nil:
		return types.Boolean(a.flag(c))
	case a.number != nil:
		return types.Long(a.number(c))
	case a.present == nil || a.present(c):
		return c.record(a.fields)
	}
	return nil
}

// unknown is the set of attributes that nobody has looked up.
func (c *call) unknown() mask {
	var u mask
	if c.req.Patients == nil {
		u |= c.model.patients
	}
	if c.req.Labels == nil {
		u |= c.model.labels
	}
	return u
}
