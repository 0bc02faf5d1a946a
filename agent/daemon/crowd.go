package daemon

import (
	"fmt"
	"net"
	"sync"

	"github.com/wardmesh/ward/proxy"
)

// perUser is how many connections to egress the processes of one user may have open, whoever they are. Each costs
// descriptors here, and one over TCP a stream of the agent's: without a bound one user's process, enrolled or not, could
// take them all, and nobody on this host could make a call any more.
const perUser = 2048

// crowd counts users' connections.
type crowd struct {
	most int

	mu    sync.Mutex
	users map[uint32]int
}

func newCrowd(most int) *crowd { return &crowd{most: most, users: map[uint32]int{}} }

// enter takes a place for one connection, and says how to give it back.
func (c *crowd) enter(uid uint32) (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[uid] >= c.most {
		return nil, fmt.Errorf("%w: processes of uid %d have %d connections open", proxy.ErrCrowded, uid, c.most)
	}
	c.users[uid]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.users[uid]--; c.users[uid] == 0 {
			delete(c.users, uid)
		}
	}, nil
}

// counting is a listener whose connections can be counted towards their users' bounds. Who a user is takes a look at the
// process, which must not keep the listener from accepting others: the one who looks counts.
type counting struct{ net.Listener }

// Accept implements net.Listener.
func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &counted{Conn: c}, nil
}

// counted is a connection that gives its place back when it is closed.
type counted struct {
	net.Conn

	mu     sync.Mutex
	leave  func() // nil before it is counted
	closed bool
}

// count takes a place in c. It may be called once.
func (n *counted) count(c *crowd, uid uint32) error {
	leave, err := c.enter(uid)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		leave()
		return net.ErrClosed
	}
	n.leave = leave
	return nil
}

// NetConn is the connection that is counted.
func (n *counted) NetConn() net.Conn { return n.Conn }

// ReadLent reads as peer.Referred does, which is what egress's connections are. Any other holds the buffer while it waits.
func (n *counted) ReadLent(lend func() []byte, back func()) (int, error) {
	if c, ok := n.Conn.(interface {
		ReadLent(lend func() []byte, back func()) (int, error)
	}); ok {
		return c.ReadLent(lend, back)
	}
	return n.Conn.Read(lend())
}

// Close implements net.Conn.
func (n *counted) Close() error {
	n.mu.Lock()
	leave := n.leave
	n.leave, n.closed = nil, true
	n.mu.Unlock()
	err := n.Conn.Close()
	if leave != nil {
		leave()
	}
	return err
}
