package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// Entry is one record as a reader of the log sees it. Readers need no lock and change nothing: they may be other
// processes, while the log is being written.
type Entry struct {
	Index  int64 // counted from 0 over the log's whole life
	Record proxy.Record
	JSON   []byte // the record as it stands in the log; good only until the next Entry
	// Lost is, in an Entry without a Record, how many records from Index on were removed before a follower had
	// read them.
	Lost int64
}

func decode(f frame) (Entry, error) {
	e := Entry{Index: f.index, JSON: f.json}
	if err := jsonv2.Unmarshal(f.json, &e.Record); err != nil || e.Record.Schema != proxy.RecordSchema {
		return Entry{}, fmt.Errorf("the record is not one of %s", proxy.RecordSchema)
	}
	return e, nil
}

// Scan gives the records from index from on, oldest first, up to the last whole one. It checks lines, not the tree:
// that is Verify's. It ends with an error when there is one; a damaged log is an ErrCorrupt.
func Scan(ctx context.Context, dir string, from int64) iter.Seq2[Entry, error] {
	return scan(ctx, cursor{dir: dir, next: from})
}

func scan(ctx context.Context, begin cursor) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := begin
		dir := c.dir
		if segments, err := listSegments(dir); err == nil && len(segments) > 0 {
			c.next = max(c.next, segments[0].first) // what was before is no longer kept
		}
		defer c.close()
		for {
			e, err := c.read(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err == nil && e.Lost > 0 {
				err = corrupt(filepath.Join(dir, segmentName(e.Index)), e.Index, 0, "%d records are missing", e.Lost)
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// cursor reads a log's records across its segments, beside its writer.
type cursor struct {
	dir  string
	next int64 // index of the next record to give
	r    *reader
	// over: a newer segment exists, so this one will not grow; what it holds is read once more, to its end.
	over bool
	done bool  // a segment was read to its end,
	last int64 // the one that begins with this record
	// other is told of records that another version of Ward wrote, and says whether to go on without them. Nil: no.
	other func(json []byte) bool
}

func (c *cursor) close() {
	if c.r != nil {
		c.r.close()
		c.r = nil
	}
}

// read gives the next record; io.EOF says that there is none yet.
func (c *cursor) read(ctx context.Context) (Entry, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		if c.r == nil {
			if lost, err := c.open(); err != nil || lost.Lost > 0 {
				return lost, err
			}
		}
		f, at, err := c.r.read()
		var d *damage
		switch {
		case err == nil && f.index < c.next:
			continue
		case err == nil:
			e, err := decode(f)
			if err != nil && c.other != nil && c.other(f.json) {
				c.next = f.index + 1
				continue
			}
			if err != nil {
				return Entry{}, corrupt(c.r.path, f.index, at, "%v", err)
			}
			c.next = f.index + 1
			return e, nil
		case errors.As(err, &d):
			// What a loss of power left is not the log's, and will be moved aside at the writer's next start.
			if torn, err := c.r.torn(d, -1); err != nil || !torn || c.over {
				return Entry{}, errors.Join(d.corrupt(c.r.segment), err)
			}
			c.close() // read from a whole line again
			return Entry{}, io.EOF
		case !errors.Is(err, io.EOF):
			return Entry{}, err
		}
		if c.over {
			c.next, c.done, c.last = max(c.next, c.r.next), true, c.r.first
			c.close()
			continue
		}
		if c.over, err = c.newer(); err != nil {
			return Entry{}, err
		}
		if !c.over {
			return Entry{}, io.EOF
		}
	}
}

// newer reports whether there is a segment after the current one.
func (c *cursor) newer() (bool, error) {
	segments, err := listSegments(c.dir)
	return err == nil && len(segments) > 0 && segments[len(segments)-1].first > c.r.first, err
}

// open opens the segment that holds, or will hold, the next record. An Entry with Lost is given instead when that
// segment is gone.
func (c *cursor) open() (Entry, error) {
	segments, err := listSegments(c.dir)
	if err != nil {
		return Entry{}, err
	}
	if len(segments) == 0 {
		return Entry{}, io.EOF
	}
	i := len(segments) - 1
	for i >= 0 && segments[i].first > c.next {
		i--
	}
	if i < 0 || c.done && segments[i].first == c.last && i < len(segments)-1 {
		// What should hold the record is not there, or was read to its end without it.
		e := Entry{Index: c.next, Lost: segments[i+1].first - c.next}
		c.next = segments[i+1].first
		return e, nil
	}
	r, err := openSegment(segments[i])
	if errors.Is(err, fs.ErrNotExist) { // removed for its age or size just now
		return c.open()
	}
	var d *damage
	if errors.As(err, &d) {
		if i == len(segments)-1 && !d.sure {
			return Entry{}, io.EOF // it is being made
		}
		return Entry{}, d.corrupt(segments[i])
	}
	if err != nil {
		return Entry{}, err
	}
	c.r, c.over = r, false
	return Entry{}, nil
}

// Find gives the records of the decisions whose ids begin with prefix, oldest first. It looks through the newest
// segments first, and for a whole id no further than to where the decision began.
func Find(ctx context.Context, dir, prefix string) ([]proxy.Record, error) {
	prefix = strings.ToUpper(prefix)
	if prefix == "" || len(prefix) > ulidLen || strings.Trim(prefix, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") != "" {
		return nil, fmt.Errorf("audit: %s is not a decision id or its beginning", Escape(prefix))
	}
	segments, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	var found []proxy.Record
	for _, s := range slices.Backward(segments) {
		some, err := findIn(ctx, s, prefix)
		if err != nil {
			return nil, err
		}
		found = append(some, found...)
		if len(prefix) == ulidLen && slices.ContainsFunc(some, func(r proxy.Record) bool { return r.Stage != proxy.StageOutcome }) {
			break
		}
	}
	return found, nil
}

// ulidLen is the length of a decision id.
const ulidLen = 26

// findIn searches the bytes of s before it reads any line.
func findIn(ctx context.Context, s segment, prefix string) ([]proxy.Record, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	needle := []byte(`"decision":"` + prefix)
	var found []proxy.Record
	buf := make([]byte, 0, 2*maxLine)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := f.ReadAt(buf[len(buf):cap(buf)], at+int64(len(buf)))
		buf = buf[:len(buf)+n]
		whole := bytes.LastIndexByte(buf, '\n') + 1
		for rest := buf[:whole]; ; {
			i := bytes.Index(rest, needle)
			if i < 0 {
				break
			}
			begin, end := bytes.LastIndexByte(rest[:i], '\n')+1, i+bytes.IndexByte(rest[i:], '\n')
			line := rest[begin:end]
			rest = rest[end+1:]
			fr, bad := parseFrame(line)
			if bad != nil {
				return nil, corrupt(s.path, s.first, at+int64(whole-len(rest)-len(line)-1), "the record's checksum is wrong")
			}
			if e, bad := decode(fr); bad == nil && strings.HasPrefix(e.Record.Decision, prefix) {
				found = append(found, e.Record)
			}
		}
		at += int64(whole)
		buf = buf[:copy(buf, buf[whole:])]
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, fmt.Errorf("audit: %w", err)
		case len(buf) > maxLine:
			return nil, corrupt(s.path, s.first, at, "a line is longer than any record")
		}
	}
}
