package daemon

import (
	"net"
	"sync"
)

// scrapers is how many connections to the metrics' address may be open.
const scrapers = 32

// few is a listener of which at most a few connections are open: one more is closed at once, so that the backlog does
// not fill with those who wait.
type few struct {
	net.Listener
	places chan struct{}
}

func newFew(l net.Listener, most int) *few {
	return &few{Listener: l, places: make(chan struct{}, most)}
}

// Accept implements net.Listener.
func (f *few) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case f.places <- struct{}{}:
			return &placed{Conn: c, leave: sync.OnceFunc(func() { <-f.places })}, nil
		default:
			_ = c.Close()
		}
	}
}

// placed is a connection that gives its place back when it is closed.
type placed struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (p *placed) Close() error {
	err := p.Conn.Close()
	p.leave()
	return err
}
