package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// under does something while an application calls all the time, and gives what that saw.
func (w *world) under(do func() error) (tally, error) {
	stop, err := w.load()
	if err != nil {
		return tally{}, err
	}
	err = w.pause(time.Second)
	if err == nil {
		err = do()
	}
	if err == nil {
		err = w.pause(2 * time.Second)
	}
	t, stopped := stop()
	return t, errors.Join(err, stopped)
}

// kill ends each unit by SIGKILL while calls run, some of which are held up by the FHIR server at that moment. Calls that
// are in flight in that unit may fail; none that begins later may, each that was under way is in the trail, and the trail
// stays whole.
func (w *world) kill() (said []string, err error) {
	for _, role := range roles {
		unit := "ward-" + role + ".service"
		open, _, err := w.trail("ingress")
		if err != nil {
			return said, err
		}
		var killed time.Time
		t, err := w.under(func() error { return w.killHeld(unit, &killed) })
		if err != nil {
			return said, err
		}
		for _, f := range t.Failed {
			if f.Began.After(killed.Add(50 * time.Millisecond)) {
				return said, fmt.Errorf("%s was killed at %s, and a call that began at %s failed: %d %s", unit, killed.Format(time.StampMilli), f.Began.Format(time.StampMilli), f.Status, f.Error)
			}
		}
		if role == "agent" && len(t.Failed) > 0 {
			return said, fmt.Errorf("no call runs through the agent, and %d failed when it was killed: %+v", len(t.Failed), t.Failed[0])
		}
		if t.LastGood.Before(killed.Add(time.Second)) {
			return said, fmt.Errorf("%s was killed at %s; the last call that went well ended at %s", unit, killed.Format(time.StampMilli), t.LastGood.Format(time.StampMilli))
		}
		after, whole, err := w.trail("ingress")
		if err != nil {
			return said, err
		}
		if role == "ingress" && (after == open || after-open < len(t.Failed)) {
			return said, fmt.Errorf("%d calls failed in ingress, and %d intents without an outcome are in its trail", len(t.Failed), after-open)
		}
		said = append(said, fmt.Sprintf("%s: %d calls, %d in flight failed, %d presumed disclosed, slowest %d ms", role, t.OK, len(t.Failed), after-open, t.Slowest.Milliseconds()))
		if role == roles[len(roles)-1] {
			said = append(said, "trail "+whole)
		}
	}
	return said, nil
}

// killHeld kills a unit while the FHIR server is held, so that calls are in flight for certain.
func (w *world) killHeld(unit string, at *time.Time) error {
	if _, err := w.guest.run(w.ctx, "systemctl", "kill", "--signal=STOP", "fhir.service"); err != nil {
		return err
	}
	err := w.pause(500 * time.Millisecond)
	if err == nil {
		*at = time.Now()
		_, err = w.guest.run(w.ctx, "systemctl", "kill", "--kill-who=main", "--signal=KILL", unit)
	}
	if err == nil {
		err = w.pause(300 * time.Millisecond)
	}
	_, resumed := w.guest.run(w.ctx, "systemctl", "kill", "--signal=CONT", "fhir.service")
	return errors.Join(err, resumed)
}

// trail verifies a role's trail, and gives how many intents in it have no outcome and the sentence that says that it is
// whole.
func (w *world) trail(role string) (open int, whole string, err error) {
	out, err := w.guest.run(w.ctx, "ward", "audit", "verify", "--dir", "/var/lib/ward/"+role+"/audit")
	if err != nil {
		return 0, "", err
	}
	whole, _, _ = strings.Cut(out, "\n")
	if !strings.HasPrefix(whole, "whole") {
		return 0, "", fmt.Errorf("the trail of %s: %s", role, out)
	}
	return strings.Count(out, "\npresumed disclosed: "), whole, nil
}

// restart replaces each role while calls run: systemd holds the sockets, and the calls that run end.
func (w *world) restart() (said []string, err error) {
	for _, role := range roles {
		t, err := w.under(func() error {
			_, err := w.guest.run(w.ctx, "systemctl", "restart", "ward-"+role+".service")
			return err
		})
		if err != nil {
			return said, err
		}
		if len(t.Failed) > 0 {
			return said, fmt.Errorf("%d of %d calls failed while %s was restarted; the first: %+v", len(t.Failed), t.OK+len(t.Failed), role, t.Failed[0])
		}
		said = append(said, fmt.Sprintf("%s: %d calls, 0 failed, slowest %d ms", role, t.OK, t.Slowest.Milliseconds()))
	}
	return said, nil
}

// mesh: names and addresses, as an operator turns them on, and what is left of them afterwards.
func (w *world) mesh() (said []string, err error) {
	if _, err := w.guest.script(w.ctx, `echo 'mesh: {resolver: none}' >/etc/ward/conf.d/mesh.yaml
echo 'nameserver 127.77.0.53' >/etc/resolv.conf
ward check
systemctl reload ward.target
systemctl enable --now --quiet ward-mesh.socket ward-mesh-admin.socket ward-mesh.service`); err != nil {
		return nil, err
	}
	defer func() {
		_, cleared := w.guest.script(w.ctx, "systemctl disable --now --quiet ward-mesh.service ward-mesh.socket ward-mesh-admin.socket\nward mesh clear\nrm /etc/ward/conf.d/mesh.yaml\nsystemctl reload ward.target")
		err = errors.Join(err, cleared)
	}()
	if said, err = w.capabilitiesOf("mesh"); err != nil {
		return said, err
	}
	if status, _, err := w.curl("portal", "--max-time", "10"); err != nil || status != "200" {
		return said, fmt.Errorf("a call by the mesh's name ended in %q: %w", status, err)
	}
	address, err := w.as("portal", "curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{remote_ip}", target)
	if err != nil {
		return said, err
	}
	if !strings.HasPrefix(address, "127.") || address == "127.77.0.1" {
		return said, fmt.Errorf("the service's name leads to %q, no address of its own", address)
	}
	said = append(said, "a call by the mesh's name, at "+address)
	// With the mesh gone its addresses are refused, whoever listens there.
	out, err := w.guest.script(w.ctx, fmt.Sprintf(`systemctl stop ward.target
systemctl stop ward-mesh.socket ward-mesh.service 2>/dev/null
systemd-run --quiet --unit=squatter --uid=stranger /usr/bin/perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 5, LocalAddr => "%[1]s", LocalPort => 8080) or die; while ($c = $s->accept) { print $c "HTTP/1.0 200 OK\r\n\r\nsquatted\n"; close $c }'
for i in $(seq 50); do grep -q ':1F90 ' /proc/net/tcp && break; sleep 0.1; done
curl -sS --max-time 3 http://%[1]s:8080/ 2>&1 || true
systemctl stop squatter
systemctl start ward.target`, address))
	if err != nil {
		return said, err
	}
	if !strings.Contains(out, "refused") && !strings.Contains(out, "Failed to connect") || strings.Contains(out, "squatted") {
		return said, fmt.Errorf("somebody else's listener on %s:8080 was reached after ward-mesh was stopped: %q", address, out)
	}
	return append(said, "after its stop the address is refused, whoever listens there"), nil
}

// upgrade installs a newer version of the same package while calls run. The proxies are taken over within their service,
// which is never down.
func (w *world) upgrade() ([]string, error) {
	var took time.Duration
	was, err := w.services()
	if err != nil {
		return nil, err
	}
	t, err := w.under(func() error {
		begun := time.Now()
		_, err := w.guest.script(w.ctx, "apt-get install -y /srv/new/"+filepath.Base(w.parts.new))
		took = time.Since(begun)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(t.Failed) > 0 {
		return nil, fmt.Errorf("%d of %d calls failed during the upgrade; the first: %+v", len(t.Failed), t.OK+len(t.Failed), t.Failed[0])
	}
	// Each daemon is the new one.
	for _, role := range roles {
		pid, err := w.show("ward-"+role+".service", "MainPID")
		if err != nil {
			return nil, err
		}
		exe, err := w.guest.run(w.ctx, "readlink", "/proc/"+pid+"/exe")
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(exe) != "/usr/bin/ward" {
			return nil, fmt.Errorf("%s still runs the old binary: %s", role, exe)
		}
	}
	version, err := w.guest.run(w.ctx, "ward", "version")
	if err != nil || !strings.Contains(version, newVersion) {
		return nil, fmt.Errorf("ward says it is %q: %w", version, err)
	}
	is, err := w.services()
	if err != nil {
		return nil, err
	}
	for _, role := range []string{"ingress", "egress"} {
		if is[role].invocation != was[role].invocation || is[role].pid == was[role].pid || is[role].restarts != was[role].restarts {
			return nil, fmt.Errorf("the new %s was to take the place of the old one within its service: before %+v, after %+v", role, was[role], is[role])
		}
	}
	journal, err := w.guest.run(w.ctx, "journalctl", "--no-pager", "-u", "ward-ingress.service", "-u", "ward-egress.service")
	if err != nil || strings.Contains(journal, "not our child") {
		return nil, fmt.Errorf("the service manager does not look after the new processes: %w\n%s", err, tail(journal, 20))
	}
	said := []string{fmt.Sprintf("%d calls, 0 failed, slowest %d ms; the upgrade took %.1fs", t.OK, t.Slowest.Milliseconds(), took.Seconds())}
	more, err := w.afterUpgrade(is)
	return append(said, more...), err
}

// instance is how a unit runs.
type instance struct{ pid, invocation, restarts string }

func (w *world) services() (map[string]instance, error) {
	all := map[string]instance{}
	for _, role := range roles {
		var s instance
		for name, into := range map[string]*string{"MainPID": &s.pid, "InvocationID": &s.invocation, "NRestarts": &s.restarts} {
			var err error
			if *into, err = w.show("ward-"+role+".service", name); err != nil {
				return nil, err
			}
		}
		all[role] = s
	}
	return all, nil
}

// afterUpgrade: a binary that does not work takes nobody's place, and what has taken one is looked after as before.
func (w *world) afterUpgrade(was map[string]instance) (said []string, err error) {
	const broken = "printf '#!/bin/sh\\necho this build is broken >&2\\nexit 1\\n' >/usr/bin/ward.broken\nchmod 0755 /usr/bin/ward.broken\ncp -a /usr/bin/ward /usr/bin/ward.good\nmv /usr/bin/ward.broken /usr/bin/ward"
	t, err := w.under(func() error {
		if _, err := w.guest.script(w.ctx, broken); err != nil {
			return err
		}
		out, failed := w.guest.script(w.ctx, "systemctl reload ward-ingress.service 2>&1")
		_, err := w.guest.script(w.ctx, "mv /usr/bin/ward.good /usr/bin/ward")
		if failed == nil {
			return errors.Join(err, fmt.Errorf("a broken binary was taken for a good one: %s", out))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	is, err := w.services()
	if err != nil {
		return nil, err
	}
	if len(t.Failed) > 0 || is["ingress"] != was["ingress"] {
		return nil, fmt.Errorf("after a broken binary %d calls failed; before it %+v, after it %+v", len(t.Failed), was["ingress"], is["ingress"])
	}
	if _, err := w.guest.run(w.ctx, "systemctl", "kill", "--kill-who=main", "--signal=KILL", "ward-ingress.service"); err != nil {
		return nil, err
	}
	if err := w.pause(2 * time.Second); err != nil {
		return nil, err
	}
	if is, err = w.services(); err != nil {
		return nil, err
	}
	status, _, err := w.call("portal")
	if err != nil || status != "200" || is["ingress"].restarts == was["ingress"].restarts || is["ingress"].pid == was["ingress"].pid {
		return nil, fmt.Errorf("a process that had taken another's place was killed, and its service was %+v and is %+v; a call ends in %q: %w", was["ingress"], is["ingress"], status, err)
	}
	for _, role := range []string{"ingress", "egress"} {
		_, whole, err := w.trail(role)
		if err != nil {
			return nil, err
		}
		said = append(said, role+" "+whole)
	}
	return append(said, "a broken binary took nobody's place"), nil
}

// badConfig: a version that does not accept the config restarts nothing.
func (w *world) badConfig() ([]string, error) {
	before, err := w.show("ward-agent.service", "MainPID")
	if err != nil {
		return nil, err
	}
	const bad = "/etc/ward/conf.d/bad.yaml"
	if _, err := w.guest.script(w.ctx, "echo 'no_such_key: 1' >"+bad); err != nil {
		return nil, err
	}
	out, failed := w.guest.script(w.ctx, "apt-get install -y --reinstall --allow-downgrades /srv/new/"+filepath.Base(w.parts.new)+" 2>&1")
	if _, err := w.guest.script(w.ctx, "rm "+bad); err != nil {
		return nil, err
	}
	if failed == nil || !strings.Contains(out, "bad.yaml:1:1") || !strings.Contains(out, "what runs has not been restarted") {
		return nil, fmt.Errorf("a config that the new version does not accept was not said: %w\n%s", failed, tail(out, 20))
	}
	after, err := w.show("ward-agent.service", "MainPID")
	if err != nil {
		return nil, err
	}
	if before != after {
		return nil, errors.New("the agent was restarted all the same")
	}
	if _, err := w.guest.run(w.ctx, "dpkg", "--configure", "ward"); err != nil {
		return nil, err
	}
	if status, _, err := w.call("portal"); err != nil || status != "200" {
		return nil, fmt.Errorf("after it was mended a call ended in %q: %w", status, err)
	}
	return []string{"said, and nothing was restarted"}, nil
}

// oneProcess: ward run in place of the roles, and back.
func (w *world) oneProcess() ([]string, error) {
	if _, err := w.guest.script(w.ctx, "cp -r /etc/systemd/system/ward-ingress.service.d /etc/systemd/system/ward.service.d\nsystemctl daemon-reload"); err != nil {
		return nil, err
	}
	for _, unit := range []string{"ward.service", "ward.target"} {
		if _, err := w.guest.run(w.ctx, "systemctl", "start", unit); err != nil {
			return nil, err
		}
		if status, _, err := w.call("portal"); err != nil || status != "200" {
			return nil, fmt.Errorf("under %s a call ended in %q: %w", unit, status, err)
		}
		out, _ := w.guest.run(w.ctx, "systemctl", "list-units", "--plain", "--no-legend", "--state=running", "ward*.service")
		if one := strings.Contains(out, "ward.service"); one != (unit == "ward.service") || one == strings.Contains(out, "ward-agent.service") {
			return nil, fmt.Errorf("under %s there run\n%s", unit, out)
		}
	}
	return []string{"ward.service in place of ward.target and back, with the same identities"}, nil
}

// remove takes the package away: config, state and trail stay.
func (w *world) remove() ([]string, error) {
	out, err := w.guest.script(w.ctx, "apt-get remove -y ward 2>&1")
	if err != nil {
		return nil, err
	}
	if !strings.Contains(out, "/app/portal") {
		return nil, fmt.Errorf("it does not say who loses the way to its server:\n%s", out)
	}
	left, err := w.guest.script(w.ctx, `
systemctl list-units --all --plain --no-legend 'ward*'
pgrep -a ward || true
find /etc/systemd/system -name 'ward*' -type l
find /usr /run -name '*ward*' -not -path '/usr/share/*' -not -path '/usr/lib/python*' -not -name '*forward*' -not -name '*steward*' -not -name 'hardwar*' 2>/dev/null | grep -E '/ward([-./]|$)' || true
test -f /etc/ward/ward.yaml -a -f /var/lib/ward/authority/ledger.db -o -d /var/lib/ward/authority
test -d /var/lib/ward/ingress/audit`)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(left) != "" {
		return nil, fmt.Errorf("left behind:\n%s", left)
	}
	return []string{"config, state and trail are kept, nothing runs", "says that /app/portal loses its way"}, nil
}

// purge takes all but the audit trail.
func (w *world) purge() ([]string, error) {
	out, err := w.guest.script(w.ctx, "apt-get purge -y ward 2>&1")
	if err != nil {
		return nil, err
	}
	if !strings.Contains(out, "the audit trail stays") {
		return nil, fmt.Errorf("it does not say that the trail stays:\n%s", out)
	}
	left, err := w.guest.script(w.ctx, "test ! -e /etc/ward; find /var/lib/ward -mindepth 1 -maxdepth 2 | sort")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(left) {
		path := strings.TrimPrefix(strings.TrimSpace(line), "/var/lib/ward/")
		role, inside, below := strings.Cut(path, "/")
		switch {
		case role == "audit" || role == "audit.policies" || role == "audit.pub":
		case role != "agent" && role != "egress" && role != "ingress":
			return nil, fmt.Errorf("left behind: %s, of\n%s", line, left)
		case below && inside != "audit" && inside != "audit.pub" && inside != "audit.policies":
			return nil, fmt.Errorf("left behind: %s, of\n%s", line, left)
		}
	}
	if !strings.Contains(left, "/var/lib/ward/ingress/audit\n") {
		return nil, fmt.Errorf("the trail of ingress is gone:\n%s", left)
	}
	return []string{"the trail stays, without the keys that signed it"}, nil
}
