package peer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Process is one pinned process. It implements attest.Process and attest.Shared. Close it when the session
// that rests on it is over.
type Process struct {
	pinner   *Pinner
	id       uint64 // the pinner's name for it
	pid      int
	uid, gid uint32
	groups   []uint32 // as the socket told them; see groupsKnown
	known    bool     // groups are known, even when there are none
	strength attest.Strength
	inode    uint64 // of the pidfd in pidfs, 0 where it identifies nothing
	proc     *os.File
	byInode  bool // found to hold a TCP socket by its inode alone

	fds    sync.RWMutex // held for reading while pidfd and image are in use, for writing to close them
	pidfd  int
	image  image
	closed bool

	mu     sync.Mutex
	err    error // why done is closed
	done   chan struct{}
	after  []func(error)
	others []*Process // further holders of a TCP socket
}

// claim is what a socket says of the process behind it.
type claim struct {
	pid      int
	uid, gid uint32
	gidKnown bool
	strength attest.Strength
}

// pin takes over pidfd, which was opened from the claim or by its pid, and makes sure of the claim.
func (p *Pinner) pin(pidfd int, c claim) (*Process, error) {
	process := &Process{
		pinner: p, pid: c.pid, uid: c.uid, gid: c.gid, strength: c.strength,
		pidfd: pidfd, inode: pidfsInode(pidfd), done: make(chan struct{}),
		image: noImage(),
	}
	if err := process.confirm(c); err != nil {
		process.release()
		return nil, err
	}
	if err := p.hold(process); err != nil {
		process.release()
		return nil, err
	}
	return process, nil
}

// confirm opens the process's files by its pid and then asks the pidfd whether it still has that pid. If it
// has, the pid was its own all the time, and the files are its own.
func (p *Process) confirm(c claim) error {
	path := "/proc/" + strconv.Itoa(c.pid)
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if gone := exited(p.pidfd); gone != nil {
			return gone
		}
		// It lives and cannot be seen: hidepid, or a /proc of another namespace.
		return fmt.Errorf("process %d cannot be read; is /proc mounted with hidepid? %w", c.pid, err)
	}
	p.proc = os.NewFile(uintptr(dir), path)
	if p.image, err = openImage(dir, p.pinner.options.Without.Pagemap); err != nil {
		if gone := exited(p.pidfd); gone != nil {
			return gone
		}
		return fmt.Errorf("process %d: %w", c.pid, err)
	}
	if !c.gidKnown {
		now, err := p.identity()
		if err != nil {
			return err
		}
		p.gid = now.gid
	}
	return p.checkIdentity()
}

// PID is the process's id in Ward's own pid namespace.
func (p *Process) PID() int { return p.pid }

// UID is the effective user at connect (Unix) or the user who created the socket (TCP). It is still the
// process's effective user as long as Alive is nil.
func (p *Process) UID() uint32 { return p.uid }

// GID is like UID for the group; of a TCP peer it is the effective group when it was pinned.
func (p *Process) GID() uint32 { return p.gid }

// Groups are the supplementary groups at connect (Unix) or now (TCP).
func (p *Process) Groups() ([]uint32, error) {
	if p.known {
		return slices.Clone(p.groups), nil
	}
	status, err := attest.AppendProc(nil, p, "status")
	if err != nil {
		return nil, err
	}
	s, err := parseStatus(status)
	return s.groups, err
}

// Proc is /proc/PID of the pinned process.
func (p *Process) Proc() *os.File { return p.proc }

// Strength is attest.Weak when the pid could only be pinned after accept.
func (p *Process) Strength() attest.Strength { return p.strength }

// PidfsInode names the process uniquely until the host restarts; with the pid it refers to the process in a
// message to another. ok is false before Linux 6.9, where pidfds have no inode of their own.
func (p *Process) PidfsInode() (inode uint64, ok bool) { return p.inode, p.inode != 0 }

// CgroupID is the process's cgroup at this moment, as cgroup2 numbers them; ok is false before Linux 6.13.
func (p *Process) CgroupID() (id uint64, ok bool) {
	p.fds.RLock()
	defer p.fds.RUnlock()
	if p.closed || p.pinner.options.Without.PidfdInfo {
		return 0, false
	}
	info, err := pidfdInfo(p.pidfd)
	if err != nil || info.Mask&unix.PIDFD_INFO_CGROUPID == 0 {
		return 0, false
	}
	return info.Cgroupid, true
}

// Others are further processes that held the same TCP socket when it was pinned.
func (p *Process) Others() []attest.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	others := make([]attest.Process, len(p.others))
	for i, o := range p.others {
		others[i] = o
	}
	return others
}

// Done is closed when the process has exited, has been seen to have replaced its program or changed its user,
// or was closed; Alive says which.
func (p *Process) Done() <-chan struct{} { return p.done }

// Alive implements attest.Process. Once it has returned an error it always does.
func (p *Process) Alive() error {
	if err := p.ended(); err != nil {
		return err
	}
	p.fds.RLock()
	err := p.check()
	p.fds.RUnlock()
	if err != nil {
		p.end(err)
		return p.ended() // whatever was seen first
	}
	return nil
}

// Close ends the watching and closes everything that is held of the process.
func (p *Process) Close() error {
	p.end(ErrClosed)
	p.release()
	p.mu.Lock()
	others := p.others
	p.mu.Unlock()
	for _, o := range others {
		_ = o.Close()
	}
	return nil
}

// check compares the process with the one that was pinned. The caller holds fds for reading.
func (p *Process) check() error {
	if p.closed {
		return ErrClosed
	}
	if err := p.checkIdentity(); err != nil {
		return err
	}
	if err := p.image.same(); err != nil {
		// A process loses its image on its way out; an exit explains more.
		if gone := exited(p.pidfd); gone != nil {
			return gone
		}
		return err
	}
	return nil
}

// checkIdentity is nil while the process lives under the pid and as the user that its socket named.
func (p *Process) checkIdentity() error {
	if err := exited(p.pidfd); err != nil {
		return err
	}
	now, err := p.identity()
	if err != nil {
		return err
	}
	if now.pid != 0 && now.pid != p.pid {
		return fmt.Errorf("%w: the socket names process %d, its pidfd names %d", attest.ErrMismatch, p.pid, now.pid)
	}
	if now.uid != p.uid || now.gid != p.gid {
		return fmt.Errorf("%w: the socket names uid %d and gid %d, process %d has %d and %d",
			attest.ErrMismatch, p.uid, p.gid, p.pid, now.uid, now.gid)
	}
	return p.pinner.users.known(p.uid, p.gid)
}

// identity is who the process is now.
func (p *Process) identity() (identity, error) {
	if !p.pinner.options.Without.PidfdInfo {
		info, err := pidfdInfo(p.pidfd)
		switch {
		case err == nil && info.Mask&infoWanted == infoWanted:
			return identity{pid: int(info.Tgid), uid: info.Euid, gid: info.Egid}, nil
		case errors.Is(err, unix.ESRCH):
			return identity{}, attest.ErrExited
		}
		// Linux before 6.13.
	}
	status, err := attest.AppendProc(nil, p, "status")
	if err != nil {
		return identity{}, err
	}
	s, err := parseStatus(status)
	return identity{uid: s.uid, gid: s.gid}, err
}

// onEnd calls f once the process has ended, at once when it has already.
func (p *Process) onEnd(f func(error)) {
	p.mu.Lock()
	err := p.err
	if err == nil {
		p.after = append(p.after, f)
	}
	p.mu.Unlock()
	if err != nil {
		f(err)
	}
}

func (p *Process) ended() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// end closes done, for err, unless it is closed already. The caller holds no lock.
func (p *Process) end(err error) {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	p.err = err
	after := p.after
	p.after = nil
	close(p.done)
	p.mu.Unlock()

	p.fds.RLock()
	if !p.closed {
		p.pinner.forget(p)
	}
	p.fds.RUnlock()
	for _, f := range after {
		f(err)
	}
}

// release closes the descriptors.
func (p *Process) release() {
	p.fds.Lock()
	defer p.fds.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	if p.id != 0 {
		p.pinner.forget(p)
	}
	unix.Close(p.pidfd)
	p.image.close()
	if p.proc != nil {
		_ = p.proc.Close()
	}
}
