package intercept_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/wardmesh/ward/proxy/intercept"
)

// ruleset lists every table, chain and rule of the namespace.
func ruleset(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, table := range tables {
		fmt.Fprintln(&b, "table", table.Name)
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			fmt.Fprintln(&b, ch.Name, comment)
		}
	}
	return b.String()
}

func TestRulesThatWouldNotHold(t *testing.T) {
	egress := netip.MustParseAddrPort("127.77.0.1:80")
	for name, r := range map[string]intercept.Rules{
		"no egress":               {Range: meshRange(), Owners: []uint32{ward}},
		"egress in the range":     {Range: meshRange(), Egress: netip.MustParseAddrPort("127.128.0.1:80"), Owners: []uint32{ward}},
		"egress on the network":   {Range: meshRange(), Egress: netip.MustParseAddrPort("10.0.0.1:80"), Owners: []uint32{ward}},
		"egress on IPv6":          {Range: meshRange(), Egress: netip.MustParseAddrPort("[::1]:80"), Owners: []uint32{ward}},
		"nobody is Ward":          {Range: meshRange(), Egress: egress},
		"a range with host bits":  {Range: netip.MustParsePrefix("127.128.0.1/10"), Egress: egress, Owners: []uint32{ward}},
		"a flow without ports":    {Egress: egress, Owners: []uint32{ward}, Flows: []intercept.Flow{{User: app}}},
		"a flow to port 0":        {Egress: egress, Owners: []uint32{ward}, Flows: []intercept.Flow{{User: app, Ports: []uint16{0}}}},
		"Ward is intercepted":     {Egress: egress, Owners: []uint32{ward}, Flows: []intercept.Flow{{User: ward, Ports: []uint16{80}}}},
		"an upstream elsewhere":   {Guarded: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}, Dialers: []uint32{ward}},
		"nobody may dial":         {Guarded: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:80")}},
		"a unit, and no cgroup2":  {Egress: egress, Owners: []uint32{ward}, Flows: []intercept.Flow{{Unit: "portal.service", Ports: []uint16{80}}}},
		"an upstream's zero port": {Guarded: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Dialers: []uint32{ward}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := newTable(t, "").Apply(r); err == nil {
				_, _ = intercept.Clear()
				t.Error("taken")
			}
		})
	}
}

// A firewall that flushes every table when it reloads takes Ward's with it; it comes back.
func TestFlushedRulesComeBack(t *testing.T) {
	needNamespace(t)
	core, logs := observer.New(zapcore.WarnLevel)
	warned := make(chan struct{}, 16)
	log := zap.New(core, zap.Hooks(func(zapcore.Entry) error { warned <- struct{}{}; return nil }))
	table, err := intercept.New(intercept.Options{Log: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = intercept.Clear() })
	if err := table.Apply(intercept.Rules{Range: meshRange(), Egress: netip.MustParseAddrPort("127.77.0.1:80"), Owners: []uint32{ward}}); err != nil {
		t.Fatal(err)
	}
	want := ruleset(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	for name, harm := range map[string]func(*nftables.Conn, *nftables.Table, *nftables.Chain){
		"everything flushed": func(c *nftables.Conn, _ *nftables.Table, _ *nftables.Chain) { c.FlushRuleset() },
		"table emptied":      func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) { c.FlushTable(t) },
		"a chain emptied":    func(c *nftables.Conn, _ *nftables.Table, ch *nftables.Chain) { c.FlushChain(ch) },
		"table removed":      func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) { c.DelTable(t) },
	} {
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		own := &nftables.Table{Family: nftables.TableFamilyINet, Name: "ward"}
		harm(c, own, &nftables.Chain{Table: own, Name: "fence"})
		if err := c.Flush(); err != nil {
			t.Fatal(name, err)
		}
		<-warned
		if got := ruleset(t); got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := ruleset(t); got != want {
		t.Errorf("after the end of the watch: %s", got)
	}
	if n := logs.Len(); n < 4 {
		t.Errorf("%d warnings", n)
	}
}

// Folders that look like the service manager's tree: a unit that starts, moves and stops has its rules written.
func TestUnitsAreFollowed(t *testing.T) {
	needNamespace(t)
	tree := t.TempDir()
	written := make(chan string, 64)
	core, _ := observer.New(zapcore.InfoLevel)
	log := zap.New(core, zap.Hooks(func(e zapcore.Entry) error { written <- e.Message; return nil }))
	table, err := intercept.New(intercept.Options{Cgroups: tree, Log: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = intercept.Clear() })
	err = table.Apply(intercept.Rules{Egress: netip.MustParseAddrPort("127.77.0.1:80"), Owners: []uint32{ward},
		Flows: []intercept.Flow{{Unit: "portal.service", Ports: []uint16{8080}}, {User: app, Ports: []uint16{80}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	has := func() bool { return strings.Contains(ruleset(t), "redirect portal.service to port 8080, to egress") }
	if has() {
		t.Error("a rule for a unit that does not run")
	}
	// eventually waits for a change that makes the rules so; changes may come in parts.
	eventually := func(what string, want bool, path string) {
		t.Helper()
		for has() != want || table.Status().Units["portal.service"] != path {
			select {
			case <-written:
			case <-t.Context().Done():
				t.Fatal(what)
			}
		}
	}
	mkdir := func(parts ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(append([]string{tree}, parts...)...), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkdir("user.slice", "user-1000.slice", "portal.service") // not the system's
	mkdir("system.slice", "runner.service", "portal.service")
	mkdir("system.slice", "portal.service")
	eventually("started", true, "/system.slice/portal.service")
	if err := os.Remove(filepath.Join(tree, "system.slice", "portal.service")); err != nil {
		t.Fatal(err)
	}
	eventually("stopped", false, "")
	mkdir("system.slice", "system-clinic.slice", "portal.service")
	eventually("started in a slice", true, "/system.slice/system-clinic.slice/portal.service")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSlicesOfOthersAreRefused(t *testing.T) {
	needNamespace(t)
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "system.slice"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(tree, "system.slice"), attacker, attacker); err != nil {
		t.Fatal(err)
	}
	err := newTable(t, tree).Apply(intercept.Rules{Egress: netip.MustParseAddrPort("127.77.0.1:80"), Owners: []uint32{ward},
		Flows: []intercept.Flow{{Unit: "portal.service", Ports: []uint16{8080}}}})
	if err == nil || !strings.Contains(err.Error(), "root's alone") {
		t.Error(err)
	}
	if slices.Contains(strings.Fields(ruleset(t)), "ward") {
		t.Error("rules were written")
	}
}
