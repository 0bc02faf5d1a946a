// Package endpoint is what the SPIFFE endpoints on one host have in common: a gRPC server on local sockets that knows
// which process is at the other end before it reads a byte. The Workload API and the Broker API (workload/api,
// workload/broker) stand on it, so that what keeps strangers out exists once.
//
//	accept → pin the process → admit it (places, rate, what the API asks besides) → security header → state
//	→ its connection's standing → place for the call → the API's method → counted by its status
//
// What it guards against:
//
//   - One process passing for another. The kernel says who opened the connection; nothing that is sent does. Calls end
//     before the connection is closed and the process let go, so that none outlives the pin.
//   - Requests that somebody else was made to send: each must bear the API's static header, reflection and health too.
//   - Local users crowding each other out: connections, their rate and calls under way are bounded, and so are the sizes
//     of headers and messages and the time that a peer may take to begin.
//   - Answers from a server that is not ready or no longer: both are Unavailable, on calls under way as well.
//
// What a process is entitled to, and what it is told, is the API's own affair; a connection that loses its standing is
// ended with a status of the API's making ([Conn.End]).
//
// Sections in comments: WEP is the SPIFFE Workload Endpoint standard, BE the SPIFFE Broker Endpoint, which says the same
// in the same places; WAPI is the SPIFFE Workload API, BA the SPIFFE Broker API.
package endpoint

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
)

// Process is a pinned process, as workload.Process is.
type Process interface {
	attest.Process
	Done() <-chan struct{}
}

// Options is what a Server is made of. All are required but GRPC.
type Options struct {
	Name       string // begins what errors say
	Header     string // the key of the security header
	Metrics    string // begins the metrics' names
	Refused    string // what the counter of refused connections counts
	Registerer prometheus.Registerer

	// Pin finds out which process opened a connection that was accepted, without reading from it. The connection's Close
	// lets the process go.
	Pin func(net.Conn) (Process, error)
	// Admit takes the connection's places (Conn.Place) and looks at its process. A reason is counted; an error closes the
	// connection, of which the client learns no more.
	Admit func(c *Conn) (reason string, err error)
	// Check looks before each call whether the connection may still make one. Its error is a status.
	Check func(c *Conn) error

	Streams        Room // for calls under way
	StreamsPerConn int  // of one connection; further ones wait at the client
	MaxRequest     int  // bytes of a message
	Register       func(grpc.ServiceRegistrar)
	GRPC           []grpc.ServerOption
}

// Server serves one API on one or more listeners, with server reflection and the standard health service beside it.
type Server struct {
	o       Options
	grpc    *grpc.Server
	health  *health.Server
	places  *places
	metrics *metrics
	state   atomic.Int32

	draining context.Context // ends at Shutdown, and with it every connection's and call's
	drain    context.CancelCauseFunc
	stop     sync.Once
}

const (
	starting int32 = iota
	ready
	stopping
)

// Handshake is the time from accept to the HTTP/2 preface.
const Handshake = 5 * time.Second

// errStopping is what calls are told at Shutdown. WEP §6: Unavailable.
var errStopping = status.Error(codes.Unavailable, "the agent is shutting down")

// New makes a server that answers Unavailable until SetReady.
func New(o Options) (*Server, error) {
	if o.Name == "" || o.Header == "" || o.Metrics == "" || o.Registerer == nil || o.Pin == nil || o.Admit == nil || o.Check == nil ||
		o.Streams.Most <= 0 || o.StreamsPerConn <= 0 || o.MaxRequest <= 0 || o.Register == nil {
		return nil, errors.New("workload endpoint: an option is missing")
	}
	s := &Server{o: o, health: health.NewServer(), places: newPlaces()}
	var err error
	if s.metrics, err = newMetrics(o); err != nil {
		return nil, err
	}
	s.draining, s.drain = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(append([]grpc.ServerOption{
		// WEP §3.1, §5: neither TLS nor credentials are asked of the client.
		grpc.Creds(&pinning{server: s}),
		grpc.InTapHandle(s.gate),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ConnectionTimeout(Handshake),
		grpc.MaxConcurrentStreams(uint32(o.StreamsPerConn)), //nolint:gosec // a count
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxRecvMsgSize(o.MaxRequest),
		grpc.MaxSendMsgSize(4 << 20), // what gRPC clients accept unless told otherwise
		grpc.StaticStreamWindowSize(64 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute}),
		grpc.WaitForHandlers(true),
	}, o.GRPC...)...)
	o.Register(s.grpc)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc) // WEP §7, BE §7
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Serve accepts connections until Shutdown, and then returns nil. It closes the listener. Several may run at once.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(&listener{Listener: l, server: s})
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// SetReady ends the time in which every call is answered with Unavailable.
func (s *Server) SetReady() {
	if s.state.CompareAndSwap(starting, ready) {
		s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	}
}

// Shutdown ends every stream with Unavailable, and returns when all connections and handlers are gone. Those that are
// not when ctx ends are cut.
func (s *Server) Shutdown(ctx context.Context) {
	s.stop.Do(func() {
		s.state.Store(stopping)
		s.health.Shutdown()
		s.drain(errStopping)
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}
