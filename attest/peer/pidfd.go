package peer

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// identity is who a process is at one moment; pid is 0 where the source does not tell it.
type identity struct {
	pid      int
	uid, gid uint32 // effective
}

const infoWanted = unix.PIDFD_INFO_PID | unix.PIDFD_INFO_CREDS

// pidfdInfo asks the pidfd who its process is. It needs no privilege. ESRCH: the process has been reaped.
func pidfdInfo(pidfd int) (unix.PidfdInfo, error) {
	info := unix.PidfdInfo{Mask: infoWanted | unix.PIDFD_INFO_CGROUPID}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return info, errno
	}
	return info, nil
}

// exited is ErrExited once the process of pidfd has ended, reaped or not.
func exited(pidfd int) error {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0:
			return attest.ErrExited
		default:
			return nil
		}
	}
}

// pidfsInode is the inode of pidfd, 0 where all pidfds share one.
func pidfsInode(pidfd int) uint64 {
	var fs unix.Statfs_t
	if unix.Fstatfs(pidfd, &fs) != nil || fs.Type != unix.PID_FS_MAGIC {
		return 0
	}
	var st unix.Stat_t
	if unix.Fstat(pidfd, &st) != nil {
		return 0
	}
	return st.Ino
}

// openPidfd pins whatever process has this pid now.
func openPidfd(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return -1, attest.ErrExited
	case errors.Is(err, unix.ENOSYS):
		return -1, fmt.Errorf("pidfd_open: no process can be pinned before Linux 5.3: %w", err)
	}
	return -1, os.NewSyscallError("pidfd_open", err)
}
