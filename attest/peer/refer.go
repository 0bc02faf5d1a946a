package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// ErrNoReference: this kernel cannot name a process so that its name cannot come to mean another.
var ErrNoReference = errors.New("no sound reference to a process can be taken on this kernel")

var (
	errNoPeerPidfd = errors.New("SO_PEERPIDFD needs Linux 6.5")
	errNoPidfs     = errors.New("pidfds have inodes of their own from Linux 6.9 on")
	errNoNetns     = errors.New("SO_NETNS_COOKIE needs Linux 5.14")
)

// Refer wraps l as Listen does, for a process that may not look into its callers: it needs no capability and no
// /proc but its own. Each connection is a *Referred, which names the caller to the agent. One whose caller cannot be
// named is closed in Accept, which waits for the next; refused is told why. Nothing is read before.
func (p *Pinner) Refer(l net.Listener, refused func(error)) (*Listener, error) {
	if err := p.canRefer(l); err != nil {
		return nil, fmt.Errorf("peer: %s: %w: %w", l.Addr(), ErrNoReference, err)
	}
	if err := prepare(l); err != nil {
		return nil, err
	}
	if _, ok := l.(*net.UnixListener); ok {
		p.changes.begin(p.options)
	}
	return &Listener{Listener: l, refused: refused, take: func(c net.Conn) (net.Conn, error) { return p.Referred(c) }}, nil
}

// canRefer asks the kernel, so that an operator hears at the start what every caller would be refused for.
func (p *Pinner) canRefer(l net.Listener) error {
	if _, ok := l.(*net.UnixListener); !ok {
		if p.diag.netns == 0 {
			return errNoNetns
		}
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var s unixPeer
	if err := s.ask(pair[0], p.options.Without.PeerPidfd); err != nil {
		return err
	}
	if s.pidfd < 0 {
		return errNoPeerPidfd
	}
	defer unix.Close(s.pidfd)
	if pidfsInode(s.pidfd) == 0 {
		return errNoPidfs
	}
	return nil
}

// Referred is an accepted connection whose caller is named, but not looked into. When the caller of a Unix socket
// exits, the connection is closed, and every read from it checks who sent what it returns, as a Conn's does.
type Referred struct {
	netConn
	pinner    *Pinner
	receiver  *receiver // nil for TCP
	reference attest.Reference
	groups    string // of the process when it connected, packed
	uid       uint32
	dialed    netip.AddrPort

	fds   sync.RWMutex // held for reading while pidfd is in use, for writing to close it
	pidfd int          // -1 for TCP, and once it is closed

	id     uint64 // the pinner's name for it
	mu     sync.Mutex
	ended  error
	done   chan struct{}
	closed bool
}

// Referred wraps one accepted connection, Unix or TCP, as a Listener of Refer does. It does not close c when it fails.
func (p *Pinner) Referred(c net.Conn) (*Referred, error) {
	r := &Referred{netConn: newNetConn(c), pinner: p, pidfd: -1, done: make(chan struct{})}
	if r.raw == nil {
		return nil, fmt.Errorf("peer: a connection over %s: it has no socket", c.LocalAddr().Network())
	}
	var err error
	switch c := c.(type) {
	case *net.UnixConn:
		err = r.unix()
	case *net.TCPConn:
		err = r.tcp(c)
	default:
		err = fmt.Errorf("peer: a connection over %s: neither Unix nor TCP", c.LocalAddr().Network())
	}
	if err == nil {
		err = p.follow(r)
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// unix names the process that connected.
func (r *Referred) unix() error {
	if err := passSenders(r.raw); err != nil {
		return err
	}
	r.receiver = newReceiver(r.raw)
	var s unixPeer
	var inner error
	if err := r.raw.Control(func(fd uintptr) { inner = s.ask(int(fd), r.pinner.options.Without.PeerPidfd) }); err != nil {
		return err
	}
	if inner != nil {
		return inner
	}
	if s.pidfd < 0 {
		return fmt.Errorf("%w: %w", ErrNoReference, errNoPeerPidfd)
	}
	r.pidfd, r.uid, r.groups = s.pidfd, s.cred.Uid, packed(s.groups)
	inode := pidfsInode(s.pidfd)
	if inode == 0 {
		return fmt.Errorf("%w: %w", ErrNoReference, errNoPidfs)
	}
	r.reference.Process = attest.ProcessReference{PID: int(s.cred.Pid), Inode: inode, UID: s.cred.Uid, GID: s.cred.Gid}
	if err := r.pinner.users.known(s.cred.Uid, s.cred.Gid); err != nil {
		return err
	}
	_, err := r.sameProcess()
	return err
}

// sameProcess gives the cgroup of the process that connected, while it lives, as the user who connected. Where the kernel
// does not tell a process's user (before Linux 6.13), the agent still compares it with the reference; the cgroup is 0 there.
func (r *Referred) sameProcess() (cgroup uint64, err error) {
	if err := exited(r.pidfd); err != nil {
		return 0, err
	}
	if r.pinner.options.Without.PidfdInfo {
		return 0, nil
	}
	want := r.reference.Process
	info, err := pidfdInfo(r.pidfd)
	switch {
	case errors.Is(err, unix.ESRCH):
		return 0, attest.ErrExited
	case err != nil || info.Mask&infoWanted != infoWanted:
		return 0, nil
	case int(info.Tgid) != want.PID || info.Euid != want.UID || info.Egid != want.GID:
		return 0, fmt.Errorf("%w: process %d connected as uid %d and gid %d, and has %d and %d", attest.ErrMismatch, want.PID, want.UID, want.GID, info.Euid, info.Egid)
	case info.Mask&unix.PIDFD_INFO_CGROUPID == 0:
		return 0, nil
	}
	return info.Cgroupid, nil
}

// tcp names the client's own socket.
func (r *Referred) tcp(c *net.TCPConn) (err error) {
	p := r.pinner
	p.searching.RLock()
	defer p.searching.RUnlock()
	if p.isClosed() {
		return ErrClosed
	}
	if p.diag.netns == 0 {
		return fmt.Errorf("%w: %w", ErrNoReference, errNoNetns)
	}
	if r.dialed, err = Dialed(c); err != nil {
		return err
	}
	q, err := p.question(c, r.dialed)
	if err != nil {
		return err
	}
	s, err := p.clientSocket(q) // and our end is established after it
	if err != nil {
		return err
	}
	if s.cookie == 0 {
		return fmt.Errorf("%w: the kernel gives its peer's socket no cookie", ErrNotAttributable)
	}
	r.uid = s.uid
	r.reference.Conn = attest.ConnReference{Client: q.local, Dialed: q.remote, Cookie: s.cookie, NetNS: p.diag.inode}
	return nil
}

// Reference names the caller to the agent. It fails once the caller is known to be gone.
func (r *Referred) Reference() (attest.Reference, error) {
	if err := r.end(); err != nil {
		return attest.Reference{}, err
	}
	return r.reference, nil
}

// Confirm makes the agent's answer true of this connection. Call it after the agent has resolved the reference and
// before the first byte is read: only while our end is still established, or the process still lives, was it the
// caller of this connection whom the agent saw. On an error close the connection, and forget the answer.
func (r *Referred) Confirm() error {
	if err := r.end(); err != nil {
		return err
	}
	if c, ok := r.anyConn.(*net.TCPConn); ok {
		return established(c)
	}
	r.fds.RLock()
	defer r.fds.RUnlock()
	if r.pidfd < 0 {
		return ErrClosed
	}
	_, err := r.sameProcess()
	return err
}

// Standing is what can be seen of the process that connected, now that it lives and is the user who connected. It is not
// Known for a TCP client, nor where the kernel tells too little: of programs that are replaced it tells from Linux 6.6 on,
// in the host's own namespaces.
func (r *Referred) Standing() (attest.Standing, error) {
	if err := r.end(); err != nil {
		return attest.Standing{}, err
	}
	r.fds.RLock()
	defer r.fds.RUnlock()
	if r.receiver == nil {
		return attest.Standing{}, nil
	}
	if r.pidfd < 0 {
		return attest.Standing{}, ErrClosed
	}
	cgroup, err := r.sameProcess()
	if err != nil {
		return attest.Standing{}, err
	}
	return attest.Standing{Changes: r.pinner.changes.last(r.reference.Process.PID), Cgroup: cgroup, Groups: r.groups}, nil
}

// Done is closed when the caller of a Unix connection has exited, and by Close. A TCP client is watched by the agent,
// which knows the process.
func (r *Referred) Done() <-chan struct{} { return r.done }

// UID is the user who connected, for bounds per user; the agent attests it.
func (r *Referred) UID() uint32 { return r.uid }

// Dialed is the address that a TCP client dialled, before any redirection; of a Unix socket it is not valid.
func (r *Referred) Dialed() netip.AddrPort { return r.dialed }

// Read implements net.Conn. Its error wraps attest.ErrExited once the caller has, and ErrPassed when another process
// sent the message; both end the connection.
func (r *Referred) Read(b []byte) (n int, err error) {
	if r.receiver == nil {
		return r.netConn.Read(b)
	}
	n, err = r.receiver.read(b, r.reference.Process.PID)
	return r.judged(n, err)
}

// ReadLent is Read for who has no buffer while there is nothing to read: it reads into what lend gives, which must not be
// empty, and calls back when nothing was there yet, before it waits. What Read checks, it checks too.
func (r *Referred) ReadLent(lend func() []byte, back func()) (n int, err error) {
	if r.receiver != nil {
		n, err = r.receiver.readLent(lend, back, r.reference.Process.PID)
		return r.judged(n, err)
	}
	var inner error
	err = r.raw.Read(func(fd uintptr) bool {
		b := lend()
		for {
			n, inner = unix.Read(int(fd), b)
			switch inner {
			case unix.EINTR:
			case unix.EAGAIN:
				back()
				return false
			default:
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case inner != nil:
		return 0, r.opError("read", os.NewSyscallError("read", inner))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// judged is what a read from a Unix socket comes to.
func (r *Referred) judged(n int, err error) (int, error) {
	// What was read before the exit was noticed may be another's.
	if ended := r.end(); errors.Is(ended, attest.ErrExited) && err != io.EOF {
		return 0, r.opError("read", ended)
	}
	if err != nil && r.receiver.refused() {
		_ = r.Close()
		return 0, r.opError("read", err)
	}
	return n, err
}

// Write implements net.Conn. Nothing more is sent once the caller has exited, whoever else holds the connection.
func (r *Referred) Write(b []byte) (int, error) {
	if err := r.end(); errors.Is(err, attest.ErrExited) {
		return 0, r.opError("write", err)
	}
	return r.netConn.Write(b)
}

// Close closes the connection and stops the watching.
func (r *Referred) Close() error {
	err := r.netConn.Close()
	r.finish(ErrClosed)
	r.release()
	return err
}

// finish closes done, for err, unless it is closed already.
func (r *Referred) finish(err error) {
	r.mu.Lock()
	first := r.ended == nil
	if first {
		r.ended = err
		close(r.done)
	}
	r.mu.Unlock()
	if first {
		_ = r.netConn.Close()
	}
}

func (r *Referred) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

func (r *Referred) release() {
	r.fds.Lock()
	defer r.fds.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	r.pinner.unfollow(r)
	if r.pidfd >= 0 {
		unix.Close(r.pidfd)
		r.pidfd = -1
	}
}
