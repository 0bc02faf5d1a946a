package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// The files of a log.
const (
	lockName        = "lock"
	hashesName      = "hashes"
	checkpointsName = "checkpoints.log"
	segmentSuffix   = ".log"
	tornMark        = ".torn-"
)

const segmentSchema = "ward.audit-segment/1"

// header is a segment's first line: the tree that its records continue.
type header struct {
	Schema string    `json:"schema"`
	Time   time.Time `json:"time"`
	Origin string    `json:"origin"`
	Size   int64     `json:"size"`
	Root   tlog.Hash `json:"root"`
}

// segment is one file of records.
type segment struct {
	path  string
	first int64 // index of its first record
}

func segmentName(first int64) string { return fmt.Sprintf("%012d%s", first, segmentSuffix) }

// listSegments gives dir's segments in order.
func listSegments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var all []segment
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || first < 0 || segmentName(first) != e.Name() {
			continue
		}
		all = append(all, segment{filepath.Join(dir, e.Name()), first})
	}
	slices.SortFunc(all, func(a, b segment) int { return int(min(1, max(-1, a.first-b.first))) })
	return all, nil
}

func encodeHeader(h header) ([]byte, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return appendFrame(nil, b, frameSum(b), h.Size, h.Size), nil
}

func parseHeader(f frame) (header, error) {
	var h header
	if err := jsonv2.Unmarshal(f.json, &h); err != nil {
		return header{}, errors.New("the segment's header is not JSON")
	}
	if h.Schema != segmentSchema || h.Size != f.index || h.Size != f.synced {
		return header{}, fmt.Errorf("the segment's first line is not a header of %s", segmentSchema)
	}
	return h, nil
}

// lines reads a file's whole lines. It can go on reading after io.EOF once the file has grown.
type lines struct {
	r   io.ReaderAt
	at  int64 // offset of the next line
	buf []byte
	pos int // of the next line in buf
}

// next gives the next line without its newline, and the offset at which it begins; line is good until the next call.
// It is io.EOF when there is no whole line, and errFrame when a line is longer than any that is written here.
func (l *lines) next() (line []byte, at int64, err error) {
	searched := l.pos
	for {
		if i := bytes.IndexByte(l.buf[searched:], '\n'); i >= 0 {
			end := searched + i
			line, at = l.buf[l.pos:end], l.at
			l.at += int64(end + 1 - l.pos)
			l.pos = end + 1
			return line, at, nil
		}
		if len(l.buf)-l.pos > maxLine {
			return nil, l.at, errFrame
		}
		l.buf = l.buf[:copy(l.buf, l.buf[l.pos:])]
		l.pos, searched = 0, len(l.buf)
		if cap(l.buf)-len(l.buf) < 32<<10 {
			l.buf = slices.Grow(l.buf, max(256<<10, len(l.buf)))
		}
		n, err := l.r.ReadAt(l.buf[len(l.buf):cap(l.buf)], l.at+int64(len(l.buf)))
		l.buf = l.buf[:len(l.buf)+n]
		if n > 0 {
			continue
		}
		l.buf = l.buf[:0] // an unfinished line is read again: it may be moved aside and another take its place
		if err == nil {
			err = io.ErrNoProgress
		}
		return nil, l.at, err
	}
}

// damage is a line that is not what was written. Whether it is a torn tail depends on what surrounds it.
type damage struct {
	index, offset int64
	problem       string
	sure          bool // no interrupted write can look like this
}

func (d *damage) Error() string { return d.problem }

func (d *damage) corrupt(s segment) error { return corrupt(s.path, d.index, d.offset, "%s", d.problem) }

// reader reads one segment's records in order.
type reader struct {
	segment
	src    io.ReaderAt
	f      *os.File // src, when it is a file
	lines  lines
	header header
	next   int64 // index of the next record
}

// openSegment opens s and reads its header, of which no one but the caller can say whether it fits. The error is a
// *damage when the file has no good header.
func openSegment(s segment) (*reader, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	r, err := newReader(s, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	r.f = f
	return r, nil
}

func newReader(s segment, src io.ReaderAt) (*reader, error) {
	r := &reader{segment: s, src: src, lines: lines{r: src}, next: s.first}
	if err := r.readHeader(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *reader) readHeader() error {
	line, _, err := r.lines.next()
	switch {
	case errors.Is(err, io.EOF):
		return &damage{index: r.first, problem: "the segment has no header"}
	case err != nil && !errors.Is(err, errFrame):
		return fmt.Errorf("audit: %w", err)
	}
	f, ferr := parseFrame(line)
	if err != nil || ferr != nil {
		return &damage{index: r.first, problem: "the segment's header is damaged"}
	}
	if r.header, err = parseHeader(f); err != nil {
		return &damage{index: r.first, problem: err.Error(), sure: true}
	}
	if r.header.Size != r.first {
		return &damage{index: r.first, problem: fmt.Sprintf("the segment's header says that it begins at record %d", r.header.Size), sure: true}
	}
	return nil
}

// read gives the next record's frame and its offset. It is io.EOF when no whole line is left, and a *damage when the
// line is not the next record; reading cannot go on after that.
func (r *reader) read() (frame, int64, error) {
	line, at, err := r.lines.next()
	if errors.Is(err, errFrame) {
		return frame{}, at, &damage{index: r.next, offset: at, problem: "a line is longer than any record"}
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("audit: %s: %w", r.path, err)
		}
		return frame{}, at, err
	}
	f, err := parseFrame(line)
	if err != nil {
		return frame{}, at, &damage{index: r.next, offset: at, problem: "the record's checksum is wrong"}
	}
	if f.index != r.next {
		return frame{}, at, &damage{index: r.next, offset: at, problem: fmt.Sprintf("record %d stands where record %d belongs", f.index, r.next), sure: true}
	}
	r.next++
	return f, at, nil
}

// torn decides what a damaged end of the log is. It is a torn tail, left by a kill or a loss of power, when nothing
// says that it had ever been durable: no checkpoint, and no whole line after it.
func (r *reader) torn(d *damage, signed int64) (bool, error) {
	if d.sure || signed > d.index {
		return false, nil
	}
	br := bufio.NewReaderSize(io.NewSectionReader(r.src, d.offset, math.MaxInt64-d.offset), maxLine)
	for {
		line, err := br.ReadSlice('\n')
		if err == nil {
			if f, bad := parseFrame(line[:len(line)-1]); bad == nil && f.synced > d.index {
				return false, nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return true, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return false, fmt.Errorf("audit: %s: %w", r.path, err)
		}
	}
}

// size gives the file's length.
func (r *reader) size() (int64, error) {
	info, err := r.f.Stat()
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	return info.Size(), nil
}

func (r *reader) close() { r.f.Close() }

// lastIndex gives the index of the last whole line of s from its end, without reading it all; -1 when the end has none.
func lastIndex(s segment) (int64, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	tail, _, err := readTail(f, info.Size(), 2*maxLine)
	if err != nil {
		return 0, err
	}
	for len(tail) > 0 {
		i := bytes.LastIndexByte(tail, '\n')
		if i < 0 {
			break
		}
		from := bytes.LastIndexByte(tail[:i], '\n') + 1
		if f, err := parseFrame(tail[from:i]); err == nil {
			if h, err := parseHeader(f); err == nil {
				return h.Size - 1, nil
			}
			return f.index, nil
		}
		tail = tail[:from]
	}
	return -1, nil
}

// readTail reads up to limit bytes from the end of f, beginning at the start of a line; from is their offset.
func readTail(f io.ReaderAt, size, limit int64) (tail []byte, from int64, err error) {
	from = max(0, size-limit)
	tail = make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("audit: %w", err)
	}
	if from > 0 {
		i := bytes.IndexByte(tail, '\n')
		tail, from = tail[i+1:], from+int64(i+1)
	}
	return tail, from, nil
}
