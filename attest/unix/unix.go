// Package unix attests the user and groups of a process.
//
// The effective uid and gid are those of the socket's peer at connect, never /proc's; [attest.Process.Alive]
// makes sure that the process still has them. An unprivileged attacker cannot take on another uid or a group
// that it is not in, so `unix.uid` is a boundary. A group is one as far as its membership is: members of a
// group can hand its gid to others by set-group-id programs.
//
// Links: credentials(7), unix(7) on SO_PEERCRED and SO_PEERGROUPS.
package unix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/wardmesh/ward/attest"
)

// Attestor yields unix.uid, unix.gid and one unix.group for each supplementary group. The zero value is ready.
type Attestor struct{}

// Name is "unix".
func (Attestor) Name() string { return "unix" }

// Attest implements attest.Attestor.
func (Attestor) Attest(_ context.Context, p attest.Process) ([]attest.Selector, error) {
	groups, err := groupsOf(p)
	if err != nil {
		return nil, err
	}
	facts := make([]attest.Selector, 0, 2+len(groups))
	facts = append(facts,
		attest.Selector{Type: attest.UnixUID, Value: decimal(p.UID())},
		attest.Selector{Type: attest.UnixGID, Value: decimal(p.GID())})
	for _, g := range groups {
		facts = append(facts, attest.Selector{Type: attest.UnixGroup, Value: decimal(g)})
	}
	return facts, nil
}

// groupsOf asks the process as it was pinned, which knows them from a Unix socket, or else /proc.
func groupsOf(p attest.Process) ([]uint32, error) {
	if g, ok := p.(interface{ Groups() ([]uint32, error) }); ok {
		return g.Groups()
	}
	status, err := attest.AppendProc(nil, p, "status")
	if err != nil {
		return nil, err
	}
	return parseGroups(status)
}

// parseGroups finds the line "Groups:" of /proc/PID/status (proc_pid_status(5)). The kernel escapes the
// process's name, so no line can be made up.
func parseGroups(status []byte) ([]uint32, error) {
	for line := range bytes.Lines(status) {
		value, found := bytes.CutPrefix(line, []byte("Groups:"))
		if !found {
			continue
		}
		var groups []uint32
		for word := range bytes.FieldsSeq(value) {
			g, err := strconv.ParseUint(string(word), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("/proc/PID/status: Groups: %w", err)
			}
			groups = append(groups, uint32(g))
		}
		return groups, nil
	}
	return nil, errors.New("/proc/PID/status: Groups is missing")
}

func decimal(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
