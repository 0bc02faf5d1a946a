package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

// write makes a config for a host that has one workload: whatever runs as this user.
func write(tb testing.TB, extra string) string {
	tb.Helper()
	dir := folder(tb)
	file := filepath.Join(dir, "ward.yaml")
	text := fmt.Sprintf(`trust_domain: clinic.test
authority: {dir: authority}
agent: {socket: %[1]s/workload.sock}
admin: {socket: %[1]s/admin.sock}
workloads:
  - {id: /app/test, select: {unix.uid: %[2]d}}
audit: {dir: audit}
mesh: {dns: '', listen: '', sockets: ''}
%[3]s`, dir, os.Getuid(), extra)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

// start runs a daemon until the test ends, and returns its config once it is ready.
func start(tb testing.TB, file string) (cfg *config.Config, stop func()) {
	tb.Helper()
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	ready := make(chan struct{})
	d, err := daemon.New(context.Background(), cfg, daemon.Options{Version: "test", Log: zap.NewNop(), Ready: func() { close(ready) }})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
		done <- nil
	}
	tb.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		tb.Fatal(err)
	}
	return cfg, stop
}

func fetch(tb testing.TB, cfg *config.Config) *workloadapi.X509Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+cfg.Agent.Socket))
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func TestDaemonServesIdentitiesAndTellsHowItIs(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cfg, stop := start(t, write(t, ""))
	if id := fetch(t, cfg).DefaultSVID().ID.String(); id != "spiffe://clinic.test/app/test" {
		t.Errorf("identity %s", id)
	}
	var st admin.Status
	if err := admin.Get(t.Context(), cfg.Admin.Socket, "/status", &st); err != nil {
		t.Fatal(err)
	}
	if st.Schema != admin.StatusSchema || st.TrustDomain != "clinic.test" || st.Identity.Entries != 1 || !st.Healthy() {
		t.Errorf("status %+v", st)
	}
	var e admin.Entries
	if err := admin.Get(t.Context(), cfg.Admin.Socket, "/entries", &e); err != nil {
		t.Fatal(err)
	}
	if len(e.Entries) != 1 || e.Entries[0].ID != "spiffe://clinic.test/app/test" || e.Entries[0].Selectors[0] != fmt.Sprintf("unix.uid: %d", os.Getuid()) {
		t.Errorf("entries %+v", e)
	}
	stop()
	if _, err := os.Stat(cfg.Agent.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was left behind: %v", err)
	}
}

// The CA is made once: a restart serves under the same roots.
func TestRestartKeepsTheAuthority(t *testing.T) {
	file := write(t, "")
	cfg, stop := start(t, file)
	before := fetch(t, cfg)
	stop()
	cfg, _ = start(t, file)
	after := fetch(t, cfg)
	a, _ := before.Bundles.Get(cfg.TrustDomain)
	b, _ := after.Bundles.Get(cfg.TrustDomain)
	if !a.Equal(b) {
		t.Error("the bundle changed with a restart")
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	file := write(t, "")
	cfg, _ := start(t, file)
	_, err := daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second daemon on the same state: %v", err)
	}
}

// In a folder that others can write they could put a socket of their own in the daemon's place.
func TestSocketsInAFolderOfOthersAreRefused(t *testing.T) {
	file := write(t, "")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(file)
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	for _, name := range []string{"workload.sock", "admin.sock"} {
		moved := strings.Replace(string(text), dir+"/"+name, open+"/"+name, 1)
		if err := os.WriteFile(file, []byte(moved), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		d, err := daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := d.Run(ctx); err == nil || !strings.Contains(err.Error(), "chmod go-w "+open) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	if left, _ := os.ReadDir(open); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadPoliciesStartNothing(t *testing.T) {
	file := write(t, `services:
  - {name: fhir.ehr.mesh.internal, id: /ward/ehr, addresses: ['127.0.0.1:1'], callers: [], listen: '127.0.0.1:1', upstream: {address: '127.0.0.1:2', process: {uid: 0}}}
policies: {dir: policy}
`)
	dir := filepath.Join(filepath.Dir(file), "policy")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.cedar"), []byte("permit (principal, action, resource) when { context.rolez.contains(\"x\") };\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop(), Listeners: map[string]net.Listener{"127.0.0.1:53": stream},
		Datagrams: []net.PacketConn{datagrams}})
	if err == nil || !strings.Contains(err.Error(), "a.cedar:1:") {
		t.Errorf("policies that do not check were accepted: %v", err)
	}
	if stream.Close() == nil || datagrams.Close() == nil {
		t.Error("a socket that was handed over stays open")
	}
	if _, err := os.Stat(cfg.Agent.Socket); err == nil {
		t.Error("a socket was opened all the same")
	}
}

// BenchmarkStart measures from nothing on disk to the first SVID in a workload's hands: CA, journal, audit log,
// sockets, attestation, issuance.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		file := write(b, "")
		b.StartTimer()
		cfg, stop := start(b, file)
		fetch(b, cfg)
		b.StopTimer()
		stop()
		b.StartTimer()
	}
}
