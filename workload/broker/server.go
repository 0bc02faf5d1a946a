package broker

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/endpoint"
)

// Lender answers for the process that a broker refers to. Implemented by *workload.Service.
type Lender interface {
	Lend(ctx context.Context, b *workload.Broker, p workload.Process, want workload.Want, send func(workload.Update) error) error
	Refuse(v workload.Visit, err error) *workload.Refusal
}

// Pinner finds out which process opened a connection, without reading from it. The connection is one that the listener
// given to Serve has accepted, and its Close lets the process go. Implemented by attest/peer, as agent/daemon hands it in.
type Pinner func(net.Conn) (workload.Process, error)

// Resolver pins the process that a reference names. An error that is an attest.ErrReference, ErrExited, ErrReplaced or
// ErrMismatch is definite; any other is a failure to look. A process that is an io.Closer is closed when the stream has
// ended. Implemented by attest/peer, as agent/daemon hands it in.
type Resolver func(context.Context, attest.Reference) (workload.Process, error)

// Options is what a Server is made of. All but the last two are required.
type Options struct {
	Lender    Lender
	Pin       Pinner
	Resolve   Resolver
	Attestors []attest.Attestor // for the brokers themselves
	// Brokers is who may borrow: a peer must show every selector of one of the sets. A set without a boundary
	// (workload.Bounded) lets nobody in. Changed is closed when the answer may have become another; nil is allowed.
	Brokers    func() (allowed []attest.Selectors, changed <-chan struct{})
	Registerer prometheus.Registerer

	Limits  Limits
	Recheck time.Duration // how often a connected broker is attested anew; 0 stands for 5 s
}

// Server is the Broker API on one or more listeners.
type Server struct {
	*endpoint.Server
	o      Options
	guards sync.WaitGroup
}

// New makes a server that answers Unavailable until SetReady.
func New(o Options) (*Server, error) {
	if o.Lender == nil || o.Pin == nil || o.Resolve == nil || len(o.Attestors) == 0 || o.Brokers == nil || o.Registerer == nil {
		return nil, errors.New("workload broker: a lender, pinner, resolver, attestors, the brokers and a registerer are all needed")
	}
	if o.Recheck < 0 {
		return nil, errors.New("workload broker: the recheck interval is negative")
	}
	if o.Recheck == 0 {
		o.Recheck = 5 * time.Second
	}
	limits, err := o.Limits.filled()
	if err != nil {
		return nil, err
	}
	o.Limits = limits
	s := &Server{o: o}
	s.Server, err = endpoint.New(endpoint.Options{
		Name:       "workload broker",
		Header:     header,
		Metrics:    "ward_broker_api",
		Refused:    "Connections that were closed, or told no, by reason.",
		Registerer: o.Registerer,

		Pin:   func(c net.Conn) (endpoint.Process, error) { return o.Pin(c) },
		Admit: s.admit,
		Check: s.check,

		Streams:        endpoint.Room{Name: "streams", Most: limits.Streams},
		StreamsPerConn: limits.Streams,
		MaxRequest:     4 << 10, // a reference
		Register: func(r grpc.ServiceRegistrar) {
			spiffe.RegisterAPIServer(r, &handler{lender: o.Lender, resolve: o.Resolve})
		},
		GRPC: []grpc.ServerOption{
			grpc.StaticConnWindowSize(1 * mebibyte),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		},
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Shutdown ends every stream with Unavailable, and returns when all connections and handlers are gone. Those that are
// not when ctx ends are cut.
func (s *Server) Shutdown(ctx context.Context) {
	s.Server.Shutdown(ctx)
	s.guards.Wait()
}
