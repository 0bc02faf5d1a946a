package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FS is what appending needs of a file system. Host is the real one; tests have one that fails, fills up and loses
// power.
type FS interface {
	// Append opens name for appending only. With create, the file must not exist yet.
	Append(name string, create bool, mode fs.FileMode) (File, error)
	// Remove removes a file that was created and holds nothing.
	Remove(name string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// Free gives the bytes that an ordinary process may still use on dir's file system.
	Free(dir string) (int64, error)
}

// File is a file open for appending.
type File interface {
	io.WriteCloser
	// Sync makes everything written durable, as fdatasync does.
	Sync() error
	// Reserve makes sure that size bytes from offset on can be written without running out of space. It does not
	// change the file's size.
	Reserve(offset, size int64) error
	// Allocate makes the file grow from one size to another with bytes of which each has its place on the disk.
	Allocate(from, to int64) error
	// Release cuts the file to size, and gives back what was reserved beyond it.
	Release(size int64) error
}

// Host is the FS of this machine.
type Host struct{}

// Append implements FS.
func (Host) Append(name string, create bool, mode fs.FileMode) (File, error) {
	flag := os.O_WRONLY | os.O_APPEND | unix.O_NOFOLLOW
	if create {
		flag |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	return hostFile{f}, nil
}

// Remove implements FS.
func (Host) Remove(name string) error { return os.Remove(name) }

// SyncDir implements FS.
func (Host) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Free implements FS.
func (Host) Free(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * s.Bsize, nil
}

type hostFile struct{ f *os.File }

func (h hostFile) Write(p []byte) (int, error) { return h.f.Write(p) }
func (h hostFile) Close() error                { return h.f.Close() }

func (h hostFile) Sync() error {
	for {
		err := unix.Fdatasync(int(h.f.Fd()))
		if err == nil {
			return h.linked()
		}
		// An interrupted fdatasync has reported nothing of the pages' fate yet, so it alone may be called again.
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: h.f.Name(), Err: err}
		}
	}
}

// linked is nil while the file has a name. What is in a file without one is gone with this process.
func (h hostFile) linked() error {
	var s unix.Stat_t
	if err := unix.Fstat(int(h.f.Fd()), &s); err != nil {
		return &os.PathError{Op: "fstat", Path: h.f.Name(), Err: err}
	}
	if s.Nlink == 0 {
		return fmt.Errorf("%s has been removed under this process", h.f.Name())
	}
	return nil
}

func (h hostFile) Reserve(offset, size int64) error {
	for {
		err := unix.Fallocate(int(h.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, offset, size)
		switch {
		case err == nil, errors.Is(err, unix.EOPNOTSUPP): // without fallocate, Options.MinFree alone keeps room
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		return &os.PathError{Op: "fallocate", Path: h.f.Name(), Err: err}
	}
}

func (h hostFile) Allocate(from, to int64) error {
	for {
		err := unix.Fallocate(int(h.f.Fd()), 0, from, to-from)
		switch {
		case err == nil:
			return h.Sync()
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EOPNOTSUPP):
			return &os.PathError{Op: "fallocate", Path: h.f.Name(), Err: err}
		}
		for zeros := make([]byte, 64<<10); from < to; from += int64(len(zeros)) {
			zeros = zeros[:min(int64(len(zeros)), to-from)]
			if _, err := h.f.Write(zeros); err != nil {
				return err
			}
		}
		return h.Sync()
	}
}

func (h hostFile) Release(size int64) error { return h.f.Truncate(size) }

// prepareDir makes the log's folder, and refuses one in which others could read or plant files.
func prepareDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("audit: %w; its parent must exist and be writable by this user", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder", ErrAccess, dir)
	}
	return checkAccess(dir, info, 0o750)
}

// checkAccess refuses a file with mode bits beyond allowed, or that belongs to neither this user nor root.
func checkAccess(path string, info fs.FileInfo, allowed fs.FileMode) error {
	if extra := info.Mode().Perm() &^ allowed; extra != 0 {
		return fmt.Errorf("%w: %s has mode %04o; run: chmod %04o %s", ErrAccess, path, info.Mode().Perm(), info.Mode().Perm()&allowed, path)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("audit: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	if int(st.Uid) != os.Geteuid() && st.Uid != 0 {
		return fmt.Errorf("%w: %s belongs to uid %d, this is uid %d; run: chown %d %s", ErrAccess, path, st.Uid, os.Geteuid(), os.Geteuid(), path)
	}
	return nil
}

// checkFiles looks at every file of the log: regular, 0600 or 0640, this user's or root's.
func checkFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Lstat(path)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s is not a regular file", ErrAccess, path)
		}
		if err := checkAccess(path, info, 0o640); err != nil {
			return err
		}
	}
	return nil
}

// fileMode is the mode of new files: readable by the group where the folder is.
func fileMode(dir string) fs.FileMode {
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o050 == 0o050 {
		return 0o640
	}
	return 0o600
}

// lockDir makes this process the only one that appends to dir, until the file is closed or the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is held by process %s; one log has one writer", ErrLocked, dir, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("audit: %w", &os.PathError{Op: "flock", Path: f.Name(), Err: err})
	}
	// The number is a courtesy to whoever finds the log locked; the lock does not depend on it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}
