// Package api serves the SPIFFE Workload API over gRPC on a local listener: any process that can reach the
// socket asks who it is, and is told what the kernel and the entries say.
//
//	security header → peer process (pinned at accept) → workload.Service.Watch → encode → stream
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/wardmesh/ward/workload"
)

// Watcher answers who a process is. Implemented by *workload.Service.
type Watcher interface {
	Watch(ctx context.Context, p workload.Process, want workload.Want, send func(workload.Update) error) error
}

// Options is what a Server is made of. Watcher, Pin and Registerer are required.
type Options struct {
	Watcher    Watcher
	Pin        Pinner
	Registerer prometheus.Registerer
	Limits     Limits
}

// Server is the Workload API on one or more listeners.
type Server struct {
	grpc    *grpc.Server
	health  *health.Server
	o       Options
	tenants *tenants
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

const (
	header    = "workload.spiffe.io" // WEP §3
	mebibyte  = 1 << 20
	handshake = 5 * time.Second // from accept to the HTTP/2 preface
)

// errStopping is the cause with which streams are cancelled at Shutdown.
var errStopping = errors.New("the agent is shutting down")

// New makes a server that answers Unavailable until SetReady.
func New(o Options) (*Server, error) {
	if o.Watcher == nil || o.Pin == nil || o.Registerer == nil {
		return nil, errors.New("workload api: a watcher, a pinner and a registerer are all needed")
	}
	limits, err := o.Limits.filled()
	if err != nil {
		return nil, err
	}
	o.Limits = limits
	s := &Server{o: o, tenants: newTenants(limits), health: health.NewServer()}
	if s.metrics, err = newMetrics(o.Registerer, s.tenants); err != nil {
		return nil, err
	}
	s.draining, s.drain = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(
		// WEP §3.1, §5: neither TLS nor credentials are asked of the client.
		grpc.Creds(&pinning{server: s}),
		grpc.InTapHandle(s.gate),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ConnectionTimeout(handshake),
		grpc.MaxConcurrentStreams(uint32(limits.StreamsPerConn)),
		grpc.MaxHeaderListSize(16<<10),
		grpc.MaxRecvMsgSize(64<<10),
		grpc.MaxSendMsgSize(4*mebibyte), // what gRPC clients accept unless told otherwise
		// Messages are few and small: without this each connection would keep a buffer of 32 KiB.
		grpc.ReadBufferSize(2<<10),
		grpc.StaticStreamWindowSize(64<<10),
		grpc.StaticConnWindowSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	spiffe.RegisterSpiffeWorkloadAPIServer(s.grpc, &handler{watcher: o.Watcher})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc) // WEP §7
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Serve accepts connections until Shutdown, and then returns nil. It closes the listener. Several may run at
// once.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(&listener{Listener: l})
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

// Shutdown ends every stream with Unavailable, and returns when all connections and handlers are gone. Those
// that are not when ctx ends are cut.
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

// gate runs before a stream comes into being, whatever its method, unknown ones included.
func (s *Server) gate(ctx context.Context, info *tap.Info) (context.Context, error) {
	// WEP §3: every request MUST include the key with the value `true`, case-sensitive; §6: otherwise MUST
	// respond with InvalidArgument. HTTP/2 has lower-cased the key, never the value.
	if v := info.Header.Get(header); len(v) != 1 || v[0] != "true" {
		return ctx, status.Error(codes.InvalidArgument, "the request lacks the metadata workload.spiffe.io: true")
	}
	switch s.state.Load() { // WEP §6: Unavailable while initializing or shedding load
	case ready:
		return ctx, nil
	case starting:
		return ctx, status.Error(codes.Unavailable, "the agent is starting; retry")
	}
	return ctx, status.Error(codes.Unavailable, errStopping.Error())
}

// stream wraps every streaming call.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, leave, err := s.enter(ss.Context())
	if err != nil {
		return s.count(info.FullMethod, err)
	}
	defer leave()
	err = next(srv, &callStream{ServerStream: ss, ctx: ctx})
	if status.Code(err) == codes.Canceled && context.Cause(ctx) == errStopping {
		err = status.Error(codes.Unavailable, errStopping.Error())
	}
	return s.count(info.FullMethod, err)
}

// unary wraps every other call.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, s.count(info.FullMethod, err)
	}
	defer leave()
	reply, err := next(ctx, req)
	return reply, s.count(info.FullMethod, err)
}

// enter charges the call to its user and ties its context to the connection and to Shutdown.
func (s *Server) enter(ctx context.Context) (context.Context, func(), error) {
	p, err := peerOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !s.tenants.openStream(p.uid) {
		// WEP §6: load shedding is Unavailable.
		return nil, nil, status.Error(codes.Unavailable, "too many open streams for this user; retry")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })
	return ctx, func() {
		unhook()
		cancel(nil)
		s.tenants.closeStream(p.uid)
	}, nil
}

func (s *Server) count(method string, err error) error {
	s.metrics.calls.WithLabelValues(method, status.Code(err).String()).Inc()
	return err
}

// callStream is a stream with the context of enter.
type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (c *callStream) Context() context.Context { return c.ctx }
