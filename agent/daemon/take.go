package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/handover"
	"github.com/wardmesh/ward/proxy/audit"
)

// The side of a process that takes the place of one that runs: it makes ready with that one's sockets, accepts nothing
// before it has the trail, and appends what the other still has to record.

// Predecessor is the running process of this role, whose place a new one is to take.
type Predecessor struct {
	Version string
	// Notify is where that process's service manager listens; "" when it has none.
	Notify string

	conn *handover.Conn
	// held are its sockets that the service manager opened, own those that it opened itself, by their addresses.
	held, own map[string]net.Listener
	over      chan struct{} // closed once it has no more records
	hurry     chan struct{} // closed to have it end
	urged     sync.Once
}

// Precede asks the process that runs in role under cfg for its place. Until Run has taken it, the other one serves.
func Precede(cfg *config.Config, role config.Role, version string) (_ *Predecessor, err error) {
	d := &Daemon{o: Options{Role: role, Version: version}}
	d.use(cfg)
	if !d.replaceable() {
		return nil, fmt.Errorf("%s cannot be taken over; restart it", role)
	}
	conn, err := handover.Dial(handover.Socket(cfg.Trail(role)))
	if err != nil {
		return nil, err
	}
	p := &Predecessor{conn: conn, held: map[string]net.Listener{}, own: map[string]net.Listener{}, over: make(chan struct{}), hurry: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(gapTime))
	if err := conn.Send(d.me(handover.KindHello), nil); err != nil {
		return nil, err
	}
	for {
		m, f, err := conn.Receive()
		if err != nil {
			return nil, fmt.Errorf("the process that runs: %w", err)
		}
		switch m.Kind {
		case handover.KindSocket:
			l, err := net.FileListener(f)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, fmt.Errorf("the socket %s: %w", m.Address, err)
			}
			of := p.held
			if m.Own {
				of = p.own
			}
			if of[m.Address] != nil {
				_ = l.Close()
				return nil, fmt.Errorf("the socket %s: handed over twice", m.Address)
			}
			of[m.Address] = l
		case handover.KindWelcome:
			p.Version, p.Notify = m.Version, m.Notify
			return p, nil
		default:
			return nil, fmt.Errorf("the process that runs says %q", m.Kind)
		}
	}
}

// take gives the socket for address that the process before this one opened, or nil.
func (p *Predecessor) take(address string) net.Listener {
	if p == nil {
		return nil
	}
	l := p.own[address]
	delete(p.own, address)
	return l
}

// close gives up what was not taken.
func (p *Predecessor) close() {
	_ = p.conn.Close()
	for _, l := range p.held {
		_ = l.Close()
	}
	for _, l := range p.own {
		_ = l.Close()
	}
}

// readying bounds the time in which a new process becomes ready.
func (d *Daemon) readying(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.o.Predecessor == nil {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, readyTime, fmt.Errorf("not ready within %s", readyTime))
}

// open waits until calls may be accepted.
func (d *Daemon) open(work context.Context) bool {
	select {
	case <-d.gate:
		return true
	case <-work.Done():
		return false
	}
}

// takeOver makes this process, which is ready for everything but calls, the role.
func (d *Daemon) takeOver(start, work context.Context, g *errgroup.Group) error {
	p := d.o.Predecessor
	if p == nil {
		return nil
	}
	undo := context.AfterFunc(start, func() { _ = p.conn.Close() })
	stopped := context.AfterFunc(work, func() { _ = p.conn.Close() })
	defer stopped()
	err := d.keysHere(start)
	if err == nil {
		err = d.takeTrail(start)
	}
	if !undo() && start.Err() != nil {
		err = errors.Join(context.Cause(start), err)
	}
	if err != nil {
		if start.Err() == nil {
			p.conn.Refuse(err)
		}
		return fmt.Errorf("ward %s, which runs, serves on: %w", p.Version, err)
	}
	close(d.gate)
	_ = p.conn.SetDeadline(time.Time{})
	if err := p.conn.Send(handover.Message{Kind: handover.KindServing}, nil); err != nil {
		d.log.Error("the process before this one is gone; what its last calls would have recorded is missing", zap.Error(err))
	}
	d.log.Info("this process has taken the place of the one before it", zap.String("version", p.Version), zap.Int("pid", p.conn.PID))
	g.Go(func() error {
		defer close(p.over)
		if err := audit.Receive(p.conn, d.desk, p.hurry); err != nil {
			d.log.Error("the process before this one broke off; what its last calls would have recorded is missing", zap.Error(err))
			return nil
		}
		d.log.Info("the process before this one has ended its calls", zap.String("version", p.Version))
		return nil
	})
	return nil
}

// keysHere waits until every issuer's keys are there: without them the calls of its users would be refused from now on,
// which the process that runs still serves.
func (d *Daemon) keysHere(ctx context.Context) error {
	if d.ingress == nil || d.ingress.rules.Load().tokens == nil {
		return nil
	}
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	for {
		var missing error
		for _, i := range d.ingress.rules.Load().tokens.Status() {
			if i.Keys == 0 {
				missing = errors.Join(fmt.Errorf("no keys of %s", i.Issuer), i.Err)
			}
		}
		if missing == nil {
			return nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return missing
		}
	}
}

// takeTrail takes the trail from the process that has kept it up to now, and then its place.
func (d *Daemon) takeTrail(ctx context.Context) error {
	p := d.o.Predecessor
	_ = p.conn.SetDeadline(time.Now().Add(gapTime))
	if err := p.conn.Send(handover.Message{Kind: handover.KindTake}, nil); err != nil {
		return err
	}
	if _, err := p.conn.Expect(handover.KindReleased); err != nil {
		return err
	}
	trail, err := d.openTrail(ctx)
	if err != nil {
		return fmt.Errorf("the audit log: %w", err)
	}
	if err = p.conn.Send(handover.Message{Kind: handover.KindOpen}, nil); err == nil {
		_, err = p.conn.Expect(handover.KindGo)
	}
	if err != nil {
		return errors.Join(err, trail.Close())
	}
	d.desk.resume(trail)
	d.sockets.keepFiles(false)
	for _, l := range p.own { // of services that this config does not have
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(true)
		}
		_ = l.Close()
	}
	p.own = nil
	return nil
}

// urge asks the process before this one to come to its end.
func (p *Predecessor) urge() {
	if p != nil {
		p.urged.Do(func() { close(p.hurry) })
	}
}

// await waits for the end of the process before this one, whose last records are to come.
func (p *Predecessor) await(ctx context.Context) {
	select {
	case <-p.over:
	case <-ctx.Done():
	}
	_ = p.conn.Close()
}
