package wire

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// farewell is how long connections that idle when draining begins stay open. HTTP/1.1 cannot tell an idle peer that its
// connection ends: a request that crosses the end is lost, and whether it was acted on nobody knows (RFC 9112 §9.5). So
// whoever sends one within this time is answered, with Connection: close; only who has been silent for so long is cut.
const farewell = time.Second

// drain is a server's way to its end.
type drain struct {
	over   atomic.Bool
	taking context.Context // ends when draining begins
	ending context.CancelFunc

	admitting context.Context // ends when who is being admitted has had time to be
	dismiss   context.CancelFunc

	mu        sync.Mutex
	listeners []net.Listener
	open      int           // connections that were accepted and have not ended, and loops that accept
	none      chan struct{} // closed when draining and open is 0; nil before draining
	empty     bool          // none is closed
	cut       bool          // whatever is open is closed
	admitted  map[*admitted]struct{}
}

// draining reports whether each answer is the last on its connection.
func (d *drain) draining() bool { return d.over.Load() }

// listens has l closed when draining begins: what waits in a socket that somebody else holds, too, waits for the next
// process.
func (d *drain) listens(l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over.Load() {
		_ = l.Close()
	}
	d.listeners = append(d.listeners, l)
}

// enter and leave count a connection, and a loop that accepts: what it accepts last is never between the two.
func (d *drain) enter() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open++
}

func (d *drain) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open--
	d.settle()
}

// keep and drop know a connection from its admission to its end.
func (d *drain) keep(a *admitted) {
	d.mu.Lock()
	if d.admitted == nil {
		d.admitted = map[*admitted]struct{}{}
	}
	d.admitted[a] = struct{}{}
	cut := d.cut
	d.mu.Unlock()
	if cut {
		a.sever()
	}
}

func (d *drain) drop(a *admitted) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.admitted, a)
}

// begin ends the taking of connections, and returns what is closed once there is none; first says whether draining has
// not begun before.
func (d *drain) begin() (none <-chan struct{}, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over.Swap(true) {
		return d.none, false
	}
	d.none = make(chan struct{})
	d.ending()
	for _, l := range d.listeners {
		_ = l.Close()
	}
	d.settle()
	return d.none, true
}

// settle tells who waits that there is nobody left. The caller holds mu.
func (d *drain) settle() {
	if d.over.Load() && d.open == 0 && !d.empty {
		d.empty = true
		close(d.none)
	}
}

// part closes the connections that idle.
func (d *drain) part() {
	for _, a := range d.all() {
		if a.state.CompareAndSwap(idle, parted) {
			a.sever()
		}
	}
}

// cutAll closes every connection, and what is still admitted after that.
func (d *drain) cutAll() {
	d.mu.Lock()
	d.cut = true
	d.mu.Unlock()
	for _, a := range d.all() {
		a.sever()
	}
}

func (d *drain) all() []*admitted {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.admitted))
}

// Shutdown stops accepting, answers what connections that are open bring, lets exchanges that run end, and returns when
// all have or ctx has ended; then it closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(s.setup)
	none, first := s.begin()
	if first {
		t := time.NewTimer(farewell)
		defer t.Stop()
		select {
		case <-none:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	s.part()
	s.dismiss() // a peer that is not through by now may take as long as a handshake may
	var err error
	select {
	case <-none:
	case <-ctx.Done():
		select {
		case <-none: // nobody is left to be cut
		default:
			err = ctx.Err()
			s.cutAll()
		}
	}
	s.close()
	s.hush()
	return err
}
