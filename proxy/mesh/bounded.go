package mesh

import (
	"net"
	"sync"
)

// mostTCP is how many TCP connections to the responder may be open. Its answers fit into UDP, so hardly anybody needs one;
// but any local process can connect, and without a bound it would take the descriptors of the process.
const mostTCP = 64

// bounded is a listener of which at most so many connections are open; one more is closed at once.
type bounded struct {
	net.Listener
	places chan struct{}
}

func newBounded(l net.Listener, most int) *bounded {
	return &bounded{Listener: l, places: make(chan struct{}, most)}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.places <- struct{}{}:
			return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.places })}, nil
		default:
			_ = c.Close()
		}
	}
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.leave()
	return err
}
