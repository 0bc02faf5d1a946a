// Package sandbox gives up, for good, what a role of Ward does not need: by Landlock, which any process may use upon
// itself, whoever runs it and whether or not a service manager has confined it already.
//
// # What
//
// [Enter] is called once, after config is read and before anything else is opened. From then on the process, with all
// of its threads, reads and writes only where its role has business, executes nothing, and on kernels that can say so
// listens and dials only on the TCP ports that config names, signals nobody and speaks to no abstract Unix socket.
// [Needs] is what a role may do, derived from config; [Report] is what the kernel really enforces.
//
// # Why, and against whom
//
// Ingress parses what strangers send and holds a patient's data while it does; egress does so for every local user.
// Whoever finds a fault in either should find no file to read, no program to start and no way out to a port of their
// choice. systemd's confinement says much the same from outside. This holds too where Ward runs under another
// supervisor, and where a unit has been edited.
//
// # The two roles that have none
//
// A process in a Landlock domain may not look at processes outside of it: the kernel refuses it every access that
// ptrace would need, whatever capability it has (landlock.rst, "Ptrace restrictions"). Reading /proc/PID/exe, seeing an
// exec in /proc/PID/stat and pidfd_getfd are such accesses, and attestation is made of them. So the agent, and ward run
// which is agent too, enter no sandbox; their units confine them instead. A test shows that this is still so.
//
// # Limits
//
// Landlock says nothing of UDP before ABI 10, nor of Multipath TCP, nor of sockets that are open already. What has been
// given up cannot be had again: when a reload needs more than that, [Report.Missing] says what, and the role must be
// restarted instead, which its sockets outlive.
//
// See https://docs.kernel.org/userspace-api/landlock.html.
package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/wardmesh/ward/agent/config"
)

// The kernel's Landlock ABI from which on something can be restricted.
const (
	abiFiles   = 1
	abiNetwork = 4
	abiScopes  = 6
)

// What may be done below a folder that is read, and below one that is written. Nothing may be executed anywhere.
const (
	readFiles  landlock.AccessFSSet = ll.AccessFSReadFile
	readDirs                        = readFiles | ll.AccessFSReadDir
	writeFiles                      = readFiles | ll.AccessFSWriteFile | ll.AccessFSTruncate
	writeDirs                       = writeFiles | readDirs | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir |
		ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSock
)

// Report says what is in force for this process.
type Report struct {
	Role config.Role
	ABI  int // the kernel's Landlock ABI, 0 when it has none
	// Files, Network and Scopes say whether files, TCP ports, and signals and abstract sockets are restricted.
	Files, Network, Scopes bool
	// Why says, for an operator to read, why something is not; "" when all is.
	Why string

	allowed Allowance
}

// String is one line for a log.
func (r Report) String() string {
	var on []string
	for _, p := range []struct {
		name string
		is   bool
	}{{"files", r.Files}, {"TCP ports", r.Network}, {"signals and abstract sockets", r.Scopes}} {
		if p.is {
			on = append(on, p.name)
		}
	}
	what := "nothing"
	if len(on) > 0 {
		what = strings.Join(on, ", ")
	}
	s := fmt.Sprintf("landlock restricts %s of %s (ABI %d)", what, r.Role, r.ABI)
	if r.Why != "" {
		s += "; " + r.Why
	}
	return s
}

// Missing lists what cfg needs and this process has given up, each for an operator to read. A reload to such a config
// must be refused: only a restart can grant it.
func (r Report) Missing(cfg *config.Config) []string {
	var out []string
	need, written := Needs(r.Role, cfg), slices.Concat(r.allowed.Write, r.allowed.Sockets)
	if r.Files {
		for _, p := range need.Read {
			if !within(p, slices.Concat(r.allowed.Read, written)) {
				out = append(out, "to read "+p)
			}
		}
		for _, p := range slices.Concat(need.Write, need.Sockets) {
			if !within(p, written) {
				out = append(out, "to write "+p)
			}
		}
	}
	if r.Network {
		for _, p := range need.Listen {
			if !slices.Contains(r.allowed.Listen, p) {
				out = append(out, fmt.Sprintf("to listen on port %d", p))
			}
		}
		for _, p := range need.Dial {
			if !slices.Contains(r.allowed.Dial, p) {
				out = append(out, fmt.Sprintf("to dial port %d", p))
			}
		}
	}
	return out
}

// Enter confines this process, for good, to what the role needs under cfg. Where the kernel cannot do all of it, it
// does what the kernel can, and the Report says so. An error means that the kernel could and did not: the role must
// not start then.
func Enter(role config.Role, cfg *config.Config) (Report, error) {
	r := Report{Role: role, allowed: Needs(role, cfg)}
	if abi, err := ll.LandlockGetABIVersion(); err == nil {
		r.ABI = abi
	}
	switch {
	case role == config.RoleAgent || role == config.RoleRun:
		r.Why = "it attests processes, which none may do from within a Landlock domain"
		return r, nil
	case r.ABI < abiFiles:
		r.Why = "this kernel has no Landlock, or the service manager does not let it be used"
		return r, nil
	}
	rules, err := r.allowed.rules()
	if err != nil {
		return r, fmt.Errorf("sandbox: %w", err)
	}
	restrict := landlock.V8
	if strings.HasPrefix(os.Getenv("NOTIFY_SOCKET"), "@") {
		// The service manager's own socket is an abstract one, and READY=1 must get there.
		restrict.Scoped &^= ll.ScopeAbstractUnixSocket
	}
	if err := restrict.BestEffort().Restrict(rules...); err != nil {
		return r, fmt.Errorf("sandbox: %w", err)
	}
	r.Files, r.Network, r.Scopes = true, r.ABI >= abiNetwork, r.ABI >= abiScopes
	if !r.Scopes {
		r.Why = "the kernel is too old for the rest"
	}
	return r, nil
}
