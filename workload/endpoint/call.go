package endpoint

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// gate runs before a stream comes into being, whatever its method, unknown ones included.
func (s *Server) gate(ctx context.Context, info *tap.Info) (context.Context, error) {
	// WEP §3, BE §3: every request MUST include the key with the value `true`, case-sensitive; §6: otherwise MUST respond
	// with InvalidArgument. HTTP/2 has lower-cased the key, never the value.
	if v := info.Header.Get(s.o.Header); len(v) != 1 || v[0] != "true" {
		return ctx, status.Error(codes.InvalidArgument, "the request lacks the metadata "+s.o.Header+": true")
	}
	switch s.state.Load() { // WEP §6, BE §6: Unavailable while initializing or shedding load
	case ready:
		return ctx, nil
	case starting:
		return ctx, status.Error(codes.Unavailable, "the agent is starting; retry")
	}
	return ctx, errStopping
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

// enter lets calls in whose connection has its standing, finds them a place, and ties them to that standing and to
// Shutdown.
func (s *Server) enter(ctx context.Context) (context.Context, func(), error) {
	c, err := ConnOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	if c.ctx.Err() != nil {
		return nil, nil, whyEnded(c.ctx, status.Error(codes.Unavailable, "the connection is being closed"))
	}
	if err := s.o.Check(c); err != nil {
		return nil, nil, err
	}
	uid := c.Process.UID()
	if s.places.take(uid, 0, s.o.Streams) != "" { // WEP §6, BE §6: load shedding is Unavailable
		if s.o.Streams.PerUser {
			return nil, nil, status.Error(codes.Unavailable, "too many open streams for this user; retry")
		}
		return nil, nil, status.Error(codes.Unavailable, "too many open streams; retry")
	}
	s.metrics.streams.Inc()
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return ctx, func() {
		unhook()
		cancel(nil)
		s.metrics.streams.Dec()
		s.places.leave(uid, s.o.Streams)
	}, nil
}

// whyEnded is the status with which a context has ended, and err where it was none: the client itself went away.
func whyEnded(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if _, ok := cause.(interface{ GRPCStatus() *status.Status }); ok {
		return cause
	}
	return err
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
