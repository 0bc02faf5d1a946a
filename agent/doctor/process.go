package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// States of a TCP socket (include/net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpListen      = 10
)

// Socket is a TCP socket of this host. Remote means nothing while it listens.
type Socket struct {
	Local, Remote netip.AddrPort
	Listening     bool
	UID           uint32
	Inode         uint64
}

// Process is a running process as its neighbours see it.
type Process struct {
	PID  int
	UID  uint32
	Name string // the kernel's, which the process can choose
	Unit string // of the system's service manager; "" for none
}

// readSockets reads net/tcp and net/tcp6: sockets that listen, and those that are connected.
func readSockets(proc string) ([]Socket, error) {
	f, err := procfs.NewFS(proc)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the file needs no netlink, which a sandbox may forbid: the doctor must still see where Ward cannot
	four, err := f.NetTCP()
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 as above
	if six, err := f.NetTCP6(); err == nil { // absent where IPv6 is off
		four = append(four, six...)
	}
	var out []Socket
	for _, l := range four {
		local, ok := netip.AddrFromSlice(l.LocalAddr)
		remote, ok2 := netip.AddrFromSlice(l.RemAddr)
		if !ok || !ok2 || l.LocalPort > 65535 || l.RemPort > 65535 || l.St != tcpListen && l.St != tcpEstablished {
			continue
		}
		out = append(out, Socket{Local: netip.AddrPortFrom(local.Unmap(), uint16(l.LocalPort)), Remote: netip.AddrPortFrom(remote.Unmap(), uint16(l.RemPort)), //nolint:gosec // checked above
			Listening: l.St == tcpListen, UID: uint32(l.UID), Inode: l.Inode}) //nolint:gosec // a uid has 32 bits
	}
	return out, nil
}

// tcp is the host's sockets, read once.
func (x *examination) tcp() ([]Socket, error) {
	if x.sockets != nil {
		return x.sockets, nil
	}
	s, err := x.host.Sockets()
	x.sockets = s
	return s, err
}

// running is the host's processes, read once.
func (x *examination) running() []Process {
	if x.processes == nil {
		x.processes = readProcesses(x.host.Proc)
	}
	return x.processes
}

// readProcesses lists what can be seen: where /proc is mounted with hidepid, an ordinary user sees only their own.
func readProcesses(proc string) []Process {
	f, err := procfs.NewFS(proc)
	if err != nil {
		return nil
	}
	all, err := f.AllProcs()
	if err != nil {
		return nil
	}
	var out []Process
	for _, p := range all {
		st, err := p.NewStatus()
		if err != nil {
			continue // it has ended
		}
		one := Process{PID: p.PID, UID: uint32(st.UIDs[1]), Name: st.Name} //nolint:gosec // the effective uid has 32 bits
		if groups, err := p.Cgroups(); err == nil {
			for _, g := range groups {
				if g.HierarchyID == 0 {
					one.Unit = unitOf(g.Path)
				}
			}
		}
		out = append(out, one)
	}
	return out
}

// unitOf is the system's unit of a cgroup: the outermost service or scope below system.slice. What lies beneath a
// user's manager is named by that user, and is nobody's word here.
func unitOf(cgroup string) string {
	parts := strings.Split(strings.TrimPrefix(cgroup, "/"), "/")
	if parts[0] != "system.slice" {
		return ""
	}
	for _, p := range parts {
		switch {
		case strings.HasSuffix(p, ".slice"):
		case strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope"):
			if strings.HasPrefix(p, "user@") {
				return ""
			}
			return unescapeUnit(p)
		default:
			return ""
		}
	}
	return ""
}

// unescapeUnit undoes the underscore by which systemd keeps a unit's name from looking like a kernel file.
func unescapeUnit(name string) string { return strings.TrimPrefix(name, "_") }

// holders is who has the sockets open. It sees other users' processes only as root.
func (x *examination) holders(ctx context.Context, inodes ...uint64) map[uint64][]Process {
	return socketHolders(ctx, x.host.Proc, x.running(), inodes)
}

func socketHolders(ctx context.Context, proc string, running []Process, inodes []uint64) map[uint64][]Process {
	wanted := map[string]uint64{}
	for _, i := range inodes {
		wanted["socket:["+strconv.FormatUint(i, 10)+"]"] = i
	}
	held := map[uint64][]Process{}
	for _, p := range running {
		if ctx.Err() != nil {
			break
		}
		dir := filepath.Join(proc, strconv.Itoa(p.PID), "fd")
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(-1) // it has ended meanwhile
		_ = f.Close()
		for _, n := range names {
			target, err := os.Readlink(filepath.Join(dir, n))
			if i, ok := wanted[target]; err == nil && ok && !slices.Contains(held[i], p) {
				held[i] = append(held[i], p)
			}
		}
	}
	return held
}

// some lists at most five, and says how many more there are.
func some(list []string) string {
	if len(list) <= 5 {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:5], ", ") + fmt.Sprintf(" and %d more", len(list)-5)
}
