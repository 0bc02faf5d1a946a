package daemon

import (
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

const denyTable = "deny"

// denied is one line of the deny list.
type denied struct{ ID string }

// directory is all that config defines about identities and services, in one in-memory database: one transaction
// replaces it, and every reader sees either the old state or the new one.
type directory struct{ db *memdb.MemDB }

func newDirectory() (*directory, error) {
	tables := map[string]*memdb.TableSchema{denyTable: {
		Name:    denyTable,
		Indexes: map[string]*memdb.IndexSchema{"id": {Name: "id", Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}}},
	}}
	maps.Copy(tables, workload.Tables())
	maps.Copy(tables, proxy.Tables())
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: tables})
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	return &directory{db}, nil
}

// load replaces everything with what cfg says. extra are entries that no config file can write; each takes the place
// of the one of the same name.
func (d *directory) load(cfg *config.Config, registry *workload.Registry, extra []*workload.Entry) error {
	all := slices.Clone(extra)
	for _, e := range entries(cfg) {
		if !slices.ContainsFunc(extra, func(x *workload.Entry) bool { return x.Name == e.Name }) {
			all = append(all, e)
		}
	}
	txn := d.db.Txn(true)
	defer txn.Abort()
	if err := registry.Load(txn, all, devices(cfg)); err != nil {
		return err
	}
	if err := proxy.LoadServices(txn, services(cfg)); err != nil {
		return err
	}
	if err := deny(txn, cfg.Deny); err != nil {
		return fmt.Errorf("deny list: %w", err)
	}
	txn.Commit()
	return nil
}

// deny writes the difference between the deny list and ids: who watches the list is woken by changes only.
func deny(txn *memdb.Txn, ids []spiffeid.ID) error {
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id.String()] = true
	}
	it, err := txn.Get(denyTable, "id")
	if err != nil {
		return err
	}
	var gone []*denied
	for v := it.Next(); v != nil; v = it.Next() {
		if d := v.(*denied); wanted[d.ID] {
			delete(wanted, d.ID)
		} else {
			gone = append(gone, d)
		}
	}
	for _, d := range gone {
		if err := txn.Delete(denyTable, d); err != nil {
			return err
		}
	}
	for id := range wanted {
		if err := txn.Insert(denyTable, &denied{id}); err != nil {
			return err
		}
	}
	return nil
}

// Denied reports whether the operator has denied id. A database that cannot answer denies.
func (d *directory) Denied(id spiffeid.ID) bool {
	v, err := d.db.Txn(false).First(denyTable, "id", id.String())
	return err != nil || v != nil
}

func entries(cfg *config.Config) []*workload.Entry {
	var out []*workload.Entry
	for _, w := range cfg.Workloads {
		e := &workload.Entry{Name: w.Name, ID: w.ID, DNSNames: w.SVID.DNSNames, X509TTL: w.SVID.X509TTL, Hint: w.SVID.Hint,
			Proxy: w.Proxy, MinStrength: attest.Weak, MaxAge: w.MaxAge}
		if e.X509TTL == 0 {
			e.X509TTL = cfg.Authority.X509TTL
		}
		if w.MinStrength == attest.Strong.String() {
			e.MinStrength = attest.Strong
		}
		var sel []attest.Selector
		for _, s := range w.Select {
			sel = append(sel, attest.Selector{Type: s.Type, Value: s.Value})
		}
		e.Selectors = attest.NewSelectors(sel...)
		out = append(out, e)
	}
	return out
}

func devices(cfg *config.Config) []*workload.Device {
	var out []*workload.Device
	for _, d := range cfg.Devices {
		dev := &workload.Device{ID: d.ID, Via: d.Via, Assurance: d.Assurance}
		for _, i := range d.Identifiers {
			dev.Identifiers = append(dev.Identifiers, workload.DeviceIdentifier(i))
		}
		for _, w := range d.Patients {
			dev.Patients = append(dev.Patients, workload.Window{Patient: w.Ref, From: w.From, Until: w.Until})
		}
		out = append(out, dev)
	}
	return out
}

func services(cfg *config.Config) []*proxy.Service {
	var out []*proxy.Service
	for _, s := range cfg.Services {
		svc := &proxy.Service{Name: s.Name, ID: s.ID, Addresses: s.Addresses, Callers: s.Callers, Base: s.Base, MaxExchange: s.MaxExchange,
			Upstream:  proxy.Upstream{Network: s.Upstream.Network, Address: s.Upstream.Address},
			Balancers: s.ProxyProtocol, MaxConnections: s.MaxConnections, MaxConnectionsTotal: s.MaxConnectionsTotal}
		if s.Listen.IsValid() {
			svc.Listen = s.Listen.String()
		}
		if s.Mode == config.ModeObserve {
			svc.ObserveUntil = s.ObserveUntil
		}
		out = append(out, svc)
	}
	return out
}

// Changed implements workload.Denials.
func (d *directory) Changed() <-chan struct{} {
	it, err := d.db.Txn(false).Get(denyTable, "id")
	if err != nil {
		return nil
	}
	return it.WatchCh()
}
