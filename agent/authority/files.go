package authority

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are not finished. What is left of them after a crash is removed.
const tempPrefix = ".unfinished-"

// UnsafeError names a file or folder that others can get at, and the command that mends it. It is ErrUnsafe to
// errors.Is.
type UnsafeError struct {
	Path    string
	Problem string
	Mend    string // a command
}

// Error says what is wrong and what to run.
func (e *UnsafeError) Error() string {
	return fmt.Sprintf("%s: %s; run: %s", e.Path, e.Problem, e.Mend)
}

// Is makes every UnsafeError ErrUnsafe.
func (e *UnsafeError) Is(target error) bool { return target == ErrUnsafe }

// openDir makes the folder when it is missing, checks it, and takes the lock in it.
func openDir(dir string) (*os.File, error) {
	// Each folder that is made must be durable before anything in it counts: otherwise a power cut could take the
	// whole authority with it, and the next start would make another.
	var made []string
	for p := dir; ; p = filepath.Dir(p) {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, p)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	for _, p := range made {
		if err := syncDir(filepath.Dir(p)); err != nil {
			return nil, err
		}
	}
	if err := private(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked; stop the other ward, or give this one another authority.dir", ErrInUse, dir)
		}
		return nil, fmt.Errorf("authority: lock %s: %w", dir, err)
	}
	return lock, nil
}

// private refuses a file or folder that does not belong to the running user, or that others can read or write.
// most is the mode that it may have at most.
func private(path string, most fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	return privateInfo(path, info, most)
}

func privateInfo(path string, info fs.FileInfo, most fs.FileMode) error {
	kind := "file"
	if most&0o100 != 0 {
		kind = "folder"
	}
	if info.IsDir() != (kind == "folder") || !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("authority: %s is not a %s", path, kind)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		uid := -1
		if ok {
			uid = int(stat.Uid)
		}
		return &UnsafeError{path, fmt.Sprintf("the %s belongs to uid %d, and Ward runs as uid %d", kind, uid, os.Geteuid()),
			fmt.Sprintf("chown %d '%s'", os.Geteuid(), strings.ReplaceAll(path, "'", `'\''`))}
	}
	if info.Mode().Perm()&^most != 0 {
		return &UnsafeError{path, fmt.Sprintf("the %s has mode %04o; others must not get at it", kind, info.Mode().Perm()),
			fmt.Sprintf("chmod %04o '%s'", most, strings.ReplaceAll(path, "'", `'\''`))}
	}
	return nil
}

// sweep removes files that a crash has left unfinished. They may hold a key that was never used.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(globEscape(dir), tempPrefix+"*"))
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("authority: %w", err)
		}
	}
	return nil
}

// globEscape makes a pattern that matches path alone.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// firstKeyFile is one of the key files in the folder, or "".
func firstKeyFile(dir string) (string, error) {
	for _, c := range Classes() {
		for _, ending := range []string{".key", sealedEnding} {
			found, err := filepath.Glob(filepath.Join(globEscape(dir), string(c)+"-*"+ending))
			if err != nil {
				return "", fmt.Errorf("authority: %w", err)
			}
			if len(found) > 0 {
				return found[0], nil
			}
		}
	}
	return "", nil
}

// generationFiles lists the CAs of which there are files in the folder.
func generationFiles(dir string) ([]uint32, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	var out []uint32
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), string(X509CA)+"-")
		number, ending, found := strings.Cut(text, ".")
		n, err := strconv.ParseUint(number, 10, 32)
		if !ok || !found || err != nil || !slices.Contains([]string{".key", sealedEnding, ".crt"}, "."+ending) {
			continue
		}
		if !slices.Contains(out, uint32(n)) {
			out = append(out, uint32(n))
		}
	}
	return out, nil
}

// readPrivate reads a file of the running user that has at most the given mode. The file that is checked is the one
// that is read.
func readPrivate(path string, most fs.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := privateInfo(path, info, most); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// writeNew writes a file that must not exist yet, so that it is durable and whole once it has its name.
func writeNew(path string, content []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix) // mode 0600
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(content)
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("authority: write %s: %w", path, err)
	}
	return publish(temp.Name(), path)
}

// publish gives a synced file its name, durably. It never replaces a file.
func publish(temp, path string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		// Some filesystems cannot rename without replacing; a link never replaces, and the caller removes temp.
		if !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("authority: %s: %w", path, err)
		}
		if err := os.Link(temp, path); err != nil {
			return fmt.Errorf("authority: %w", err)
		}
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // a filesystem that has nothing to sync
		return fmt.Errorf("authority: sync %s: %w", dir, err)
	}
	return nil
}
