package daemon

import (
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

// One user's processes open connections without end: the next is cut off, other users' are not, and what is closed, in
// whatever order, makes room again.
func TestAttackOneUserTakesAllConnections(t *testing.T) {
	c := newCrowd(3)
	open := func(uid uint32) (*counted, error) {
		near, far := net.Pipe()
		t.Cleanup(func() { _ = far.Close() })
		n := &counted{Conn: near}
		return n, n.count(c, uid)
	}
	var mine []*counted
	for range 3 {
		n, err := open(7001)
		if err != nil {
			t.Fatal(err)
		}
		mine = append(mine, n)
	}
	if _, err := open(7001); !errors.Is(err, proxy.ErrCrowded) {
		t.Errorf("a fourth connection: %v", err)
	}
	if _, err := open(7002); err != nil {
		t.Errorf("another user: %v", err)
	}
	_, _ = mine[0].Close(), mine[0].Close() // twice gives one place back
	if _, err := open(7001); err != nil {
		t.Errorf("after a close: %v", err)
	}
	if _, err := open(7001); !errors.Is(err, proxy.ErrCrowded) {
		t.Errorf("a place was given back twice: %v", err)
	}
}

// A connection that is cut off while its process is looked at keeps no place.
func TestAttackCloseWhileCounted(t *testing.T) {
	c := newCrowd(1)
	for range 200 {
		near, far := net.Pipe()
		n := &counted{Conn: near}
		var both sync.WaitGroup
		both.Go(func() { _ = n.Close() })
		both.Go(func() { _ = n.count(c, 7001) })
		both.Wait()
		_ = n.Close()
		_ = far.Close()
		if left := c.users[7001]; left != 0 {
			t.Fatalf("%d places are lost", left)
		}
	}
}
