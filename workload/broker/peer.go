package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/endpoint"
)

// strangerLife is how long a connection that is refused stays, so that the answer can be read.
const strangerLife = 5 * time.Second

// brokerOf is the broker at the other end, as it was attested.
func brokerOf(c *endpoint.Conn) *workload.Broker { return c.Guest.(*workload.Broker) }

// admit attests the peer. BE §3.1 asks for mutual TLS; see the package's essay. One who is no broker gets a connection
// on which every call is refused (BE §6: PermissionDenied), for a moment.
func (s *Server) admit(c *endpoint.Conn) (reason string, err error) {
	if reason, err := c.Place(s.o.Limits.RatePerUID); err != nil {
		return reason, err
	}
	allowed, changed := s.o.Brokers()
	stranger := !conceivable(allowed, c.Process.UID())
	room := s.o.Limits.room(stranger)
	if reason, err := c.Place(0, room); err != nil {
		return reason, err
	}
	broker, err := s.attest(c.Context(), c.Process, allowed)
	c.Guest = broker
	switch {
	case err != nil && !definite(err):
		return "unread", err
	case err != nil:
		if !stranger { // as it seemed; a set that names no user lets everybody this far
			if reason, err := c.Move(room, s.o.Limits.room(true)); err != nil {
				return reason, err
			}
		}
		s.disown(c, err)
		return "not-a-broker", nil
	}
	s.guards.Go(func() { s.guard(c, changed) })
	return "", nil
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
	ctx, cancel := context.WithTimeout(ctx, endpoint.Handshake)
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
func (s *Server) disown(c *endpoint.Conn, err error) {
	if c.Context().Err() != nil {
		return // closed meanwhile, or draining
	}
	report := workload.Visit{PID: c.Process.PID(), UID: c.Process.UID(), Want: workload.LentSVIDs}
	if b := brokerOf(c); b != nil {
		report.Attestation = b.Attestation
	}
	switch {
	case errors.Is(err, workload.ErrNotBroker):
	case definite(err):
		err = fmt.Errorf("%w: %w", workload.ErrNotBroker, err)
	default:
		err = fmt.Errorf("%w: the facts about the broker could not be read: %w", workload.ErrUnavailable, err)
	}
	c.End(statusOf(s.o.Lender.Refuse(report, err)), strangerLife)
}

// check looks whether the process is still the one that was attested: the event of an exec may be on its way.
func (s *Server) check(c *endpoint.Conn) error {
	err := c.Process.Alive()
	if err == nil {
		return nil
	}
	report := workload.Visit{PID: c.Process.PID(), UID: c.Process.UID(), Want: workload.LentSVIDs, Broker: brokerOf(c)}
	return statusOf(s.o.Lender.Refuse(report, errors.Join(workload.ErrNotBroker, err)))
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
func (s *Server) guard(c *endpoint.Conn, changed <-chan struct{}) {
	tick := time.NewTicker(s.o.Recheck)
	defer tick.Stop()
	for {
		select {
		case <-c.Context().Done():
			return
		case <-c.Process.Done():
			err := c.Process.Alive()
			if err == nil {
				err = attest.ErrExited
			}
			s.disown(c, err)
			return
		case <-changed:
		case <-tick.C:
		}
		var allowed []attest.Selectors
		allowed, changed = s.o.Brokers()
		if _, err := s.attest(c.Context(), c.Process, allowed); err != nil {
			s.disown(c, err)
			return
		}
	}
}
