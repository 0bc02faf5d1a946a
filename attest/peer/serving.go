package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Units tells the facts of a cgroup, by its id and its path below the root of cgroup2. attest/systemd does.
type Units interface {
	Cgroup(id uint64, path string) ([]attest.Selector, error)
}

// Serving attests who serves at the other end of conn, which this process has dialled: unix.uid, unix.gid of a Unix
// socket, and systemd.unit as units says. Call it before the first byte is sent, and send none when its facts are not
// those that are wanted. It needs no capability and no /proc but its own, and writes and reads nothing.
//
// The evidence is always of this very connection, never of a port or a path, where somebody else may have been when
// it was made:
//
//   - Unix: who called listen on the socket that was reached (SO_PEERCRED, SO_PEERPIDFD). The user is the one at that
//     call, the unit the one in which that process is. When it has exited there is no unit, and before Linux 6.13 the
//     unit is known only where /proc shows other users' processes.
//   - Loopback TCP: the server's own end of the connection, by inet_diag. The user is the one who accepted it, the
//     cgroup the one in which the listening socket was made. A connection that is not accepted within a moment is
//     attested by the sockets that listen there, which must all be of one user and cgroup.
//
// A server may have been handed its listening socket: it is attested as whoever made it. A socket of systemd's is
// made by pid 1, and attests as unix.uid 0 and systemd.unit init.scope. (Over TCP the user is still the service's, as
// soon as it accepts.) To have such a server attested as its unit, let it make its socket itself; otherwise demand uid
// root and unit init.scope, and rely on only root being able to write the socket unit that names the service.
func (p *Pinner) Serving(ctx context.Context, conn net.Conn, units Units) (attest.Attestation, error) {
	p.searching.RLock()
	defer p.searching.RUnlock()
	if p.isClosed() {
		return attest.Attestation{}, ErrClosed
	}
	var s server
	var err error
	switch c := conn.(type) {
	case *net.UnixConn:
		s, err = p.servingUnix(c)
	case *net.TCPConn:
		s, err = p.servingTCP(ctx, c)
	default:
		err = fmt.Errorf("%w: it is over %s, neither Unix nor TCP", ErrNotAttributable, conn.LocalAddr().Network())
	}
	if err != nil {
		return attest.Attestation{}, err
	}
	facts := append(s.facts, attest.Selector{Type: attest.UnixUID, Value: strconv.FormatUint(uint64(s.uid), 10)})
	if s.cgroup != 0 || s.path != "" {
		if s.path == "" {
			s.path, err = p.groups.path(s.cgroup)
		}
		switch {
		case err == nil:
			unit, err := units.Cgroup(s.cgroup, s.path)
			if err != nil {
				return attest.Attestation{}, err
			}
			facts = append(facts, unit...)
		case !errors.Is(err, errNoCgroup): // it is gone: no fact
			return attest.Attestation{}, err
		}
	}
	return attest.Attestation{Selectors: attest.NewSelectors(facts...), Strength: s.strength, Time: time.Now()}, nil
}

// server is what a connection tells of whoever serves it.
type server struct {
	uid      uint32
	facts    []attest.Selector // further ones
	cgroup   uint64            // 0: not known
	path     string            // of the cgroup, "" until it is looked up
	strength attest.Strength
}

func (p *Pinner) servingUnix(c *net.UnixConn) (server, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return server{}, err
	}
	var peer unixPeer
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = peer.ask(int(fd), p.options.Without.PeerPidfd) }); err != nil {
		return server{}, err
	}
	// The user is a fact of the socket's, whether or not the process still lives.
	gone := errors.Is(inner, attest.ErrExited)
	if inner != nil && !gone {
		return server{}, inner
	}
	if err := p.users.known(peer.cred.Uid, peer.cred.Gid); err != nil {
		return server{}, err
	}
	s := server{uid: peer.cred.Uid, strength: attest.Strong, facts: []attest.Selector{
		{Type: attest.UnixGID, Value: strconv.FormatUint(uint64(peer.cred.Gid), 10)}}}
	if gone {
		return s, nil
	}
	pid := int(peer.cred.Pid)
	if peer.pidfd < 0 { // before Linux 6.5; the pid may have been used again
		s.strength = attest.Weak
		if peer.pidfd, err = openPidfd(pid); errors.Is(err, attest.ErrExited) {
			return s, nil
		} else if err != nil {
			return server{}, err
		}
	}
	defer unix.Close(peer.pidfd)
	s.cgroup, s.path, err = p.cgroupOf(peer.pidfd, pid)
	if errors.Is(err, attest.ErrExited) {
		return s, nil
	}
	return s, err
}

// cgroupOf is the cgroup of the process, by its id where the kernel tells it, else by its path; neither where /proc
// does not show the process.
func (p *Pinner) cgroupOf(pidfd, pid int) (id uint64, path string, err error) {
	if err := exited(pidfd); err != nil {
		return 0, "", err
	}
	if !p.options.Without.PidfdInfo {
		switch info, err := pidfdInfo(pidfd); {
		case errors.Is(err, unix.ESRCH):
			return 0, "", attest.ErrExited
		case err == nil && info.Mask&unix.PIDFD_INFO_CGROUPID != 0:
			if p.groups.mount < 0 {
				return 0, "", nil
			}
			return info.Cgroupid, "", nil
		}
	}
	dir, err := os.Open("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return 0, "", exited(pidfd)
	}
	defer dir.Close()
	path, err = attest.Cgroup(procDir{dir: dir})
	// Only now: while the process lives its pid is its own, and so was what was read.
	if gone := exited(pidfd); gone != nil {
		return 0, "", gone
	}
	return 0, path, err
}

// procDir lets the cgroup of a process be read that is not pinned.
type procDir struct {
	attest.Process
	dir *os.File
}

func (d procDir) Proc() *os.File { return d.dir }

const (
	// A server that waits for connections accepts one within tens of microseconds.
	acceptPatience = 100 * time.Millisecond
	firstWait      = 50 * time.Microsecond
)

func (p *Pinner) servingTCP(ctx context.Context, c *net.TCPConn) (server, error) {
	ours, theirs := tcpAddr(c.LocalAddr()), tcpAddr(c.RemoteAddr())
	if !theirs.IsValid() || !theirs.Addr().IsLoopback() {
		return server{}, fmt.Errorf("%w: the server %v is not on loopback", ErrNotAttributable, theirs)
	}
	// Dialling a port of the ephemeral range where nobody listens may connect a socket to itself.
	if ours == theirs {
		return server{}, fmt.Errorf("%w: nobody serves %v, it is connected to itself", ErrNotAttributable, theirs)
	}
	if err := p.sameNetns(c); err != nil {
		return server{}, err
	}
	s, err := p.accepted(ctx, theirs, ours)
	if err != nil {
		return server{}, err
	}
	if s.inode == 0 {
		if s, err = p.backlogged(s); err != nil {
			return server{}, err
		}
	}
	// Only now: while our end is established, no other server's end of the same addresses can be.
	if err := established(c); err != nil {
		return server{}, err
	}
	if err := p.users.knownUID(s.uid); err != nil {
		return server{}, err
	}
	return server{uid: s.uid, cgroup: p.placed(s).cgroup, strength: attest.Strong}, nil
}

// accepted finds the server's end of the connection, and waits a moment until it has been accepted: until then its
// user is that of the listening socket, or none. What it returns without an inode has not been.
func (p *Pinner) accepted(ctx context.Context, local, remote netip.AddrPort) (tcpSocket, error) {
	deadline := time.Now().Add(acceptPatience)
	for wait := firstWait; ; wait *= 2 {
		s, err := p.serverSocket(local, remote)
		if err != nil || s.inode != 0 || time.Now().After(deadline) {
			return s, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return s, ctx.Err()
		}
	}
}

// serverSocket is the server's end of a connection. In SYN_RECV the server has not yet room for it.
func (p *Pinner) serverSocket(local, remote netip.AddrPort) (tcpSocket, error) {
	s, err := p.diag.socket(local, remote)
	if errors.Is(err, unix.ENOENT) {
		return s, fmt.Errorf("%w: the server's socket is gone, or in another network namespace", ErrNotAttributable)
	}
	if err == nil && s.state != tcpEstablished && s.state != tcpSynReceived {
		err = fmt.Errorf("%w: the server's end is in TCP state %d, not established", ErrNotAttributable, s.state)
	}
	return s, err
}

// backlogged attests a connection that nobody has accepted, s being the server's end of it. A connection in a backlog
// lives no longer than the socket that listens, so that one is among those that listen now, if the connection is still
// in the backlog afterwards. (With net.ipv4.tcp_migrate_req it may move to another of them.) All must be the same.
func (p *Pinner) backlogged(s tcpSocket) (tcpSocket, error) {
	listeners, err := p.diag.listeners(s.local)
	if err != nil {
		return s, err
	}
	again, err := p.serverSocket(s.local, s.remote)
	if err != nil {
		return s, err
	}
	switch {
	case again.state != tcpEstablished:
		return s, fmt.Errorf("%w: the server at %v has no room for it", ErrNotAttributable, s.local)
	case s.state == tcpEstablished && again.cookie != s.cookie:
		return s, fmt.Errorf("%w: the server's socket changed meanwhile", ErrNotAttributable)
	case again.inode != 0:
		return again, nil
	case len(listeners) == 0:
		return s, fmt.Errorf("%w: nobody listens at %v", ErrNotAttributable, s.local)
	}
	for _, l := range listeners {
		if l.uid != listeners[0].uid || l.cgroup != again.cgroup {
			return s, fmt.Errorf("%w: uid %d in cgroup %d listens at %v besides uid %d and cgroup %d, and nobody has accepted the connection",
				attest.ErrMismatch, l.uid, l.cgroup, s.local, listeners[0].uid, again.cgroup)
		}
	}
	again.uid = listeners[0].uid
	return again, nil
}
