package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// Report is what Verify proved.
type Report struct {
	Origin  string
	Records int64 // that are there
	// Begin is the index of the first of them. Those before were removed by the log itself, segment by segment, the
	// last of them by Removal, which it recorded and signed first.
	Begin       int64
	Removal     *Removal
	Segments    int
	Bytes       int64
	Checkpoints int64
	Signed      int64     // records that the last checkpoint covers; those after it are guarded by checksums alone
	Root        tlog.Hash // of the tree over all Records
	First, Last time.Time // of the first and the last record; zero in an empty log
	Stages      map[proxy.Stage]int64

	// Presumed are the intents without an outcome: what they were to disclose or change must be presumed disclosed
	// or changed. In a log that is being written, calls in progress are among them.
	Presumed []Intent
	// Unfinished is how many bytes at the end are not a whole record: one that is being written, or what an
	// interrupted write left and the next start will move aside.
	Unfinished int64
	// Aside are the files into which earlier starts moved such ends.
	Aside []string
}

// Intent is an intent without an outcome.
type Intent struct {
	Index    int64
	Decision string
	Time     time.Time
}

// Verify proves that the log is whole: every line's frame, every record's place, every segment's header, every root
// that was ever signed against the records as they are now (so that all checkpoints agree with one another), every
// signature. keys are the keys that may have signed. It may run beside the writer and changes nothing. The error is an
// ErrCorrupt when the log is not whole, and names the first thing that is wrong; the Report then tells how far the
// proof went.
func Verify(ctx context.Context, dir string, keys ...note.Verifier) (*Report, error) {
	for {
		v := &verification{dir: dir, tree: newMemoryTree(), keys: note.VerifierList(keys...), open: map[string]Intent{},
			report: &Report{Stages: map[proxy.Stage]int64{}}}
		err := v.run(ctx)
		if errors.Is(err, fs.ErrNotExist) && len(v.segments) > 0 {
			// Removed by the writer just now: the log begins elsewhere. A segment that is missing otherwise is found by that.
			if again, lerr := listSegments(dir); lerr == nil && len(again) > 0 && again[0].first > v.segments[0].first {
				continue
			}
		}
		v.report.Root = v.tree.root()
		v.report.Presumed = slices.SortedFunc(maps.Values(v.open), func(a, b Intent) int { return cmp.Compare(a.Index, b.Index) })
		return v.report, err
	}
}

type verification struct {
	dir      string
	tree     *tree
	keys     note.Verifiers
	segments []segment
	points   *checkpoints
	next     checkpoint // the next one to be met
	more     bool       // there is one
	signed   int64      // what the last one covers
	proved   int64      // what the last one that was met covers
	open     map[string]Intent
	begin    int64 // the first record that is left
	told     int64 // how many records there are up to the one that tells of the removal of what was before
	report   *Report
}

func (v *verification) run(ctx context.Context) error {
	var err error
	if v.segments, err = listSegments(v.dir); err != nil {
		return err
	}
	if len(v.segments) == 0 {
		return corrupt(filepath.Join(v.dir, segmentName(0)), 0, 0, "the first segment is missing")
	}
	if v.report.Aside, err = filepath.Glob(filepath.Join(globEscape(v.dir), "*"+tornMark+"*")); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	first, err := openSegment(v.segments[0])
	var d *damage
	if errors.As(err, &d) {
		return d.corrupt(v.segments[0])
	}
	if err != nil {
		return err
	}
	first.close()
	v.report.Origin = first.header.Origin

	removal, err := findRemoval(ctx, v.dir, v.segments)
	if err != nil {
		return err
	}
	if removal != nil {
		v.tree.start(removal)
		v.begin, v.report.Begin, v.report.Removal = removal.To, removal.To, removal
	}
	// The checkpoints are read before the records: whatever they cover is in the segments by now.
	if v.points, err = openCheckpointFile(v.dir, v.report.Origin, v.keys); err != nil {
		return err
	}
	defer v.points.close()
	v.signed = v.points.last
	now, err := listSegments(v.dir)
	if err != nil {
		return err
	}
	for _, s := range now { // those from the beginning on that was just found
		if s.first > v.segments[len(v.segments)-1].first {
			v.segments = append(v.segments, s)
		}
	}
	if err := v.advance(); err != nil {
		return err
	}
	for i, s := range v.segments {
		if s.first != v.tree.n {
			return corrupt(filepath.Join(v.dir, segmentName(v.tree.n)), v.tree.n, 0, "the segment is missing; the next one begins at record %d", s.first)
		}
		if err := v.segment(ctx, s, i == len(v.segments)-1); err != nil {
			return err
		}
		v.report.Segments++
	}
	if removal != nil && v.told == 0 {
		return corrupt(v.segments[0].path, removal.To, 0, "the removal of what was before it is not in the log")
	}
	if removal != nil && v.told > v.report.Signed {
		return corrupt(v.segments[0].path, removal.To, 0, "the removal of what was before it is not signed")
	}
	if v.more {
		s := v.segments[len(v.segments)-1]
		return corrupt(s.path, v.tree.n, 0, "the log ends before record %d, but %d records are signed", v.tree.n, v.next.N)
	}
	return nil
}

// advance checks the checkpoints over as many records as were read, and finds the next.
func (v *verification) advance() error {
	for {
		if !v.more {
			var err error
			if v.next, v.more, err = v.points.next(); err != nil || !v.more {
				return err
			}
			if v.next.N < v.begin { // over what was removed; its signature is good
				v.more = false
				continue
			}
			if v.next.N < v.tree.n {
				return corrupt(v.points.path, v.next.N, v.points.at, "a checkpoint over %d records follows one over %d", v.next.N, v.tree.n)
			}
		}
		if v.next.N > v.tree.n {
			return nil
		}
		if v.tree.root() != v.next.Hash {
			return locate(v.dir, v.segments, v.proved, v.next.N)
		}
		v.proved, v.more = v.next.N, false
		v.report.Checkpoints++
		v.report.Signed = v.next.N
	}
}

func (v *verification) segment(ctx context.Context, s segment, last bool) error {
	r, err := openSegment(s)
	var d *damage
	if errors.As(err, &d) {
		if last && !d.sure && v.tree.n > 0 && v.signed <= s.first {
			return nil // it is being made, or its making was interrupted
		}
		return d.corrupt(s)
	}
	if err != nil {
		return err
	}
	defer r.close()
	if r.header.Origin != v.report.Origin {
		return corrupt(s.path, s.first, 0, "it is of the log %q, this is %q", r.header.Origin, v.report.Origin)
	}
	if r.header.Root != v.tree.root() {
		return corrupt(s.path, s.first, 0, "its header says that the tree before it has the root %v, but the records before it give %v", r.header.Root, v.tree.root())
	}
	for {
		if v.tree.n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		f, at, err := r.read()
		switch {
		case err == nil:
			v.tree.add(f.json)
			if err := v.count(f); err != nil {
				return corrupt(s.path, f.index, at, "%v", err)
			}
			if err := v.advance(); err != nil {
				return err
			}
			continue
		case errors.As(err, &d):
			torn := false
			if last {
				if torn, err = r.torn(d, v.signed); err != nil {
					return err
				}
			}
			if !torn {
				return d.corrupt(s)
			}
		case !errors.Is(err, io.EOF):
			return err
		}
		size, err := r.size()
		if err != nil {
			return err
		}
		v.report.Bytes += at
		if size > at {
			if !last {
				return corrupt(s.path, v.tree.n, at, "%d bytes after the last record are no record", size-at)
			}
			v.report.Unfinished = size - at
		}
		return nil
	}
}

// count takes one record into the report.
func (v *verification) count(f frame) error {
	var r struct {
		Schema   string         `json:"schema"`
		Stage    proxy.Stage    `json:"stage"`
		Time     time.Time      `json:"time"`
		Decision string         `json:"decision"`
		Event    string         `json:"event"`
		Data     jsontext.Value `json:"data"`
	}
	if err := jsonv2.Unmarshal(f.json, &r); err != nil || r.Schema != proxy.RecordSchema {
		return fmt.Errorf("the record is not one of %s", proxy.RecordSchema)
	}
	if v.report.Records++; v.report.Records == 1 {
		v.report.First = r.Time
	}
	v.report.Last = r.Time
	v.report.Stages[r.Stage]++
	if r.Event == EventRemoved {
		removal, err := parseRemoval(r.Data)
		if err != nil {
			return err
		}
		if removal.To == v.begin {
			v.told = f.index + 1
		}
	}
	switch r.Stage {
	case proxy.StageIntent:
		key := r.Decision
		if key == "" {
			key = fmt.Sprintf("record %d", f.index) // nothing can be its outcome
		}
		v.open[key] = Intent{f.index, r.Decision, r.Time}
	case proxy.StageOutcome:
		delete(v.open, r.Decision)
	}
	return nil
}

// checkpoints reads the checkpoints in order, up to those that were there when it was opened.
type checkpoints struct {
	path   string
	origin string
	known  note.Verifiers
	f      *os.File
	lines  lines
	end    int64 // offset after the last whole one
	at     int64 // offset of the one read last
	last   int64 // records that the last one covers
}

func openCheckpointFile(dir, origin string, known note.Verifiers) (*checkpoints, error) {
	path := filepath.Join(dir, checkpointsName)
	last, ok, end, err := lastCheckpoint(dir, origin, known)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, corrupt(path, 0, 0, "there are segments, but no checkpoint")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &checkpoints{path: path, origin: origin, known: known, f: f, lines: lines{r: f}, end: end, last: last.N}, nil
}

func (c *checkpoints) next() (checkpoint, bool, error) {
	if c.lines.at >= c.end {
		return checkpoint{}, false, nil
	}
	line, at, err := c.lines.next()
	c.at = at
	if err != nil {
		return checkpoint{}, false, corrupt(c.path, 0, at, "the checkpoints end early")
	}
	f, err := parseFrame(line)
	if err != nil {
		return checkpoint{}, false, corrupt(c.path, 0, at, "a checkpoint's checksum is wrong")
	}
	p, err := parseCheckpoint(f, c.origin, c.known)
	if err != nil {
		return checkpoint{}, false, corrupt(c.path, f.index, at, "%v", err)
	}
	return p, true, nil
}

func (c *checkpoints) close() { c.f.Close() }

// locate says which record in [from, to) is not the one that was signed: the first whose leaf is not the stored one.
// Where the hashes file does not tell, all of them are in doubt.
func locate(dir string, segments []segment, from, to int64) error {
	problem := fmt.Sprintf("the records do not give the root that was signed for %d records", to)
	doubt := segments[0]
	for _, s := range segments {
		if s.first <= from {
			doubt = s
		}
	}
	unknown := corrupt(doubt.path, from, 0, "%s; one or more of the records %d to %d were altered", problem, from, to-1)
	file, err := os.OpenFile(filepath.Join(dir, hashesName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return unknown
	}
	stored := newTree(file)
	defer stored.close()
	for _, s := range segments {
		r, err := openSegment(s)
		if err != nil {
			return unknown
		}
		for {
			f, at, err := r.read()
			if err != nil || f.index >= to {
				break
			}
			if f.index < from {
				continue
			}
			if h, err := stored.stored(tlog.StoredHashIndex(0, f.index)); err != nil || h != stored.leafHash(f.json) {
				r.close()
				if err != nil {
					return unknown
				}
				return corrupt(s.path, f.index, at, "%s; this record was altered", problem)
			}
		}
		r.close()
	}
	return unknown
}

// globEscape makes a path stand for itself in a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
