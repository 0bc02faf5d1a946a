package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/workload"
)

// identity is an SVID with its bundle, parsed and verified. It is never changed.
type identity struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// valid reports whether the SVID has not ended, by the wall clock: certificates are dated in it.
func (i *identity) valid() bool { return time.Now().Before(i.end()) }

func (i *identity) end() time.Time { return i.svid.Certificates[0].NotAfter }

// identities are those that some loan holds, by the bytes that they came in. The agent lends all processes of an entry
// the same SVID: parsing and verifying it once is half the cost of a Borrow, and one copy of each key is enough. What no
// loan holds any more is not kept here.
type identities struct {
	mu    sync.Mutex
	known map[digest]weak.Pointer[identity]
}

type digest [sha256.Size]byte

func newIdentities() *identities { return &identities{known: make(map[digest]weak.Pointer[identity])} }

// digestOf covers every byte that an identity is made of, each field set off from the next.
func digestOf(s *spiffe.X509SVID) (d digest) {
	h := sha256.New()
	var size [8]byte
	for _, field := range [][]byte{[]byte(s.GetSpiffeId()), s.GetX509Svid(), s.GetX509SvidKey(), s.GetBundle()} {
		binary.BigEndian.PutUint64(size[:], uint64(len(field)))
		h.Write(size[:])
		h.Write(field)
	}
	h.Sum(d[:0])
	return d
}

// read returns the identity of id in an answer, or the default one where id is zero.
func (all *identities) read(m *spiffe.SubscribeToX509SVIDResponse, id spiffeid.ID) (*identity, error) {
	if len(m.GetSvids()) == 0 {
		return nil, unsound(errors.New("it has no SVID")) // BA §4.6, §5.2.1
	}
	s := m.GetSvids()[0] // BA §5.3: the default identity
	if !id.IsZero() {
		i := slices.IndexFunc(m.GetSvids(), func(s *spiffe.X509SVID) bool { return s.GetSpiffeId() == id.String() })
		if i < 0 { // BA §5.2.1: an SVID that is redacted is used no more
			return nil, &workload.Refusal{Err: fmt.Errorf("%w: it is no longer %s", workload.ErrNoIdentity, id)}
		}
		s = m.GetSvids()[i]
	}
	d := digestOf(s)
	all.mu.Lock()
	found := all.known[d].Value()
	all.mu.Unlock()
	if found != nil && found.valid() {
		return found, nil
	}
	made, err := parse(s)
	if err != nil {
		return nil, unsound(err)
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	if found := all.known[d].Value(); found != nil {
		return found, nil // another has been faster
	}
	all.known[d] = weak.Make(made)
	runtime.AddCleanup(made, all.forget, d)
	return made, nil
}

// forget is called when no loan holds the identity any more.
func (all *identities) forget(d digest) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.known[d].Value() == nil {
		delete(all.known, d)
	}
}

func unsound(err error) error {
	return &workload.Refusal{Err: fmt.Errorf("%w: the agent's answer is not sound: %w", workload.ErrUnavailable, err)}
}

// parse believes nothing of what it reads but what it has verified.
func parse(s *spiffe.X509SVID) (*identity, error) {
	svid, err := x509svid.ParseRaw(s.GetX509Svid(), s.GetX509SvidKey())
	if err != nil {
		return nil, err
	}
	if svid.ID.String() != s.GetSpiffeId() {
		return nil, fmt.Errorf("the SVID of %q is that of %s", s.GetSpiffeId(), svid.ID)
	}
	bundle, err := x509bundle.ParseRaw(svid.ID.TrustDomain(), s.GetBundle())
	if err != nil {
		return nil, err
	}
	if err := workload.VerifyX509(svid.Certificates, svid.ID, svid.PrivateKey.Public(), bundle, time.Now()); err != nil {
		return nil, err
	}
	return &identity{svid: svid, bundle: bundle}, nil
}
