package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy/wire"
)

// ErrCrowded: a user's processes have as many connections open as Callers allows. One more is cut off, recorded.
var ErrCrowded = errors.New("too many connections")

// Local is what the listener knows of a local connection before a byte is read from it.
type Local struct {
	caller  Caller
	service *Service  // on a service's own socket
	process string    // which process it is, for the trail
	refused error     // why it has no identity; each of its requests gets this answer
	rests   *follower // of its identity; nil where it has none

	ending ending
}

// Server is the listener's side of the journey. On a service's own socket, service is that service; on the shared
// loopback listener it is nil and the name in the request routes.
func (e *Egress) Server(service *Service) *wire.Server {
	return &wire.Server{
		Accept: func(ctx context.Context, c net.Conn, _ *tls.ConnectionState) (any, error) {
			return e.accept(ctx, c, service)
		},
		Closed: func(conn any) {
			e.unfollow(conn.(*Local))
		},
		Whose:  func(conn any) any { return conn.(*Local).whose() },
		Handle: e.Serve,
		Refuse: func(conn any, remote string, status int) *wire.Response {
			return e.outside(conn.(*Local), remote, Refuse(statusCause(status), "not acceptable HTTP (%d)", status))
		},
		Defect: func(stack []byte) { e.Observe.Defect(HopEgress, stack) },
		// More than attestation lets any one user's processes wait for their turn (attest.Turns): a user whose
		// processes are slow to attest fills its own queue, and not the listener.
		MaxPending: 4096,
	}
}

// whose is who counts as one caller: a workload, or all processes together that have no identity.
func (l *Local) whose() spiffeid.ID {
	if l.caller == nil {
		return spiffeid.ID{}
	}
	return l.caller.ID()
}

// accept attests the process behind c. One that is known to have no identity may still speak, so that it can be told
// why it gets nowhere; one that cannot be attested soundly is cut off, recorded.
func (e *Egress) accept(ctx context.Context, c net.Conn, service *Service) (*Local, error) {
	l := &Local{service: service}
	caller, err := e.Callers.Caller(ctx, c)
	var r *Refusal
	var who *processError
	if errors.As(err, &who) {
		l.process = who.process
	}
	switch {
	case err == nil:
		l.caller = caller
		if p, ok := caller.(interface{ Process() string }); ok {
			l.process = p.Process()
		}
		e.follow(c, l)
		return l, nil
	case errors.As(err, &r):
		l.refused = r
		return l, nil
	case errors.Is(err, ErrCrowded):
		e.outside(l, c.RemoteAddr().String(), Refuse(CauseLimit, "%w", err))
		return nil, err
	}
	e.outside(l, c.RemoteAddr().String(), Refuse(CausePeerChanged, "%w", err))
	return nil, err
}

// outside records a refusal that happened before there was a request, and gives the answer.
func (e *Egress) outside(l *Local, remote string, err error) *wire.Response {
	now := e.Now()
	rec := &Record{Schema: RecordSchema, Stage: StageRefusal, Hop: HopEgress, Time: now, Decision: NewDecisionID(now), Remote: remote, Process: l.process}
	if l.caller != nil {
		rec.Caller = l.caller.ID().String()
	}
	if l.service != nil {
		rec.Service = l.service.Name
	}
	answer := refusal(rec, err, rec.Decision)
	recordRefusal(e.Audit, rec)
	e.Observe.Call(HopEgress, rec.Service, rec)
	return answer
}
