package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

// meshVar tells the test binary that it runs in namespaces of its own.
const meshVar = "WARD_TEST_MESH_INSIDE"

// A whole ward mesh, in namespaces of its own: names lead to addresses that nobody can squat, while it runs, after it
// stopped and after it was killed; and ward mesh clear leaves nothing.
func TestMesh(t *testing.T) {
	if os.Getenv(meshVar) != "" {
		meshUp(t)
		t.Run("life", testMeshLife)
		t.Run("killed", testMeshKilled)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to make a network namespace")
	}
	runtime.LockOSThread() // the child is killed when the thread that started it ends
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMesh$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), meshVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// meshUp brings the namespace's loopback up.
func meshUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

const meshOwner = 7001

// meshConfig is a config in dir with these services.
func meshConfig(t *testing.T, dir string, names ...string) *config.Config {
	t.Helper()
	var services strings.Builder
	for _, n := range names {
		fmt.Fprintf(&services, "  - {name: %s, id: /ward/x, addresses: ['127.0.0.1:1'], callers: []}\n", n)
	}
	text := fmt.Sprintf(`trust_domain: clinic.test
authority: {dir: %[1]s/authority}
admin: {mesh: %[1]s/mesh/admin.sock}
mesh: {state: %[1]s/state, listen: '127.77.0.1:8080', intercept: [{select: {unix.uid: 7002}, ports: [9090]}]}
services:
%[2]s`, dir, services.String())
	file := filepath.Join(dir, "ward.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func meshOptions(dir string, ready func()) daemon.MeshOptions {
	return daemon.MeshOptions{Version: "test", Log: zap.NewNop(), Owners: []uint32{meshOwner}, Dialers: []uint32{meshOwner}, Root: filepath.Join(dir, "root"),
		Bus: "unix:path=" + filepath.Join(dir, "no-bus"), Ready: ready}
}

// meshHost is a folder with a plain resolv.conf.
func meshHost(t *testing.T) (dir, resolv string) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "ward-mesh-test-") // folders in /tmp are refused for sockets: others can write there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.MkdirAll(filepath.Join(dir, "root", "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	resolv = filepath.Join(dir, "root", "etc", "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 10.0.0.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, resolv
}

func lookUp(t *testing.T, name string) string {
	t.Helper()
	m, _, err := (&dns.Client{Timeout: patience}).Exchange(new(dns.Msg).SetQuestion(name+".", dns.TypeA), "127.77.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) != 1 {
		return dns.RcodeToString[m.Rcode]
	}
	return m.Answer[0].(*dns.A).A.String()
}

// squat listens at address and reports whether a caller reaches it.
func squat(t *testing.T, address string) bool {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTimeout("tcp4", address, patience)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func testMeshLife(t *testing.T) {
	dir, resolv := meshHost(t)
	cfg := meshConfig(t, dir, "fhir.ehr.mesh.internal")
	ready, done := make(chan struct{}), make(chan error, 1)
	o := meshOptions(dir, func() { close(ready) })
	o.Load = func() (*config.Config, error) { return config.Load(cfg.File(), config.Options{}) }
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- daemon.RunMesh(ctx, cfg, o) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	at := lookUp(t, "fhir.ehr.mesh.internal")
	if a, err := netip.ParseAddr(at); err != nil || !cfg.Mesh.Range.Contains(a) {
		t.Fatalf("the service is at %s", at)
	}
	if b, err := os.ReadFile(resolv); err != nil || !strings.Contains(string(b), "nameserver 127.77.0.53") {
		t.Errorf("%s, %v", b, err)
	}
	if squat(t, at+":8080") {
		t.Error("the service's address can be squatted")
	}

	reload := func(names ...string) error {
		next := meshConfig(t, dir, names...)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for { // its folder is watched
			var s admin.Status
			if err := admin.Get(ctx, cfg.AdminSocket(config.RoleMesh), "/status", &s); err != nil {
				t.Fatal(err)
			}
			for _, p := range s.Problems {
				if strings.Contains(p, "not in force") {
					return errors.New(p)
				}
			}
			if s.Config == next.Digest() {
				return nil
			}
		}
	}
	if err := reload("fhir.ehr.mesh.internal", "fhir.lab.mesh.internal"); err != nil {
		t.Fatal(err)
	}
	if got := lookUp(t, "fhir.lab.mesh.internal"); got == "NXDOMAIN" || got == at {
		t.Errorf("the new service is at %s", got)
	}
	if got := lookUp(t, "fhir.ehr.mesh.internal"); got != at {
		t.Errorf("the service moved to %s", got)
	}
	var s admin.Status
	if err := admin.Get(t.Context(), cfg.AdminSocket(config.RoleMesh), "/status", &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Services) != 2 || len(s.Problems) != 0 || s.Services[0].Listen != at {
		t.Errorf("%+v", s)
	}

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if squat(t, at+":8080") {
		t.Error("after the stop the service's address can be squatted")
	}
	if b, err := os.ReadFile(resolv); err != nil || strings.Contains(string(b), "ward") {
		t.Errorf("after the stop: %s, %v", b, err)
	}
	for i := range 2 {
		removed, err := daemon.ClearMesh(t.Context(), meshOptions(dir, nil))
		if err != nil || (len(removed) == 0) != (i == 1) {
			t.Errorf("%q, %v", removed, err)
		}
	}
	if !squat(t, at+":8080") {
		t.Error("a rule is left")
	}
}

func testMeshKilled(t *testing.T) {
	if dir := os.Getenv("WARD_TEST_MESH_DIR"); dir != "" {
		err := daemon.RunMesh(t.Context(), meshConfig(t, dir, "fhir.ehr.mesh.internal"), meshOptions(dir, func() { _, _ = os.Stdout.WriteString("up\n") }))
		t.Fatal(err)
	}
	dir, resolv := meshHost(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMesh$/^killed$")
	cmd.Env = append(os.Environ(), "WARD_TEST_MESH_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3)
	if _, err := out.Read(b); err != nil || string(b) != "up\n" {
		t.Fatalf("%q, %v", b, err)
	}
	at := lookUp(t, "fhir.ehr.mesh.internal")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if squat(t, at+":8080") {
		t.Error("after SIGKILL the service's address can be squatted")
	}
	// Started again it finds its address, and clears up after the dead one.
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- daemon.RunMesh(ctx, meshConfig(t, dir, "fhir.ehr.mesh.internal"), meshOptions(dir, func() { close(ready) }))
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	if got := lookUp(t, "fhir.ehr.mesh.internal"); got != at {
		t.Errorf("at %s after the restart, %s before", got, at)
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	removed, err := daemon.ClearMesh(t.Context(), meshOptions(dir, nil))
	if err != nil || len(removed) == 0 {
		t.Errorf("%q, %v", removed, err)
	}
	if text, err := os.ReadFile(resolv); err != nil || string(text) != "nameserver 10.0.0.53\n" {
		t.Errorf("%s, %v", text, err)
	}
}
