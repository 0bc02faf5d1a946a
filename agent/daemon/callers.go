package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

// Who is at the other end of a local connection, and which identity may egress use in its name? In one process with
// the agent egress pins the process itself and borrows by a call; in a process of its own, without any capability, it
// takes a reference to the process from the kernel and asks the agent by the Broker API.

// newCallers gives what this role has.
func (d *Daemon) newCallers() (borrower, error) {
	if d.identities != nil {
		return neighbours{d, newCrowd(perUser)}, nil
	}
	socket := d.config().Agent.Broker
	if socket == "" {
		return nil, fmt.Errorf("%s: egress apart from the agent needs the agent's Broker API; name its socket", d.config().At("agent.broker"))
	}
	client, err := broker.NewClient(broker.ClientOptions{Socket: socket, Verify: agentServes(socket), Log: d.log.Named("broker")})
	if err != nil {
		return nil, err
	}
	return &strangers{d, client, newCrowd(perUser)}, nil
}

// agentServes checks who listens on the agent's socket: root, in whose name the service manager does, this very user, or
// whoever the socket's folder belongs to, since nobody else can put a socket there. Whose folder that is must be root's
// or this user's choice: in a folder such as /tmp anybody could have made it.
func agentServes(socket string) func(net.Conn) error {
	return func(c net.Conn) error {
		dir, err := filepath.EvalSymlinks(filepath.Dir(socket))
		if err != nil {
			return err
		}
		owner := ownerOf(dir)
		if owner != 0 && owner != os.Geteuid() {
			if err := config.GuardDir(filepath.Dir(dir), config.Options{}); err != nil {
				return fmt.Errorf("whose folder the agent's socket is in, anybody could choose: %w", err)
			}
		}
		for _, path := range []string{filepath.Dir(socket), dir} { // the links that lead there, too
			if err := config.GuardDir(path, config.Options{Owner: owner}); err != nil {
				return err
			}
		}
		return broker.ServedBy(0, uint32(os.Geteuid()), uint32(owner))(c) //nolint:gosec // a uid fits
	}
}

func ownerOf(path string) int {
	if fi, err := os.Stat(path); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			return int(st.Uid)
		}
	}
	return 0
}

// neighbours are callers that the agent in this same process pins and knows.
type neighbours struct {
	d     *Daemon
	crowd *crowd
}

func (n neighbours) listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := n.d.pinned(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return counting{l}, nil
}

func (neighbours) doubt() {}

func (neighbours) close() {}

// Caller implements proxy.Callers.
func (n neighbours) Caller(ctx context.Context, conn net.Conn) (proxy.Caller, error) {
	c, ok := conn.(*counted)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be counted", conn)
	}
	p, err := pin(c.Conn)
	if err != nil {
		return nil, err
	}
	process := fmt.Sprintf("pid %d, uid %d", p.PID(), p.UID())
	if err := c.count(n.crowd, p.UID()); err != nil {
		return nil, proxy.OfProcess(process, err)
	}
	h, err := n.d.identities.Hold(ctx, p, workload.LentSVIDs)
	if err != nil {
		return nil, proxy.OfProcess(process, refusal(err))
	}
	return &caller{lent: h, process: process}, nil
}

// strangers are callers that egress only refers to: the agent, in another process, pins and knows them.
type strangers struct {
	d      *Daemon
	client *broker.Client
	crowd  *crowd
}

func (s *strangers) listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := s.d.listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r, err := s.d.pinner.Refer(l, s.d.unpinned(address))
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return counting{r}, nil
}

// doubt implements borrower: a config that this role has taken up the agent may have, too, and what it said before may be
// otherwise by that.
func (s *strangers) doubt() { s.client.Doubt() }

func (s *strangers) close() {
	if err := s.client.Close(); err != nil {
		s.d.log.Warn("the connection to the agent did not close cleanly", zap.Error(err))
	}
}

// Caller implements proxy.Callers.
func (s *strangers) Caller(ctx context.Context, conn net.Conn) (proxy.Caller, error) {
	c, ok := conn.(*counted)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be counted", conn)
	}
	referred, ok := c.Conn.(*peer.Referred)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be referred to", c.Conn)
	}
	if err := c.count(s.crowd, referred.UID()); err != nil {
		return nil, proxy.OfProcess(fmt.Sprintf("uid %d", referred.UID()), err)
	}
	ref, err := referred.Reference()
	if err != nil {
		return nil, proxy.OfProcess(fmt.Sprintf("uid %d", referred.UID()), err)
	}
	process := fmt.Sprintf("%s, uid %d", ref, referred.UID())
	standing, err := referred.Standing()
	if err != nil {
		return nil, proxy.OfProcess(process, err)
	}
	loan, err := s.client.BorrowSeen(ctx, ref, standing)
	if err != nil {
		return nil, proxy.OfProcess(process, refusal(err))
	}
	// The word of a denial may still be on its way from the agent. Where this role has read the list, it is in force.
	if s.d.directory.Denied(loan.ID()) {
		return nil, proxy.OfProcess(process, errors.Join(proxy.Refuse(proxy.CauseDenyList, "%s is denied", loan.ID()), loan.Close()))
	}
	// The agent has said whom the reference names; only now is it sure that this was the caller of this connection.
	if err := referred.Confirm(); err != nil {
		return nil, proxy.OfProcess(process, errors.Join(err, loan.Close()))
	}
	return &caller{lent: borrowed{loan}, process: process}, nil
}

// lent is an identity that egress may use in a workload's name.
type lent interface {
	proxy.Identity
	proxy.Caller
}

// borrowed is a loan, in egress's words.
type borrowed struct{ *broker.Loan }

// Ended implements proxy.Caller.
func (b borrowed) Ended() <-chan struct{} { return b.Done() }

// caller is the identity lent for one connection: why it ended is said in egress's words.
type caller struct {
	lent
	process string
}

// Process names the process for the trail.
func (c *caller) Process() string { return c.process }

// Err implements proxy.Caller.
func (c *caller) Err() error {
	if err := c.lent.Err(); err != nil {
		return refusal(err)
	}
	return nil
}

// refusal says to the caller and to the trail why a process has no identity to lend.
func refusal(err error) error {
	var r *workload.Refusal
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case errors.Is(r, workload.ErrDenied):
		return proxy.Refuse(proxy.CauseDenyList, "%w", r)
	case errors.Is(r, workload.ErrNoIdentity):
		if len(r.Attestation.Selectors) == 0 {
			return proxy.Refuse(proxy.CauseNoIdentity, "process matches no entry with proxy: true (the agent's log has its selectors under %s)", r.Reference)
		}
		return proxy.Refuse(proxy.CauseNoIdentity, "process matches no entry with proxy: true (%s)", r.Attestation.Selectors)
	case errors.Is(r, workload.ErrUnavailable), errors.Is(r, workload.ErrClosed):
		return proxy.Refuse(proxy.CauseRestarting, "%w", r)
	case errors.Is(r, workload.ErrNotBroker):
		return proxy.Refuse(proxy.CauseInternal, "the agent does not take this process for the host's egress (agent.wards.egress): %w", r)
	case errors.Is(r, attest.ErrReference):
		return proxy.Refuse(proxy.CausePeerChanged, "%w", r)
	}
	return r
}
