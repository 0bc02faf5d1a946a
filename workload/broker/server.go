package broker

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
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
	grpc    *grpc.Server
	health  *health.Server
	o       Options
	places  *places
	metrics *metrics
	state   atomic.Int32
	guards  sync.WaitGroup

	draining context.Context // ends at Shutdown, and with it every connection's and call's
	drain    context.CancelCauseFunc
	stop     sync.Once
}

const (
	starting int32 = iota
	ready
	stopping
)

const handshake = 5 * time.Second // from accept to the HTTP/2 preface

// errStopping is the cause with which streams are cancelled at Shutdown.
var errStopping = errors.New("the agent is shutting down")

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
	s := &Server{o: o, places: newPlaces(limits), health: health.NewServer()}
	if s.metrics, err = newMetrics(o.Registerer, s.places); err != nil {
		return nil, err
	}
	s.draining, s.drain = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(&pinning{server: s}),
		grpc.InTapHandle(s.gate),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ConnectionTimeout(handshake),
		grpc.MaxConcurrentStreams(uint32(limits.Streams)), //nolint:gosec // a count
		grpc.MaxHeaderListSize(16<<10),
		grpc.MaxRecvMsgSize(4<<10), // a reference
		grpc.MaxSendMsgSize(4*mebibyte),
		grpc.StaticStreamWindowSize(64<<10),
		grpc.StaticConnWindowSize(1*mebibyte),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	spiffe.RegisterAPIServer(s.grpc, &handler{lender: o.Lender, resolve: o.Resolve})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc) // BE §7
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Serve accepts connections until Shutdown, and then returns nil. It closes the listener. Several may run at once.
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
	s.guards.Wait()
}

// gate runs before a stream comes into being, whatever its method, unknown ones included.
func (s *Server) gate(ctx context.Context, info *tap.Info) (context.Context, error) {
	// BE §3: every request MUST include the key with the value `true`, case-sensitive; §6: otherwise MUST respond with
	// InvalidArgument. HTTP/2 has lower-cased the key, never the value.
	if v := info.Header.Get(header); len(v) != 1 || v[0] != "true" {
		return ctx, status.Error(codes.InvalidArgument, "the request lacks the metadata broker.spiffe.io: true")
	}
	switch s.state.Load() { // BE §6: Unavailable while initializing or shedding load
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
	if status.Code(err) == codes.Canceled {
		err = whyEnded(ctx, err)
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

// whyEnded is what a call is told whose context has ended, and err where the client itself went away.
func whyEnded(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	var r *workload.Refusal
	switch {
	case errors.As(cause, &r):
		return statusOf(r)
	case errors.Is(cause, errStopping):
		return status.Error(codes.Unavailable, errStopping.Error())
	}
	return err
}

// enter lets calls of brokers in, and ties them to the broker's standing and to Shutdown. BA §4.1.
func (s *Server) enter(ctx context.Context) (context.Context, func(), error) {
	p, err := peerOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	if p.ctx.Err() != nil {
		return nil, nil, whyEnded(p.ctx, status.Error(codes.Unavailable, "the connection is being closed"))
	}
	// The event of an exec may be on its way: each call looks.
	if err := p.process.Alive(); err != nil {
		report := workload.Visit{PID: p.process.PID(), UID: p.process.UID(), Want: workload.LentSVIDs, Broker: p.broker}
		return nil, nil, statusOf(s.o.Lender.Refuse(report, errors.Join(workload.ErrNotBroker, err)))
	}
	if !s.places.openStream() {
		return nil, nil, status.Error(codes.Unavailable, "too many open streams; retry") // BE §6
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })
	return ctx, func() {
		unhook()
		cancel(nil)
		s.places.closeStream()
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
