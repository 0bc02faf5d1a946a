package policy

import (
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// call is one interaction in Cedar's terms. Building Cedar's records costs more than evaluating policies does, so a
// call builds only the attributes in needs, and its entities only when a policy looks at them.
type call struct {
	model *model
	in    *inputs
	req   *request
	needs mask

	principal, resource             types.EntityUID
	principalEntity, resourceEntity types.Entity // made at the first Get
}

func (m *model) call(in *inputs, req *request, needs mask) *call {
	return &call{model: m, in: in, req: req, needs: needs,
		principal: types.NewEntityUID(workloadType, types.String(in.Principal.Name)),
		resource:  types.NewEntityUID(types.EntityType(fhirPrefix+req.Type), types.String(req.ID))}
}

func (c *call) request() cedar.Request {
	return cedar.Request{
		Principal: c.principal,
		Action:    types.NewEntityUID(actionType, types.String(c.req.Action)),
		Resource:  c.resource,
		Context:   c.record(c.model.context),
	}
}

// Get implements types.EntityGetter.
func (c *call) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case c.principal:
		if c.principalEntity.UID != uid {
			c.principalEntity = types.Entity{UID: uid, Parents: folders(string(uid.ID)), Attributes: c.record(c.model.principal)}
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
		a := &table[i]
		if !c.needs.has(a.all) {
			continue
		}
		var v types.Value
		switch {
		case a.value != nil:
			v = a.value(c)
		case a.present == nil || a.present(c):
			v = c.record(a.fields)
		}
		if v == nil {
			continue
		}
		m[types.String(a.name)] = v
	}
	return types.NewRecord(m)
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
