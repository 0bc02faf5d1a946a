package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// check is one thing to be seen. What it says are its figures.
type check struct {
	name   string
	needed bool // the later ones build on it
	try    func(*world) (said []string, err error)
}

func checks() []check {
	return []check{
		{"furnish", true, (*world).furnish},
		{"install", true, (*world).install},
		{"enforce", true, (*world).enforce},
		{"status", false, (*world).status},
		{"caps", false, (*world).capabilities},
		{"sockets", false, (*world).sockets},
		{"memory", false, (*world).memory},
		{"score", false, (*world).score},
		{"less", false, (*world).less},
		{"kill", false, (*world).kill},
		{"restart", false, (*world).restart},
		{"mesh", false, (*world).mesh},
		{"upgrade", false, (*world).upgrade},
		{"badconf", false, (*world).badConfig},
		{"one", false, (*world).oneProcess},
		{"remove", false, (*world).remove},
		{"purge", false, (*world).purge},
	}
}

// The roles that a new installation runs.
var roles = []string{"agent", "ingress", "egress"} //nolint:gochecknoglobals // a constant

// firstCallWithin is how long it may take from a package to the first call that Ward has verified.
const firstCallWithin = 60 * time.Second

// install follows the words of README.md to the first call.
func (w *world) install() ([]string, error) {
	if err := w.login(); err != nil {
		return nil, err
	}
	script, err := w.words("## First call")
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if out, err := w.guest.script(w.ctx, "cd /root\nTOKEN=$(cat "+token+")\n"+script); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	status, decision, err := w.call("portal")
	if err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if status != "200" || decision == "" {
		return nil, fmt.Errorf("the first call ended in %s, decision %q", status, decision)
	}
	said := []string{fmt.Sprintf("first verified call after %.1fs", took.Seconds())}
	if took > firstCallWithin {
		return said, fmt.Errorf("it may take %s", firstCallWithin)
	}
	// It is verified only if somebody else's is not.
	if status, _, err = w.call("stranger"); err != nil {
		return said, err
	}
	if status != "401" {
		return said, fmt.Errorf("a process that nobody enrolled got %s", status)
	}
	return append(said, "a stranger gets 401"), nil
}

// enforce ends the time of observing, as an operator does who has seen enough: from here on what is refused is refused.
func (w *world) enforce() ([]string, error) {
	if out, err := w.guest.script(w.ctx, "grep -E '^ +(mode|observe_until): ' /etc/ward/ward.yaml; sed -i -E '/^ +(mode|observe_until): /d' /etc/ward/ward.yaml"); err != nil {
		return nil, fmt.Errorf("the new config does not observe: %w\n%s", err, out)
	}
	// By the by the FHIR server's process is named too, and attested from now on.
	if _, err := w.guest.script(w.ctx, "sed -i \"s|fhir.sock'}|fhir.sock', process: {unit: fhir.service}}|\" /etc/ward/ward.yaml\nward check\nsystemctl reload ward.target"); err != nil {
		return nil, err
	}
	if status, _, err := w.call("portal"); err != nil || status != "200" {
		return nil, fmt.Errorf("a call ended in %q: %w", status, err)
	}
	return []string{"observed until now, by reload it enforces, and the FHIR server is attested"}, nil
}

// status: the operator sees each role.
func (w *world) status() ([]string, error) {
	out, err := w.guest.run(w.ctx, "ward", "status")
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(out, "\n")
	if _, err := w.as("portal", "ward", "status"); err == nil {
		return nil, errors.New("a user who is not in ward-admin may use the operator's socket")
	}
	if _, err := w.guest.script(w.ctx, "useradd --system --user-group --groups ward-admin operations"); err != nil {
		return nil, err
	}
	if _, err := w.as("operations", "ward", "status"); err != nil {
		return nil, fmt.Errorf("a member of ward-admin may not: %w", err)
	}
	return []string{first, "for root and ward-admin alone"}, nil
}

// capabilities compares what the kernel says of the running processes with what the units say.
func (w *world) capabilities() ([]string, error) { return w.capabilitiesOf(roles...) }

func (w *world) capabilitiesOf(roles ...string) (said []string, err error) {
	names := map[int]string{2: "CAP_DAC_READ_SEARCH", 12: "CAP_NET_ADMIN", 19: "CAP_SYS_PTRACE"}
	for _, role := range roles {
		unit := "ward-" + role + ".service"
		pid, err := w.show(unit, "MainPID")
		if err != nil {
			return said, err
		}
		status, err := w.guest.run(w.ctx, "cat", "/proc/"+pid+"/status")
		if err != nil {
			return said, err
		}
		text, err := os.ReadFile(filepath.Join(w.parts.root, "systemd/units", unit))
		if err != nil {
			return said, err
		}
		want := map[string]bool{}
		for line := range strings.SplitSeq(string(text), "\n") {
			if caps, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
				for _, c := range strings.Fields(caps) {
					want[c] = true
				}
			}
		}
		var has []string
		for line := range strings.SplitSeq(status, "\n") {
			name, hex, _ := strings.Cut(line, ":")
			switch name {
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
				bits, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
				if err != nil {
					return said, err
				}
				has = has[:0]
				for bit := range 64 {
					if bits&(1<<bit) == 0 {
						continue
					}
					if !want[names[bit]] {
						return said, fmt.Errorf("%s: %s has bit %d, which its unit does not give", unit, name, bit)
					}
					has = append(has, names[bit])
				}
				if len(has) != len(want) {
					return said, fmt.Errorf("%s: %s is %s, its unit says %v", unit, name, strings.TrimSpace(hex), want)
				}
			case "NoNewPrivs", "Seccomp":
				if v := strings.TrimSpace(hex); v == "0" {
					return said, fmt.Errorf("%s: %s is 0", unit, name)
				}
			case "Uid":
				if strings.Fields(hex)[0] == "0" {
					return said, fmt.Errorf("%s runs as root", unit)
				}
			}
		}
		said = append(said, fmt.Sprintf("%s %v", role, has))
		if role == "agent" {
			continue
		}
		// Its own word, since the kernel shows a process's Landlock domain to nobody.
		log, err := w.guest.run(w.ctx, "journalctl", "--no-pager", "-o", "cat", "-u", unit)
		if err != nil {
			return said, err
		}
		if !strings.Contains(log, "landlock restricts files") {
			return said, fmt.Errorf("%s has not confined itself by Landlock", unit)
		}
	}
	return append(said, "the network's roles confined by Landlock"), nil
}

// sockets: who may reach what, and that a unit starts when its socket is used.
func (w *world) sockets() ([]string, error) {
	out, err := w.guest.run(w.ctx, "stat", "-c", "%A %U:%G %n", "/run/ward/agent", "/run/ward/egress", "/run/ward/ingress",
		"/run/ward/agent/workload.sock", "/run/ward/agent/broker.sock", "/run/ward/agent/admin.sock", "/run/ward/egress/admin.sock",
		"/run/ward/ingress/admin.sock", socket, "/var/lib/ward", "/var/lib/ward/agent", "/var/lib/ward/authority", "/var/lib/ward/egress",
		"/var/lib/ward/ingress", "/etc/ward/ward.yaml")
	if err != nil {
		return nil, err
	}
	const want = `drwxr-xr-x root:root /run/ward/agent
drwxr-xr-x ward-egress:ward-egress /run/ward/egress
drwxr-xr-x root:root /run/ward/ingress
srw-rw-rw- root:root /run/ward/agent/workload.sock
srw-rw---- root:ward-egress /run/ward/agent/broker.sock
srw-rw---- root:ward-admin /run/ward/agent/admin.sock
srw-rw---- root:ward-admin /run/ward/egress/admin.sock
srw-rw---- root:ward-admin /run/ward/ingress/admin.sock
srw-rw-rw- root:root ` + socket + `
drwxr-xr-x root:root /var/lib/ward
drwx------ ward-agent:ward-agent /var/lib/ward/agent
drwx------ ward-agent:ward-agent /var/lib/ward/authority
drwx------ ward-egress:ward-egress /var/lib/ward/egress
drwx------ ward-ingress:ward-ingress /var/lib/ward/ingress
-rw-r--r-- root:root /etc/ward/ward.yaml
`
	if out != want {
		return nil, fmt.Errorf("places are not as they should be:\n%s", out)
	}
	// Services down, sockets up: the call itself starts what it needs.
	if _, err := w.guest.script(w.ctx, "systemctl stop ward-egress.service ward-ingress.service ward-agent.service"); err != nil {
		return nil, err
	}
	begun := time.Now()
	status, _, err := w.call("portal")
	if err != nil || status != "200" {
		return nil, fmt.Errorf("with the services down a call ended in %q: %w", status, err)
	}
	return []string{"owners and modes as said", fmt.Sprintf("a call started egress, agent and ingress, and was answered after %.1fs", time.Since(begun).Seconds())}, nil
}

// memory of the idle roles, as the kernel counts it.
func (w *world) memory() (said []string, err error) {
	limits := map[string]int{"agent": 30, "ingress": 25, "egress": 25}
	if _, err := w.guest.script(w.ctx, "systemctl restart ward-agent ward-ingress ward-egress"); err != nil {
		return nil, err
	}
	if status, _, err := w.call("portal"); err != nil || status != "200" {
		return nil, fmt.Errorf("a call ended in %q: %w", status, err)
	}
	if err := w.pause(3 * time.Second); err != nil {
		return nil, err
	}
	var high []string
	for _, role := range roles {
		pid, err := w.show("ward-"+role+".service", "MainPID")
		if err != nil {
			return said, err
		}
		out, err := w.guest.run(w.ctx, "cat", "/proc/"+pid+"/smaps_rollup")
		if err != nil {
			return said, err
		}
		kb := map[string]int{}
		for line := range strings.SplitSeq(out, "\n") {
			if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
				kb[f[0]], _ = strconv.Atoi(f[1])
			}
		}
		rss := kb["Rss:"] / 1024
		said = append(said, fmt.Sprintf("%s RSS %d MB (PSS %d, private %d)", role, rss, kb["Pss:"]/1024, (kb["Private_Dirty:"]+kb["Private_Clean:"])/1024))
		if rss > limits[role] {
			high = append(high, fmt.Sprintf("%s: %d MB, %d allowed", role, rss, limits[role]))
		}
	}
	if len(high) > 0 {
		err = errors.New(strings.Join(high, "; "))
	}
	return said, err
}

// score is what systemd itself says of the installed units.
func (w *world) score() (said []string, err error) {
	for _, u := range []struct {
		role string
		most float64
	}{{"agent", 1.6}, {"egress", 1.5}, {"ingress", 1.5}, {"mesh", 2.0}} {
		out, err := w.guest.run(w.ctx, "systemd-analyze", "security", "--no-pager", "ward-"+u.role+".service")
		if err != nil {
			return said, err
		}
		_, rest, _ := strings.Cut(out[max(0, strings.LastIndex(out, "Overall exposure")):], ": ")
		text, _, _ := strings.Cut(rest, " ")
		got, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return said, err
		}
		said = append(said, fmt.Sprintf("%s %.1f", u.role, got))
		if got > u.most {
			return said, fmt.Errorf("%s: %.1f, at most %.1f", u.role, got, u.most)
		}
	}
	return said, nil
}
