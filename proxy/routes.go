package proxy

import (
	"fmt"
	"reflect"
	"sync/atomic"

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

// LoadServices replaces the services within txn. The values must not be changed afterwards. Those that stay as they are
// keep their place, and with it the connections that were made for them.
func LoadServices(txn *memdb.Txn, services []*Service) error {
	wanted := make(map[string]*Service, len(services))
	for _, s := range services {
		wanted[s.Name] = s
	}
	it, err := txn.Get(servicesTable, "id")
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	var gone []*Service
	for v := it.Next(); v != nil; v = it.Next() {
		old := v.(*Service)
		switch next, stays := wanted[old.Name]; {
		case !stays:
			gone = append(gone, old)
		case reflect.DeepEqual(old, next):
			delete(wanted, old.Name)
		}
	}
	for _, s := range gone {
		if err := txn.Delete(servicesTable, s); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	for _, s := range wanted {
		if err := txn.Insert(servicesTable, s); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

// Routes finds services in the database.
type Routes struct {
	db   *memdb.MemDB
	seen atomic.Pointer[routes]
}

// routes is the table as it was read once.
type routes struct {
	services map[string]*Service
	changed  <-chan struct{} // closed before the transaction that changed the table has returned
}

// NewRoutes reads services from db, whose schema holds Tables.
func NewRoutes(db *memdb.MemDB) *Routes { return &Routes{db: db} }

// Service returns the service with this mesh name (lower case), or nil.
func (r *Routes) Service(name string) *Service {
	if seen := r.seen.Load(); seen != nil {
		select {
		case <-seen.changed:
		default:
			return seen.services[name]
		}
	}
	seen := r.read()
	if seen == nil {
		return nil
	}
	r.seen.Store(seen)
	return seen.services[name]
}

func (r *Routes) read() *routes {
	it, err := r.db.Txn(false).Get(servicesTable, "id")
	if err != nil {
		return nil
	}
	seen := &routes{services: map[string]*Service{}, changed: it.WatchCh()}
	for v := it.Next(); v != nil; v = it.Next() {
		s := v.(*Service)
		seen.services[s.Name] = s
	}
	return seen
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
