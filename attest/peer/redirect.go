package peer

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// originalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST of netfilter_ipv6/ip6_tables.h.
const originalDst = 80

// Dialed is the address that the peer of an accepted connection dialled. Where netfilter redirected the connection
// (nftables redirect and dnat) connection tracking knows it; anywhere else it is where conn was accepted.
func Dialed(conn *net.TCPConn) (netip.AddrPort, error) {
	own := tcpAddr(conn.LocalAddr())
	var dialed netip.AddrPort
	err := control(conn, func(fd int) (err error) {
		dialed, err = trackedDst(fd, own.Addr().Is4())
		return err
	})
	switch {
	case err == nil:
		return dialed, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		return own, nil // not tracked, so not redirected either
	}
	return netip.AddrPort{}, err
}

// trackedDst asks connection tracking. An IPv4 connection on an IPv6 socket is asked about as IPv4.
func trackedDst(fd int, v4 bool) (netip.AddrPort, error) {
	var sockaddr [unix.SizeofSockaddrInet6]byte
	level, family, want := uintptr(unix.SOL_IPV6), uint16(unix.AF_INET6), uint32(unix.SizeofSockaddrInet6)
	if v4 {
		level, family, want = unix.SOL_IP, unix.AF_INET, unix.SizeofSockaddrInet4
	}
	size := want
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, originalDst,
		uintptr(unsafe.Pointer(&sockaddr[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", errno)
	}
	if size != want || binary.NativeEndian.Uint16(sockaddr[:]) != family {
		return netip.AddrPort{}, errors.New("SO_ORIGINAL_DST: the reply is no address of the connection's family")
	}
	port := binary.BigEndian.Uint16(sockaddr[2:])
	if v4 { // struct sockaddr_in
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sockaddr[4:8])), port), nil
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(sockaddr[8:24])).Unmap(), port), nil // struct sockaddr_in6
}
