package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// UnsafeError says that somebody else could change a file that decides whom Ward trusts.
type UnsafeError struct {
	Path  string // what they could change: the file, a folder above it, or a symbolic link on the way
	Owner int    // its owner, where the owner is the reason; -1 otherwise
	Mode  fs.FileMode
	mend  string
}

// Error says what is unsafe, without the file that led to it.
func (e *UnsafeError) Error() string {
	kind := "file"
	switch {
	case e.Mode.IsDir():
		kind = "folder"
	case e.Mode&fs.ModeSymlink != 0:
		kind = "link"
	}
	if e.Owner >= 0 {
		return fmt.Sprintf("the %s %s belongs to uid %d, who could change what Ward reads", kind, quote(e.Path), e.Owner)
	}
	return fmt.Sprintf("the %s %s can be written by others (mode %04o)", kind, quote(e.Path), e.Mode.Perm())
}

// Mend is the command that makes it safe.
func (e *UnsafeError) Mend() string { return "run: " + e.mend + " " + shellQuote(e.Path) }

// shellQuote writes a path so that it can be pasted into a shell.
func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+@", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// maxLinks is how many symbolic links may lead to a file; the kernel allows as many.
const maxLinks = 40

// Guard refuses a file that anybody but root and the running user could change or replace: by writing it, by
// renaming it or a folder above it, or by turning a symbolic link on the way. Each folder from the root down, and
// each link, is looked at; a sticky folder such as /tmp is fine above, since others cannot rename there what
// belongs to somebody else. The error is an *UnsafeError, or says why the file cannot be looked at.
//
// Once Guard has passed, nobody but root and the running user can change that, so the file may be opened later.
func Guard(path string, opts Options) error {
	info, _, err := guard(path, opts.owner())
	if err == nil && !info.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: path, Err: errors.New("is not a regular file")}
	}
	return err
}

// GuardDir is Guard for a folder whose list of files matters, so that a sticky bit does not excuse it.
func GuardDir(path string, opts Options) error {
	info, resolved, err := guard(path, opts.owner())
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: errors.New("is not a folder")}
	case info.Mode().Perm()&0o022 != 0:
		return &UnsafeError{Path: resolved, Owner: -1, Mode: info.Mode(), mend: "chmod go-w"}
	}
	return nil
}

// guard walks to path from the root and returns what it names, with all links resolved.
func guard(path string, owner int) (fs.FileInfo, string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	links := 0
	rest := split(abs)
	at := "/"
	info, err := os.Lstat(at)
	if err != nil {
		return nil, "", err
	}
	if err := safe(at, info, owner); err != nil {
		return nil, "", err
	}
	for len(rest) > 0 {
		if !info.IsDir() {
			return nil, "", &fs.PathError{Op: "open", Path: at, Err: syscall.ENOTDIR}
		}
		name := rest[0]
		rest = rest[1:]
		next := filepath.Join(at, name) // for "..", after a link, at has no link left in it
		if info, err = os.Lstat(next); err != nil {
			return nil, "", err
		}
		if err := safe(next, info, owner); err != nil {
			return nil, "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return nil, "", err
		}
		rest = append(split(target), rest...)
		if filepath.IsAbs(target) {
			at = "/"
		}
		if info, err = os.Lstat(at); err != nil {
			return nil, "", err
		}
	}
	return info, at, nil
}

// split gives the components of a path. It leaves ".." in place: what that means depends on the links before it.
func split(path string) []string {
	var parts []string
	for _, p := range strings.Split(path, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return parts
}

// safe checks one file, folder or link.
func safe(path string, info fs.FileInfo, owner int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return &fs.PathError{Op: "stat", Path: path, Err: errors.New("has no owner")}
	}
	if uid := int(stat.Uid); uid != 0 && uid != owner {
		mend := fmt.Sprintf("chown %d", owner)
		if info.Mode()&fs.ModeSymlink != 0 {
			mend = fmt.Sprintf("chown -h %d", owner)
		}
		return &UnsafeError{Path: path, Owner: uid, Mode: info.Mode(), mend: mend}
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0: // a link's mode means nothing
	case info.Mode().Perm()&0o022 == 0:
	case info.IsDir() && info.Mode()&fs.ModeSticky != 0:
	default:
		return &UnsafeError{Path: path, Owner: -1, Mode: info.Mode(), mend: "chmod go-w"}
	}
	return nil
}

// open opens a guarded file. Between the check and the open nobody but root and the running user can have changed
// anything, and O_NOFOLLOW and O_NONBLOCK keep even their mistakes from leading elsewhere or hanging.
func open(path string, owner int) (*os.File, error) {
	info, resolved, err := guard(path, owner)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("is not a regular file")}
	}
	f, err := os.OpenFile(resolved, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err != nil || !os.SameFile(info, opened) {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("was replaced while it was being opened")}
	}
	return f, nil
}
