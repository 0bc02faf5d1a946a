// Package bind ties a user's token to the workloads that may carry it.
//
// # Why
//
// A bearer token says who the user is and which OAuth client obtained it, and nothing about who holds it now.
// Whoever steals one can use it from any process that Ward gives an identity to. So a token is accepted only
// from the workloads that its client consists of: the operator says, for each client of each issuer, which
// SPIFFE IDs may carry its tokens.
//
// # Threats
//
//   - A compromised workload replays a token that it saw or stole: refused, its SPIFFE ID is not the client's.
//   - A second issuer registers a client under a name that is taken: client ids are unique only within their
//     issuer (RFC 6749 §2.2), so the pair is the key.
//   - A client that nobody has thought of: bound to nothing, refused.
//
// What it does not stop: the client's own workload, once compromised, uses its users' live tokens.
//
// This mode, `client-map`, needs nothing of the issuer. It is the one for bearer-only SMART applications.
package bind

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
)

// maxNamed is how many workloads a refusal lists for the operator.
const maxNamed = 4

// ClientMap says which workloads may carry the tokens of one OAuth client.
type ClientMap struct {
	Issuer    string // the token's iss, exactly
	ClientID  string
	Workloads []spiffeid.ID
}

// Map binds clients to workloads. It is immutable, and safe for concurrent use. The zero Map refuses every
// token.
type Map struct {
	clients map[proxy.Client][]spiffeid.ID // sorted, without repetition
}

var _ proxy.Binder = (*Map)(nil)

// New makes a Map. It reports every fault of the input at once: a client without issuer, id or workloads, a
// workload without a SPIFFE ID, a client that is listed twice.
func New(clients []ClientMap) (*Map, error) {
	m := &Map{clients: make(map[proxy.Client][]spiffeid.ID, len(clients))}
	var errs []error
	for i, c := range clients {
		key := proxy.Client{Issuer: c.Issuer, ID: c.ClientID}
		switch _, twice := m.clients[key]; {
		case c.Issuer == "":
			errs = append(errs, fmt.Errorf("binding %d: no issuer", i))
		case c.ClientID == "":
			errs = append(errs, fmt.Errorf("binding %d: no client id", i))
		case len(c.Workloads) == 0:
			errs = append(errs, fmt.Errorf("binding %d: client %s of issuer %s has no workload", i, c.ClientID, c.Issuer))
		case slices.ContainsFunc(c.Workloads, spiffeid.ID.IsZero):
			errs = append(errs, fmt.Errorf("binding %d: client %s of issuer %s has a workload without a SPIFFE ID", i, c.ClientID, c.Issuer))
		case twice:
			errs = append(errs, fmt.Errorf("binding %d: client %s of issuer %s is bound twice; name all its workloads in one binding", i, c.ClientID, c.Issuer))
		default:
			ids := slices.Clone(c.Workloads)
			slices.SortFunc(ids, func(a, b spiffeid.ID) int { return strings.Compare(a.String(), b.String()) })
			m.clients[key] = slices.Compact(ids)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return m, nil
}

// Bind returns nil when caller may carry t, else a *proxy.Refusal.
func (m *Map) Bind(caller spiffeid.ID, t *proxy.Token) error {
	if t == nil || caller.IsZero() {
		return proxy.Refuse(proxy.CauseInternal, "a binding was asked for without a verified token and caller")
	}
	// The whole pair is the key: a client id alone means nothing outside its issuer. RFC 6749 §2.2
	ids := m.clients[t.Client]
	if len(ids) == 0 {
		return proxy.Refuse(proxy.CauseTokenBinding, "client %s of issuer %s is bound to no workload", t.Client.ID, t.Client.Issuer)
	}
	if !slices.Contains(ids, caller) {
		return proxy.Refuse(proxy.CauseTokenBinding, "token belongs to %s, carried by %s", names(ids, caller), name(caller, ids[0]))
	}
	return nil
}

// name is the path of id where other is of the same trust domain, else the whole ID.
func name(id, other spiffeid.ID) string {
	if id.TrustDomain() == other.TrustDomain() && id.Path() != "" {
		return id.Path()
	}
	return id.String()
}

func names(ids []spiffeid.ID, caller spiffeid.ID) string {
	var out []string
	for _, id := range ids[:min(len(ids), maxNamed)] {
		out = append(out, name(id, caller))
	}
	if more := len(ids) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, " or ")
}
