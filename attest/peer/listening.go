package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// tcpListen is TCP_LISTEN of include/net/tcp_states.h.
const tcpListen = 10

// maxListeners bounds how many sockets may listen where one connection could have come in. The reply with so many fits
// into one datagram of the kernel's, so that none can be left out of it while others come and go.
const maxListeners = 24

// listeners are the sockets that may have taken a connection to address: those that listen on exactly this address or
// on all, for IPv4 also by IPv6 (SO_REUSEPORT lets several of them be).
func (d *diag) listeners(address netip.AddrPort) ([]tcpSocket, error) {
	families := []uint8{unix.AF_INET6}
	if address.Addr().Is4() {
		families = append(families, unix.AF_INET)
	}
	var found []tcpSocket
	for _, family := range families {
		all, err := d.listening(family, address.Port())
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if a := s.local.Addr(); a == address.Addr() || a.IsUnspecified() {
				found = append(found, s)
			}
		}
	}
	return found, nil
}

// listening dumps the sockets of family that listen on port.
func (d *diag) listening(family uint8, port uint16) ([]tcpSocket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	request := listenRequest(d.seq, family, port)
	if err := unix.Sendto(d.fd, request[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask inet_diag: %w", err)
	}
	var found []tcpSocket
	for filled := 0; ; {
		n, from, err := unix.Recvfrom(d.fd, d.buf[:], unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inet_diag does not answer: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue
		}
		if n > len(d.buf) {
			return nil, fmt.Errorf("%w: it is longer than a page", errDiag)
		}
		sockets, done, ours, err := parseDump(d.buf[:n], d.seq)
		if !ours {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, s := range sockets {
			if s.state != tcpListen || s.local.Port() != port {
				return nil, fmt.Errorf("%w: it is about another socket", errDiag)
			}
		}
		if len(sockets) > 0 {
			filled++
		}
		if found = append(found, sockets...); filled > 1 || len(found) > maxListeners {
			return nil, fmt.Errorf("%w: more than %d sockets listen on port %d", ErrNotAttributable, maxListeners, port)
		}
		if done {
			return found, nil
		}
	}
}

// listenRequest is a dump of the listening sockets on port.
func listenRequest(seq uint32, family uint8, port uint16) (b [diagRequestSize]byte) {
	h := binary.NativeEndian
	h.PutUint32(b[0:], diagRequestSize)
	h.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	h.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	h.PutUint32(b[8:], seq)
	r := b[unix.SizeofNlMsghdr:] // struct inet_diag_req_v2
	r[0], r[1] = family, unix.IPPROTO_TCP
	h.PutUint32(r[4:], 1<<tcpListen)
	binary.BigEndian.PutUint16(r[8:], port)
	return b
}

// parseDump parses one datagram of a dump, which holds several messages. done: it was the last. ours is false when it
// does not answer request seq.
func parseDump(b []byte, seq uint32) (sockets []tcpSocket, done, ours bool, err error) {
	h := binary.NativeEndian
	for first := true; len(b) > 0; first = false {
		if len(b) < unix.SizeofNlMsghdr {
			return nil, false, true, errDiag
		}
		if h.Uint32(b[8:]) != seq {
			if first {
				return nil, false, false, nil
			}
			return nil, false, true, errDiag
		}
		length := int(h.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) || done {
			return nil, false, true, errDiag
		}
		kind, flags, body := h.Uint16(b[4:]), h.Uint16(b[6:]), b[unix.SizeofNlMsghdr:length]
		b = b[min((length+3)&^3, len(b)):]
		switch {
		case flags&unix.NLM_F_DUMP_INTR != 0:
			return nil, false, true, fmt.Errorf("%w: it was interrupted", errDiag)
		case kind == unix.SOCK_DIAG_BY_FAMILY:
			s, err := parseDiagMessage(body)
			if err != nil {
				return nil, false, true, err
			}
			sockets = append(sockets, s)
		case kind == unix.NLMSG_DONE, kind == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return nil, false, true, errDiag
			}
			errno := -int32(h.Uint32(body))
			if errno > 0 && errno < 4096 {
				return nil, false, true, fmt.Errorf("inet_diag: %w", unix.Errno(errno))
			}
			if kind == unix.NLMSG_ERROR || errno != 0 {
				return nil, false, true, errDiag
			}
			done = true
		default:
			return nil, false, true, errDiag
		}
	}
	return sockets, done, true, nil
}
