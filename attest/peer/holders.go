package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// A search looks at this many open files at most; one user's search does not hold up another's (attest.Turns).
const maxFiles = 1 << 17

// holders pins every process that holds the socket, at least one. It looks in the cgroup where the socket was
// made, and everywhere where that is not known.
func (p *Pinner) holders(s tcpSocket) (found []*Process, err error) {
	defer func() {
		if err != nil {
			for _, h := range found {
				_ = h.Close()
			}
		}
	}()
	pids, err := p.candidates(s.cgroup)
	if err != nil {
		return nil, err
	}
	search := newSearch(s.inode)
	for _, pid := range pids {
		number, err := search.process(pid)
		if err != nil {
			return found, err
		}
		if number < 0 {
			continue
		}
		process, err := p.pinHolder(pid, number, search.link, s)
		switch {
		case errors.Is(err, attest.ErrExited), errors.Is(err, errNotHolder):
			continue
		case err != nil:
			return found, err
		}
		found = append(found, process)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: no process was found that holds its peer's end; it has closed it, or may not be looked into", ErrNotAttributable)
	}
	return found, nil
}

var errNotHolder = errors.New("the process does not hold the socket any more")

// pinHolder pins the process and then makes sure that it has the socket open under number. The pid came from a
// list, so what was seen under it before the pidfd was opened counts for nothing.
func (p *Pinner) pinHolder(pid int, number int, link []byte, s tcpSocket) (*Process, error) {
	pidfd, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	process, err := p.pin(pidfd, claim{pid: pid, uid: s.uid, strength: attest.Strong})
	if err != nil {
		return nil, err
	}
	if process.byInode, err = p.holds(process, number, link, s.cookie); err != nil {
		_ = process.Close()
		return nil, err
	}
	return process, nil
}

// holds is nil when process has the socket open under number: by its cookie, which is never used again, or,
// where Ward may not duplicate the process's files, by its inode.
func (p *Pinner) holds(process *Process, number int, link []byte, cookie uint64) (byInode bool, err error) {
	if !p.options.Without.PidfdGetfd {
		fd, err := unix.PidfdGetfd(process.pidfd, number, 0)
		switch {
		case err == nil:
			defer unix.Close(fd)
			c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil || c != cookie {
				return false, errNotHolder
			}
			return false, nil
		case errors.Is(err, unix.EBADF):
			return false, errNotHolder
		case errors.Is(err, unix.ESRCH):
			return false, attest.ErrExited
		case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS):
			return false, os.NewSyscallError("pidfd_getfd", err)
		}
	}
	var target [64]byte
	err = attest.WithProc(process, func(dir int) error {
		n, err := unix.Readlinkat(dir, "fd/"+strconv.Itoa(number), target[:])
		if err != nil || !bytes.Equal(target[:n], link) {
			return errNotHolder
		}
		return nil
	})
	return true, err
}

// older orders the holders of a socket: who was started first, then the lower pid.
func (p *Process) older(q *Process) bool {
	if a, b := p.image.layout.started, q.image.layout.started; a != b {
		return a < b
	}
	return p.pid < q.pid
}

// candidates lists the processes of a cgroup, or all where it is 0 or cannot be listed.
func (p *Pinner) candidates(cgroup uint64) ([]int, error) {
	if cgroup != 0 {
		if pids, err := p.groups.members(cgroup); err == nil {
			return pids, nil
		}
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, ok := decimal([]byte(name)); ok {
			pids = append(pids, int(pid))
		}
	}
	return pids, nil
}

// search looks for one socket among the open files of processes.
type search struct {
	link  []byte // what the link of such a file reads
	files int    // how many have been looked at
	buf   []byte // directory entries
}

func newSearch(inode uint32) *search {
	return &search{link: fmt.Appendf(nil, "socket:[%d]", inode), buf: make([]byte, 8192)}
}

// process returns the number under which pid has the socket open, -1 when it has not, or cannot be looked into.
func (s *search) process(pid int) (int, error) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil
	}
	defer unix.Close(dir)
	for {
		n, err := unix.Getdents(dir, s.buf)
		if err != nil || n == 0 {
			return -1, nil // exited, or all seen
		}
		for entries := s.buf[:n]; len(entries) > 0; {
			name, rest, err := dirent(entries)
			if err != nil {
				return -1, err
			}
			entries = rest
			if name[0] == '.' {
				continue
			}
			if s.files++; s.files > maxFiles {
				return -1, fmt.Errorf("%w: more than %d open files would have to be searched", ErrNotAttributable, maxFiles)
			}
			if s.links(dir, name) {
				number, ok := decimal(name[:len(name)-1])
				if !ok {
					return -1, errDirent
				}
				return int(number), nil
			}
		}
	}
}

// links reports whether the entry, whose name ends in a zero byte, is the socket. It is called for every open
// file of a cgroup and allocates nothing.
func (s *search) links(dir int, name []byte) bool {
	var target [32]byte
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(&name[0])),
		uintptr(unsafe.Pointer(&target[0])), uintptr(len(target)), 0, 0)
	return errno == 0 && bytes.Equal(target[:n], s.link)
}

var errDirent = errors.New("directory entries are not as getdents64(2) says")

// dirent takes the first of entries; its name keeps its zero byte.
func dirent(entries []byte) (name, rest []byte, err error) {
	const head = 19 // d_ino, d_off, d_reclen, d_type
	if len(entries) < head {
		return nil, nil, errDirent
	}
	length := int(binary.NativeEndian.Uint16(entries[16:]))
	if length < head || length > len(entries) {
		return nil, nil, errDirent
	}
	end := bytes.IndexByte(entries[head:length], 0)
	if end < 1 {
		return nil, nil, errDirent
	}
	return entries[head : head+end+1], entries[length:], nil
}
