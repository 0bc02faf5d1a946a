// Package api serves the SPIFFE Workload API over gRPC on a local listener: any process that can reach the
// socket asks who it is, and is told what the kernel and the entries say.
//
//	security header → peer process (pinned at accept) → workload.Service.Watch → encode → stream
//
// Up to the process, and for the bounds, it stands on package workload/endpoint, as the Broker API does.
//
// The server asks its callers for nothing but the static header against request forgery, and believes
// nothing that they say. A connection belongs to the process that opened it: it is pinned before a byte is
// read, and each stream ends with PermissionDenied when that process exits or replaces its program.
//
// Any local user can connect, so a user's share is bounded: connections, new connections per second, streams,
// and the sizes of headers and messages ([Limits]). One who owns many uids (subordinate ids in a user
// namespace) has that many shares; the bound on all connections together protects the agent's memory, not
// other users' access, against that.
//
// A refusal tells the process its own selectors and a reference. Which entries exist, or which one it nearly
// matched, is for the operator alone, who finds the reference in the log.
//
// FetchX509SVID and FetchX509Bundles are served. The JWT and WIT profiles answer Unimplemented: they are
// disabled in the sense of SPIFFE Workload API §1 and §7. Server reflection and the standard health service
// stand beside the Workload API and demand the header too.
//
// Sections in comments: WEP is the SPIFFE Workload Endpoint standard, WAPI the SPIFFE Workload API.
package api

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/endpoint"
)

// Watcher answers who a process is. Implemented by *workload.Service.
type Watcher interface {
	Watch(ctx context.Context, p workload.Process, want workload.Want, send func(workload.Update) error) error
}

// Pinner finds out which process opened a connection, without reading from it. The connection is one that
// the listener given to Serve has accepted, and its Close lets the process go: from then on the process's
// Alive returns an error. Implemented by attest/peer, as agent/daemon hands it in.
type Pinner func(net.Conn) (workload.Process, error)

// Options is what a Server is made of. Watcher, Pin and Registerer are required.
type Options struct {
	Watcher    Watcher
	Pin        Pinner
	Registerer prometheus.Registerer
	Limits     Limits
}

// Server is the Workload API on one or more listeners.
type Server struct{ *endpoint.Server }

// New makes a server that answers Unavailable until SetReady.
func New(o Options) (*Server, error) {
	if o.Watcher == nil || o.Pin == nil || o.Registerer == nil {
		return nil, errors.New("workload api: a watcher, a pinner and a registerer are all needed")
	}
	limits, err := o.Limits.filled()
	if err != nil {
		return nil, err
	}
	s, err := endpoint.New(endpoint.Options{
		Name:       "workload api",
		Header:     "workload.spiffe.io", // WEP §3
		Metrics:    "ward_workload_api",
		Refused:    "Connections closed before their first byte was read, by reason.",
		Registerer: o.Registerer,

		Pin:   func(c net.Conn) (endpoint.Process, error) { return o.Pin(c) },
		Admit: limits.admit,
		Check: func(*endpoint.Conn) error { return nil }, // Watch looks

		Streams:        endpoint.Room{Name: "streams", Most: limits.StreamsPerUID, PerUser: true},
		StreamsPerConn: limits.StreamsPerConn,
		MaxRequest:     64 << 10,
		Register: func(r grpc.ServiceRegistrar) {
			spiffe.RegisterSpiffeWorkloadAPIServer(r, &handler{watcher: o.Watcher})
		},
		GRPC: []grpc.ServerOption{
			// Messages are few and small: without this each connection would keep a buffer of 32 KiB.
			grpc.ReadBufferSize(2 << 10),
			grpc.StaticConnWindowSize(64 << 10),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		},
	})
	if err != nil {
		return nil, err
	}
	return &Server{s}, nil
}
