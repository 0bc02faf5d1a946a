package peer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// image tells the program that a process runs from any that it may exec later. Neither half is enough alone:
// a child that shares the memory (vfork without exec) keeps the old image alive, and a process can choose its
// own layout (personality, PR_SET_MM_MAP).
type image struct {
	stat    int // /proc/PID/stat, read again at each check
	pagemap int // /proc/PID/pagemap, bound to the memory image of the moment it was opened; -1 where it cannot be
	layout  layout
}

// layout is the part of /proc/PID/stat that an execve changes and nothing else in ordinary life does. Without
// the right to read the process, the kernel shows zeros for all but started.
type layout struct {
	started, startCode, endCode, startStack, startData, endData, startHeap uint64
}

func noImage() image { return image{stat: -1, pagemap: -1} }

// openImage takes the image of the process whose /proc directory is dir.
func openImage(dir int, noPagemap bool) (image, error) {
	i := noImage()
	var err error
	// The pagemap comes first: an execve between the two is then seen by it.
	if !noPagemap {
		i.pagemap, err = unix.Openat(dir, "pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ESRCH) {
			return noImage(), attest.ErrExited
		}
		if err != nil {
			i.pagemap = -1 // no right to read it, or a kernel without it
		}
	}
	if i.stat, err = unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		i.close()
		if errors.Is(err, unix.ESRCH) {
			return noImage(), attest.ErrExited
		}
		return noImage(), fmt.Errorf("open /proc/PID/stat: %w", err)
	}
	s, err := i.read()
	if err != nil {
		i.close()
		return noImage(), err
	}
	i.layout = s.layout
	return i, nil
}

// same is nil while the process runs the program that it ran when the image was taken.
func (i image) same() error {
	gone := false
	if i.pagemap >= 0 {
		var entry [8]byte
		// Nothing can be read once the image is gone. What is read does not matter, nor whether it is mapped.
		n, err := unix.Pread(i.pagemap, entry[:], 0)
		gone = err != nil || n == 0
	}
	// Only now: a process that loses its image by exiting has none at all.
	s, err := i.read()
	switch {
	case err != nil:
		return err
	case gone:
		return fmt.Errorf("%w: its memory is another", attest.ErrReplaced)
	case s.layout != i.layout:
		return fmt.Errorf("%w: its memory is laid out anew", attest.ErrReplaced)
	}
	return nil
}

// read reads and parses stat. A process on its way out, which has no memory any more, is ErrExited.
func (i image) read() (stat, error) {
	var buf [1024]byte // a line is 52 numbers of at most 20 digits, and mostly a third of that
	n, err := unix.Pread(i.stat, buf[:], 0)
	if errors.Is(err, unix.ESRCH) {
		return stat{}, attest.ErrExited
	}
	if err != nil {
		return stat{}, fmt.Errorf("read /proc/PID/stat: %w", err)
	}
	s, err := parseStat(buf[:n])
	if err != nil {
		return stat{}, err
	}
	if s.memory == 0 || s.state == 'Z' || s.state == 'X' {
		return stat{}, attest.ErrExited
	}
	return s, nil
}

func (i image) close() {
	for _, fd := range []int{i.stat, i.pagemap} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
