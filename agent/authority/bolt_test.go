package authority_test

import (
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/agent/authority/storetest"
)

type boltBackend struct{ path string }

func (b *boltBackend) New(t *testing.T) authority.Store {
	b.path = filepath.Join(t.TempDir(), "journal.db")
	if err := authority.NewBoltStore(b.path, spiffeid.RequireTrustDomainFromString("clinic.example")); err != nil {
		t.Fatal(err)
	}
	return b.Reopen(t)
}

func (b *boltBackend) Reopen(t *testing.T) authority.Store {
	s, err := authority.OpenBoltStore(b.path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBoltStore(t *testing.T) { storetest.Run(t, new(boltBackend)) }

func TestBoltStoreIsNeverReplaced(t *testing.T) {
	b := new(boltBackend)
	b.New(t).Close()
	if err := authority.NewBoltStore(b.path, spiffeid.RequireTrustDomainFromString("clinic.example")); err == nil {
		t.Error("a journal was replaced")
	}
}
