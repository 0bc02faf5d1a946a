package resolver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ensureLink makes the link that carries the zone, or finds the one that is there, and gives its index. It is a dummy
// link, or where the kernel has none, one end of a pair.
func ensureLink() (int32, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return 0, fmt.Errorf("resolver: %w", err)
	}
	defer func() { _ = c.Close() }()
	fail := func(what string, err error) (int32, error) {
		hint := ""
		if errors.Is(err, unix.EPERM) {
			hint = "; ward mesh needs CAP_NET_ADMIN"
		}
		return 0, fmt.Errorf("resolver: the link %s: %s: %w%s", linkName, what, err, hint)
	}
	index, mine, err := findLink(c)
	if err != nil {
		return fail("look", err)
	}
	if index != 0 && !mine {
		return 0, fmt.Errorf("resolver: there is a link %s that is not Ward's; rename it", linkName)
	}
	if index != 0 {
		if err := setAlias(c, index); err != nil {
			return fail("alias", err)
		}
	}
	if index == 0 {
		err := newLink(c, "dummy", nil)
		if errors.Is(err, unix.EOPNOTSUPP) {
			peer := netlink.NewAttributeEncoder()
			peer.String(unix.IFLA_IFNAME, linkPeer)
			attrs, perr := peer.Encode()
			if perr != nil {
				return fail("make", perr)
			}
			err = newLink(c, "veth", append(make([]byte, unix.SizeofIfInfomsg), attrs...))
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fail("make", err)
		}
		if index, _, err = findLink(c); err != nil || index == 0 {
			return fail("find", err)
		}
	}
	if err := setAddress(c, index); err != nil && !errors.Is(err, unix.EEXIST) {
		return fail("address", err)
	}
	if err := setUp(c, index); err != nil {
		return fail("up", err)
	}
	if peer, err := net.InterfaceByName(linkPeer); err == nil {
		if err := setUp(c, int32(peer.Index)); err != nil { //nolint:gosec // the kernel's indices are int32
			return fail("up", err)
		}
	}
	return index, nil
}

func execute(c *netlink.Conn, kind uint16, more netlink.HeaderFlags, data []byte) error {
	_, err := c.Execute(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge | more}, Data: data})
	return err
}

// newLink makes a link. Its alias says whose it is, which is how it is known again.
func newLink(c *netlink.Conn, kind string, peer []byte) error {
	const vethPeer = 1 // VETH_INFO_PEER
	e := netlink.NewAttributeEncoder()
	e.String(unix.IFLA_IFNAME, linkName)
	e.Nested(unix.IFLA_LINKINFO, func(e *netlink.AttributeEncoder) error {
		e.String(unix.IFLA_INFO_KIND, kind)
		if peer != nil {
			e.Nested(unix.IFLA_INFO_DATA, func(e *netlink.AttributeEncoder) error {
				e.Bytes(vethPeer, peer)
				return nil
			})
		}
		return nil
	})
	b, err := e.Encode()
	if err != nil {
		return err
	}
	if err := execute(c, unix.RTM_NEWLINK, netlink.Create|netlink.Excl, append(make([]byte, unix.SizeofIfInfomsg), b...)); err != nil {
		return err
	}
	i, err := net.InterfaceByName(linkName)
	if err != nil {
		return err
	}
	return setAlias(c, int32(i.Index)) //nolint:gosec // the kernel's indices are int32
}

// setAlias says whose the link is. It cannot be said when the link is made.
func setAlias(c *netlink.Conn, index int32) error {
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.IFLA_IFALIAS, []byte(linkAlias))
	b, err := e.Encode()
	if err != nil {
		return err
	}
	return execute(c, unix.RTM_SETLINK, 0, append(linkHeader(index, 0, 0), b...))
}

// findLink gives the link's index, 0 when there is none, and whether it is Ward's own.
func findLink(c *netlink.Conn) (index int32, mine bool, err error) {
	e := netlink.NewAttributeEncoder()
	e.String(unix.IFLA_IFNAME, linkName)
	b, err := e.Encode()
	if err != nil {
		return 0, false, err
	}
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request}, Data: append(make([]byte, unix.SizeofIfInfomsg), b...)})
	if errors.Is(err, unix.ENODEV) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if len(msgs) != 1 || len(msgs[0].Data) < unix.SizeofIfInfomsg {
		return 0, false, errors.New("an answer of another shape")
	}
	d, err := netlink.NewAttributeDecoder(msgs[0].Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0, false, err
	}
	// One without an alias that was never up is what a crash left between making it and naming its owner.
	mine = binary.NativeEndian.Uint32(msgs[0].Data[8:])&unix.IFF_UP == 0
	for d.Next() {
		if d.Type() == unix.IFLA_IFALIAS {
			mine = d.String() == linkAlias
		}
	}
	i, err := net.InterfaceByName(linkName)
	if err != nil {
		return 0, false, err
	}
	return int32(i.Index), mine, d.Err() //nolint:gosec // the kernel's indices are int32
}

// linkHeader is a struct ifinfomsg (rtnetlink(7)).
func linkHeader(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	order := binary.NativeEndian
	order.PutUint32(b[4:], uint32(index)) //nolint:gosec // indices are positive
	order.PutUint32(b[8:], flags)
	order.PutUint32(b[12:], change)
	return b
}

func setUp(c *netlink.Conn, index int32) error {
	return execute(c, unix.RTM_NEWLINK, 0, linkHeader(index, unix.IFF_UP, unix.IFF_UP))
}

func setAddress(c *netlink.Conn, index int32) error {
	h := make([]byte, unix.SizeofIfAddrmsg) // struct ifaddrmsg
	// systemd-resolved uses no link whose addresses are all narrower than the universe.
	h[0], h[1], h[3] = unix.AF_INET, 32, unix.RT_SCOPE_UNIVERSE
	binary.NativeEndian.PutUint32(h[4:], uint32(index)) //nolint:gosec // indices are positive
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.IFA_LOCAL, linkAddress().AsSlice())
	e.Bytes(unix.IFA_ADDRESS, linkAddress().AsSlice())
	b, err := e.Encode()
	if err != nil {
		return err
	}
	return execute(c, unix.RTM_NEWADDR, netlink.Create|netlink.Excl, append(h, b...))
}

// deleteLink removes Ward's link. Whoever resolves names forgets with it what it knew of it.
func deleteLink() (bool, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return false, fmt.Errorf("resolver: %w", err)
	}
	defer func() { _ = c.Close() }()
	index, mine, err := findLink(c)
	if err != nil || !mine {
		return false, err
	}
	if err := execute(c, unix.RTM_DELLINK, 0, linkHeader(index, 0, 0)); err != nil {
		return false, fmt.Errorf("resolver: remove the link %s: %w", linkName, err)
	}
	return true, nil
}
