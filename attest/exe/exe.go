// Package exe attests the executable that a process runs: its path, and the SHA-256 of its content.
//
// Both are hygiene, not a boundary: whoever may run processes as the same user can run the trusted executable
// with LD_PRELOAD, or trace it. They narrow an entry that names a user or a unit and never carry one alone. An
// interpreter attests as itself: for `python3 bridge.py` the executable is python3.
//
// The executable is opened through the pinned process's /proc directory (the link `exe`), which is the very
// file that runs, whatever lies at its path by now. The path is yielded only if the same file (device and inode)
// is found there from Ward's own root: a process in a mount namespace of its own can make any file run under any
// path, and one whose file was deleted or replaced runs what no longer has a path.
//
// Hashing 50 MB takes some 50 ms, so hashes are remembered by (device, inode, size, mtime, ctime). A change of
// content changes the ctime, with three exceptions that are heeded:
//
//   - The clock of a file's times may be coarse: a file whose ctime is under a second old is not remembered.
//   - Linux 6.11 and 6.12 let a running executable be written to through a mapping that was made before; there,
//     nothing is remembered.
//   - Files of FUSE and of network filesystems have times and content of somebody else's making. On FUSE there
//     is no hash at all, since the next read may give other content than the one that ran; over the network
//     nothing is remembered, nor on an overlay, which may lie on either.
//
// Reading another user's executable needs CAP_SYS_PTRACE, and CAP_DAC_READ_SEARCH where its mode is 0711. Where
// Ward has no right to read it there are no facts, which is not an error: an entry that asks for them does not
// match.
//
// Links: proc_pid_exe(5), inode(7), FIPS 180-4.
package exe

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Options of an Attestor. The zero value attests the path alone.
type Options struct {
	// SHA256 also attests the content.
	SHA256 bool
	// MaxBytes is the size above which a file has no hash; 0 stands for 1 GiB.
	MaxBytes int64
	// Remember is how many hashes are remembered; 0 stands for 1024.
	Remember int
}

// Attestor yields exe.path and exe.sha256. It is made by New.
type Attestor struct {
	options Options
	keep    bool // the kernel is one where a file's times can be relied on
	hashes  *otter.Cache[file, string]
	looks   attest.Turns // for opening files, which a filesystem of the user's own making may delay
	turns   attest.Turns // for hashing
	slots   *semaphore.Weighted
	flights flights
}

// New returns an Attestor.
func New(o Options) (*Attestor, error) {
	if o.MaxBytes < 0 || o.Remember < 0 {
		return nil, errors.New("exe: MaxBytes and Remember must not be negative")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.Remember == 0 {
		o.Remember = 1024
	}
	hashes, err := otter.New(&otter.Options[file, string]{MaximumSize: o.Remember})
	if err != nil {
		return nil, fmt.Errorf("exe: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("exe: uname: %w", err)
	}
	return &Attestor{
		options: o,
		keep:    timesReliable(unix.ByteSliceToString(uts.Release[:])),
		hashes:  hashes,
		// Two at least, so that one user's files never take the only slot.
		slots: semaphore.NewWeighted(int64(max(2, runtime.GOMAXPROCS(0)))),
	}, nil
}

// Name is "exe".
func (*Attestor) Name() string { return "exe" }

// Attest implements attest.Attestor.
func (a *Attestor) Attest(ctx context.Context, p attest.Process) ([]attest.Selector, error) {
	var facts []attest.Selector
	x, err := a.look(ctx, p)
	if x.path != "" {
		facts = append(facts, attest.Selector{Type: attest.ExePath, Value: x.path})
	}
	if err != nil || x.fd < 0 {
		return facts, unreadable(err)
	}
	defer unix.Close(x.fd)
	sum, err := a.sha256(ctx, p.UID(), x)
	if err != nil {
		return facts, unreadable(err)
	}
	if sum != "" {
		facts = append(facts, attest.Selector{Type: attest.ExeSHA256, Value: sum})
	}
	return facts, nil
}

// unreadable is nil for the errors that mean that there is no such fact: no right to read it, or a process
// without an executable (a kernel thread).
func unreadable(err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// executablePath is the absolute path of p's executable, "" when what lies there is not what runs.
func executablePath(p attest.Process) (path string, err error) {
	err = attest.WithProc(p, func(dir int) error {
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(dir, "exe", buf[:])
		if err != nil {
			return err
		}
		// A longer path would have been cut off, and a cut path is another path.
		if n == len(buf) || buf[0] != '/' {
			return nil
		}
		var runs, lies unix.Stat_t
		if err := unix.Fstatat(dir, "exe", &runs, 0); err != nil {
			return err
		}
		name := string(buf[:n])
		if unix.Stat(name, &lies) == nil && lies.Dev == runs.Dev && lies.Ino == runs.Ino {
			path = name
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("executable: %w", err)
	}
	return path, nil
}

// executable is a process's executable, opened.
type executable struct {
	path   string // "" when what lies there is not what runs
	fd     int    // -1 when it is not to be hashed
	file   file
	origin origin
}

// look finds out everything about the executable but its hash.
func (a *Attestor) look(ctx context.Context, p attest.Process) (executable, error) {
	x := executable{fd: -1}
	done, err := a.looks.Take(ctx, p.UID())
	if err != nil {
		return x, err
	}
	defer done()
	if x.path, err = executablePath(p); err != nil || !a.options.SHA256 {
		return x, err
	}
	fd, err := attest.OpenProc(p, "exe", unix.O_RDONLY)
	if err != nil {
		return x, err
	}
	if x.file, err = stat(fd); err == nil {
		x.origin, err = originOf(fd)
	}
	if err != nil {
		unix.Close(fd)
		return x, err
	}
	x.fd = fd
	return x, nil
}

// sha256 is the lower-case hex hash of the executable that user uid runs, "" when it has none.
func (a *Attestor) sha256(ctx context.Context, uid uint32, x executable) (string, error) {
	fd, f := x.fd, x.file
	if f.size > a.options.MaxBytes || x.origin == untold {
		return "", nil
	}
	keep := a.keep && x.origin == local && !f.young(time.Now())
	if keep {
		if sum, ok := a.hashes.GetIfPresent(f); ok {
			return sum, nil
		}
	}
	// What follows is long when the file is: its user waits for itself, and others have slots of their own.
	done, err := a.turns.Take(ctx, uid)
	if err != nil {
		return "", err
	}
	defer done()
	if !keep {
		return a.hash(ctx, fd, f) // nor is a hash in the making another's to use
	}
	return a.flights.do(ctx, f, func() (string, error) {
		if sum, ok := a.hashes.GetIfPresent(f); ok {
			return sum, nil
		}
		sum, err := a.hash(ctx, fd, f)
		if err == nil {
			a.hashes.Set(f, sum)
		}
		return sum, err
	})
}

func (a *Attestor) hash(ctx context.Context, fd int, f file) (string, error) {
	if err := a.slots.Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer a.slots.Release(1)
	return hash(ctx, fd, f)
}

// timesReliable reports whether a running executable cannot be written to on this kernel: not so on Linux 6.11
// and 6.12 (commit 2a010c412853, undone in 6.13 by 3b83203538c7).
func timesReliable(release string) bool {
	return !strings.HasPrefix(release, "6.11.") && !strings.HasPrefix(release, "6.12.") &&
		release != "6.11" && release != "6.12"
}
