package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
)

// fake is a host that exists in a folder and in these fields. As it is made, nothing is wrong with it.
type fake struct {
	t       *testing.T
	root    string
	now     time.Time
	host    Host
	kernel  Kernel
	sockets []Socket
	status  map[string]status // by admin socket, as config names it
	space   map[string]Space
	ask     []netip.Addr
	askErr  error
	resolve []netip.Addr
	clock   Clock
	date    time.Time
	conf    string
	path    string
}

var epoch = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

const wholeSite = `trust_domain: clinic.example
authority: {dir: /var/lib/ward/authority}
workloads:
  - {id: /app/portal, select: {unix.uid: 991, systemd.unit: portal.service}, proxy: true}
services:
  - name: fhir.ehr.mesh.internal
    id: /ward/ehr
    addresses: ['10.0.0.5:8443']
    callers: [/app/portal]
    listen: 10.0.0.5:8443
    upstream: {address: 'unix:/run/hapi/fhir.sock', process: {uid: 992, unit: hapi.service}}
audit: {dir: /var/lib/ward/audit, min_free: 1GiB}
`

func newFake(t *testing.T) *fake {
	f := &fake{t: t, root: t.TempDir(), now: epoch, kernel: Kernel{"6.18.0", true, true, true, 7, true}, clock: Clock{Synced: true},
		status: map[string]status{}, space: map[string]Space{}, conf: wholeSite, date: epoch,
		ask: addrs("127.128.0.1"), resolve: addrs("127.128.0.1")}
	f.write("etc/passwd", "root:x:0:0::/:/bin/sh\nportal:x:991:991::/:/bin/false\nhapi:x:992:992::/:/bin/false\nward-ingress:x:990:990::/:/bin/false\nmallory:x:1000:1000::/:/bin/sh\n")
	f.write("etc/group", "root:x:0:\nhapi:x:992:ward-ingress\nward-admin:x:989:alice\n")
	f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n0000000000000000: 00000002 00000000 00010000 0001 01 5001 /run/hapi/fhir.sock\n")
	f.write("proc/net/connector", "Name            ID\ncn_proc         1:1\n")
	f.write("proc/1/mountinfo", "26 1 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	if err := os.Symlink("1", filepath.Join(f.root, "proc/self")); err != nil {
		t.Fatal(err)
	}
	f.process(700, 992, "java", "/system.slice/hapi.service", 5001)
	f.process(701, 991, "portal", "/system.slice/portal.service")
	f.write("run/hapi/fhir.sock", "")
	f.mode("run/hapi/fhir.sock", 0o660)
	f.mode("run/hapi", 0o750)
	f.mode("run", 0o755)
	f.dir("var/lib/ward/authority", 0o700)
	f.dir("var/lib/ward/audit", 0o700)
	f.socket("/run/ward/agent/admin.sock", 0o660)
	f.status["/run/ward/agent/admin.sock"] = healthy()
	f.host = Host{Root: f.root, Proc: filepath.Join(f.root, "proc"), UID: 0, Now: func() time.Time { return f.now },
		Kernel:  func() Kernel { return f.kernel },
		Sockets: func() ([]Socket, error) { return f.sockets, nil },
		Clock:   func() (Clock, error) { return f.clock, nil },
		Space: func(p string) (Space, error) {
			rel, _ := filepath.Rel(f.root, p)
			if s, ok := f.space["/"+rel]; ok {
				return s, nil
			}
			return Space{Device: 1, Free: 100 << 30, Inodes: 1000, InodeFree: 900}, nil
		},
		Get: func(_ context.Context, socket, _ string, v any) error {
			rel, _ := filepath.Rel(f.root, socket)
			s, ok := f.status["/"+rel]
			if !ok {
				return admin.ErrUnreachable
			}
			*v.(*status) = s
			return nil
		},
		Ask:     func(context.Context, netip.AddrPort, string) ([]netip.Addr, error) { return f.ask, f.askErr },
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return f.resolve, nil },
		Date: func(context.Context, string, string) (time.Time, error) {
			if f.date.IsZero() {
				return f.date, errors.New("no answer")
			}
			return f.date, nil
		}}
	return f
}

func healthy() status {
	return status{Status: admin.Status{Schema: admin.StatusSchema, Version: "1.4.0", Started: epoch.Add(-time.Hour),
		Identity:  admin.Identity{Entries: 1, Workloads: 1, EarliestEnd: epoch.Add(time.Hour), Renewals: "working"},
		Authority: admin.Authority{Kind: "embedded", Issuance: "ok"}, Problems: []string{},
		Issuers: []admin.Issuer{{Issuer: "https://idp.clinic.example", State: "ok, 2 keys"}},
		Expires: []admin.Expiring{{What: "the CA certificate", Ends: epoch.AddDate(1, 0, 0)}}}}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func (f *fake) write(name, text string) {
	f.t.Helper()
	p := filepath.Join(f.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o750), os.WriteFile(p, []byte(text), 0o600)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) mode(name string, mode os.FileMode) {
	f.t.Helper()
	if err := os.Chmod(filepath.Join(f.root, name), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) dir(name string, mode os.FileMode) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Join(f.root, name), 0o750); err != nil {
		f.t.Fatal(err)
	}
	f.mode(name, mode)
}

// socket makes a real one, on which nobody listens any more.
func (f *fake) socket(name string, mode os.FileMode) {
	f.t.Helper()
	p := filepath.Join(f.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), unix.Mknod(p, unix.S_IFSOCK|0o600, 0)); err != nil {
		f.t.Fatal(err)
	}
	f.mode(name, mode)
}

func (f *fake) process(pid int, uid uint32, name, cgroup string, inodes ...uint64) {
	f.t.Helper()
	dir := "proc/" + strconv.Itoa(pid)
	f.write(dir+"/status", fmt.Sprintf("Name:\t%s\nPid:\t%d\nUid:\t%d\t%d\t%d\t%d\n", name, pid, uid, uid, uid, uid))
	f.write(dir+"/cgroup", "0::"+cgroup+"\n")
	f.write(dir+"/cmdline", name+"\x00--password=hunter2\x00")
	f.dir(dir+"/fd", 0o700)
	for i, n := range inodes {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", n), filepath.Join(f.root, dir, "fd", strconv.Itoa(i+3))); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fake) listens(address string, uid uint32, inode uint64) {
	f.sockets = append(f.sockets, Socket{Local: netip.MustParseAddrPort(address), Listening: true, UID: uid, Inode: inode})
}

func (f *fake) connected(local, remote string, uid uint32, inode uint64) {
	f.sockets = append(f.sockets, Socket{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), UID: uid, Inode: inode})
}

// examine runs checks; without codes all of them.
func (f *fake) examine(codes ...string) *Report {
	f.t.Helper()
	f.path = filepath.Join(f.root, "etc/ward/ward.yaml")
	f.write("etc/ward/ward.yaml", f.conf)
	if err := os.Chtimes(f.path, epoch.Add(-2*time.Hour), epoch.Add(-2*time.Hour)); err != nil {
		f.t.Fatal(err)
	}
	o := Options{Path: f.path, Host: f.host, Version: "1.4.0", Codes: codes, Online: true}
	o.Config, o.Broken = config.Parse("/etc/ward/ward.yaml", []byte(f.conf))
	if o.Broken != nil {
		o.Config = nil
	}
	if f.conf == "" {
		o.Path = ""
	}
	r, err := Run(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}
