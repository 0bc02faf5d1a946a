package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// strangerLife is how long a connection that is refused stays, so that the answer can be read.
const strangerLife = 5 * time.Second

// listener accepts connections that can carry their process.
type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn ends its calls before it is closed, and with it the process is let go.
type conn struct {
	net.Conn
	once sync.Once
	gone func() // nil until the process is pinned
	err  error
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.gone != nil {
			c.gone()
		}
		c.err = c.Conn.Close()
	})
	return c.err
}

// authInfo is what gRPC carries from the handshake to each call: the broker as it was attested, and the context that
// ends with its standing.
type authInfo struct {
	process workload.Process
	broker  *workload.Broker // nil for a stranger
	ctx     context.Context
	end     context.CancelCauseFunc
	close   atomic.Pointer[time.Timer] // of a connection that is refused
}

const authType = "attested-broker"

// AuthType implements credentials.AuthInfo.
func (*authInfo) AuthType() string { return authType }

func peerOf(ctx context.Context) (*authInfo, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*authInfo); ok {
			return info, nil
		}
	}
	return nil, status.Error(codes.Internal, "the connection has no pinned process")
}

// pinning is the transport security of the endpoint: none on the wire, and the kernel's word for who is at the other
// end. BE §3.1 asks for mutual TLS; see the package's essay.
type pinning struct{ server *Server }

// ServerHandshake pins and attests the peer. It reads and writes no byte. One who is no broker gets a connection on
// which every call is refused (BE §6: PermissionDenied), for a moment.
func (h *pinning) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := h.server
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("workload broker: the connection does not come from Serve")
	}
	process, err := s.o.Pin(c.Conn)
	if err != nil {
		return nil, nil, s.turnAway("unpinned", err)
	}
	uid := process.UID()
	if reason := s.places.pace(uid); reason != "" {
		return nil, nil, s.turnAway(reason, nil)
	}
	allowed, changed := s.o.Brokers()
	leave, reason := s.places.openConn(!conceivable(allowed, uid))
	if reason != "" {
		return nil, nil, s.turnAway(reason, nil)
	}
	info := &authInfo{process: process}
	info.ctx, info.end = context.WithCancelCause(s.draining)
	c.gone = func() {
		info.end(nil)
		leave()
		if t := info.close.Load(); t != nil {
			t.Stop()
		}
	}
	info.broker, err = s.attest(info.ctx, process, allowed)
	switch {
	case err != nil && !definite(err):
		return nil, nil, s.turnAway("unread", err)
	case err != nil:
		s.metrics.refused.WithLabelValues("not-a-broker").Inc()
		s.disown(c, info, err)
		return c, info, nil
	}
	s.guards.Go(func() { s.guard(c, info, changed) })
	return c, info, nil
}

func (s *Server) turnAway(reason string, err error) error {
	s.metrics.refused.WithLabelValues(reason).Inc()
	return fmt.Errorf("workload broker: refused: %s: %w", reason, errors.Join(err, workload.ErrUnavailable))
}

// conceivable reports whether a process of this user could match one of the sets.
func conceivable(allowed []attest.Selectors, uid uint32) bool {
	user := attest.Selector{Type: attest.UnixUID, Value: strconv.FormatUint(uint64(uid), 10)}
	return slices.ContainsFunc(allowed, func(set attest.Selectors) bool {
		return !slices.ContainsFunc(set, func(one attest.Selector) bool { return one.Type == user.Type && one != user })
	})
}

// attest reads the facts about a peer and compares them with the list. BA §4.1: a strict allow-only policy.
func (s *Server) attest(ctx context.Context, p workload.Process, allowed []attest.Selectors) (*workload.Broker, error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	att, err := attest.Run(ctx, p, s.o.Attestors)
	if err != nil {
		return nil, err
	}
	b := &workload.Broker{PID: p.PID(), UID: p.UID(), Attestation: att}
	for _, set := range allowed {
		// A set that names no boundary would let anybody in who imitates the rest, and an empty one everybody.
		if workload.Bounded(set) && att.Selectors.Contains(set) && firm(set, att) {
			return b, nil
		}
	}
	return b, workload.ErrNotBroker
}

// firm reports whether the set's facts are the kernel's word: a unit that the user's own manager has named is not.
func firm(set attest.Selectors, att attest.Attestation) bool {
	return att.Strength >= attest.Weak && !slices.ContainsFunc(set, func(one attest.Selector) bool { return one.Strength() < attest.Strong })
}

// disown ends every call of the connection, now and later, and soon the connection.
func (s *Server) disown(c *conn, info *authInfo, err error) {
	if info.ctx.Err() != nil {
		return // closed meanwhile, or draining
	}
	report := workload.Visit{PID: info.process.PID(), UID: info.process.UID(), Want: workload.LentSVIDs}
	if info.broker != nil {
		report.Attestation = info.broker.Attestation
	}
	switch {
	case errors.Is(err, workload.ErrNotBroker):
	case definite(err):
		err = fmt.Errorf("%w: %w", workload.ErrNotBroker, err)
	default:
		err = fmt.Errorf("%w: the facts about the broker could not be read: %w", workload.ErrUnavailable, err)
	}
	info.end(s.o.Lender.Refuse(report, err))
	info.close.Store(time.AfterFunc(strangerLife, func() { _ = c.Close() }))
}

// definite reports whether a peer is known not to be a broker, rather than not known.
func definite(err error) bool {
	for _, e := range []error{workload.ErrNotBroker, attest.ErrExited, attest.ErrReplaced, attest.ErrMismatch} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// guard sees to it that a broker is still one, until its connection is closed.
func (s *Server) guard(c *conn, info *authInfo, changed <-chan struct{}) {
	tick := time.NewTicker(s.o.Recheck)
	defer tick.Stop()
	for {
		select {
		case <-info.ctx.Done():
			return
		case <-info.process.Done():
			err := info.process.Alive()
			if err == nil {
				err = attest.ErrExited
			}
			s.disown(c, info, err)
			return
		case <-changed:
		case <-tick.C:
		}
		var allowed []attest.Selectors
		allowed, changed = s.o.Brokers()
		if _, err := s.attest(info.ctx, info.process, allowed); err != nil {
			s.disown(c, info, err)
			return
		}
	}
}

// ClientHandshake is refused: these credentials are a server's.
func (h *pinning) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload broker: the credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (h *pinning) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: authType}
}

// Clone implements credentials.TransportCredentials.
func (h *pinning) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *pinning) OverrideServerName(string) error { return nil }
