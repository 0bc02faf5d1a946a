package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// diag asks the kernel about single TCP sockets over NETLINK_SOCK_DIAG (sock_diag(7)). It needs no privilege.
// It sees the network namespace of the thread that opened it.
type diag struct {
	netns uint64 // SO_NETNS_COOKIE, 0 before Linux 5.14
	inode uint64 // of the network namespace in nsfs, by which other processes name it

	mu  sync.Mutex
	fd  int
	seq uint32
	buf [8192]byte
}

// tcpSocket is what inet_diag says of one socket. uid and cgroup are its creator's.
type tcpSocket struct {
	local, remote netip.AddrPort
	state         uint8
	cookie        uint64
	uid           uint32
	inode         uint32
	cgroup        uint64 // 0: the kernel does not tell
}

const (
	tcpEstablished  = 1  // TCP_ESTABLISHED of include/net/tcp_states.h
	tcpSynReceived  = 3  // TCP_SYN_RECV
	inetDiagCgroup  = 21 // INET_DIAG_CGROUP_ID of linux/inet_diag.h, a u64
	diagRequestSize = unix.SizeofNlMsghdr + 56
	diagMessageSize = 72     // struct inet_diag_msg
	attrTypeMask    = 0x3fff // NLA_TYPE_MASK of linux/netlink.h
)

var errDiag = errors.New("the reply of inet_diag is not as sock_diag(7) says")

func openDiag() (*diag, error) {
	// The socket and the inode must be of one namespace, and a thread has its own.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("stat /proc/thread-self/ns/net: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open NETLINK_SOCK_DIAG: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind NETLINK_SOCK_DIAG: %w", err)
	}
	// The kernel answers within the request; a second without an answer is a fault, not a delay.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	netns, err := netnsCookie(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &diag{fd: fd, netns: netns, inode: ns.Ino}, nil
}

// netnsCookie names the network namespace of a socket, 0 where the kernel gives no name.
func netnsCookie(fd int) (uint64, error) {
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return c, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
}

func (d *diag) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// socket finds the TCP socket whose own address is local. It returns an error that wraps ENOENT when there is
// none.
func (d *diag) socket(local, remote netip.AddrPort) (tcpSocket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	request, err := diagRequest(d.seq, local, remote)
	if err != nil {
		return tcpSocket{}, err
	}
	if err := unix.Sendto(d.fd, request[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return tcpSocket{}, fmt.Errorf("ask inet_diag: %w", err)
	}
	for {
		n, from, err := unix.Recvfrom(d.fd, d.buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return tcpSocket{}, fmt.Errorf("inet_diag does not answer: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // only the kernel is asked
		}
		s, ours, err := parseDiag(d.buf[:n], d.seq)
		if !ours {
			continue // left over from a request that timed out
		}
		if err != nil {
			return tcpSocket{}, err
		}
		if s.state == tcpListen {
			// Where there is no such connection, the kernel may find who listens at its address.
			return tcpSocket{}, fmt.Errorf("inet_diag: %w", unix.ENOENT)
		}
		if s.local != local || s.remote != remote {
			return tcpSocket{}, fmt.Errorf("%w: it is about another socket", errDiag)
		}
		return s, nil
	}
}

// diagRequest is a SOCK_DIAG_BY_FAMILY request for exactly one socket: no dump, any cookie, any state.
func diagRequest(seq uint32, local, remote netip.AddrPort) (b [diagRequestSize]byte, err error) {
	if local.Addr().Is4() != remote.Addr().Is4() {
		return b, fmt.Errorf("a TCP connection from %v to %v: the families differ", local, remote)
	}
	h := binary.NativeEndian
	h.PutUint32(b[0:], diagRequestSize)
	h.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	h.PutUint16(b[6:], unix.NLM_F_REQUEST)
	h.PutUint32(b[8:], seq)
	r := b[unix.SizeofNlMsghdr:] // struct inet_diag_req_v2
	r[0] = unix.AF_INET6
	if local.Addr().Is4() {
		r[0] = unix.AF_INET
	}
	r[1] = unix.IPPROTO_TCP
	h.PutUint32(r[4:], ^uint32(0)) // states
	binary.BigEndian.PutUint16(r[8:], local.Port())
	binary.BigEndian.PutUint16(r[10:], remote.Port())
	copy(r[12:28], local.Addr().AsSlice())
	copy(r[28:44], remote.Addr().AsSlice())
	h.PutUint64(r[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE; r[44:48] is any interface
	return b, nil
}

// parseDiag parses one datagram of the kernel. ours is false when it does not answer request seq.
func parseDiag(b []byte, seq uint32) (s tcpSocket, ours bool, err error) {
	h := binary.NativeEndian
	if len(b) < unix.SizeofNlMsghdr {
		return s, true, errDiag
	}
	length := int(h.Uint32(b))
	if h.Uint32(b[8:]) != seq {
		return s, false, nil
	}
	if length < unix.SizeofNlMsghdr || length > len(b) {
		return s, true, errDiag
	}
	kind, body := h.Uint16(b[4:]), b[unix.SizeofNlMsghdr:length]
	switch kind {
	case unix.NLMSG_ERROR:
		if len(body) < 4 {
			return s, true, errDiag
		}
		if errno := -int32(h.Uint32(body)); errno > 0 && errno < 4096 {
			return s, true, fmt.Errorf("inet_diag: %w", unix.Errno(errno))
		}
		return s, true, errDiag // an acknowledgement, which was not asked for
	case unix.SOCK_DIAG_BY_FAMILY:
		s, err = parseDiagMessage(body)
		return s, true, err
	}
	return s, true, errDiag
}

// parseDiagMessage parses struct inet_diag_msg and the attributes after it.
func parseDiagMessage(b []byte) (s tcpSocket, err error) {
	if len(b) < diagMessageSize {
		return s, errDiag
	}
	h := binary.NativeEndian
	s.state = b[1]
	if s.local, err = diagAddr(b[0], b[8:24], b[4:6]); err != nil {
		return s, err
	}
	if s.remote, err = diagAddr(b[0], b[24:40], b[6:8]); err != nil {
		return s, err
	}
	// The cookie is two words, the low one first on every machine.
	s.cookie = uint64(h.Uint32(b[44:])) | uint64(h.Uint32(b[48:]))<<32
	s.uid, s.inode = h.Uint32(b[64:]), h.Uint32(b[68:])
	for attrs := b[diagMessageSize:]; len(attrs) >= unix.SizeofNlAttr; {
		length, kind := int(h.Uint16(attrs)), h.Uint16(attrs[2:])&attrTypeMask
		if length < unix.SizeofNlAttr || length > len(attrs) {
			return s, errDiag
		}
		if kind == inetDiagCgroup {
			if length != unix.SizeofNlAttr+8 {
				return s, errDiag
			}
			s.cgroup = h.Uint64(attrs[unix.SizeofNlAttr:])
		}
		attrs = attrs[min((length+3)&^3, len(attrs)):]
	}
	return s, nil
}

// diagAddr is an address as netip compares it: an IPv4 one is never in its IPv6 form.
func diagAddr(family byte, addr, port []byte) (netip.AddrPort, error) {
	var a netip.Addr
	switch family {
	case unix.AF_INET:
		a = netip.AddrFrom4([4]byte(addr))
	case unix.AF_INET6:
		a = netip.AddrFrom16([16]byte(addr)).Unmap()
	default:
		return netip.AddrPort{}, errDiag
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), nil
}
