package intercept_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/wardmesh/ward/proxy/intercept"
)

// The kernel tells sockets by the cgroup in which they were made. No cgroup is made for this test: every process of the
// host is below the root of the tree, which is one at level 0.
func TestInterceptedUnit(t *testing.T) {
	needNamespace(t)
	root := ""
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			root = f[1]
		}
	}
	if root == "" {
		t.Skip("SKIPPED: needs cgroup2")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(root, &st); err != nil {
		t.Fatal(err)
	}
	egress := listen(t, ward, "tcp4", "127.77.0.1:8081", "egress")
	listen(t, 0, "tcp4", "127.0.0.1:8080", "fhir")
	listen(t, 0, "tcp6", "[::1]:8080", "fhir")
	t.Cleanup(func() { _, _ = intercept.Clear() })
	rules := intercept.Rules{Egress: addr(egress), Owners: []uint32{ward}, Flows: []intercept.Flow{{Unit: "portal.service", Ports: []uint16{8080}}}}

	if err := intercept.WriteFor(rules, st.Ino+1<<40, 0); err != nil {
		t.Fatal(err)
	}
	wantWord(t, app, "tcp4", "127.0.0.1:8080", "fhir") // another cgroup's rule
	wantWord(t, app, "tcp6", "[::1]:8080", "fhir")

	err = intercept.WriteFor(rules, st.Ino, 0)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skipf("SKIPPED: needs a kernel that matches cgroups: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantWord(t, app, "tcp4", "127.0.0.1:8080", "egress")
	wantWord(t, ward, "tcp4", "127.0.0.1:8080", "fhir")
	wantRefused(t, app, "tcp6", "[::1]:8080")
}
