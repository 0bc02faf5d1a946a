package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// cgroups finds a cgroup by the id that inet_diag and PIDFD_GET_INFO give: the inode of its folder in cgroup2.
// Ids are not used again while the host runs, and cgroup2 folders cannot be renamed.
type cgroups struct {
	mount     int // the root of cgroup2, -1 where it is not mounted
	root      string
	noHandles bool

	mu    sync.Mutex
	paths map[uint64]string // below root; what earlier walks have seen
}

const (
	// A walk visits at most this many folders. Who is found later than that is not found.
	maxCgroups = 1 << 16
	// kernfsHandle is FILEID_KERNFS of linux/exportfs.h: a handle that is the id alone.
	kernfsHandle = 0xfe
)

var errNoCgroup = errors.New("the cgroup cannot be found")

func openCgroups(noHandles bool) (*cgroups, error) {
	root, err := attest.Cgroup2Mount()
	if errors.Is(err, fs.ErrNotExist) {
		return &cgroups{mount: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	return &cgroups{mount: fd, root: root, noHandles: noHandles, paths: make(map[uint64]string)}, nil
}

func (c *cgroups) close() {
	if c.mount >= 0 {
		unix.Close(c.mount)
	}
}

// open returns the folder of the cgroup.
func (c *cgroups) open(id uint64) (int, error) {
	if c.mount < 0 {
		return -1, errNoCgroup
	}
	if !c.noHandles {
		var handle [8]byte
		binary.NativeEndian.PutUint64(handle[:], id)
		fd, err := unix.OpenByHandleAt(c.mount, unix.NewFileHandle(kernfsHandle, handle[:]), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EPERM) {
			return -1, fmt.Errorf("%w: open_by_handle_at: %w", errNoCgroup, err)
		}
		// CAP_DAC_READ_SEARCH is missing.
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.paths[id]; ok {
		if fd, err := c.openPath(p, id); err == nil {
			return fd, nil
		}
		delete(c.paths, id)
	}
	if err := c.walk(id); err != nil {
		return -1, err
	}
	return c.openPath(c.paths[id], id)
}

// id is the id of the cgroup with this path, as attest.Cgroup tells it.
func (c *cgroups) id(p string) (uint64, error) {
	if c.mount < 0 || p == "" {
		return 0, errNoCgroup
	}
	var st unix.Stat_t
	if err := unix.Fstatat(c.mount, path.Join(".", p), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	return st.Ino, nil
}

// path is the path of the cgroup, as id takes it.
func (c *cgroups) path(id uint64) (string, error) {
	fd, err := c.open(id)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	p, below := strings.CutPrefix(full, strings.TrimSuffix(c.root, "/"))
	// A folder that was removed while it was open has this added to its name.
	if strings.HasSuffix(p, " (deleted)") || !below || p != "" && p[0] != '/' {
		return "", fmt.Errorf("%w: it is now at %s", errNoCgroup, full)
	}
	if p == "" {
		p = "/"
	}
	return p, nil
}

// members lists the processes of the cgroup.
func (c *cgroups) members(id uint64) ([]int, error) {
	dir, err := c.open(id)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var list []byte
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err // a threaded cgroup, for one
		}
		if n == 0 {
			break
		}
		list = append(list, buf[:n]...)
	}
	var pids []int
	for word := range bytes.FieldsSeq(list) {
		// 0 is a process in another pid namespace.
		if pid, ok := decimal(word); ok && pid > 0 {
			pids = append(pids, int(pid))
		}
	}
	slices.Sort(pids) // the kernel promises neither order nor that none comes twice
	return slices.Compact(pids), nil
}

// openPath opens a folder below the root if it has the id.
func (c *cgroups) openPath(p string, id uint64) (int, error) {
	fd, err := unix.Openat(c.mount, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != id {
		unix.Close(fd)
		return -1, errNoCgroup
	}
	return fd, nil
}

// walk goes through the tree, breadth first, until it has seen id, and remembers what it has seen.
func (c *cgroups) walk(id uint64) error {
	clear(c.paths)
	var st unix.Stat_t
	if err := unix.Fstat(c.mount, &st); err != nil {
		return fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	c.paths[st.Ino] = "."
	for queue := []string{"."}; len(queue) > 0 && len(c.paths) < maxCgroups; queue = queue[1:] {
		if _, found := c.paths[id]; found {
			return nil
		}
		dir, err := os.Open(path.Join(c.root, queue[0]))
		if err != nil {
			continue // removed meanwhile, or not ours to see
		}
		entries, _ := dir.ReadDir(maxCgroups)
		_ = dir.Close()
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			sub := path.Join(queue[0], e.Name())
			if info, err := e.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					c.paths[st.Ino] = sub
					queue = append(queue, sub)
				}
			}
		}
	}
	if _, found := c.paths[id]; found {
		return nil
	}
	return errNoCgroup
}
