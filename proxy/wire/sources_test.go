package wire

import (
	"net"
	"net/netip"
	"testing"
)

// crowding fills places of a pending list, and knows who has given way.
type crowding struct {
	pending
	gone []string
}

func (c *crowding) from(name, source string) *waiter {
	return c.add(sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))), func() { c.gone = append(c.gone, name) })
}

func (c *crowding) want(t *testing.T, gone ...string) {
	t.Helper()
	if len(gone) != len(c.gone) {
		t.Fatalf("%q gave way, want %q", c.gone, gone)
	}
	for i := range gone {
		if gone[i] != c.gone[i] {
			t.Fatalf("%q gave way, want %q", c.gone, gone)
		}
	}
}

// 19, 20: one source that opens connections without end drives out its own, and nobody else's.
func TestAttackOneSourceTakesAllPlaces(t *testing.T) {
	c := &crowding{pending: pending{max: 4}}
	c.from("honest", "192.0.2.1:1")
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		c.from(n, "192.0.2.66:1")
	}
	c.want(t, "a", "b")
	c.from("another", "[2001:db8::1]:1")
	c.want(t, "a", "b", "c")
	c.from("late", "192.0.2.2:1")
	c.want(t, "a", "b", "c", "d")
}

// Addresses that one host can take at will are one source.
func TestAttackManyAddressesOfOneSource(t *testing.T) {
	c := &crowding{pending: pending{max: 2}}
	c.from("honest", "[2001:db8:0:1::1]:1")
	c.from("a", "[2001:db8:0:2::1]:1")
	c.from("b", "[2001:db8:0:2:1::1]:1")
	c.from("c", "[2001:db8:0:2:ffff::1]:1")
	c.want(t, "a", "b")
	c.from("d", "[::ffff:192.0.2.1]:1")
	c.from("e", "192.0.2.1:2") // the same host
	c.want(t, "a", "b", "honest", "d")
}

// Where all sources have the same number, whoever has taken longest gives way.
func TestOldestOfManySources(t *testing.T) {
	c := &crowding{pending: pending{max: 3}}
	w := c.from("a", "192.0.2.1:1")
	c.from("b", "192.0.2.2:1")
	c.from("c", "192.0.2.3:1")
	w.done()
	c.from("d", "192.0.2.4:1")
	c.want(t)
	c.from("e", "192.0.2.5:1")
	c.want(t, "b")
	w.done() // twice gives one place back
	c.from("f", "192.0.2.6:1")
	c.want(t, "b", "c")
}

// Behind a balancer it is the clients that are told apart, as soon as they are known.
func TestClientsOfABalancerAreSources(t *testing.T) {
	c := &crowding{pending: pending{max: 3}}
	client := netip.MustParsePrefix("198.51.100.7/32")
	a, b := c.from("a", "10.0.0.1:1"), c.from("b", "10.0.0.1:2")
	a.comesFrom(client)
	b.comesFrom(client)
	c.from("c", "10.0.0.1:3")
	c.from("d", "10.0.0.2:4")
	c.want(t, "a")
	a.comesFrom(netip.MustParsePrefix("198.51.100.8/32")) // too late
	a.done()
	b.done()
	if c.n != 2 || len(c.sources) != 2 {
		t.Errorf("%d places of %d sources are taken", c.n, len(c.sources))
	}
}
