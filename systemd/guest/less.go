package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/wardmesh/ward/systemd"
)

// less takes each privilege away from its unit, one at a time, and compares what is left with the table of README.md:
// does a call by the service's socket still end well, and one by the shared port?
func (w *world) less() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(w.parts.root, "systemd/README.md"))
	if err != nil {
		return nil, err
	}
	table, err := systemd.Table(string(text))
	if err != nil {
		return nil, err
	}
	tried, untold, wrong := 0, []string{}, []error{}
	for _, p := range table {
		if p.Socket == "" && p.TCP == "" {
			untold = append(untold, p.Unit+" "+p.Name)
			continue
		}
		socket, port, err := w.without(p)
		if err != nil {
			return nil, fmt.Errorf("%s without %s: %w", p.Unit, p.Name, err)
		}
		if p.Socket != "" && socket != p.Socket || p.TCP != "" && port != p.TCP {
			wrong = append(wrong, fmt.Errorf("%s without %s: socket %s, port %s; README.md says: socket %s, port %s", p.Unit, p.Name, socket, port, p.Socket, p.TCP))
		}
		tried++
	}
	// All of it again.
	if _, err := w.guest.script(w.ctx, "rm -rf /run/systemd/system/ward-*.service.d\nsystemctl daemon-reload\nsystemctl restart "+allUnits); err != nil {
		return nil, err
	}
	if status, _, err := w.call("portal"); err != nil || status != "200" {
		return nil, fmt.Errorf("with all privileges again a call ended in %q: %w", status, err)
	}
	said := []string{fmt.Sprintf("%d privileges taken away one by one, each with the loss that the table says", tried)}
	if len(untold) > 0 {
		said = append(said, fmt.Sprintf("%d show in no call: %s", len(untold), strings.Join(untold, ", ")))
	}
	return said, errors.Join(wrong...)
}

// allUnits are restarted for each try: no connection, lent identity or key of an issuer is left of before.
const allUnits = "ward-agent.service ward-ingress.service ward-egress.service"

// without says which calls still end well while a unit lacks a privilege. What the last try took away is back.
func (w *world) without(p systemd.Privilege) (bySocket, byPort string, err error) {
	unit := p.Unit + ".service"
	text, err := os.ReadFile(filepath.Join(w.parts.root, "systemd/units", unit))
	if err != nil {
		return "", "", err
	}
	lines, err := systemd.Without(string(text), p.Name)
	if err != nil {
		return "", "", err
	}
	// A socket that systemd holds would hide that egress cannot make one.
	before, after := "", ""
	if strings.HasPrefix(p.Name, "ReadWritePaths=") {
		held := "ward-egress@" + service + ".socket"
		// The others are closed meanwhile: what waits in one would start egress before the socket is there.
		const others = "ward-egress.socket ward-egress-admin.socket"
		before, after = "systemctl stop "+unit+" "+held, "systemctl stop "+unit+" "+others+"; systemctl start "+held+"; systemctl start "+others
	}
	dropIn := "/run/systemd/system/" + unit + ".d/less.conf"
	if _, err := w.guest.script(w.ctx, fmt.Sprintf(`rm -rf /run/systemd/system/ward-*.service.d
mkdir -p %s
printf '[Service]\n%%s\n' '%s' >%s
systemctl daemon-reload
%s
timeout 2 systemctl restart %s || true`, filepath.Dir(dropIn), lines, dropIn, before, allUnits)); err != nil {
		return "", "", err
	}
	ends := func(args ...string) string {
		if status, _, err := w.curl("portal", append([]string{"--max-time", "2"}, args...)...); err == nil && status == "200" {
			return "yes"
		}
		return "no"
	}
	port := make(chan string)
	go func() { port <- ends("--proxy", "http://127.77.0.1:80") }()
	bySocket, byPort = ends("--unix-socket", socket), <-port
	if after != "" {
		_, err = w.guest.script(w.ctx, after)
	}
	return bySocket, byPort, err
}
