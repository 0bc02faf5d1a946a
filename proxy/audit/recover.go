package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// state is a log that is ready to be appended to.
type state struct {
	key         *Key
	tree        *tree
	signed      int64     // records that the last checkpoint covers
	last        tlog.Tree // what it says
	reserve     *reserve
	segment     *appender
	checkpoints *appender
	torn        int64 // bytes moved aside
}

func (s *state) close() {
	s.tree.close()
	s.segment.Close()
	s.checkpoints.Close()
	s.reserve.close()
}

// recovery is one opening of a log, from the files to a state.
type recovery struct {
	Options
	mode     fs.FileMode
	segments []segment
	key      *Key
	last     checkpoint
	signed   bool  // there is a last checkpoint
	redo     int64 // offset in the last segment after which no checkpoint vouches for the disk
	size     int64 // of the last segment
	tidy     []func() error
	torn     int64 // bytes moved aside
	existing bool  // no new log may be made
}

func recoverLog(ctx context.Context, o Options, existing bool) (*state, error) {
	r := &recovery{Options: o, mode: fileMode(o.Dir), existing: existing}
	if err := checkFiles(o.Dir); err != nil {
		return nil, err
	}
	if err := r.readCheckpoints(); err != nil {
		return nil, err
	}
	if err := r.dropHeadless(); err != nil {
		return nil, err
	}
	if len(r.segments) == 0 {
		if r.existing {
			return nil, fmt.Errorf("audit: %s: the log is not there", o.Dir)
		}
		return r.begin()
	}
	if err := r.checkChain(ctx); err != nil {
		return nil, err
	}
	t, err := r.readRecords(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.resume(t)
	if err != nil {
		t.close()
		return nil, err
	}
	return s, nil
}

// readCheckpoints finds the key and the last checkpoint, and moves a torn one aside.
func (r *recovery) readCheckpoints() error {
	var err error
	if r.segments, err = listSegments(r.Dir); err != nil {
		return err
	}
	path := filepath.Join(r.Dir, checkpointsName)
	info, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit: %w", err)
	}
	if r.key = r.Key; r.key == nil {
		if r.key, err = loadKey(r.KeyFile, r.Origin, info == nil && len(r.segments) == 0); err != nil {
			return err
		}
	}
	var end int64
	if r.last, r.signed, end, err = lastCheckpoint(r.Dir, r.Origin, note.VerifierList(r.key.Verifier)); err != nil {
		return err
	}
	switch {
	case !r.signed && len(r.segments) > 0:
		return corrupt(path, 0, 0, "there are segments, but no checkpoint")
	case r.signed && r.last.N > 0 && len(r.segments) == 0:
		return corrupt(filepath.Join(r.Dir, segmentName(0)), 0, 0, "%d records are signed, but there is no segment", r.last.N)
	case info != nil && info.Size() > end:
		r.tidy = append(r.tidy, func() error { return r.moveTail(path, end, info.Size()) })
	}
	return nil
}

// dropHeadless sets the last segment aside when its making was interrupted: its header is durable before any record.
func (r *recovery) dropHeadless() error {
	if len(r.segments) == 0 {
		return nil
	}
	s := r.segments[len(r.segments)-1]
	opened, err := openSegment(s)
	if err == nil {
		opened.close()
		return nil
	}
	var d *damage
	if !errors.As(err, &d) {
		return err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	// No line of the file may be whole: one with synced > -1 would say so.
	whole := &reader{segment: s, src: f}
	torn, err := whole.torn(&damage{index: -1, sure: d.sure}, -1)
	if err != nil || !torn || r.last.N > s.first || r.last.N > 0 && len(r.segments) == 1 {
		return errors.Join(d.corrupt(s), err)
	}
	r.tidy = append(r.tidy, func() error { return r.moveFile(s.path) })
	r.segments = r.segments[:len(r.segments)-1]
	return nil
}

// setAside moves aside what interrupted writes left. It comes after all proof: a damaged log stays as it is.
func (r *recovery) setAside() error {
	for _, move := range r.tidy {
		if err := move(); err != nil {
			return err
		}
	}
	return nil
}

// checkChain proves that no segment is missing and that each ends where the next one begins.
func (r *recovery) checkChain(ctx context.Context) error {
	if _, err := findRemoval(ctx, r.Dir, r.segments); err != nil {
		return err
	}
	next := r.segments[0].first
	for i, s := range r.segments {
		if s.first != next {
			return corrupt(filepath.Join(r.Dir, segmentName(next)), next, 0, "the segment is missing; the next one begins at record %d", s.first)
		}
		opened, err := openSegment(s)
		var d *damage
		if errors.As(err, &d) {
			return d.corrupt(s)
		}
		if err != nil {
			return err
		}
		opened.close()
		if opened.header.Origin != r.Origin {
			return corrupt(s.path, s.first, 0, "it is of the log %q, this is %q", opened.header.Origin, r.Origin)
		}
		if i < len(r.segments)-1 {
			last, err := lastIndex(s)
			if err != nil {
				return err
			}
			if next = r.segments[i+1].first; last != next-1 {
				return r.whereChainBreaks(s, next)
			}
		}
	}
	return nil
}

// whereChainBreaks reads a segment that does not end where the next one begins, to say where it goes wrong. A whole
// segment is missing when it reads well to its end.
func (r *recovery) whereChainBreaks(s segment, next int64) error {
	opened, err := openSegment(s)
	if err != nil {
		return err
	}
	defer opened.close()
	for {
		_, at, err := opened.read()
		var d *damage
		switch {
		case errors.As(err, &d):
			return d.corrupt(s)
		case errors.Is(err, io.EOF):
			return corrupt(s.path, opened.next, at, "it ends before record %d, and the next segment begins at record %d", opened.next, next)
		case err != nil:
			return err
		}
	}
}

// readRecords proves the tree: the hashes file up to the last segment, made again where it is wrong, and every record
// of the last segment. Nothing in the folder changes while the log may still prove to be damaged.
func (r *recovery) readRecords(ctx context.Context) (*tree, error) {
	file, err := openHashes(filepath.Join(r.Dir, hashesName), 0, r.mode)
	if err != nil {
		return nil, err
	}
	t := newTree(file)
	t.hold = true
	from := len(r.segments) - 1
	if !r.trusts(t, r.segments[from]) {
		t.close()
		r.Logger.Warn("the audit log's hashes are missing or wrong; reading every segment to make them again")
		file, err := openHashes(filepath.Join(r.Dir, hashesName+".new"), os.O_TRUNC, r.mode)
		if err != nil {
			return nil, err
		}
		t, from = newTree(file), 0
		removal, err := findRemoval(ctx, r.Dir, r.segments)
		if err == nil && removal != nil {
			t.start(removal)
			err = t.store()
		}
		if err != nil {
			t.close()
			return nil, err
		}
	}
	for i, s := range r.segments[from:] {
		if err := r.readSegment(ctx, t, s, from+i == len(r.segments)-1); err != nil {
			t.close()
			return nil, err
		}
	}
	if r.last.N > t.n {
		s := r.segments[len(r.segments)-1]
		t.close()
		return nil, corrupt(s.path, t.n, r.size, "the log ends before record %d, but %d records are signed", t.n, r.last.N)
	}
	return t, nil
}

// trusts resumes t at the beginning of s when the hashes file agrees with s's header and with the last checkpoint.
func (r *recovery) trusts(t *tree, s segment) bool {
	opened, err := openSegment(s)
	if err != nil {
		return false
	}
	opened.close()
	if t.resume(s.first) != nil || t.root() != opened.header.Root {
		return false
	}
	if r.last.N > s.first {
		return true // to be proved with the segment's records
	}
	root, err := t.storedRoot(r.last.N)
	return err == nil && root == r.last.Hash
}

func (r *recovery) readSegment(ctx context.Context, t *tree, s segment, last bool) error {
	opened, err := openSegment(s)
	if err != nil {
		return err
	}
	defer opened.close()
	if root := t.root(); opened.header.Root != root {
		return corrupt(s.path, s.first, 0, "its header says that the tree before it has the root %v, but the records before it give %v", opened.header.Root, root)
	}
	for {
		if r.signed && t.n == r.last.N {
			if t.root() != r.last.Hash {
				return r.wrongRoot()
			}
			r.redo = opened.lines.at
		}
		if t.n%1024 == 0 && ctx.Err() != nil {
			return fmt.Errorf("audit: opening the log: %w", ctx.Err())
		}
		f, at, err := opened.read()
		var d *damage
		switch {
		case err == nil:
			t.add(f.json)
			continue
		case errors.As(err, &d):
			torn := false
			if last {
				if torn, err = opened.torn(d, r.last.N); err != nil {
					return err
				}
			}
			if !torn {
				return d.corrupt(s)
			}
		case !errors.Is(err, io.EOF):
			return err
		}
		r.size = at
		return nil
	}
}

// wrongRoot says which record is not the one that was signed.
func (r *recovery) wrongRoot() error {
	return locate(r.Dir, r.segments, r.segments[len(r.segments)-1].first, r.last.N)
}

// resume makes the log as it was proved to be the log that is appended to.
func (r *recovery) resume(t *tree) (*state, error) {
	if err := r.setAside(); err != nil {
		return nil, err
	}
	s := r.segments[len(r.segments)-1]
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if info.Size() > r.size {
		if err := r.moveTail(s.path, r.size, info.Size()); err != nil {
			return nil, err
		}
	}
	if r.last.N < s.first {
		r.redo = 0
	}
	if err := rewrite(s.path, r.redo, r.size); err != nil {
		return nil, err
	}
	if t.hold {
		t.hold = false
		if err := t.file.Truncate(t.at); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
	} else {
		t.sync()
		if t.lost != nil {
			return nil, fmt.Errorf("audit: %w", t.lost)
		}
		if err := os.Rename(t.path, filepath.Join(r.Dir, hashesName)); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
	}
	t.flush()
	if err := r.FS.SyncDir(r.Dir); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	seg, err := openAppender(r.FS, s.path, r.size)
	if err != nil {
		return nil, err
	}
	seg.first = s.first
	points, err := r.openCheckpoints(false)
	if err != nil {
		seg.Close()
		return nil, err
	}
	return &state{key: r.key, tree: t, signed: r.last.N, last: r.last.Tree, segment: seg, checkpoints: points, torn: r.torn}, nil
}

// begin makes a new log: first a checkpoint over nothing, so that a log without checkpoints is never a good one, then
// the first segment.
func (r *recovery) begin() (*state, error) {
	if err := r.setAside(); err != nil {
		return nil, err
	}
	file, err := openHashes(filepath.Join(r.Dir, hashesName), os.O_TRUNC, r.mode)
	if err != nil {
		return nil, err
	}
	t := newTree(file)
	_, err = os.Lstat(filepath.Join(r.Dir, checkpointsName))
	points, err := r.openCheckpoints(errors.Is(err, fs.ErrNotExist))
	if err != nil {
		t.close()
		return nil, err
	}
	if !r.signed {
		line, err := signCheckpoint(r.key, r.Origin, tlog.Tree{Hash: t.root()}, time.Now())
		if err == nil {
			err = points.append(line)
		}
		if err != nil {
			points.Close()
			t.close()
			return nil, err
		}
	}
	seg, err := createSegment(&r.Options, r.MinFree, r.mode, tlog.Tree{Hash: t.root()})
	if err == nil {
		err = r.FS.SyncDir(filepath.Dir(r.Dir))
	}
	if err != nil {
		points.Close()
		t.close()
		return nil, err
	}
	return &state{key: r.key, tree: t, last: tlog.Tree{Hash: t.root()}, segment: seg, checkpoints: points, torn: r.torn}, nil
}

func (r *recovery) openCheckpoints(create bool) (*appender, error) {
	path := filepath.Join(r.Dir, checkpointsName)
	if create {
		return createAppender(r.FS, path, r.mode)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return openAppender(r.FS, path, info.Size())
}
