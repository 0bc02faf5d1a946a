package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
)

// stateModes looks at the folders of state that exist. Their modes are the boundary: what lies inside is not looked at.
func stateModes(_ context.Context, x *examination) []Finding {
	type folder struct{ what, path string }
	folders := []folder{{"the authority's keys", x.cfg.Authority.Dir}, {"the agent's sealed SVIDs", x.cfg.Agent.State}, {"the mesh's addresses", x.cfg.Mesh.State}}
	trails, unseen := x.trails()
	for _, dir := range trails {
		folders = append(folders, folder{"the audit log", dir})
	}
	var out []Finding
	for i, f := range folders {
		info, err := os.Stat(x.host.in(f.path))
		if errors.Is(err, fs.ErrPermission) {
			unseen = true
		}
		if err != nil || !info.IsDir() {
			continue
		}
		open := info.Mode().Perm() & 0o027 // a group may read the log, and nobody else's may write
		if i < 2 {
			open = info.Mode().Perm() & 0o077
		}
		if open != 0 {
			out = append(out, fail(fmt.Sprintf("the folder %s, with %s, is open to others (mode %04o)", f.path, f.what, info.Mode().Perm()),
				"whoever reads keys can be any workload; whoever reads the log learns about patients; whoever writes can undo both",
				"chmod 0700 "+quoted(f.path)))
		}
	}
	return seen(out, unseen)
}

// trails is the folders in which this host has an audit log. Unseen says that this user may not know of all of them.
func (x *examination) trails() (out []string, unseen bool) {
	for _, r := range []config.Role{config.RoleRun, config.RoleAgent, config.RoleEgress, config.RoleIngress, config.RoleProxy, config.RoleMesh} {
		for _, dir := range []string{x.cfg.Trail(r), x.cfg.SecondTrail(r)} {
			if dir == "" || slices.Contains(out, dir) {
				continue
			}
			info, err := os.Stat(x.host.in(dir))
			unseen = unseen || errors.Is(err, fs.ErrPermission)
			if err == nil && info.IsDir() {
				out = append(out, dir)
			}
		}
	}
	return out, unseen
}

func (x *examination) ownSockets() []string {
	c := x.cfg
	all := []string{c.Agent.Socket, c.Agent.Broker, c.Admin.Socket, c.Admin.Egress, c.Admin.Ingress, c.Admin.Mesh}
	if c.Mesh.Sockets != "" {
		all = append(all, filepath.Join(c.Mesh.Sockets, "service.sock"))
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

func socketDirs(_ context.Context, x *examination) []Finding {
	var out []Finding
	var known []string
	unseen := false
	for _, s := range x.ownSockets() {
		dir := filepath.Dir(s)
		if slices.Contains(known, dir) {
			continue
		}
		known = append(known, dir)
		if _, err := os.Stat(x.host.in(dir)); errors.Is(err, fs.ErrPermission) {
			unseen = true
		}
		if mend := x.replaceable(dir); mend != "" {
			out = append(out, fail("others can put sockets of their own into "+dir, "applications would talk to them instead of Ward, and hand them their users' tokens", mend))
		}
	}
	return seen(out, unseen)
}

// replaceable is the command that keeps others from replacing what lies in dir, or "" where they cannot. A sticky
// folder above is fine; dir itself must not be one, since there others could be first.
func (x *examination) replaceable(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(x.host.in(d))
		if err == nil && info.Mode().Perm()&0o022 != 0 && (d == dir || info.Mode()&fs.ModeSticky == 0) {
			return "chmod go-w " + quoted(d)
		}
		if d == "/" || d == "." {
			return ""
		}
	}
}

func adminModes(_ context.Context, x *examination) []Finding {
	var out []Finding
	for _, s := range []string{x.cfg.Admin.Socket, x.cfg.Admin.Egress, x.cfg.Admin.Ingress, x.cfg.Admin.Mesh} {
		info, err := os.Stat(x.host.in(s)) // in a folder that this user cannot enter, others have no use for the mode
		if err == nil && info.Mode().Perm()&0o007 != 0 {
			out = append(out, fail(fmt.Sprintf("any local user can open the admin socket %s (mode %04o)", s, info.Mode().Perm()),
				"they see who is enrolled and who calls what", "chmod o= "+quoted(s)))
		}
	}
	return out
}

// adminGroup looks for daemons among the operators: a captured one would read, through the admin socket, what roles
// apart keep from it.
func adminGroup(_ context.Context, x *examination) []Finding {
	groups := readGroups(x.host.in("/etc/group"))
	g, ok := groups[admin.Group]
	if !ok {
		return nil
	}
	users := readUsers(x.host.in("/etc/passwd"))
	daemons := map[uint32]string{} // and what they are
	if x.cfg != nil {
		for _, w := range x.cfg.Workloads {
			if uid, ok := selectedUID(w.Select); ok {
				daemons[uid] = "the workload " + w.ID.Path()
			}
		}
		for _, s := range x.serves() {
			if uid, ok := selectedUID(s.Upstream.Process); ok {
				daemons[uid] = "the FHIR server of " + s.Name
			}
		}
	}
	for _, p := range x.running() {
		// People's sessions lie outside system.slice.
		if strings.HasSuffix(p.Unit, ".service") && daemons[p.UID] == "" {
			daemons[p.UID] = p.Unit
		}
	}
	var out []Finding
	for _, name := range members(groups, users, g.gid) {
		what := daemons[users[name].uid]
		if strings.HasPrefix(name, "ward-") && name != admin.Group {
			what = "one of Ward's daemons"
		}
		if what != "" && users[name].uid != 0 {
			out = append(out, fail(fmt.Sprintf("%s (%s) is a member of %s", name, what, admin.Group), "once captured it reads the state of every role", "gpasswd -d "+quoted(name)+" "+admin.Group))
		}
	}
	return out
}

type account struct{ uid, gid uint32 }

type group struct {
	gid  uint32
	list []string
}

// readUsers reads passwd(5). What is not a whole line of it is left out.
func readUsers(file string) map[string]account {
	out := map[string]account{}
	for _, f := range colonLines(file, 7) {
		uid, err := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err == nil && err2 == nil {
			out[f[0]] = account{uint32(uid), uint32(gid)} //nolint:gosec // parsed as 32 bits
		}
	}
	return out
}

// readGroups reads group(5).
func readGroups(file string) map[string]group {
	out := map[string]group{}
	for _, f := range colonLines(file, 4) {
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			out[f[0]] = group{uint32(gid), strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' })} //nolint:gosec // parsed as 32 bits
		}
	}
	return out
}

func colonLines(file string, fields int) (out [][]string) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if parts := strings.Split(lines.Text(), ":"); len(parts) == fields && parts[0] != "" {
			out = append(out, parts)
		}
	}
	return out
}

// members lists who is in a group, by the group's own list or as their first group.
func members(groups map[string]group, users map[string]account, gid uint32) []string {
	var out []string
	for _, g := range groups {
		if g.gid == gid {
			out = append(out, g.list...)
		}
	}
	for name, u := range users {
		if u.gid == gid {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// quoted writes a path so that it can be pasted into a shell.
func quoted(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+@", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
