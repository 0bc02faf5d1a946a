package peer

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Status is how a Pinner does, for operators and metrics.
type Status struct {
	Held     int // processes that are pinned and watched
	Referred int // connections whose callers are named
	// ExecEvents: the kernel tells of an execve or a change of user as it happens. Otherwise Reason says why not, or
	// is nil when nothing has been pinned yet, and the sweep alone finds them.
	ExecEvents bool
	Reason     error
	Sweep      time.Duration // until every held process is checked again; the longest that an execve goes unnoticed
	Sweeps     uint64        // how often all were checked
	Lost       uint64        // how often events were lost, upon which all were checked
}

// Status tells how things stand.
func (p *Pinner) Status() Status {
	p.mu.Lock()
	s := Status{Held: len(p.held), Referred: len(p.referred)}
	p.mu.Unlock()
	e := &p.execs
	e.mu.Lock()
	defer e.mu.Unlock()
	s.ExecEvents, s.Reason, s.Sweep, s.Sweeps, s.Lost = e.events, e.reason, e.interval(), e.sweeps, e.lost
	return s
}

// execs notices that a held process has replaced its program or changed its user: at once where the kernel tells,
// and by sweeping through all of them, more often where it does not.
type execs struct {
	pinner    *Pinner
	connector *connector // nil where there is none
	listening chan struct{}
	once      sync.Once

	mu     sync.Mutex
	timer  *time.Timer
	events bool
	reason error
	sweeps uint64
	lost   uint64
	cost   time.Duration // of the last sweep
	last   time.Time     // when it ended
}

const (
	maxSweep = time.Second
	minSweep = 50 * time.Millisecond
	// A sweep by itself takes one part in so many of a processor,
	sweepShare = 50
	// and one in so many when it stands in for events that were lost: whoever makes them be lost cannot make Ward
	// do nothing but sweep.
	lostShare = 10
	minLost   = 10 * time.Millisecond

	answerPatience = time.Second
)

// open makes the socket, in the network namespace of this thread. Nothing is asked before the first process is held:
// a pinner that only names callers must not be woken by every program that the host starts.
func (e *execs) open(p *Pinner) {
	e.pinner, e.listening = p, make(chan struct{})
	e.timer = time.AfterFunc(maxSweep, e.sweep)
	e.timer.Stop()
	if p.options.Without.ExecEvents {
		e.reason = unix.ENOPROTOOPT
		return
	}
	e.connector, e.reason = openConnector()
}

func (e *execs) close() {
	e.once.Do(func() { close(e.listening) }) // never begun
	if e.connector != nil {
		e.connector.close()
	}
	<-e.listening
	e.timer.Stop()
}

// begin is called when the first process is held, pause when none is any more.
func (e *execs) begin() {
	e.once.Do(func() {
		if e.connector == nil {
			close(e.listening)
			return
		}
		go e.listen()
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer.Reset(e.interval())
}

func (e *execs) pause() { e.timer.Stop() }

// listen checks the processes that the kernel names, until the connector is closed.
func (e *execs) listen() {
	defer close(e.listening)
	err := e.connector.subscribe(answerPatience)
	if err != nil {
		if !errors.Is(err, os.ErrClosed) {
			e.connector.close()
		}
		e.set(false, err)
		return
	}
	e.set(true, nil)
	e.soon() // what was before is not told
	for {
		event, err := e.connector.receive()
		switch {
		case err == nil:
			for _, process := range e.pinner.withPID(event.tgid) {
				_ = process.Alive() // ends the process when it is no longer the one that was pinned
			}
		case errors.Is(err, errLost), errors.Is(err, errEvent):
			e.mu.Lock()
			e.lost++
			e.mu.Unlock()
			e.soon()
		default:
			e.set(false, err)
			e.soon()
			return
		}
	}
}

func (e *execs) set(events bool, reason error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events, e.reason = events, reason
}

// soon has everything checked as soon as the last time is far enough in the past for what it cost.
func (e *execs) soon() {
	e.mu.Lock()
	defer e.mu.Unlock()
	wait := time.Until(e.last.Add(max(minLost, lostShare*e.cost)))
	e.timer.Reset(max(wait, 0))
}

// interval is until the next sweep. The caller holds mu.
func (e *execs) interval() time.Duration {
	switch {
	case e.pinner.options.Sweep != 0:
		return e.pinner.options.Sweep
	case e.events:
		return maxSweep
	}
	return min(max(minSweep, sweepShare*e.cost), maxSweep)
}

// sweep checks every held process and sets the timer again while there are any.
func (e *execs) sweep() {
	p := e.pinner
	p.mu.Lock()
	held := slices.Collect(maps.Values(p.held))
	p.mu.Unlock()
	begin := time.Now()
	for _, process := range held {
		_ = process.Alive()
	}
	end := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cost, e.last = end.Sub(begin), end
	e.sweeps++
	if len(p.held) > 0 && !p.closed {
		e.timer.Reset(e.interval())
	}
}

// withPID are the held processes with this pid.
func (p *Pinner) withPID(pid int) []*Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.byPID[pid])
}
