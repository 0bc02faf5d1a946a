package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// ErrNotAttributable: the connection cannot be attributed to one local process.
var ErrNotAttributable = errors.New("the connection cannot be attributed to one local process")

// TCP pins the local process that opened conn, a loopback connection that this process has accepted. It must
// be called before a byte is read, and reads none. It refuses
//
//   - a peer that is not on loopback, unless it was redirected to our loopback address, or whose socket is in another
//     network namespace;
//   - a connection that is not established at both ends, ours being asked after the peer's: otherwise the peer
//     may have reset it, and its addresses may belong to another connection by now;
//   - a socket that no process holds any more: in TIME_WAIT the kernel reports uid 0 for it;
//   - a socket that is held by a process of another user, or in another cgroup, than created it.
//
// When several processes hold the socket, the one that was started first is returned, and attest.Run attests
// all of them. Those that Ward has no right to look into are not found.
func (p *Pinner) TCP(ctx context.Context, conn *net.TCPConn) (*Process, error) {
	return p.TCPTo(ctx, conn, netip.AddrPort{})
}

// TCPTo is TCP for a connection that was redirected here: original is the address that the peer dialled. The
// zero AddrPort stands for the address where conn was accepted.
func (p *Pinner) TCPTo(ctx context.Context, conn *net.TCPConn, original netip.AddrPort) (*Process, error) {
	p.searching.RLock()
	defer p.searching.RUnlock()
	if p.isClosed() {
		return nil, ErrClosed
	}
	q, err := p.question(conn, original)
	if err != nil {
		return nil, err
	}
	return p.holder(ctx, func() (tcpSocket, error) { return p.clientSocket(q) })
}

// holder pins who holds the socket that look finds. The caller holds searching for reading.
func (p *Pinner) holder(ctx context.Context, look func() (tcpSocket, error)) (*Process, error) {
	s, err := look()
	if err != nil {
		return nil, err
	}
	// From here on the work depends on how much the peer's user runs and has open.
	done, err := p.turns.Take(ctx, s.uid)
	if err != nil {
		return nil, err
	}
	defer done()
	holders, err := p.holders(s)
	if err != nil {
		return nil, err
	}
	process, err := p.agree(look, s, holders)
	if err != nil {
		for _, h := range holders {
			_ = h.Close()
		}
		return nil, err
	}
	return process, nil
}

// question is a connection as the client sees it, and our end of it.
type question struct {
	conn          *net.TCPConn
	local, remote netip.AddrPort
}

func (p *Pinner) question(conn *net.TCPConn, original netip.AddrPort) (question, error) {
	q := question{conn: conn, local: tcpAddr(conn.RemoteAddr()), remote: tcpAddr(conn.LocalAddr())}
	if original.IsValid() {
		q.remote = unmapped(original)
	}
	// A client whose dialling was redirected has the address with which it would have gone out. That it is of this
	// host the look-up shows: no other host's socket is found here, and none reaches a loopback address.
	ours := tcpAddr(conn.LocalAddr())
	redirected := q.remote != ours && ours.Addr().IsLoopback()
	if !q.local.IsValid() || !q.local.Addr().IsLoopback() && !redirected {
		return q, fmt.Errorf("%w: its peer %v is not on loopback", ErrNotAttributable, q.local)
	}
	return q, p.sameNetns(conn)
}

// sameNetns refuses a connection in another network namespace than the one that is asked about.
func (p *Pinner) sameNetns(conn *net.TCPConn) error {
	var netns uint64
	err := control(conn, func(fd int) (err error) {
		netns, err = netnsCookie(fd)
		return err
	})
	if err != nil {
		return err
	}
	if netns != p.diag.netns {
		return fmt.Errorf("%w: it belongs to another network namespace than this process asks about", ErrNotAttributable)
	}
	return nil
}

// clientSocket is the look-up and its refusals.
func (p *Pinner) clientSocket(q question) (tcpSocket, error) {
	s, err := p.diag.socket(q.local, q.remote)
	if errors.Is(err, unix.ENOENT) {
		return s, fmt.Errorf("%w: its peer's socket is gone, or in another network namespace", ErrNotAttributable)
	}
	if err != nil {
		return s, err
	}
	if err := s.inUse(); err != nil {
		return s, err
	}
	// Only now: while our end is established, no other client's end of the same addresses can be.
	if err := established(q.conn); err != nil {
		return s, err
	}
	return p.placed(s), nil
}

// inUse is nil for one end of a connection that is established and that a process holds.
func (s tcpSocket) inUse() error {
	if s.state != tcpEstablished {
		return fmt.Errorf("%w: its peer's end is in TCP state %d, not established", ErrNotAttributable, s.state)
	}
	// TIME_WAIT and orphaned sockets have no inode; the uid of some reads 0.
	if s.inode == 0 {
		return fmt.Errorf("%w: no process holds its peer's end", ErrNotAttributable)
	}
	return nil
}

// placed is s with its cgroup, where cgroups can be found.
func (p *Pinner) placed(s tcpSocket) tcpSocket {
	if p.options.Without.SockCgroup || p.groups.mount < 0 {
		s.cgroup = 0
	}
	return s
}

// agree checks what the look-up said of the socket's creator against those who hold it, and joins them.
func (p *Pinner) agree(look func() (tcpSocket, error), s tcpSocket, holders []*Process) (*Process, error) {
	inodeOnly := false
	for _, h := range holders {
		if err := p.sameCgroup(h, s.cgroup); err != nil {
			return nil, err
		}
		inodeOnly = inodeOnly || h.byInode
	}
	if inodeOnly {
		// An inode's number may be used again. It was not, if the socket that had it still has it.
		again, err := look()
		if err != nil {
			return nil, err
		}
		if again.cookie != s.cookie || again.inode != s.inode {
			return nil, fmt.Errorf("%w: its peer's socket changed meanwhile", ErrNotAttributable)
		}
	}
	first := holders[0]
	for _, h := range holders {
		if h.older(first) {
			first = h
		}
	}
	for _, h := range holders {
		if h == first {
			continue
		}
		first.mu.Lock()
		first.others = append(first.others, h)
		first.mu.Unlock()
		h.onEnd(func(err error) {
			if !errors.Is(err, attest.ErrExited) && !errors.Is(err, ErrClosed) {
				first.end(fmt.Errorf("process %d, which shares the socket: %w", h.pid, err))
			}
		})
	}
	return first, nil
}

// sameCgroup refuses a holder in another cgroup than the socket was made in.
func (p *Pinner) sameCgroup(h *Process, cgroup uint64) error {
	if cgroup == 0 {
		return nil
	}
	id, ok := h.CgroupID()
	if !ok { // Linux before 6.13
		path, err := attest.Cgroup(h)
		if err != nil {
			return err
		}
		if id, err = p.groups.id(path); err != nil {
			return err
		}
	}
	if id != cgroup {
		return fmt.Errorf("%w: the socket was made in cgroup %d, process %d is in %d", attest.ErrMismatch, cgroup, h.pid, id)
	}
	return nil
}

// established refuses a connection whose own end is anything but ESTABLISHED.
func established(conn *net.TCPConn) error {
	return control(conn, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		if info.State != tcpEstablished {
			return fmt.Errorf("%w: its peer has ended it (TCP state %d)", ErrNotAttributable, info.State)
		}
		return nil
	})
}

func control(conn *net.TCPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// tcpAddr is a's address without zone, an IPv4 one never in its IPv6 form.
func tcpAddr(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return unmapped(t.AddrPort())
}

// unmapped is a as addresses are compared here.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
