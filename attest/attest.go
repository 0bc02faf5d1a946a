// Package attest answers one question: which local process is this, in facts that it cannot choose?
//
// A workload that asks Ward for an identity, or that sends a call through Ward's proxy, is a process on
// this host. The kernel pins it (package attest/peer), attestors read facts about it ("selectors"), and
// entries are matched against those facts (package workload). Nothing a process says about itself is used.
//
// What is sound and what is not:
//
//   - uid and the systemd unit of the system manager are boundaries: an unprivileged attacker cannot take
//     them on. Entries must name at least one of them.
//   - The path and hash of the executable are hygiene: a process with the same uid can run the trusted binary
//     with LD_PRELOAD. They narrow an entry and never carry one alone. An interpreter attests as itself.
//   - Facts about a process are worthless once its pid may belong to another. Every attestation ends with
//     a liveness check against the pinned process, after the last fact was read.
//
// This package holds the nouns and the journey, [Run]; the sub-packages each hold one attestor.
package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Selector is one attested fact about a process. Type is the key that operators write under `select:` in an
// entry (`unix.uid`), Value the fact in its canonical spelling (`1000`, never `01000`).
type Selector struct{ Type, Value string }

// String gives the selector as an operator could paste it: `unix.uid: 1000`.
func (s Selector) String() string { return s.Type + ": " + s.Value }

// Strength says how much the selector alone may be trusted. A unit of a user's own manager can be named
// freely by that user, so it is weak however well the process is pinned.
func (s Selector) Strength() Strength {
	if s.Type == SystemdUserUnit {
		return Weak
	}
	return Strong
}

// The selector types that exist, each with the attestor that yields it.
const (
	UnixUID         = "unix.uid"          // attest/unix: effective uid, decimal
	UnixGID         = "unix.gid"          // attest/unix: effective gid, decimal
	UnixGroup       = "unix.group"        // attest/unix: one supplementary gid, decimal; one selector for each
	SystemdUnit     = "systemd.unit"      // attest/systemd: the system manager's unit
	SystemdUserUnit = "systemd.user_unit" // attest/systemd: a unit that the user's own manager named; weak
	ExePath         = "exe.path"          // attest/exe: absolute path of the executable
	ExeSHA256       = "exe.sha256"        // attest/exe: lower-case hex of its content
	Launch          = "launch"            // attest/launch: the name under which this Ward process started it
)

// Selectors is a set of selectors, sorted by type and value, without duplicates.
type Selectors []Selector

// NewSelectors sorts and dedupes s into a set. It copies: s is not kept.
func NewSelectors(s ...Selector) Selectors {
	out := slices.Clone(s)
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

// Contains reports whether every selector of want is in s.
func (s Selectors) Contains(want Selectors) bool {
	for _, w := range want {
		if _, found := slices.BinarySearchFunc(s, w, compare); !found {
			return false
		}
	}
	return true
}

// String lists the selectors on one line, separated by commas.
func (s Selectors) String() string {
	parts := make([]string, len(s))
	for i, sel := range s {
		parts[i] = sel.String()
	}
	return strings.Join(parts, ", ")
}

func compare(a, b Selector) int {
	if c := strings.Compare(a.Type, b.Type); c != 0 {
		return c
	}
	return strings.Compare(a.Value, b.Value)
}

// Strength is how firmly the process was pinned while its facts were read.
type Strength uint8

const (
	// Weak: the kernel offered no pidfd for the peer (before Linux 6.5), so the pid was pinned only after
	// accept; or a fact that the process's own user controls took part.
	Weak Strength = iota + 1
	// Strong: the kernel itself named the process, and it was the same process throughout.
	Strong
)

// String is the word used in config, records and logs.
func (s Strength) String() string {
	switch s {
	case Weak:
		return "weak"
	case Strong:
		return "strong"
	}
	return "unknown"
}

// Process is one local process, pinned: as long as Alive returns nil, PID names the process that was meant
// and no other. Implemented by attest/peer.
type Process interface {
	PID() int
	// UID and GID are those of the socket's peer at connect (SO_PEERCRED or inet_diag), not of /proc.
	UID() uint32
	GID() uint32
	// Proc is /proc/PID, opened when the process was pinned; reads below it fail once the process is gone.
	// It stays open until the process value is closed; attestors do not close it.
	Proc() *os.File
	// Strength is how the process was pinned.
	Strength() Strength
	// Alive is nil while the pinned process runs the image it ran when it was pinned, as the same user. After
	// exit it wraps ErrExited, after an execve ErrReplaced, after a change of user ErrMismatch.
	Alive() error
}

// Shared is a Process whose socket is held by other processes too, as after a fork. What was said on that
// socket may have been said by any of them, so Run attests each, and all must be the same.
type Shared interface {
	Process
	Others() []Process
}

// Attestor reads one kind of fact. It reports facts only, and no fact is not an error: a process outside
// any unit has no unit selector. An error means that the facts could not be read, and fails the attestation.
type Attestor interface {
	Name() string
	Attest(context.Context, Process) ([]Selector, error)
}

// Attestation is what is known of a process at one time.
type Attestation struct {
	Selectors Selectors
	Strength  Strength
	Time      time.Time
}

// Errors that end an attestation, and a stream that rests on one.
var (
	ErrExited   = errors.New("the process has exited")
	ErrReplaced = errors.New("the process has replaced its program")
	ErrMismatch = errors.New("the kernel's views of the process disagree")
)

// Run is the journey of an attestation: the process lives, each attestor reads its facts, and the process
// still lives. The last check is what makes the facts true of this process: whatever was read under a
// reused pid is thrown away here.
func Run(ctx context.Context, p Process, attestors []Attestor) (Attestation, error) {
	facts, err := read(ctx, p, attestors)
	if err != nil {
		return Attestation{}, err
	}
	if shared, ok := p.(Shared); ok {
		for _, other := range shared.Others() {
			theirs, err := read(ctx, other, attestors)
			if err != nil {
				return Attestation{}, fmt.Errorf("process %d shares the socket: %w", other.PID(), err)
			}
			if !slices.Equal(facts, theirs) {
				return Attestation{}, fmt.Errorf("%w: process %d shares the socket and attests differently", ErrMismatch, other.PID())
			}
			if err := p.Alive(); err != nil {
				return Attestation{}, err
			}
		}
	}
	return Attestation{Selectors: facts, Strength: p.Strength(), Time: time.Now()}, nil
}

// read is the part of the journey that each holder of a socket goes through.
func read(ctx context.Context, p Process, attestors []Attestor) (Selectors, error) {
	if err := p.Alive(); err != nil {
		return nil, err
	}
	var facts []Selector
	for _, a := range attestors {
		f, err := a.Attest(ctx, p)
		if err != nil {
			// A process that vanished explains its unreadable files better than ENOENT does.
			if gone := p.Alive(); gone != nil {
				return nil, gone
			}
			return nil, fmt.Errorf("attestor %s: %w", a.Name(), err)
		}
		facts = append(facts, f...)
	}
	if err := p.Alive(); err != nil {
		return nil, err
	}
	return NewSelectors(facts...), nil
}
