package seal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are not finished.
const tempPrefix = ".unfinished-"

// ErrUnsafe: others can read or write what only Ward may.
var ErrUnsafe = errors.New("the files are not private")

// private refuses a file or folder of another user, or that others can get at.
func private(path string, info fs.FileInfo, most fs.FileMode) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode().IsDir() != (most&0o100 != 0), !info.IsDir() && !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is of a wrong kind", ErrUnsafe, path)
	case !ok || int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%w: %s belongs to another user; run: chown %d '%s'", ErrUnsafe, path, os.Geteuid(), quoted(path))
	case info.Mode().Perm()&^most != 0:
		return fmt.Errorf("%w: %s has mode %04o; run: chmod %04o '%s'", ErrUnsafe, path, info.Mode().Perm(), most, quoted(path))
	}
	return nil
}

func quoted(path string) string { return strings.ReplaceAll(path, "'", `'\''`) }

// readPrivate reads a file of mode 0600 and of at most so many bytes.
func readPrivate(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := private(path, info, 0o600); err != nil {
		return nil, err
	}
	return readAll(f, most)
}

// readAll reads all that there is, and refuses more than the most.
func readAll(r io.Reader, most int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(text)) > most {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, most)
	}
	return text, err
}

// privateDir makes a folder of mode 0700 when it is missing, durably, and checks it.
func privateDir(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	var made []string
	for p := dir; ; p = filepath.Dir(p) {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, p)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	for _, p := range made {
		if err := syncDir(filepath.Dir(p)); err != nil {
			return err
		}
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return private(dir, info, 0o700)
}

// write puts a file of mode 0600 in its place, whole or not at all. Unless it may replace one, it fails with
// fs.ErrExist when there is one.
func write(path string, content []byte, replace bool) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, tempPrefix) // mode 0600
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(content)
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("seal: %s: %w", path, err)
	}
	if replace {
		err = os.Rename(temp.Name(), path)
	} else if err = unix.Renameat2(unix.AT_FDCWD, temp.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); errors.Is(err, unix.EINVAL) {
		err = os.Link(temp.Name(), path) // some file systems cannot rename without replacing; a link never replaces
	}
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return syncDir(dir)
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // a filesystem that has nothing to sync
		return fmt.Errorf("seal: %s: %w", dir, err)
	}
	return nil
}
