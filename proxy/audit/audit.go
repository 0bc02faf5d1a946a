// Package audit keeps the trail: an append-only log of who called what and why it was allowed or refused, on
// which nothing can be altered, removed or reordered afterwards without it being found.
//
// # Promise
//
// When the Receipt of a record says so, fdatasync has returned for a write that held the whole record. A record
// for which nobody waits is written and synced within a short interval. Nothing that was once waited for is lost
// by a kill of the process at any moment, or by a loss of power as far as the disk keeps its word.
//
// # Form
//
// A log is a folder of its own, 0700:
//
//	000000000000.log     a segment, named by the index of its first record
//	000000018311.log     the next one: the first begins where the last one ended
//	checkpoints.log      signed tree heads
//	hashes               the tree's inner hashes; a cache, made again when it is missing or wrong
//	reserve              room for emergencies
//	lock                 held by the one process that appends
//	*.torn-TIME          what an interrupted write left behind, moved aside by the next start
//
// A line of a segment is one record and its frame, which are four JSON values, so that grep, tail and jq work:
//
//	{"schema":"ward.audit/1","stage":"intent",…} INDEX SYNCED CRC
//
// SYNCED is the number of records that were durable when the line was written; it tells damage from a torn tail: a
// bad line before an index that a later line calls durable is damage, and is never repaired here. CRC is CRC-32C of
// everything before it. A segment's first line is a header with the size and root of the tree before it.
//
// The records' exact JSON bytes are the leaves of a Merkle tree as in RFC 6962 §2.1 (golang.org/x/mod/sumdb/tlog).
// Every so often, and at rotation and close, the tree's size and root are signed as a checkpoint
// (C2SP tlog-checkpoint, golang.org/x/mod/sumdb/note) over durable records only. Verify recomputes every leaf and
// every root.
//
// # Failure
//
// The log fails closed. After an error of write or fdatasync the kernel may have dropped the pages and call them
// clean, so that a second fdatasync that succeeds says nothing (P. Rebello et al., Can Applications Recover from
// fsync Failures?, USENIX ATC 2020): the log refuses everything, lets go of its files (the disk can be unmounted, mended
// and mounted again), and opens itself anew every so often. Opening proves that all that was durable is still there,
// writes again whatever no checkpoint covers, begins a new segment, and says in a record what the gap was. A disk that
// runs full is noticed before a byte is written, and is not a failure: records are refused until there is room, and
// Options.MinFree is left to others. Emergencies may then use the reserve, in which their room was allocated ahead.
//
// Refusals, which an attacker can have as many of as he likes, are kept in bounds by a Budget in front of the log. A
// Trail is two logs on two disks, of which the second stands in for the first.
//
// # Retention
//
// The oldest segments can be removed for their age or size, each after a record of its own that says what it was and
// from which hashes the tree goes on, and that a checkpoint covers before the file goes (Removal). Verify asks for that
// record: records that are missing without one were not removed by the log. By whom the clock is wrong by years, time
// that is kept is cut short; a log that must not lose anything by that is bounded by size.
//
// # Threat
//
// Who can write the files but does not hold the key cannot change what a checkpoint covers unseen. Who holds both
// (root on this host) can write a new history that verifies; only a copy of a checkpoint elsewhere shows that. What
// lies beyond the last checkpoint is guarded against accidents alone; Report says how much that is.
package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// Options says where and how a log is kept. Dir, Origin, Logger and Registerer must be given; every other zero value
// stands for its default.
type Options struct {
	Dir string // the log's own folder; made 0700 when it is missing

	// Origin names the log in its checkpoints: trust domain and host, `clinic.example/icu-gw-07`. No spaces, no plus.
	// It never changes during a log's life.
	Origin string

	// Key signs the checkpoints. Nil: an Ed25519 key in KeyFile, made there (0600) when log and key are both new.
	Key *Key
	// KeyFile defaults to Dir with `.key` appended, beside the folder; its public half is written to PublicFile(Dir).
	KeyFile string

	// Reserve is how many bytes are allocated ahead for emergencies (see Emergency) when nothing else can be recorded
	// for want of room. 0: none.
	Reserve int64

	// Keep and MaxSize are how old a segment gets and how many bytes all of them have before the oldest is removed. The
	// one that is being written stays. 0: no bound.
	Keep    time.Duration
	MaxSize int64

	SegmentSize int64 // bytes after which a new segment begins; 64 MiB
	MinFree     int64 // bytes that must stay free on the file system, for others; 64 MiB

	QueueRecords int           // records that may wait to be written; 4096
	QueueBytes   int           // and their bytes; 8 MiB
	Patience     time.Duration // how long Append waits for room in the queue; 2 s

	FlushEvery        time.Duration // the longest that a record nobody waits for stays in memory; 50 ms
	CheckpointEvery   time.Duration // the longest that durable records stay without a signature; 10 s
	CheckpointRecords int64         // and the most of them; 16384

	// Retry is how long after a failure the log first looks whether it can go on; it doubles up to a minute. 1 s.
	Retry time.Duration

	Logger     *zap.Logger
	Registerer prometheus.Registerer

	FS FS // nil: the host's
}

// MaxRecord is the longest record that the log takes, in bytes of JSON.
const MaxRecord = 1 << 20

var _ proxy.Recorder = (*Log)(nil)

// The errors by which callers tell what is the matter.
var (
	// ErrCorrupt: the log on disk is not what was written. The error is a *CorruptError.
	ErrCorrupt = errors.New("the audit log is damaged or was altered")
	// ErrLocked: another process appends to this log.
	ErrLocked = errors.New("the audit log is in use by another process")
	// ErrKey: the signing key is missing, unreadable, open to others or not the one that signed this log.
	ErrKey = errors.New("the audit log's key cannot be used")
	// ErrAccess: the folder or a file of the log is open to others.
	ErrAccess = errors.New("the audit log is open to others")
	// ErrFailed: writing failed. Nothing is accepted until the log has opened itself anew and proved what is on the disk.
	ErrFailed = errors.New("the audit log has failed")
	// ErrFull: the disk has no room. Nothing is accepted until it has; nothing was lost.
	ErrFull = errors.New("the audit log has no room on its disk")
	// ErrBusy: the queue stayed full for longer than the caller would wait.
	ErrBusy = errors.New("the audit log cannot keep up")
	// ErrRecord: the record itself cannot be taken.
	ErrRecord = errors.New("the audit record is invalid")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("the audit log is closed")
)

// CorruptError says where the log is not what was written, and what to do. It is an ErrCorrupt.
type CorruptError struct {
	File    string // path of the file
	Index   int64  // index of the first record that is in doubt, counted from 0
	Offset  int64  // bytes into File
	Problem string
	Advice  string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: record %d at byte %d: %s; %s", e.File, e.Index, e.Offset, e.Problem, e.Advice)
}

// Is makes errors.Is(err, ErrCorrupt) hold.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// keepIt is what to do about a log that is not whole.
const keepIt = "nothing was changed: keep a copy of the folder as evidence, then restore it from a backup, or move it aside to begin a new log"

func corrupt(file string, index, offset int64, format string, args ...any) error {
	return &CorruptError{File: file, Index: index, Offset: offset, Problem: fmt.Sprintf(format, args...), Advice: keepIt}
}

func (o *Options) setDefaults() error {
	switch {
	case o.Dir == "":
		return errors.New("audit: Options.Dir is empty")
	case !validOrigin(o.Origin):
		return fmt.Errorf("audit: Options.Origin %q must be one word without plus signs", o.Origin)
	case o.Key != nil && (o.Key.Signer == nil || o.Key.Verifier == nil):
		return errors.New("audit: Options.Key needs both a Signer and its Verifier")
	case o.Logger == nil || o.Registerer == nil:
		return errors.New("audit: Options.Logger and Options.Registerer must be given")
	case o.SegmentSize < 0 || o.MinFree < 0 || o.Reserve < 0 || o.Retry < 0 || o.Keep < 0 || o.MaxSize < 0 || o.QueueRecords < 0 || o.QueueBytes < 0 || o.CheckpointRecords < 0 ||
		o.Patience < 0 || o.FlushEvery < 0 || o.CheckpointEvery < 0:
		return errors.New("audit: Options has a negative size or duration")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if o.KeyFile == "" {
		o.KeyFile = o.Dir + ".key"
	}
	setDefault(&o.SegmentSize, 64<<20)
	if o.MaxSize > 0 {
		o.SegmentSize = max(1, min(o.SegmentSize, o.MaxSize/4)) // whole segments are removed
	}
	setDefault(&o.MinFree, 64<<20)
	setDefault(&o.QueueRecords, 4096)
	setDefault(&o.QueueBytes, 8<<20)
	setDefault(&o.Patience, 2*time.Second)
	setDefault(&o.Retry, time.Second)
	setDefault(&o.FlushEvery, 50*time.Millisecond)
	setDefault(&o.CheckpointEvery, 10*time.Second)
	setDefault(&o.CheckpointRecords, 16384)
	if o.FS == nil {
		o.FS = Host{}
	}
	return nil
}

func setDefault[T ~int | ~int64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// validOrigin follows the rules for names of note's keys, and keeps to what a terminal shows as it is.
func validOrigin(s string) bool {
	return s != "" && len(s) <= 512 && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '+' || r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
}

// Open opens the log for appending, or makes a new one. It proves the structure of the whole log, and every record of
// its last segment against the last checkpoint; older segments are proved by Verify, and nothing that is appended
// later can hide a change in them. What an interrupted write left is moved aside into a file of its own. A log that is
// not what was written is refused with a *CorruptError and left as it is. ctx bounds only the opening.
func Open(ctx context.Context, o Options) (*Log, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s, lock, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		s.close()
		lock.Close()
		return nil, err
	}
	m.torn.Add(float64(s.torn))
	l := newLog(o, s, m)
	l.lock = lock
	l.refill()
	l.setReserve()
	l.start()
	return l, nil
}

func open(ctx context.Context, o Options) (*state, *os.File, error) {
	if err := prepareDir(o.Dir); err != nil {
		return nil, nil, err
	}
	return take(ctx, o, false)
}

// take locks the log's folder and makes the log ready to be appended to.
func take(ctx context.Context, o Options, existing bool) (*state, *os.File, error) {
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, nil, err
	}
	s, err := recoverLog(ctx, o, existing)
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	if s.reserve, err = openReserve(&o, fileMode(o.Dir)); err != nil {
		s.close()
		lock.Close()
		return nil, nil, err
	}
	if public := s.key.public; public != "" {
		if err := writePublic(PublicFile(o.Dir), public); err != nil {
			o.Logger.Warn("the audit key's public half could not be written; verifying needs it", zap.Error(err))
		}
	}
	return s, lock, nil
}
