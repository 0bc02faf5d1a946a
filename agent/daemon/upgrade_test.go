package daemon_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// host is a clinic whose roles are processes of their own, run from builds of Ward that say different versions.
type host struct {
	*clinic
	bins string // where programs may be executed
	log  *os.File
	pids map[config.Role]int
}

func newHost(t *testing.T, versions ...string) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: it builds Ward; it needs a test that is not -short")
	}
	h := &host{clinic: newClinic(t), bins: t.TempDir(), pids: map[config.Role]int{}}
	for _, v := range versions {
		build := exec.Command("go", "build", "-ldflags", "-s -w -X main.version="+v, "-o", h.bin(v), "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	var err error
	if h.log, err = os.Create(filepath.Join(h.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for role := range h.pids {
			_ = h.end(role, syscall.SIGKILL)
		}
		if text, err := os.ReadFile(h.log.Name()); err == nil && t.Failed() {
			t.Logf("%s", text)
		}
		_ = h.log.Close()
	})
	return h
}

func (h *host) bin(version string) string { return filepath.Join(h.bins, version, "ward") }

func (h *host) begin(version string, role config.Role) {
	h.Helper()
	args := []string{"proxy", "--role", string(role)}
	if role == config.RoleAgent {
		args = []string{"agent"}
	}
	cmd := exec.Command(h.bin(version), append(args, "--config", h.file)...)
	cmd.Stdout, cmd.Stderr = h.log, h.log
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.pids[role] = cmd.Process.Pid
	_ = cmd.Process.Release()
	h.runs(role, version)
}

// runs waits until the role's status has a version.
func (h *host) runs(role config.Role, version string) {
	h.Helper()
	deadline, pause := time.Now().Add(3*patience), time.NewTicker(10*time.Millisecond)
	defer pause.Stop()
	for {
		var s admin.Status
		err := admin.Get(h.Context(), h.config().AdminSocket(role), "/status", &s)
		if err == nil && s.Version == version && s.Healthy() {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("%s is not healthy in version %s: %+v, %v", role, version, s, err)
		}
		<-pause.C
	}
}

// upgrade is `ward upgrade` by the build of a version.
func (h *host) upgrade(version string, role config.Role) error {
	h.Helper()
	out, err := os.Create(filepath.Join(h.dir, "said"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(h.bin(version), "upgrade", "--role", string(role), "--config", h.file)
	cmd.Stdout, cmd.Stderr = out, out
	failed := cmd.Run()
	said, err := os.ReadFile(out.Name())
	if err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("%w: %s", failed, said)
	}
	m := regexp.MustCompile(`version ` + regexp.QuoteMeta(version) + ` \(process (\d+)\) has taken the place of version \S+ \(process (\d+)\)`).FindSubmatch(said)
	if m == nil || string(m[2]) != strconv.Itoa(h.pids[role]) {
		return fmt.Errorf("it says: %s", said)
	}
	old := h.pids[role]
	h.pids[role], err = strconv.Atoi(string(m[1]))
	h.Cleanup(func() { _, _ = syscall.Wait4(old, nil, 0, nil) })
	return err
}

// end sends the role a signal and waits for its end. The new process of an upgrade is a child of whoever started it.
func (h *host) end(role config.Role, by syscall.Signal) error {
	pid := h.pids[role]
	delete(h.pids, role)
	if err := syscall.Kill(pid, by); err != nil {
		return err
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if by == syscall.SIGTERM && status != 0 {
		return fmt.Errorf("%s ends with %d", role, status)
	}
	return nil
}

// calls is what 64 applications saw, each over a connection of its own; half of them make one for each call.
type calls struct {
	stop chan struct{}
	wg   sync.WaitGroup
	good atomic.Int64

	mu        sync.Mutex
	failed    []string
	decisions []string
}

func (h *host) load(n int) *calls {
	l := &calls{stop: make(chan struct{})}
	for i := range n {
		a := h.app(ehr)
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				status, decision, err := a.get(ehr, "Patient/a")
				l.mu.Lock()
				if err != nil || status != 200 {
					l.failed = append(l.failed, fmt.Sprintf("%s: %d %s %v", time.Now().Format(time.StampMicro), status, decision, err))
				} else {
					l.decisions = append(l.decisions, decision)
					l.good.Add(1)
				}
				l.mu.Unlock()
				if i%2 == 1 {
					a.http.CloseIdleConnections()
				}
			}
		})
	}
	return l
}

// more waits until so many more calls have gone well.
func (l *calls) more(h *host, n int64) {
	h.Helper()
	want := l.good.Load() + n
	deadline, pause := time.Now().Add(3*patience), time.NewTicker(5*time.Millisecond)
	defer pause.Stop()
	for l.good.Load() < want {
		if time.Now().After(deadline) {
			h.Fatalf("no more calls go well; failed: %v", l.failed)
		}
		<-pause.C
	}
}

// end stops the load; no call may have failed.
func (l *calls) end(h *host) {
	h.Helper()
	close(l.stop)
	l.wg.Wait()
	if len(l.failed) > 0 {
		h.Errorf("%d of %d calls failed, the first: %s", len(l.failed), len(l.failed)+len(l.decisions), l.failed[0])
	}
}

// trails asks of each answered call that both trails have it whole.
func (h *host) trails(decisions []string) {
	h.Helper()
	out, err := exec.Command(h.bin("2.0.0"), "audit", "verify", "--config", h.file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "presumed disclosed: ") || strings.Count(string(out), "whole: ") != 3 {
		h.Errorf("the trails: %v\n%s", err, out)
	}
	left, intents, outcomes := map[string]int{}, map[string]int{}, map[string]int{}
	for role, in := range map[config.Role]func(*proxy.Record){
		config.RoleEgress: func(r *proxy.Record) { left[r.Decision]++; left[r.Peer]++ },
		config.RoleIngress: func(r *proxy.Record) {
			of := map[proxy.Stage]map[string]int{proxy.StageIntent: intents, proxy.StageOutcome: outcomes}[r.Stage]
			if of != nil && (r.Stage == proxy.StageIntent || r.Complete) {
				of[r.Decision]++
				of[r.Peer]++
			}
		},
	} {
		for e, err := range audit.Scan(context.Background(), h.config().Trail(role), 0) {
			if err != nil {
				h.Fatal(err)
			}
			in(&e.Record)
		}
	}
	for _, d := range decisions {
		if left[d] != 1 || intents[d] != 1 || outcomes[d] != 1 {
			h.Fatalf("the call %s has %d records of egress, %d intents, %d outcomes", d, left[d], intents[d], outcomes[d])
		}
	}
}

// PROXY.md's "zero-downtime upgrade": under 64 connections both hops are replaced several times, and no call fails; each
// answered call is in the trails of both with intent and outcome, whichever process it began in.
func TestUpgradeUnderLoad(t *testing.T) {
	h := newHost(t, "1.0.0", "2.0.0")
	for _, role := range []config.Role{config.RoleAgent, config.RoleIngress, config.RoleEgress} {
		h.begin("1.0.0", role)
	}
	// A call that outlives both of its wards, twice.
	slow := h.app(ehr)
	resp, err := slow.open(ehr, "Patient/slow")
	if err != nil {
		t.Fatal(err)
	}
	l := h.load(64)
	l.more(h, 200)
	for _, version := range []string{"2.0.0", "1.0.0", "2.0.0"} {
		for _, role := range []config.Role{config.RoleIngress, config.RoleEgress} {
			began := time.Now()
			if err := h.upgrade(version, role); err != nil {
				t.Fatalf("%s to %s: %v", role, version, err)
			}
			t.Logf("%s to %s in %s", role, version, time.Since(began).Round(time.Millisecond))
			h.runs(role, version)
			l.more(h, 200)
		}
	}
	close(h.upstream.finish)
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"slow"`) {
		t.Errorf("the slow call: %d %q %v", resp.StatusCode, body, err)
	}
	_ = resp.Body.Close()
	slow.http.CloseIdleConnections()
	l.end(h)
	t.Logf("%d calls", len(l.decisions))
	for _, role := range []config.Role{config.RoleEgress, config.RoleIngress, config.RoleAgent} {
		if err := h.end(role, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	h.trails(append(l.decisions, resp.Header.Get("Ward-Decision")))
	for _, role := range []config.Role{config.RoleEgress, config.RoleIngress} {
		if _, err := os.Lstat(filepath.Join(h.dir, "state", string(role), "upgrade.sock")); !os.IsNotExist(err) {
			t.Errorf("%s leaves its door behind: %v", role, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(h.dir, "run", "*", "*.sock")); err != nil || len(left) > 0 {
		t.Errorf("sockets left behind: %v %v", left, err)
	}
}
