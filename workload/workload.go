// Package workload turns what is attested of a process into the identities that it may use: entries are
// matched, SVIDs are issued and kept fresh, and whoever asked is told of every change for as long as it lives.
//
// The journey is one function, [Service.Watch]:
//
//	attest → liveness re-checked last → entries that match → SVIDs → send → wait for any change → again
//
// It serves three consumers: the SPIFFE Workload API (package workload/api), whose streams are Watches; the SPIFFE
// Broker API (package workload/broker), whose streams are Watches on behalf of a process that another one refers to
// ([Service.Lend]); and an egress proxy in the same process, which holds the identity of the process behind a connection
// with [Service.Hold].
//
// What it guards against:
//
//   - A process that has exited or replaced its program gets nothing more. Each round attests anew and ends
//     with a liveness check; between rounds the exit of the process, and a recurring check for an exec, end
//     the watch.
//   - An entry carries a boundary that an unprivileged attacker cannot take on (`unix.uid`, `systemd.unit`,
//     `launch`); [Registry.Load] refuses one that does not, whatever config let through.
//   - What the issuer returns is not believed but verified: the key that was asked for, the ID, the leaf's
//     constraints, the path to the bundle that goes out with it ([VerifyX509]).
//   - A session whose attestation has grown older than an entry allows (MaxAge) is attested anew, or ends.
//   - An expired SVID is never handed out. One that cannot be renewed is withdrawn when it ends.
//   - Private keys are made here, live in memory only, and are forgotten when nobody holds the SVID at the
//     time when it would be renewed.
//
// Two kinds of SVID exist for an entry. Its own is shared by the processes that match it. A lent one, for
// entries with Proxy set, has another key and lives 15 minutes at most: it is what the proxy uses on behalf
// of a process, and what [LentSVIDs] asks for.
//
// Standards: SPIFFE Workload API, X509-SVID and SPIFFE-ID (github.com/spiffe/spiffe/tree/main/standards).
package workload

import (
	"context"
	"crypto"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/attest"
)

// Process is a pinned process whose end can be waited for. Implemented by attest/peer,
// as agent/daemon hands them in.
type Process interface {
	attest.Process
	// Done is closed once the process has exited. An execve may close it too; Alive then says which.
	Done() <-chan struct{}
}

// Want says what a process is asked about for. The zero value is its own SVIDs.
type Want uint8

const (
	X509SVIDs   Want = iota // the SVIDs that the process itself uses
	X509Bundles             // bundles only; nothing is issued
	LentSVIDs               // short SVIDs for the proxy to use on the process's behalf; entries with Proxy only
	LentBundles             // bundles only, for the proxy to use on the process's behalf; entries with Proxy only
)

// String is the word used in logs and metrics.
func (w Want) String() string {
	switch w {
	case X509SVIDs:
		return "x509-svid"
	case X509Bundles:
		return "x509-bundle"
	case LentSVIDs:
		return "lent-svid"
	case LentBundles:
		return "lent-bundle"
	}
	return "unknown"
}

// lent reports whether somebody else is to act on the process's behalf.
func (w Want) lent() bool { return w == LentSVIDs || w == LentBundles }

// issues reports whether SVIDs are wanted.
func (w Want) issues() bool { return w == X509SVIDs || w == LentSVIDs }

// SVID is one identity of a process. It is never changed once sent. The hint is the entry's, which may be
// edited without another SVID being issued.
type SVID struct {
	Entry *Entry
	*x509svid.SVID
	ChainDER []byte // the certificates, leaf first, concatenated
	KeyDER   []byte // the private key, PKCS #8, unencrypted
}

// under returns the SVID under an edition of its entry that differs in nothing that needs another SVID.
func (s *SVID) under(e *Entry) *SVID {
	if s.Entry == e {
		return s
	}
	return &SVID{Entry: e, SVID: s.SVID, ChainDER: s.ChainDER, KeyDER: s.KeyDER}
}

// Update is the full state of a process: what it holds replaces whatever an earlier Update said.
type Update struct {
	Attestation attest.Attestation
	SVIDs       []*SVID // the default identity first; empty when only bundles are wanted
	Bundle      *x509bundle.Bundle
}

// same reports whether sending u after v would tell nothing new. When and from which facts the process was
// attested is not part of what it is told; SVIDs are the same by address, since a renewal makes a new one.
func (u Update) same(v Update) bool {
	if v.Bundle == nil || len(u.SVIDs) != len(v.SVIDs) {
		return false
	}
	for i, s := range u.SVIDs {
		if s.SVID != v.SVIDs[i].SVID || s.Entry.Hint != v.SVIDs[i].Entry.Hint {
			return false
		}
	}
	return u.Bundle == v.Bundle || u.Bundle.Equal(v.Bundle)
}

// X509Request is what the issuer needs to know to sign a leaf.
type X509Request struct {
	ID        spiffeid.ID
	PublicKey crypto.PublicKey
	DNSNames  []string
	TTL       time.Duration // 0 stands for the authority's default
}

// Issuer signs X.509-SVIDs. Implemented by agent/authority through agent/daemon; a remote authority is to be
// the second.
type Issuer interface {
	// IssueX509 returns the chain, leaf first, without the root. The leaf lives for TTL at most.
	IssueX509(ctx context.Context, r X509Request) ([]*x509.Certificate, error)
}

// Bundles is the trust domain's own X.509 bundle. Implemented like Issuer.
type Bundles interface {
	// X509Bundle returns the current bundle and a channel that is closed when another one takes its place.
	// A bundle is never changed once returned. It is nil while none is known yet.
	X509Bundle() (bundle *x509bundle.Bundle, changed <-chan struct{})
}

// Denials is the operator's deny list, consulted before anything is issued and before anything is sent.
// Implemented by the directory in agent/daemon; NoDenials is the explicit absence.
type Denials interface {
	Denied(id spiffeid.ID) bool
	// Changed returns a channel that is closed at the next change of the list after the call.
	Changed() <-chan struct{}
}

// NoDenials denies nobody.
type NoDenials struct{}

// Denied is always false.
func (NoDenials) Denied(spiffeid.ID) bool { return false }

// Changed returns nil, which is never closed.
func (NoDenials) Changed() <-chan struct{} { return nil }
