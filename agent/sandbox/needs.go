package sandbox

import (
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"

	"github.com/wardmesh/ward/agent/config"
)

// Allowance is what a role may do. Paths are absolute; a folder stands for all below it.
type Allowance struct {
	Read, Write  []string
	Sockets      []string // folders in which it makes sockets, through which others must pass
	Listen, Dial []uint16 // TCP ports
}

// host is what every role reads of its host. Files that are replaced rather than written, such as resolv.conf, need
// their folder: the kernel's rules are about the file that was there, not about its name. What in /etc is not for
// everybody, the role's own user cannot read anyway.
func host() []string {
	return []string{
		"/etc", // config, policies, roots of trust, resolv.conf, hosts, nsswitch.conf, localtime
		"/proc", "/sys/fs/cgroup",
		"/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
		"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", // where resolv.conf leads
	}
}

// Needs is what role needs under cfg.
func Needs(role config.Role, cfg *config.Config) Allowance {
	var a Allowance
	a.Read = host()
	for _, f := range cfg.Files() {
		a.Read = append(a.Read, folders(f)...)
	}
	a.Read = append(a.Read, folders(filepath.Join(filepath.Dir(cfg.File()), "conf.d", "x"))...)
	a.Sockets = append(a.Sockets, filepath.Dir(cfg.AdminSocket(role)))
	a.Write = append(a.Write, filepath.Dir(cfg.Trail(role)))
	if second := cfg.SecondTrail(role); second != "" {
		a.Write = append(a.Write, filepath.Dir(second))
	}
	if cfg.Monitor.Metrics.IsValid() {
		a.Listen = append(a.Listen, cfg.Monitor.Metrics.Port())
	}
	if role == config.RoleEgress || role == config.RoleProxy {
		a.egress(cfg)
	}
	if role == config.RoleIngress || role == config.RoleProxy {
		a.ingress(cfg)
	}
	if role == config.RoleMesh {
		a.mesh(cfg)
	}
	for _, paths := range []*[]string{&a.Read, &a.Write, &a.Sockets} {
		slices.Sort(*paths)
		*paths = slices.Compact(*paths)
	}
	for _, ports := range []*[]uint16{&a.Listen, &a.Dial} {
		slices.Sort(*ports)
		*ports = slices.Compact(*ports)
	}
	return a
}

// egress dials the wards of services, and nothing else.
func (a *Allowance) egress(cfg *config.Config) {
	if cfg.Mesh.Sockets != "" {
		a.Sockets = append(a.Sockets, cfg.Mesh.Sockets)
	}
	if cfg.Mesh.Listen.IsValid() {
		a.Listen = append(a.Listen, cfg.Mesh.Listen.Port())
	}
	for _, s := range cfg.Services {
		for _, address := range s.Addresses {
			a.dial(address)
		}
	}
	a.Dial = append(a.Dial, dns)
}

// Names are asked for by TCP too, where an answer is long.
const dns = 53

// ingress dials FHIR servers and the issuers of tokens.
func (a *Allowance) ingress(cfg *config.Config) {
	a.Read = append(a.Read, folders(filepath.Join(cfg.Policies.Dir, "x"))...)
	for _, s := range cfg.Services {
		if s.Listen.IsValid() {
			a.Listen = append(a.Listen, s.Listen.Port())
		}
		if s.Upstream.Network == "tcp" {
			a.dial(s.Upstream.Address)
		}
	}
	for _, i := range cfg.Tokens {
		for _, f := range []string{i.JWKSFile, i.CAFile} {
			if f != "" {
				a.Read = append(a.Read, folders(f)...)
			}
		}
		a.site(i.Issuer)
		a.site(i.JWKSURI)
	}
	if len(cfg.Tokens) > 0 {
		// An issuer may keep its keys at another host, but not at any port; and a proxy of the site leads to them all.
		a.Dial = append(a.Dial, 443, dns)
		for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
			a.site(os.Getenv(name))
		}
	}
}

func (a *Allowance) mesh(cfg *config.Config) {
	a.Write = append(a.Write, cfg.Mesh.State)
	if cfg.Mesh.DNS.IsValid() {
		a.Listen = append(a.Listen, cfg.Mesh.DNS.Port())
	}
}

// dial allows the port of host:port.
func (a *Allowance) dial(address string) {
	if _, port, err := net.SplitHostPort(address); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n != 0 {
			a.Dial = append(a.Dial, uint16(n))
		}
	}
}

// site allows the port of a URL.
func (a *Allowance) site(s string) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	a.dial(net.JoinHostPort(u.Hostname(), port))
}

// folders are the folder of a file, and that to which links lead from there.
func folders(file string) []string {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil
	}
	out := []string{filepath.Dir(abs)}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		out = append(out, filepath.Dir(real))
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		out = append(out, real)
	}
	return out
}

// rules are the kernel's rules. What is not there is left out: it cannot be allowed before it exists. Folders that the
// role writes are made, because it would make them a moment later.
func (a Allowance) rules() ([]landlock.Rule, error) {
	var out []landlock.Rule
	add := func(path string, dir, file landlock.AccessFSSet) error {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrInvalid):
			return nil // what cannot be reached needs no leave
		case err != nil:
			return err
		case info.IsDir():
			out = append(out, landlock.PathAccess(dir, path).IgnoreIfMissing())
		default:
			out = append(out, landlock.PathAccess(file, path).IgnoreIfMissing())
		}
		return nil
	}
	for _, p := range a.Read {
		if err := add(p, readDirs, readFiles); err != nil {
			return nil, err
		}
	}
	for _, written := range []struct {
		paths []string
		mode  fs.FileMode
	}{{a.Write, 0o700}, {a.Sockets, 0o755}} {
		for _, p := range written.paths {
			// Where it may not be made, it will not be missed before what needs it says so.
			if err := os.MkdirAll(p, written.mode); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
				return nil, err
			}
			if err := add(p, writeDirs, writeFiles); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range a.Listen {
		out = append(out, landlock.BindTCP(p))
	}
	for _, p := range a.Dial {
		out = append(out, landlock.ConnectTCP(p))
	}
	return out, nil
}

// within reports whether path is, or lies below, one of dirs.
func within(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		rel, err := filepath.Rel(dir, path)
		return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
	})
}
