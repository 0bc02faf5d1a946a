package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// appender is a file that only grows, and asks for room before it does.
type appender struct {
	File
	path     string
	first    int64 // index of a segment's first record
	size     int64
	reserved int64 // offset up to which the file system has promised room,
	urgent   bool  // out of the reserve, so that it is for emergencies alone
}

func openAppender(fsys FS, path string, size int64) (*appender, error) {
	f, err := fsys.Append(path, false, 0)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &appender{File: f, path: path, size: size, reserved: size}, nil
}

func createAppender(fsys FS, path string, mode fs.FileMode) (*appender, error) {
	f, err := fsys.Append(path, true, mode)
	if err != nil {
		return nil, noRoom(err, "creating %s", path)
	}
	return &appender{File: f, path: path}, nil
}

// createSegment makes the segment that continues tree. It is durable, name and header, before it is used. The error is
// an ErrFull, and no file is left, when the disk has no room.
func createSegment(o *Options, keep int64, mode fs.FileMode, tree tlog.Tree) (*appender, error) {
	line, err := encodeHeader(header{Schema: segmentSchema, Time: time.Now().UTC(), Origin: o.Origin, Size: tree.N, Root: tree.Hash})
	if err != nil {
		return nil, err
	}
	a, err := createAppender(o.FS, filepath.Join(o.Dir, segmentName(tree.N)), mode)
	if err != nil {
		return nil, err
	}
	a.first = tree.N
	if err := a.room(o, keep, len(line), min(reserveChunk, o.SegmentSize)); err != nil {
		return nil, errors.Join(err, a.Close(), o.FS.Remove(a.path))
	}
	if err := a.append(line); err != nil {
		a.Close()
		return nil, err
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		a.Close()
		return nil, fmt.Errorf("audit: %w", err)
	}
	return a, nil
}

// append writes b and makes it durable. After an error nothing is known of the file, and it must not be used again.
func (a *appender) append(b []byte) error {
	n, err := a.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("audit: writing %s: %w", a.path, err)
	}
	if err := a.Sync(); err != nil {
		return fmt.Errorf("audit: syncing %s: %w", a.path, err)
	}
	a.size += int64(n)
	return nil
}

// room makes sure that n bytes can be appended, reserving chunk bytes at a time and leaving keep bytes to others. The
// error is an ErrFull when the disk has no room: nothing has been written, and the file is as good as before.
func (a *appender) room(o *Options, keep int64, n int, chunk int64) error {
	if a.size+int64(n) <= a.reserved && !a.urgent {
		return nil
	}
	need := max(chunk, int64(n))
	free, err := o.FS.Free(o.Dir)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if free-need < keep {
		return fmt.Errorf("%w: %s: %d bytes are free, %d must stay so; make room on that file system", ErrFull, o.Dir, free, keep)
	}
	if err := a.Reserve(a.size, need); err != nil {
		return noRoom(err, "reserving room in %s", a.path)
	}
	a.reserved, a.urgent = a.size+need, false
	return nil
}

// noRoom wraps err, as an ErrFull where the file system has no room.
func noRoom(err error, format, path string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: "+format+": %w; make room on that file system", ErrFull, path, err)
	}
	return fmt.Errorf("audit: "+format+": %w", path, err)
}

// finish gives back what was reserved and not used, and closes the file.
func (a *appender) finish() error {
	if a.reserved > a.size {
		_ = a.Release(a.size) // a little space stays taken; an append-only file (chattr +a) cannot give it back
	}
	if err := a.Close(); err != nil {
		return fmt.Errorf("audit: closing %s: %w", a.path, err)
	}
	return nil
}
