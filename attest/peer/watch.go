package peer

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// openEpoll hands the epoll descriptor to the Go runtime's own poller, so that waiting costs no thread.
func (p *Pinner) openEpoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	p.epoll = os.NewFile(uintptr(fd), "epoll")
	p.raw, err = p.epoll.SyscallConn()
	return err
}

// hold starts watching process.
func (p *Pinner) hold(process *Process) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.room(process.uid); err != nil {
		return err
	}
	if err := p.watchExit(process.pidfd); err != nil {
		return err
	}
	process.id = p.next
	p.held[process.id] = process
	p.byPID[process.pid] = append(p.byPID[process.pid], process)
	p.count[process.uid]++
	if len(p.held) == 1 {
		p.execs.begin()
	}
	return nil
}

// forget stops watching process, whose pidfd is still open.
func (p *Pinner) forget(process *Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, held := p.held[process.id]; !held {
		return
	}
	delete(p.held, process.id)
	same := slices.DeleteFunc(p.byPID[process.pid], func(q *Process) bool { return q == process })
	if p.byPID[process.pid] = same; len(same) == 0 {
		delete(p.byPID, process.pid)
	}
	p.leave(process.uid)
	_ = p.epollCtl(unix.EPOLL_CTL_DEL, process.pidfd, nil) // fails only when the pinner is closed
	if len(p.held) == 0 {
		p.execs.pause()
	}
}

// follow starts watching the caller of r, where there is a pidfd to watch.
func (p *Pinner) follow(r *Referred) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.room(r.uid); err != nil {
		return err
	}
	if r.pidfd >= 0 {
		if err := p.watchExit(r.pidfd); err != nil {
			return err
		}
	} else {
		p.next++
	}
	r.id = p.next
	p.referred[r.id] = r
	p.count[r.uid]++
	return nil
}

// unfollow stops it; its pidfd is still open.
func (p *Pinner) unfollow(r *Referred) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, followed := p.referred[r.id]; !followed {
		return
	}
	delete(p.referred, r.id)
	p.leave(r.uid)
	if r.pidfd >= 0 {
		_ = p.epollCtl(unix.EPOLL_CTL_DEL, r.pidfd, nil)
	}
}

// unwatch stops watching a pidfd that has told what it had to tell: it would tell it again and again.
func (p *Pinner) unwatch(r *Referred) {
	r.fds.RLock()
	defer r.fds.RUnlock()
	if r.pidfd >= 0 {
		_ = p.epollCtl(unix.EPOLL_CTL_DEL, r.pidfd, nil)
	}
}

// room is nil while uid may have another connection. The caller holds mu.
func (p *Pinner) room(uid uint32) error {
	if p.closed {
		return ErrClosed
	}
	if p.count[uid] >= p.options.PerUser {
		return fmt.Errorf("%w: uid %d has %d", ErrTooMany, uid, p.options.PerUser)
	}
	return nil
}

func (p *Pinner) leave(uid uint32) {
	if p.count[uid]--; p.count[uid] == 0 {
		delete(p.count, uid)
	}
}

// watchExit adds pidfd to the epoll set under the next id. The caller holds mu.
func (p *Pinner) watchExit(pidfd int) error {
	p.next++
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.next), Pad: int32(p.next >> 32)}
	return os.NewSyscallError("epoll_ctl", p.epollCtl(unix.EPOLL_CTL_ADD, pidfd, &event))
}

func (p *Pinner) epollCtl(op, fd int, event *unix.EpollEvent) error {
	var inner error
	if err := p.raw.Control(func(epoll uintptr) { inner = unix.EpollCtl(int(epoll), op, fd, event) }); err != nil {
		return err
	}
	return inner
}

// watch ends each process whose pidfd reports its exit, until the pinner is closed.
func (p *Pinner) watch() {
	defer close(p.watcher)
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := p.raw.Read(func(epoll uintptr) bool {
			n, _ = unix.EpollWait(int(epoll), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			id := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			p.mu.Lock()
			process, referred := p.held[id], p.referred[id]
			p.mu.Unlock()
			if process != nil {
				process.end(attest.ErrExited)
			}
			if referred != nil {
				referred.finish(attest.ErrExited)
				p.unwatch(referred)
			}
		}
	}
}
