package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// The interfaces below are declared here because the journeys consume them. Each names who implements it.

// Callers says who is at the other end of a local connection and lends that caller's identity.
// Implemented in agent/daemon over attest/peer and workload; a SPIFFE Broker client is to be the second.
type Callers interface {
	// Caller pins and attests the process behind conn before a byte is read from it. It returns an error
	// that is a *Refusal when the process is known not to be entitled to anything. OfProcess adds to an error which
	// process that is.
	Caller(ctx context.Context, conn net.Conn) (Caller, error)
}

// Caller is one pinned local process and the identity lent for it.
type Caller interface {
	x509svid.Source
	x509bundle.Source
	ID() spiffeid.ID
	// Changed is closed when the SVID, the bundle or the entitlement has changed since the call.
	Changed() <-chan struct{}
	// Err is nil while the process lives, is the same program and is still entitled to its identity.
	Err() error
	// Ended is closed when the identity has ended for good, and Err says why. Callers of one ID with one Ended are the
	// same process, to which its identity is lent once.
	Ended() <-chan struct{}
	Close() error
}

// Identity is a ward's own SVID and the bundles it trusts. Implemented by workloadapi.X509Source and by the
// embedded agent.
type Identity interface {
	x509svid.Source
	x509bundle.Source
}

// Authenticator turns a request's Authorization fields into a verified token. Implemented by proxy/token.
type Authenticator interface {
	Authenticate(ctx context.Context, authorization []string) (*Token, error)
}

// Observer counts calls. Implemented by Metrics.
type Observer interface {
	// Call is told of each call once, by its last record.
	Call(hop Hop, service string, r *Record)
	// Defect is told of a panic in a journey, by its stack alone.
	Defect(hop Hop, stack []byte)
}

// Hop is a ward's side of a call.
type Hop string

// The hops of a call, in the order in which it passes them.
const (
	HopEgress  Hop = "egress"
	HopIngress Hop = "ingress"
)

// Binder says whether this workload may carry this token. Implemented by proxy/bind.
type Binder interface {
	Bind(caller spiffeid.ID, t *Token) error
}

// Decider applies policy. Implemented by proxy/policy.
type Decider interface {
	Decide(f *Facts) Decision
}

// Limiter charges a call against its caller's budget before anything costly happens. NoLimits implements it.
type Limiter interface {
	Charge(ctx context.Context, f *Facts) error
}

// Scorer estimates how unusual a call is. NoRisk implements it.
type Scorer interface {
	Score(f *Facts) Risk
}

// Recorder keeps the audit trail. Implemented by proxy/audit.
type Recorder interface {
	// Append adds r to the log. The returned Receipt's Wait returns once fdatasync has covered it.
	Append(r *Record) (Receipt, error)
}

// Receipt stands for one appended record on its way to the disk.
type Receipt interface {
	Wait(ctx context.Context) error
}

// NoLimits is the explicit absence of limits.
type NoLimits struct{}

// Charge allows every call.
func (NoLimits) Charge(context.Context, *Facts) error { return nil }

// NoRisk is the explicit absence of behaviour monitoring.
type NoRisk struct{}

// Score finds nothing unusual.
func (NoRisk) Score(*Facts) Risk { return Risk{} }

// Service is one FHIR service of the mesh: what egress needs to reach it and, on the serving host, what
// ingress needs to serve it. Values are never changed once loaded.
type Service struct {
	Name        string        // mesh name, `fhir.ehr.mesh.internal`; lower case
	ID          spiffeid.ID   // the identity that must answer
	Addresses   []string      // host:port of the ingress wards, in order of preference
	Callers     []spiffeid.ID // the workloads that may call it
	Base        string        // path under which FHIR lives, "" or `/fhir`; the same on both sides
	MaxExchange time.Duration // longest single exchange
	// ObserveUntil is the instant up to which the service is only observed (see observe.go); zero, or past: it enforces.
	ObserveUntil time.Time

	Listen   string   // host:port on which ingress listens; "" when another host serves
	Upstream Upstream // where ingress forwards to
	// Balancers hand on others' connections and say, by the PROXY protocol, whose.
	Balancers []netip.Prefix
	// MaxConnections is how many connections one caller may have open with ingress; 0 stands for
	// DefaultMaxConnections. MaxConnectionsTotal is the same of all together, DefaultMaxConnectionsTotal.
	MaxConnections, MaxConnectionsTotal int
}

// Upstream is the FHIR server behind an ingress ward.
type Upstream struct {
	Network, Address string // "unix" and a path, or "tcp" and a loopback host:port
}

// MayCall reports whether id is among the service's callers.
func (s *Service) MayCall(id spiffeid.ID) bool {
	for _, c := range s.Callers {
		if c == id {
			return true
		}
	}
	return false
}

// balancer reports whether a is one that hands on others' connections.
func (s *Service) balancer(a netip.Addr) bool {
	return slices.ContainsFunc(s.Balancers, func(p netip.Prefix) bool { return p.Contains(a) })
}

// answersTo reports whether host is how a caller names the service: its mesh name, by itself as egress writes it, or
// with the port on which ingress listens, as an HTTP client does that connects there (RFC 9110 §7.2).
func (s *Service) answersTo(host string) bool {
	name, port, found := strings.Cut(host, ":")
	if !found || name != s.Name {
		return host == s.Name
	}
	_, own, err := net.SplitHostPort(s.Listen)
	return err == nil && port == own
}

// Services finds services. Implemented by the go-memdb directory in agent/daemon.
type Services interface {
	// Service returns the service with this mesh name, or nil.
	Service(name string) *Service
}

// Denials is the operator's deny list. Implemented by the directory in agent/daemon.
type Denials interface {
	Denied(id spiffeid.ID) bool
}
