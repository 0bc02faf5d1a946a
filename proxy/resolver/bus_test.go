package resolver_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy/resolver"
)

const busConfig = `<busconfig><type>session</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="signal"/><allow receive_type="method_return"/><allow receive_type="error"/></policy></busconfig>`

// bus runs a real dbus-daemon of its own, and connects a service to it.
func bus(t *testing.T) (o resolver.Options, c *dbus.Conn) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("SKIPPED: needs dbus-daemon")
	}
	if _, err := user.LookupId(strconv.Itoa(os.Getuid())); err != nil {
		t.Skipf("SKIPPED: needs a user whom the host knows, since dbus-daemon lets nobody else in: %v", err)
	}
	o, _ = noBus(t, "nameserver 127.0.0.53\n")
	o.Bus = "unix:path=" + filepath.Join(o.Root, "bus")
	file := filepath.Join(o.Root, "bus.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, busConfig, filepath.Join(o.Root, "bus")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+file, "--nofork", "--nopidfile", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if c, err = dbus.Connect(o.Bus); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return o, c
}

// host stands for the services of a host: it records what it is asked. Which methods there are is theirs to say
// (nm-settings-dbus(5), org.freedesktop.systemd1(5)).
type host struct {
	mu      sync.Mutex
	calls   []string
	profile map[string]map[string]dbus.Variant
	mode    string
}

func (h *host) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, fmt.Sprintf(format, args...))
}

func (h *host) took() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	calls := h.calls
	h.calls = nil
	return calls
}

const stored = dbus.ObjectPath("/org/freedesktop/NetworkManager/Settings/7")

func (h *host) Get(_, name string) (dbus.Variant, *dbus.Error) {
	if name == "Version" {
		return dbus.MakeVariant("258.1-1"), nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return dbus.MakeVariant(h.mode), nil
}

func (h *host) serves(mode string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mode = mode
}

func (h *host) keep(p map[string]map[string]dbus.Variant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.profile = p
}

func (h *host) kept() map[string]map[string]dbus.Variant {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.profile
}

func (h *host) ReloadUnit(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	h.note("reload %s %s", unit, mode)
	return "/job", nil
}

func (h *host) GetConnectionByUuid(string) (dbus.ObjectPath, *dbus.Error) { //nolint:revive // D-Bus's name
	if h.kept() == nil {
		return "/", dbus.NewError("org.freedesktop.NetworkManager.Settings.InvalidConnection", nil)
	}
	return stored, nil
}

func (h *host) AddConnectionUnsaved(p map[string]map[string]dbus.Variant) (dbus.ObjectPath, *dbus.Error) {
	h.keep(p)
	h.note("add")
	return stored, nil
}

func (h *host) UpdateUnsaved(p map[string]map[string]dbus.Variant) *dbus.Error {
	h.keep(p)
	h.note("update")
	return nil
}

func (h *host) Delete() *dbus.Error {
	h.keep(nil)
	h.note("delete")
	return nil
}

func (h *host) ActivateConnection(c, _, _ dbus.ObjectPath) (dbus.ObjectPath, *dbus.Error) {
	h.note("activate %s", c)
	return "/active", nil
}

func (h *host) serve(t *testing.T, c *dbus.Conn, name string, at map[dbus.ObjectPath]string) {
	t.Helper()
	for path, iface := range at {
		if err := c.Export(h, path, iface); err != nil {
			t.Fatal(err)
		}
		if err := c.Export(h, path, "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.RequestName(name, 0); err != nil {
		t.Fatal(err)
	}
}

func TestNetworkManager(t *testing.T) {
	o, c := bus(t)
	h := &host{mode: "default"}
	h.serve(t, c, "org.freedesktop.NetworkManager", map[dbus.ObjectPath]string{
		"/org/freedesktop/NetworkManager":            "org.freedesktop.NetworkManager",
		"/org/freedesktop/NetworkManager/DnsManager": "org.freedesktop.NetworkManager.DnsManager",
		"/org/freedesktop/NetworkManager/Settings":   "org.freedesktop.NetworkManager.Settings",
		stored: "org.freedesktop.NetworkManager.Settings.Connection",
	})
	want := func(calls ...string) {
		t.Helper()
		if diff := cmp.Diff(calls, h.took()); diff != "" {
			t.Error(diff)
		}
	}
	kind, err := resolver.Detect(t.Context(), o)
	if err != nil || kind != resolver.NetworkManager {
		t.Fatal(kind, err)
	}
	for _, first := range []string{"add", "update"} {
		if err := resolver.Apply(t.Context(), o, kind, zone()); err != nil {
			t.Fatal(err)
		}
		want(first, "activate "+string(stored))
	}
	ip4 := h.kept()["ipv4"]
	if got := fmt.Sprint(ip4["dns-search"].Value(), ip4["dns-priority"].Value(), ip4["never-default"].Value()); got != "[~mesh.internal] 10 true" {
		t.Error(got)
	}
	// In network order: its bytes are 127.77.0.53.
	if got := ip4["dns"].Signature().String(); got != "au" {
		t.Error(got)
	}
	for _, mode := range []string{"dnsmasq", "systemd-resolved"} {
		h.serves(mode)
		if err := resolver.Stopped(t.Context(), o, kind); err != nil {
			t.Fatal(err)
		}
		want()
	}
	h.serves("default") // where a dead server would stand in front of all others
	if err := resolver.Stopped(t.Context(), o, kind); err != nil {
		t.Fatal(err)
	}
	want("delete")
	if removed, err := resolver.Clear(t.Context(), o); err != nil || len(removed) != 0 {
		t.Errorf("%q, %v", removed, err)
	}
	h.serves("none")
	if kind, err := resolver.Detect(t.Context(), o); err != nil || kind != resolver.File {
		t.Error(kind, err)
	}
}

func TestDelegation(t *testing.T) {
	o, c := bus(t)
	h := &host{}
	h.serve(t, c, "org.freedesktop.resolve1", nil)
	h.serve(t, c, "org.freedesktop.systemd1", map[dbus.ObjectPath]string{"/org/freedesktop/systemd1": "org.freedesktop.systemd1.Manager"})
	kind, err := resolver.Detect(t.Context(), o)
	if err != nil || kind != resolver.Systemd {
		t.Fatal(kind, err)
	}
	for range 2 {
		if err := resolver.Apply(t.Context(), o, kind, zone()); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(o.Root, "run/systemd/dns-delegate.d/ward.dns-delegate")
	if got := read(t, file); !strings.HasSuffix(got, "\n[Delegate]\nDNS=127.77.0.53:53\nDomains=mesh.internal\n") {
		t.Error(got)
	}
	removed, err := resolver.Clear(t.Context(), o)
	if err != nil || len(removed) != 1 {
		t.Errorf("%q, %v", removed, err)
	}
	// Once for the file, once for its removal.
	if diff := cmp.Diff([]string{"reload systemd-resolved.service replace", "reload systemd-resolved.service replace"}, h.took()); diff != "" {
		t.Error(diff)
	}
}

// Without a resolver that Ward knows nothing is guessed.
func TestNothingFound(t *testing.T) {
	o := resolver.Options{Root: t.TempDir(), Bus: "unix:path=/nonexistent", Log: zap.NewNop()}
	if kind, err := resolver.Detect(t.Context(), o); err == nil {
		t.Error(kind)
	}
	if removed, err := resolver.Clear(t.Context(), o); len(removed) != 0 || err != nil {
		t.Error(removed, err)
	}
}
