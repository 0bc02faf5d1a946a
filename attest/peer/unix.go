package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Unix pins the process that connected to this end of conn, or, on a connection that this process dialled,
// the one that made the listener. It reads no byte from conn.
func (p *Pinner) Unix(conn *net.UnixConn) (*Process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var s unixPeer
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = s.ask(int(fd), p.options.Without.PeerPidfd) }); err != nil {
		return nil, err
	}
	if inner != nil {
		return nil, inner
	}
	c := claim{pid: int(s.cred.Pid), uid: s.cred.Uid, gid: s.cred.Gid, gidKnown: true, strength: attest.Strong}
	if s.pidfd < 0 {
		if s.pidfd, err = openPidfd(c.pid); err != nil {
			return nil, err
		}
		c.strength = attest.Weak
	}
	process, err := p.pin(s.pidfd, c)
	if err != nil {
		return nil, err
	}
	process.groups, process.known = s.groups, true
	return process, nil
}

// unixPeer is what a Unix socket knows of its peer.
type unixPeer struct {
	cred   *unix.Ucred
	groups []uint32
	pidfd  int // -1 where the kernel gives none
}

func (s *unixPeer) ask(fd int, noPidfd bool) (err error) {
	s.pidfd = -1
	if s.cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if s.cred.Pid <= 0 {
		return fmt.Errorf("%w: the peer is in a pid namespace that cannot be seen from here", attest.ErrMismatch)
	}
	if s.groups, err = peerGroups(fd); err != nil {
		return err
	}
	if noPidfd {
		return nil
	}
	s.pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOPROTOOPT): // before Linux 6.5
		s.pidfd = -1
		return nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODATA): // reaped
		return attest.ErrExited
	}
	return os.NewSyscallError("getsockopt SO_PEERPIDFD", err)
}

// peerGroups reads SO_PEERGROUPS, at most NGROUPS_MAX (65536) of them.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 16)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size/4 <= 65536:
			groups = make([]uint32, size/4)
		default:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		}
	}
}
