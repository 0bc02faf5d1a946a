package systemd_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/systemd"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every privilege of every unit has its row in README.md, and every row its privilege.
func TestTableEqualsUnits(t *testing.T) {
	table, err := systemd.Table(read(t, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string][]string{}
	for _, p := range table {
		said[p.Unit] = append(said[p.Unit], p.Name)
		if len(p.Loss) < 20 {
			t.Errorf("%s, %s: what stops working without it is not said", p.Unit, p.Name)
		}
		for _, seen := range []string{p.Socket, p.TCP} {
			if !slices.Contains([]string{"yes", "no", ""}, seen) {
				t.Errorf("%s, %s: a call still ends well: %q is neither yes nor no", p.Unit, p.Name, seen)
			}
		}
	}
	units, err := filepath.Glob("units/*.service")
	if err != nil || len(units) != 5 {
		t.Fatalf("%d units: %v", len(units), err)
	}
	for _, file := range units {
		name := strings.TrimSuffix(filepath.Base(file), ".service")
		has, err := systemd.Privileges(read(t, file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		slices.Sort(said[name])
		if diff := cmp.Diff(said[name], has); diff != "" {
			t.Errorf("%s: README.md (-) and the unit (+) differ:\n%s", name, diff)
		}
		for _, p := range has {
			if _, err := systemd.Without(read(t, file), p); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		delete(said, name)
	}
	for name := range said {
		t.Errorf("README.md speaks of %s, which has no unit", name)
	}
}

// What a role must not have, whatever the table says.
func TestNoRoleHasMore(t *testing.T) {
	for unit, caps := range map[string][]string{
		"ward-agent": {"CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"}, "ward-egress": nil, "ward-ingress": nil, "ward-mesh": {"CAP_NET_ADMIN"},
	} {
		has, err := systemd.Privileges(read(t, "units/"+unit+".service"))
		if err != nil {
			t.Fatal(err)
		}
		has = slices.DeleteFunc(has, func(p string) bool { return !strings.HasPrefix(p, "CAP_") })
		if !slices.Equal(has, caps) && len(has)+len(caps) > 0 {
			t.Errorf("%s has %v, want %v", unit, has, caps)
		}
		if text := read(t, "units/"+unit+".service"); !strings.Contains(text, "\nUser="+unit+"\n") || strings.Contains(text, "ward-admin\n") && strings.Contains(text, "SupplementaryGroups") {
			t.Errorf("%s must run as its own user, and no daemon is in ward-admin", unit)
		}
	}
}

// systemd's own measure of what a unit is exposed to.
func TestExposure(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: needs systemd-analyze, of systemd")
	}
	for unit, most := range map[string]float64{"ward-agent": 1.6, "ward-egress": 1.5, "ward-ingress": 1.5, "ward-mesh": 2.0} {
		var stderr bytes.Buffer
		cmd := exec.Command(tool, "security", "--offline=yes", "--no-pager", "units/"+unit+".service")
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil && strings.Contains(stderr.String(), "unrecognized option") {
			t.Skip("SKIPPED: needs systemd-analyze security --offline, of systemd 250")
		}
		_, rest, ok := strings.Cut(string(out), "Overall exposure level for "+unit+".service: ")
		text, _, _ := strings.Cut(rest, " ")
		got, perr := strconv.ParseFloat(text, 64)
		if err != nil || !ok || perr != nil {
			t.Fatalf("%v\n%s%s", err, out, stderr.String())
		}
		t.Logf("%s: %.1f", unit, got)
		if got > most {
			t.Errorf("%s: %.1f, at most %.1f", unit, got, most)
		}
	}
}

// Units that systemd would only grumble about at run time.
func TestUnitsAreWhole(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: needs systemd-analyze, of systemd")
	}
	units, err := filepath.Glob("units/*")
	if err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command(tool, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		// Ward and systemd-tmpfiles need not be installed where this is tried; some of the host's own units grumble.
		if strings.Contains(line, "ward") && !strings.Contains(line, "is not executable: No such file") {
			t.Error(strings.TrimSpace(line))
		}
	}
}
