package wire

import (
	"context"
	"net"
	"sync"
	"time"
)

// farewell is how long connections that idle when draining begins stay open. HTTP/1.1 cannot tell an idle peer that its
// connection ends: a request that crosses the end is lost, and whether it was acted on nobody knows (RFC 9112 §9.5). So
// whoever sends one within this time is answered, with Connection: close; only who has been silent for so long is cut.
const farewell = time.Second

// drain is a server's way to its end.
type drain struct {
	mu        sync.Mutex
	over      bool
	listeners []net.Listener
	open      int           // connections that were accepted and have not ended, and loops that accept
	none      chan struct{} // closed when draining and open is 0
	empty     bool          // none is closed
}

// draining reports whether each answer is the last on its connection.
func (d *drain) draining() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// listens has l closed when draining begins: what waits in a socket that somebody else holds, too, waits for the next
// process.
func (d *drain) listens(l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
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

// begin ends the taking of connections, and returns what is closed once there is none. It is nil when draining has
// begun before.
func (d *drain) begin() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return nil
	}
	d.over, d.none = true, make(chan struct{})
	for _, l := range d.listeners {
		_ = l.Close()
	}
	d.settle()
	return d.none
}

// settle tells who waits that there is nobody left. The caller holds mu.
func (d *drain) settle() {
	if d.over && d.open == 0 && !d.empty {
		d.empty = true
		close(d.none)
	}
}

// Shutdown stops accepting, answers what connections that are open bring, lets exchanges that run end, and returns when
// all have or ctx has ended; then it closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(s.setup)
	none := s.begin()
	s.h2.leave()
	if none != nil {
		t := time.NewTimer(farewell)
		defer t.Stop()
		select {
		case <-none:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	err := s.http.Shutdown(ctx)
	if err == nil {
		select {
		case <-s.none:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = s.http.Close()
		s.h2.cut()
	}
	return err
}
