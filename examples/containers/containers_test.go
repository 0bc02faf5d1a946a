// Package containers_test parses the example's files, and makes a call from namespaces as a container has them.
package containers_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"
)

// What the container sees, and where it is on the host.
const (
	agentDir  = "/run/ward/agent"
	egressDir = "/run/ward/egress"
	service   = "fhir.ehr.mesh.internal"
	appUser   = 7002
	stranger  = 7003
)

// insideVar tells the test binary that it is the application in the container.
const insideVar = "WARD_TEST_CONTAINER"

func TestMain(m *testing.M) {
	if root := os.Getenv(insideVar); root != "" {
		if err := contained(root); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func parse(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func TestCompose(t *testing.T) {
	var f struct {
		Services map[string]struct {
			User        string
			NetworkMode string `yaml:"network_mode"`
			Environment map[string]string
			Volumes     []struct {
				Type, Source, Target string
				ReadOnly             bool `yaml:"read_only"`
			}
		}
	}
	parse(t, "compose.yaml", &f)
	s := f.Services["portal"]
	if s.User != "7002:7002" || s.NetworkMode != "none" || s.Environment["SPIFFE_ENDPOINT_SOCKET"] != "unix://"+agentDir+"/workload.sock" ||
		s.Environment["FHIR_SOCKET"] != egressDir+"/"+service+".sock" {
		t.Errorf("%+v", s)
	}
	for i, dir := range []string{agentDir, egressDir} {
		if len(s.Volumes) != 2 || s.Volumes[i].Source != dir || s.Volumes[i].Target != dir || !s.Volumes[i].ReadOnly || s.Volumes[i].Type != "bind" {
			t.Errorf("%+v", s.Volumes)
		}
	}
}

func TestPod(t *testing.T) {
	var f struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Spec       struct {
			SecurityContext struct {
				RunAsUser int `yaml:"runAsUser"`
			} `yaml:"securityContext"`
			Containers []struct {
				VolumeMounts []struct {
					Name     string
					Path     string `yaml:"mountPath"`
					ReadOnly bool   `yaml:"readOnly"`
				} `yaml:"volumeMounts"`
			}
			Volumes []struct {
				Name     string
				HostPath struct{ Path, Type string } `yaml:"hostPath"`
			}
		}
	}
	parse(t, "pod.yaml", &f)
	if f.APIVersion != "v1" || f.Kind != "Pod" || f.Spec.SecurityContext.RunAsUser != appUser || len(f.Spec.Containers) != 1 {
		t.Fatalf("%+v", f)
	}
	for i, dir := range []string{agentDir, egressDir} {
		m, v := f.Spec.Containers[0].VolumeMounts[i], f.Spec.Volumes[i]
		if m.Path != dir || !m.ReadOnly || v.Name != m.Name || v.HostPath.Path != dir || v.HostPath.Type != "Directory" {
			t.Errorf("%+v, %+v", m, v)
		}
	}
}

// A process in mount, pid and network namespaces of its own is who it is on the host.
func TestCallFromAContainer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to make namespaces")
	}
	dir, err := os.MkdirTemp("/run", "ward-containers-") // in /tmp anybody may write, and Ward refuses such folders
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	runWard(t, dir)
	for _, c := range []struct {
		uid                     int
		identity, notIn, egress string
	}{
		{appUser, "spiffe://clinic.test/app/portal", "", "502"}, // the caller is known; the EHR's ward is not there
		{stranger, "", "spiffe://", "401"},
	} {
		out := contain(t, dir, c.uid)
		if !strings.Contains(out, c.identity) || c.notIn != "" && strings.Contains(out, c.notIn) || !strings.Contains(out, "status "+c.egress) {
			t.Errorf("uid %d: %s", c.uid, out)
		}
	}
}

// runWard runs a ward of this tree whose folders are below dir.
func runWard(t *testing.T, dir string) {
	t.Helper()
	ward := filepath.Join(dir, "ward")
	build := exec.Command("go", "build", "-o", ward, "../../agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the container holds no library
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// Nobody answers at the EHR: a port that is bound and not listened on stays so.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`trust_domain: clinic.test
authority: {dir: %[1]s/authority}
agent: {socket: %[1]s/agent/workload.sock, broker: %[1]s/agent/broker.sock, state: %[1]s/state}
admin: {socket: %[1]s/admin/admin.sock}
audit: {dir: %[1]s/audit}
mesh: {dns: '', listen: '', sockets: %[1]s/egress}
workloads:
  - {id: /app/portal, select: {unix.uid: %[2]d}, proxy: true}
services:
  - {name: %[3]s, id: /ward/ehr, addresses: ['127.0.0.1:%[4]d'], callers: [/app/portal]}
`, dir, appUser, service, at.(*unix.SockaddrInet4).Port)
	file := filepath.Join(dir, "ward.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, ward, "run", "--config", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), `"ready"`) {
			break
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines.Scan() {
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait()
	})
	if len(said) == 0 || !strings.Contains(said[len(said)-1], `"ready"`) {
		t.Fatalf("ward run: %s", strings.Join(said, "\n"))
	}
}

// contain runs this test binary in a container whose root is made for it, as uid.
func contain(t *testing.T, dir string, uid int) string {
	t.Helper()
	runtime.LockOSThread() // the child is killed when the thread that started it ends
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{insideVar + "=" + dir, fmt.Sprintf("WARD_TEST_UID=%d", uid)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// contained arranges the mounts as a container runtime does, becomes the application's user, and calls.
func contained(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for from, to := range map[string]string{dir + "/agent": agentDir, dir + "/egress": egressDir} {
		at := filepath.Join(root, to)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	null := filepath.Join(root, "dev", "null")
	if err := os.MkdirAll(filepath.Dir(null), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(null, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("/dev/null", null, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "ward"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "ward"), b, 0o755); err != nil {
		return err
	}
	var uid uint32
	if _, err := fmt.Sscan(os.Getenv("WARD_TEST_UID"), &uid); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(int(uid), int(uid), int(uid)); err != nil {
		return err
	}
	if err := syscall.Setresuid(int(uid), int(uid), int(uid)); err != nil {
		return err
	}
	// A stranger is told why it gets none, and the exit status is 1.
	out, err := exec.Command("/ward", "svid", "x509", "--socket", "unix://"+agentDir+"/workload.sock").CombinedOutput()
	fmt.Printf("%s%v\n", out, err)
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", egressDir+"/"+service+".sock")
	}}}
	resp, err := client.Get("http://" + service + "/Patient/1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Println("status", resp.StatusCode)
	return nil
}
