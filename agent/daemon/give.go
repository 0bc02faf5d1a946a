package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/handover"
	"github.com/wardmesh/ward/proxy/audit"
)

// The side of the process that runs: it gives its sockets and its trail to one that is to take its place, and ends the
// calls that it has. The order, and why it is safe, stands in package handover.

// How long a new process may take to become ready, and how long the trail may be nobody's.
const (
	readyTime = 15 * time.Second
	gapTime   = 10 * time.Second
)

// replaceable reports whether this role can be taken over. The agent's store has one writer and its callers are bound to
// its process; it is restarted instead, which its clients outlive. So is all of Ward in one process.
func (d *Daemon) replaceable() bool {
	return d.o.Role == config.RoleEgress || d.o.Role == config.RoleIngress || d.o.Role == config.RoleProxy
}

// listening are the sockets that this process has opened itself, by their address as config spells it.
type listening struct {
	mu  sync.Mutex
	own map[string]net.Listener
}

func (s *listening) add(address string, l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		s.own = map[string]net.Listener{}
	}
	s.own[address] = l
}

// each calls fn for every one that has not been closed.
func (s *listening) each(fn func(address string, l net.Listener, f *os.File) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, l := range s.own {
		f, err := fileOf(l)
		if errors.Is(err, net.ErrClosed) {
			delete(s.own, address)
			continue
		}
		if err == nil {
			err = errors.Join(fn(address, l, f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("the socket %s: %w", address, err)
		}
	}
	return nil
}

// keepFiles says whether the sockets' files go when they are closed: they do not when another process listens on them.
func (s *listening) keepFiles(keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.own {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(!keep)
		}
	}
}

func fileOf(l net.Listener) (*os.File, error) {
	held, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("a %T cannot be handed over", l)
	}
	return held.File()
}

// openGiver listens for a process that is to take this one's place. Without it the role can be restarted only, so that
// a failure is said and no more.
func (d *Daemon) openGiver(start, work context.Context, g *errgroup.Group) func(context.Context) {
	if !d.replaceable() {
		return nil
	}
	l, err := handover.Listen(handover.Socket(d.config().Trail(d.o.Role)))
	if err != nil {
		d.log.Warn("a new version cannot take this process's place; it takes a restart", zap.Error(err))
		return nil
	}
	context.AfterFunc(start, func() { _ = l.Close() })
	context.AfterFunc(work, func() { _ = l.Close() })
	g.Go(func() error {
		for {
			conn, err := handover.Accept(l)
			if err != nil {
				return nil //nolint:nilerr // it was closed
			}
			stop := context.AfterFunc(start, func() { _ = conn.Close() }) // whoever is told to end gives nothing away
			given := d.give(work, conn, l)
			stop()
			if given {
				return nil
			}
			_ = conn.Close()
		}
	})
	return func(context.Context) { _ = l.Close() }
}

// me is how this process presents itself.
func (d *Daemon) me(kind handover.Kind) handover.Message {
	cfg := d.config()
	return handover.Message{Kind: kind, Protocol: handover.Protocol, Role: string(d.o.Role), Version: d.o.Version, Executable: handover.Executable(),
		Trails: []string{cfg.Trail(d.o.Role), cfg.SecondTrail(d.o.Role)}, Notify: os.Getenv("NOTIFY_SOCKET")}
}

// give hands this process's place over to the one at the other end. It reports whether that has it now; otherwise nothing
// has changed.
func (d *Daemon) give(work context.Context, conn *handover.Conn, door *net.UnixListener) bool {
	_ = conn.SetDeadline(time.Now().Add(gapTime))
	m, err := conn.Expect(handover.KindHello)
	if m.Kind == handover.KindAsk {
		_ = conn.Send(d.me(handover.KindWelcome), nil)
		return false
	}
	// Neither config nor sockets change meanwhile.
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if err == nil {
		err = d.mayGive(m)
	}
	if err != nil {
		conn.Refuse(err)
		d.log.Warn("another process may not take this one's place", zap.Int("pid", conn.PID), zap.String("version", m.Version), zap.Error(err))
		return false
	}
	d.log.Info("a process makes ready to take this one's place", zap.Int("pid", conn.PID), zap.String("version", m.Version))
	err = d.giveSockets(conn)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(readyTime + gapTime))
		_, err = conn.Expect(handover.KindTake)
	}
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(gapTime))
		err = d.giveTrail(work, conn, door)
	}
	if err != nil {
		d.log.Error("the process that was to take this one's place has not become ready; this one serves on", zap.Int("pid", conn.PID),
			zap.String("version", m.Version), zap.Error(err))
		return false
	}
	d.log.Info("another process has taken this one's place: calls that run may end", zap.Int("pid", conn.PID), zap.String("version", m.Version))
	d.successor.Store(&m.Version)
	close(d.given)
	return true
}

// mayGive refuses who would not be this process's successor.
func (d *Daemon) mayGive(m handover.Message) error {
	me := d.me(handover.KindWelcome)
	switch {
	case m.Protocol != me.Protocol:
		return fmt.Errorf("version %s hands over otherwise than version %s; restart the role", me.Version, m.Version)
	case m.Role != me.Role:
		return fmt.Errorf("this is %s, and not %s", me.Role, m.Role)
	case !slices.Equal(m.Trails, me.Trails):
		return fmt.Errorf("the config names other folders for the audit log (audit.dir, audit.second); such a change takes a restart of %s", me.Role)
	case !d.running:
		return errors.New("it is starting or shutting down")
	}
	if trail := d.desk.trail(); trail == nil {
		return errors.New("it has no audit log at the moment")
	} else if err := trail.Err(); err != nil {
		return fmt.Errorf("its audit log takes no records, and nothing must hide that: %w", err)
	}
	return nil
}

// giveSockets sends every listening socket: those that the service manager has opened, and its own.
func (d *Daemon) giveSockets(conn *handover.Conn) error {
	for address, l := range d.o.Listeners {
		f, err := fileOf(l)
		if err == nil {
			err = errors.Join(conn.Send(handover.Message{Kind: handover.KindSocket, Address: address}, f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("the socket %s: %w", address, err)
		}
	}
	err := d.sockets.each(func(address string, _ net.Listener, f *os.File) error {
		return conn.Send(handover.Message{Kind: handover.KindSocket, Address: address, Own: true}, f)
	})
	if err != nil {
		return err
	}
	return conn.Send(d.me(handover.KindWelcome), nil)
}

// giveTrail lets go of the trail, and has this process's records travel once the other one has it. Where that does not
// come to pass, the trail is taken back.
func (d *Daemon) giveTrail(work context.Context, conn *handover.Conn, door *net.UnixListener) (err error) {
	began := time.Now()
	d.desk.pause()
	if err = d.desk.trail().Close(); err == nil {
		if err = conn.Send(handover.Message{Kind: handover.KindReleased}, nil); err == nil {
			_, err = conn.Expect(handover.KindOpen)
		}
	}
	if err == nil {
		// The other process's door and its sockets' files stand where this one's do.
		door.SetUnlinkOnClose(false)
		d.sockets.keepFiles(true)
		err = conn.Send(handover.Message{Kind: handover.KindGo}, nil)
	}
	if err != nil {
		_ = conn.Close() // the other one ends, and with it its hold on the log
		door.SetUnlinkOnClose(true)
		d.sockets.keepFiles(false)
		d.regain(work)
		return err
	}
	// From here on the other process is the role.
	if d.o.Succeeded != nil {
		d.o.Succeeded(conn.PID)
	}
	if _, err := conn.Expect(handover.KindServing); err != nil {
		d.log.Error("the process that has taken this one's place is gone again", zap.Int("pid", conn.PID), zap.Error(err))
		_ = conn.Close()
	}
	_ = conn.SetDeadline(time.Time{})
	d.sender = audit.NewSender(conn)
	d.desk.resume(d.sender)
	d.log.Info("the audit log has changed hands", zap.Duration("took", time.Since(began)))
	return nil
}

// regain takes the trail back from a process that did not become ready. While that still holds it, nothing can be
// recorded, and so no call be served.
func (d *Daemon) regain(work context.Context) {
	const pause = 50 * time.Millisecond
	for waited := false; ; {
		trail, err := d.openTrail(work)
		if err == nil {
			if waited {
				d.desk.pause()
				d.log.Info("the audit log is this process's again")
			}
			d.desk.resume(trail)
			return
		}
		if !waited {
			waited = true
			d.desk.resume(nobody{fmt.Errorf("%w: %w", audit.ErrFailed, err)})
			d.log.Error("the audit log cannot be opened anew; until it can no call is served", zap.Error(err))
		}
		select {
		case <-time.After(pause):
		case <-work.Done():
			return
		}
	}
}

// lastCalls bounds how long the calls that run may take. Nobody waits for a process that has been replaced, so that each
// may take what its service allows. A successor that is to end, too, or is gone, cuts it short.
func (d *Daemon) lastCalls(ended context.Context) (context.Context, context.CancelFunc) {
	if d.sender == nil {
		d.log.Info("draining: calls that run may end", zap.Duration("at_most", drainTime))
		d.o.Predecessor.urge()
		return context.WithTimeout(context.Background(), drainTime)
	}
	most := drainTime
	for _, s := range services(d.config()) {
		most = max(most, s.MaxExchange)
	}
	ctx, cancel := context.WithTimeout(context.Background(), most)
	go func() {
		select {
		case <-d.sender.Hurry():
		case <-ended.Done():
		case <-ctx.Done():
			return
		}
		d.o.Predecessor.urge()
		soon := time.NewTimer(drainTime - farewells)
		defer soon.Stop()
		select {
		case <-soon.C:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// farewells is what is left of a successor's own time to end for the last records of the one before it.
const farewells = 2 * time.Second
