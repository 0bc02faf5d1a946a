package sandbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/sandbox"
)

// A sandbox is for good, so each test tries it in a process of its own: this test's program, started again.
const childRole, childConfig = "WARD_SANDBOX_ROLE", "WARD_SANDBOX_CONFIG"

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(child(config.Role(role), os.Getenv(childConfig)))
	}
	os.Exit(m.Run())
}

// attempt is something that the confined process is to try.
type attempt struct{ Verb, At string }

type outcome struct {
	Report sandbox.Report
	Said   string
	Errors []string // of the attempts, in their order: "" where it went well, "denied" where the kernel refused it
}

// child enters the sandbox and tries what its standard input lists.
func child(role config.Role, file string) int {
	var tries []attempt
	if err := json.NewDecoder(os.Stdin).Decode(&tries); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Threads that were there before are confined too: one that waits for its turn.
	turn, done := make(chan attempt), make(chan error)
	go func() {
		runtime.LockOSThread()
		for a := range turn {
			done <- a.try()
		}
	}()
	turn <- attempt{"read", file}
	<-done
	report, err := sandbox.Enter(role, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o := outcome{Report: report, Said: report.String()}
	for _, a := range tries {
		turn <- a
		old, now := word(<-done), word(a.try())
		if old != now {
			fmt.Fprintf(os.Stderr, "%v: one thread may %q, another %q\n", a, old, now)
			return 1
		}
		o.Errors = append(o.Errors, now)
	}
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		return 1
	}
	return 0
}

func word(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrPermission):
		return "denied"
	}
	return err.Error()
}

func (a attempt) try() error {
	switch a.Verb {
	case "read":
		_, err := os.ReadFile(a.At)
		return err
	case "list":
		_, err := os.ReadDir(a.At)
		return err
	case "write":
		if err := os.WriteFile(a.At, []byte("x"), 0o600); err != nil {
			return err
		}
		return os.Remove(a.At)
	case "socket":
		l, err := net.Listen("unix", a.At)
		if err != nil {
			return err
		}
		return l.Close()
	case "execute":
		return exec.Command(a.At).Run()
	case "listen":
		return withTCP(func(fd int) error { return unix.Bind(fd, own(a.At)) })
	case "dial":
		return withTCP(func(fd int) error { return unix.Connect(fd, loopback(a.At)) })
	case "signal":
		pid, err := strconv.Atoi(a.At)
		if err != nil {
			return err
		}
		return syscall.Kill(pid, 0)
	case "see":
		_, err := os.Readlink("/proc/" + a.At + "/exe")
		return err
	}
	return fmt.Errorf("nobody knows how to %s", a.Verb)
}

// Go's own listeners are Multipath TCP, about which Landlock says nothing.
func withTCP(do func(int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

func loopback(port string) unix.Sockaddr {
	n, _ := strconv.Atoi(port)
	return &unix.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}}
}

// own is a port of an address that no other process uses: on 127.0.0.1 another package's test may listen there by now.
func own(port string) unix.Sockaddr {
	n, _ := strconv.Atoi(port)
	pid := os.Getpid()
	return &unix.SockaddrInet4{Port: n, Addr: [4]byte{127, 64 | byte(pid>>16&0x1f), byte(pid >> 8), byte(pid)}}
}

// place is a host of its own in a folder: a config and what it names.
type place struct{ dir, config string }

const template = `trust_domain: clinic.example
admin: {egress: DIR/run/egress/admin.sock, ingress: DIR/run/ingress/admin.sock, mesh: DIR/run/mesh/admin.sock}
audit: {dir: DIR/state/audit}
policies: {dir: DIR/policy}
mesh: {sockets: DIR/run/sockets, state: DIR/state/mesh, listen: '127.77.0.1:EGRESS'}
services:
  - name: fhir.ehr.mesh.internal
    id: /ward/ehr
    addresses: ['127.0.0.1:PEER']
    callers: []
    listen: 127.0.0.1:INGRESS
    upstream: {address: '127.0.0.1:UPSTREAM', process: {uid: 4711}}
`

func newPlace(t *testing.T, ports map[string]string) place {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(template, "DIR", dir)
	for name, port := range ports {
		text = strings.ReplaceAll(text, name, port)
	}
	p := place{dir: dir, config: filepath.Join(dir, "etc", "ward.yaml")}
	for _, d := range []string{"etc", "policy", "elsewhere"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{"etc/ward.yaml": text, "policy/a.cedar": "", "elsewhere/secret": "secret"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p place) enter(t *testing.T, role config.Role, tries []attempt) outcome {
	t.Helper()
	in, err := json.Marshal(tries)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+string(role), childConfig+"="+p.config)
	cmd.Stdin = strings.NewReader(string(in))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var o outcome
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(o.Said)
	return o
}

func landlock(t *testing.T) int {
	t.Helper()
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		t.Skip("SKIPPED: this kernel has no Landlock")
	}
	return abi
}

// freePorts are ports of 127.0.0.1 on which nobody listens, to be named in a config.
func freePorts(t *testing.T, names ...string) map[string]string {
	t.Helper()
	ports := map[string]string{}
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[name] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func TestRolesAreConfined(t *testing.T) {
	abi := landlock(t)
	ports := freePorts(t, "EGRESS", "INGRESS", "OTHER")
	for _, name := range []string{"PEER", "UPSTREAM", "STRANGER"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[name] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
	all := []config.Role{config.RoleEgress, config.RoleIngress, config.RoleMesh, config.RoleProxy}
	everybody := map[config.Role]bool{config.RoleEgress: true, config.RoleIngress: true, config.RoleMesh: true, config.RoleProxy: true}
	calling := map[config.Role]bool{config.RoleEgress: true, config.RoleProxy: true}
	serving := map[config.Role]bool{config.RoleIngress: true, config.RoleProxy: true}
	nobody := map[config.Role]bool{}
	p := newPlace(t, ports)
	in := func(name string) string { return filepath.Join(p.dir, name) }
	cases := []struct {
		name string
		attempt
		may map[config.Role]bool
		abi int
	}{
		{"its config, to reload it", attempt{"read", p.config}, everybody, 1},
		{"the config's folder", attempt{"list", in("etc")}, everybody, 1},
		{"the host's resolver", attempt{"read", "/etc/resolv.conf"}, everybody, 1},
		{"policies", attempt{"read", in("policy/a.cedar")}, serving, 1},
		{"a file that is none of its business", attempt{"read", in("elsewhere/secret")}, nobody, 1},
		{"a folder that is none of its business", attempt{"list", in("elsewhere")}, nobody, 1},
		{"the folder above", attempt{"list", p.dir}, nobody, 1},
		{"writing config", attempt{"write", in("etc/more.yaml")}, nobody, 1},
		{"writing policies", attempt{"write", in("policy/b.cedar")}, nobody, 1},
		{"writing elsewhere", attempt{"write", in("elsewhere/file")}, nobody, 1},
		{"egress's trail", attempt{"write", in("state/egress/x")}, map[config.Role]bool{config.RoleEgress: true}, 1},
		{"ingress's trail", attempt{"write", in("state/ingress/x")}, map[config.Role]bool{config.RoleIngress: true}, 1},
		{"the mesh's table", attempt{"write", in("state/mesh/x")}, map[config.Role]bool{config.RoleMesh: true}, 1},
		{"a service's socket", attempt{"socket", in("run/sockets/a.sock")}, calling, 1},
		{"a socket elsewhere", attempt{"socket", in("elsewhere/a.sock")}, nobody, 1},
		{"executing", attempt{"execute", "/bin/true"}, nobody, 1},
		{"listening for callers", attempt{"listen", ports["EGRESS"]}, calling, 4},
		{"listening for wards", attempt{"listen", ports["INGRESS"]}, serving, 4},
		{"listening elsewhere", attempt{"listen", ports["OTHER"]}, nobody, 4},
		{"dialling a ward", attempt{"dial", ports["PEER"]}, calling, 4},
		{"dialling the FHIR server", attempt{"dial", ports["UPSTREAM"]}, serving, 4},
		{"dialling somebody else", attempt{"dial", ports["STRANGER"]}, nobody, 4},
		{"a signal to somebody else", attempt{"signal", strconv.Itoa(os.Getpid())}, nobody, 6},
		{"seeing another's executable", attempt{"see", strconv.Itoa(os.Getpid())}, nobody, 1},
	}
	// The folders of the roles stand before any of them does, as the units make them.
	for _, dir := range []string{"state/egress", "state/ingress", "state/mesh", "state/proxy", "run/sockets"} {
		if err := os.MkdirAll(in(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var tries []attempt
	for _, c := range cases {
		tries = append(tries, c.attempt)
	}
	for _, role := range all {
		t.Run(string(role), func(t *testing.T) {
			o := p.enter(t, role, tries)
			if r := o.Report; r.Role != role || r.ABI != abi || !r.Files || r.Network != (abi >= 4) || r.Scopes != (abi >= 6) || r.Scopes != (r.Why == "") {
				t.Errorf("reports %+v", r)
			}
			for i, c := range cases {
				want := "denied"
				if c.may[role] || abi < c.abi {
					want = ""
				}
				if o.Errors[i] != want {
					t.Errorf("%s: %s %s: %q, want %q", c.name, c.Verb, c.At, o.Errors[i], want)
				}
			}
		})
	}
}

// Why the agent enters no sandbox: from within one it could not see whom it attests. Root is no exception.
func TestAttestingNeedsNoSandbox(t *testing.T) {
	landlock(t)
	p := newPlace(t, freePorts(t, "EGRESS", "INGRESS", "PEER", "UPSTREAM"))
	see := []attempt{{"see", strconv.Itoa(os.Getpid())}}
	for role, want := range map[config.Role]string{config.RoleAgent: "", config.RoleRun: "", config.RoleIngress: "denied"} {
		o := p.enter(t, role, see)
		if o.Errors[0] != want {
			t.Errorf("%s sees another process's executable: %q, want %q", role, o.Errors[0], want)
		}
		if confined := want != ""; o.Report.Files != confined || !confined && !strings.Contains(o.Said, "it attests processes") {
			t.Errorf("%s: %s", role, o.Said)
		}
	}
}

func TestMissing(t *testing.T) {
	landlock(t)
	cfg := func(change ...string) *config.Config {
		t.Helper()
		text := strings.NewReplacer(change...).Replace(template)
		text = strings.NewReplacer("DIR", "/srv", "EGRESS", "80", "INGRESS", "8443", "PEER", "8443", "UPSTREAM", "8080").Replace(text)
		c, err := config.Parse("/etc/ward/ward.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := sandbox.Needs(config.RoleIngress, cfg())
	for _, tt := range []struct {
		name string
		role config.Role
		cfg  *config.Config
		want []string
	}{
		{"nothing changed", config.RoleIngress, cfg(), nil},
		{"egress dials another port", config.RoleEgress, cfg("PEER", "9443"), []string{"to dial port 9443"}},
		{"which is nothing to ingress", config.RoleIngress, cfg("PEER", "9443"), nil},
		{"ingress listens on another port", config.RoleIngress, cfg("INGRESS", "9443"), []string{"to listen on port 9443"}},
		{"policies elsewhere", config.RoleIngress, cfg("DIR/policy", "/opt/policy"), []string{"to read /opt/policy"}},
		{"policies below /etc", config.RoleIngress, cfg("DIR/policy", "/etc/other"), nil},
		{"sockets elsewhere", config.RoleEgress, cfg("DIR/run/sockets", "/opt/sockets"), []string{"to write /opt/sockets"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := sandbox.Confined(tt.role, sandbox.Needs(tt.role, cfg()))
			if diff := cmp.Diff(tt.want, r.Missing(tt.cfg)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if len(before.Dial) == 0 || len(before.Listen) == 0 {
		t.Errorf("ingress needs %+v", before)
	}
	// What is not restricted is not missing.
	if got := (sandbox.Report{Role: config.RoleEgress}).Missing(cfg()); got != nil {
		t.Errorf("an unconfined process misses %v", got)
	}
}
