package audit

import (
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
)

func tornName(path string, at time.Time) string {
	return path + tornMark + at.UTC().Format("20060102T150405.000000000Z")
}

// moveFile moves a whole file aside.
func (r *recovery) moveFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	aside := tornName(path, time.Now())
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := r.FS.SyncDir(r.Dir); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	r.torn += info.Size()
	r.Logger.Warn("moved an unfinished audit segment aside", zap.String("file", aside), zap.Int64("bytes", info.Size()))
	return nil
}

// moveTail copies path's bytes from offset on into a file of their own, durably, and only then cuts them off.
func (r *recovery) moveTail(path string, offset, size int64) error {
	src, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer src.Close()
	aside := tornName(path, time.Now())
	dst, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, r.mode)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer dst.Close()
	if _, err := io.Copy(dst, io.NewSectionReader(src, offset, size-offset)); err != nil {
		return fmt.Errorf("audit: moving a torn tail aside: %w", err)
	}
	if err := dst.Sync(); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := r.FS.SyncDir(r.Dir); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := src.Truncate(offset); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := src.Sync(); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	r.torn += size - offset
	r.Logger.Warn("moved what an interrupted write left aside", zap.String("file", aside), zap.Int64("bytes", size-offset))
	return nil
}

// rewrite writes the bytes of path in [from, to) once more and syncs them. The process before may have ended with a
// failed fdatasync; then these pages can be in memory, marked clean, and nowhere else. The bytes stay the same.
func rewrite(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	for buf := make([]byte, min(1<<20, max(0, to-from))); from < to; from += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), to-from)]
		if _, err := f.ReadAt(buf, from); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		if _, err := f.WriteAt(buf, from); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}
