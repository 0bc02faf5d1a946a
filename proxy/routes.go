package proxy

import (
	"fmt"

	"github.com/hashicorp/go-memdb"
)

const servicesTable = "services"

// Tables is this tree's part of the host's in-memory database, which agent/daemon composes so that one
// transaction replaces all that config defines.
func Tables() map[string]*memdb.TableSchema {
	return map[string]*memdb.TableSchema{servicesTable: {
		Name: servicesTable,
		Indexes: map[string]*memdb.IndexSchema{
			"id": {Name: "id", Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Name"}},
		},
	}}
}

// LoadServices replaces the services within txn. The values must not be changed afterwards.
func LoadServices(txn *memdb.Txn, services []*Service) error {
	if _, err := txn.DeleteAll(servicesTable, "id"); err != nil {
		return fmt.Errorf("services: %w", err)
	}
	for _, s := range services {
		if err := txn.Insert(servicesTable, s); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

// Routes finds services in the database.
type Routes struct{ db *memdb.MemDB }

// NewRoutes reads services from db, whose schema holds Tables.
func NewRoutes(db *memdb.MemDB) *Routes { return &Routes{db} }

// Service returns the service with this mesh name (lower case), or nil.
func (r *Routes) Service(name string) *Service {
	txn := r.db.Txn(false)
	v, err := txn.First(servicesTable, "id", name)
	if err != nil || v == nil {
		return nil
	}
	return v.(*Service)
}

// Names lists the mesh names, sorted.
func (r *Routes) Names() []string {
	it, err := r.db.Txn(false).Get(servicesTable, "id")
	if err != nil {
		return nil
	}
	var names []string
	for v := it.Next(); v != nil; v = it.Next() {
		names = append(names, v.(*Service).Name)
	}
	return names
}
