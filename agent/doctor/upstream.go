package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"

	"github.com/wardmesh/ward/agent/config"
)

// dialled is the address of a TCP upstream.
func dialled(s config.Service) (netip.AddrPort, bool) {
	if s.Upstream.Network != "tcp" {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddrPort(s.Upstream.Address)
	if err != nil {
		_, port, _ := strings.Cut(s.Upstream.Address, ":") // localhost
		a, err = netip.ParseAddrPort("127.0.0.1:" + port)
	}
	return a, err == nil
}

// wards reports whether Ward itself listens there.
func (x *examination) wards(a netip.AddrPort) bool {
	return a == x.cfg.Mesh.Listen || a == x.cfg.Monitor.Metrics ||
		slices.ContainsFunc(x.cfg.Services, func(s config.Service) bool { return s.Listen == a })
}

func upstreamNetwork(_ context.Context, x *examination) []Finding {
	sockets, err := x.tcp()
	if err != nil {
		return skip("cannot read the host's sockets")
	}
	var out []Finding
	for _, s := range x.serves() {
		up, ok := dialled(s)
		own := slices.IndexFunc(sockets, func(l Socket) bool { return l.Listening && l.Local == up })
		for _, l := range sockets {
			switch {
			case !ok || !l.Listening || l.Local.Port() != up.Port() || l.Local.Addr().IsLoopback() || x.wards(l.Local):
			case own >= 0 && sockets[own].UID != l.UID:
				out = append(out, warn(fmt.Sprintf("%s listens on %s, the port of the FHIR server on %s", x.host.userName(l.UID), l.Local, up),
					"where it passes requests on to the FHIR server, policy and audit of "+s.Name+" are bypassed over the network",
					"ss -ltnp 'sport = :"+fmt.Sprint(up.Port())+"' shows who it is; point it at Ward, or close the port in the firewall"))
			default:
				out = append(out, fail("FHIR server answers without Ward on "+l.Local.String(),
					"anyone on this network bypasses policy and audit of "+s.Name,
					"bind it to "+up.Addr().String()+", then: ward doctor "+codeUpstreamNetwork))
			}
		}
	}
	return out
}

// serverElsewhere looks at the other ports of the processes that serve upstreams.
func serverElsewhere(ctx context.Context, x *examination) []Finding {
	sockets, err := x.tcp()
	if err != nil {
		return skip("cannot read the host's sockets")
	}
	var open []Socket
	var inodes []uint64
	for _, l := range sockets {
		if l.Listening && !l.Local.Addr().IsLoopback() && !x.wards(l.Local) {
			open, inodes = append(open, l), append(inodes, l.Inode)
		}
	}
	held := x.holders(ctx, inodes...)
	var out []Finding
	unseen := false
	for _, s := range x.serves() {
		up, _ := dialled(s)
		uid, byUser := selectedUID(s.Upstream.Process)
		unit, byUnit := selector(s.Upstream.Process, "systemd.unit")
		unseen = unseen || !byUser && byUnit && len(open) > 0 && x.host.UID != 0
		for _, l := range open {
			// Too much is root's for its sockets to say anything.
			same := byUser && uid != 0 && l.UID == uid || byUnit && slices.ContainsFunc(held[l.Inode], func(p Process) bool { return p.Unit == unit })
			if same && l.Local.Port() != up.Port() {
				out = append(out, warn("the process that serves "+s.Name+" also listens on "+l.Local.String(),
					"if FHIR is answered there, policy and audit can be bypassed over the network",
					"bind that port to 127.0.0.1, or close it in the firewall; what it is: ss -ltnp 'sport = :"+fmt.Sprint(l.Local.Port())+"'"))
			}
		}
	}
	return seen(out, unseen)
}

func upstreamSocket(_ context.Context, x *examination) []Finding {
	var out []Finding
	unseen := false
	for _, s := range x.serves() {
		if s.Upstream.Network != "unix" {
			continue
		}
		path := s.Upstream.Address
		info, err := os.Stat(x.host.in(path))
		if err != nil {
			unseen = unseen || errors.Is(err, fs.ErrPermission)
			continue // upstreamAway says so where there is none
		}
		dir := filepath.Dir(path)
		if f := x.replaceable(dir); f != "" {
			out = append(out, fail("others can put a socket of their own in the place of "+path, "they would be sent the calls of "+s.Name, f))
		}
		switch {
		case info.Mode().Perm()&0o002 != 0 && x.passable(dir):
			out = append(out, fail("any local user can connect to "+path, "they bypass policy and audit of "+s.Name,
				"chmod o-w "+quoted(path)+", and have the server make it so: a folder of mode 0750 that Ward's group can enter"))
		case info.Mode().Perm()&0o020 != 0:
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				if others := x.strangers(st.Gid, st.Uid, s); len(others) > 0 {
					out = append(out, warn("members of the socket's group other than Ward can connect to "+path+": "+some(others),
						"they bypass policy and audit of "+s.Name, "give the socket a group of its own with ward-ingress as its only member"))
				}
			}
		}
	}
	return seen(out, unseen)
}

// passable reports whether everybody can enter a folder and those above it.
func (x *examination) passable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(x.host.in(dir))
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == "/" || dir == "." {
			return true
		}
	}
}

// strangers is the members of a group who are neither root, nor the socket's owner, nor Ward, nor the server.
func (x *examination) strangers(gid, owner uint32, s config.Service) []string {
	server, _ := selectedUID(s.Upstream.Process)
	users := readUsers(x.host.in("/etc/passwd"))
	var out []string
	for _, name := range members(readGroups(x.host.in("/etc/group")), users, gid) {
		u := users[name]
		if u.uid != 0 && u.uid != owner && u.uid != server && name != "ward" && !strings.HasPrefix(name, "ward-") {
			out = append(out, name)
		}
	}
	return out
}

func upstreamOpen(ctx context.Context, x *examination) []Finding {
	guarded := false
	if x.cfg.Mesh.Guard {
		for _, r := range x.daemons(ctx) {
			guarded = guarded || r.name == config.RoleMesh && !r.absent // its rules outlast it; a silent one is said elsewhere
		}
	}
	var out []Finding
	for i, s := range x.cfg.Services {
		up, ok := dialled(s)
		switch {
		case !ok || guarded:
		case x.cfg.Mesh.Guard:
			out = append(out, warn("mesh.guard is on and ward mesh has not run: any local user can dial "+up.String(), "they bypass policy and audit of "+s.Name, "systemctl enable --now ward-mesh"))
		default:
			out = append(out, warn("any local user can dial "+up.String(), "they bypass policy and audit of "+s.Name,
				fmt.Sprintf("have the server listen on a Unix socket (%s), or write mesh: {guard: true} and run ward mesh", x.at(fmt.Sprintf("services[%d].upstream", i)))))
		}
	}
	return out
}

// upstreamSockets finds the sockets that listen where a service's upstream is dialled: inode → owner, where the kernel
// names one.
func (x *examination) upstreamSockets(s config.Service) (inodes []uint64, uids map[uint64]uint32, err error) {
	uids = map[uint64]uint32{}
	if up, ok := dialled(s); ok {
		sockets, err := x.tcp()
		for _, l := range sockets {
			any := l.Local.Addr().IsUnspecified() && (l.Local.Addr().Is6() || up.Addr().Is4())
			if l.Listening && l.Local.Port() == up.Port() && (any || l.Local.Addr() == up.Addr()) {
				inodes = append(inodes, l.Inode)
				uids[l.Inode] = l.UID
			}
		}
		return inodes, uids, err
	}
	f, err := procfs.NewFS(x.host.Proc)
	if err != nil {
		return nil, nil, err
	}
	all, err := f.NetUNIX()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range all.Rows {
		if l.Path == s.Upstream.Address && l.Flags&unixListens != 0 {
			inodes = append(inodes, l.Inode)
		}
	}
	return inodes, uids, nil
}

// unixListens is __SO_ACCEPTCON of linux/net.h.
const unixListens = 1 << 16

func upstreamAway(_ context.Context, x *examination) []Finding {
	var out []Finding
	for _, s := range x.serves() {
		inodes, _, err := x.upstreamSockets(s)
		if err != nil {
			return skip("cannot read the host's sockets")
		}
		if len(inodes) == 0 {
			out = append(out, warn("nothing listens on "+s.Upstream.Address, "calls of "+s.Name+" end with 502 or 503",
				"start the FHIR server, or correct the address at "+x.at(fmt.Sprintf("services[%d].upstream", x.index(s)))))
		}
	}
	return out
}

func (x *examination) index(s config.Service) int {
	return slices.IndexFunc(x.cfg.Services, func(o config.Service) bool { return o.Name == s.Name })
}

func upstreamProcess(ctx context.Context, x *examination) []Finding {
	var out []Finding
	unseen := false
	for _, s := range x.serves() {
		if len(s.Upstream.Process) == 0 {
			continue
		}
		inodes, owners, err := x.upstreamSockets(s)
		if err != nil {
			return skip("cannot read the host's sockets")
		}
		wantUID, byUser := selectedUID(s.Upstream.Process)
		wantUnit, byUnit := selector(s.Upstream.Process, "systemd.unit")
		held := x.holders(ctx, inodes...)
		wrong := func(is, want string) {
			out = append(out, fail(s.Upstream.Address+" is served by "+is+", not by "+want, "Ward sends nothing to it, and calls of "+s.Name+" fail; or somebody listens in the server's place",
				"ss -lxtnp shows who it is; correct process: at "+x.at(fmt.Sprintf("services[%d].upstream", x.index(s)))+" only if it is the server"))
		}
		for _, i := range inodes {
			uid, known := owners[i]
			if byUser && known && uid != wantUID {
				wrong(x.host.userName(uid), x.host.userName(wantUID))
				continue
			}
			if len(held[i]) == 0 {
				unseen = unseen || byUnit || !known
				continue
			}
			for _, p := range held[i] {
				if byUser && p.UID != wantUID {
					wrong(x.host.userName(p.UID), x.host.userName(wantUID))
				} else if byUnit && p.Unit != wantUnit {
					is := p.Unit
					if is == "" {
						is = fmt.Sprintf("a process outside any unit (pid %d)", p.PID)
					}
					wrong(is, wantUnit)
				} else {
					continue
				}
				break
			}
		}
	}
	if unseen && len(out) == 0 {
		if x.host.UID != 0 {
			return skip(needRoot)
		}
		return skip("find no process that holds the server's socket (it is in another pid namespace)")
	}
	return out
}
