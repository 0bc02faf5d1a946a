package exe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// file is what a hash is remembered by. Any write changes it.
type file struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func stat(fd int) (file, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return file{}, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return file{}, errors.New("the executable is not a regular file")
	}
	return file{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}, nil
}

// young: a second write within the clock's step could leave no trace, and so could one if the clock was set back.
func (f file) young(now time.Time) bool {
	return now.UnixNano()-f.ctime < int64(time.Second)
}

// origin is who answers for a file's content and times.
type origin uint8

const (
	local  origin = iota // this kernel
	remote               // another machine, which may change it without a trace here
	untold               // a process of any user, which may answer each read differently
)

// originOf asks anew each time: a device number may be another filesystem's by now.
func originOf(fd int) (origin, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return untold, os.NewSyscallError("fstatfs", err)
	}
	return originOfType(uint32(fs.Type)), nil
}

func originOfType(magic uint32) origin {
	switch magic {
	case unix.FUSE_SUPER_MAGIC:
		return untold
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC,
		unix.OCFS2_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		// What an overlay shows may lie on any of the others.
		return remote
	}
	return local
}

// hash reads all of fd and makes sure that it was f before and after.
func hash(ctx context.Context, fd int, f file) (string, error) {
	h := sha256.New()
	buf := make([]byte, 256<<10)
	var at int64
	for at < f.size {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := unix.Pread(fd, buf, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the executable: %w", err)
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
		at += int64(n)
	}
	after, err := stat(fd)
	if err != nil {
		return "", err
	}
	if at != f.size || after != f {
		return "", errors.New("the executable changed while it was hashed")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// flights lets those who need the same hash at once wait for one of them to make it.
type flights struct {
	mu  sync.Mutex
	now map[file]*flight
}

type flight struct {
	done chan struct{}
	sum  string
	err  error
}

// do returns what f returns, or what somebody else's f returned meanwhile. When theirs fails, which it may for
// reasons of its own, f is called after all.
func (g *flights) do(ctx context.Context, key file, f func() (string, error)) (string, error) {
	for {
		g.mu.Lock()
		other := g.now[key]
		if other == nil {
			mine := &flight{done: make(chan struct{})}
			if g.now == nil {
				g.now = make(map[file]*flight)
			}
			g.now[key] = mine
			g.mu.Unlock()
			mine.sum, mine.err = f()
			g.mu.Lock()
			delete(g.now, key)
			g.mu.Unlock()
			close(mine.done)
			return mine.sum, mine.err
		}
		g.mu.Unlock()
		select {
		case <-other.done:
			if other.err == nil {
				return other.sum, nil
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
