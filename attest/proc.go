package attest

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// ProcLimit bounds what AppendProc reads: the status of a process in 65536 groups, the kernel's most, fits.
const ProcLimit = 1 << 20

// OpenProc opens the file name below p.Proc() and returns its descriptor, which the caller closes. Going
// through the directory, never through a path with a pid in it, is what makes a reused pid fail here.
func OpenProc(p Process, name string, flags int) (int, error) {
	fd := -1
	err := WithProc(p, func(dir int) (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, procError(name, err)
	}
	return fd, nil
}

// AppendProc appends the whole file name below p.Proc() to dst. It refuses one longer than ProcLimit.
func AppendProc(dst []byte, p Process, name string) ([]byte, error) {
	fd, err := OpenProc(p, name, unix.O_RDONLY)
	if err != nil {
		return dst, err
	}
	defer unix.Close(fd)
	start := len(dst)
	for {
		if cap(dst)-len(dst) < 512 {
			grown := make([]byte, len(dst), 2*cap(dst)+4096)
			copy(grown, dst)
			dst = grown
		}
		n, err := unix.Read(fd, dst[len(dst):cap(dst)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return dst[:start], procError(name, err)
		}
		if n == 0 {
			return dst, nil
		}
		dst = dst[:len(dst)+n]
		if len(dst)-start > ProcLimit {
			return dst[:start], procError(name, io.ErrShortBuffer)
		}
	}
}

// WithProc calls f with the descriptor of p.Proc(), which stays open until f returns.
func WithProc(p Process, f func(dir int) error) error {
	raw, err := p.Proc().SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func procError(name string, err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("read /proc/PID/%s: %w", name, ErrExited)
	}
	return fmt.Errorf("read /proc/PID/%s: %w", name, err)
}
