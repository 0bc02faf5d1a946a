// Package systemd holds what makes Ward a part of a host: units, users, folders and packages. What there is of Go in it
// reads the table of privileges in README.md and the units, so that tests can hold one against the other: what stands
// there is what is tried.
package systemd

import (
	"fmt"
	"slices"
	"strings"
)

// Privilege is something that a unit keeps although it could do without nearly all of its like: a row of the table.
type Privilege struct {
	Unit, Name string // "ward-agent", "CAP_SYS_PTRACE"
	Loss       string // what stops working without it
	// Socket and TCP say whether a call by a service's socket and one by the shared port still end well without it; ""
	// where that is not tried, or not certain.
	Socket, TCP string
}

// Table reads the table of privileges out of README.md.
func Table(readme string) ([]Privilege, error) {
	_, rest, ok := strings.Cut(readme, "\n## What each privilege is for\n")
	if !ok {
		return nil, fmt.Errorf("README.md has no table of privileges")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var out []Privilege
	for line := range strings.Lines(rest) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 7 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`ward") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		p := Privilege{Unit: strings.Trim(cells[1], "`"), Loss: cells[3], Socket: cells[4], TCP: cells[5]}
		for name := range strings.SplitSeq(cells[2], ", ") {
			p.Name = strings.Trim(name, "`")
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the table of privileges is empty")
	}
	return out, nil
}

// Strict is what every service has, and what "nothing" looks like: whoever lacks one of these has a privilege.
func Strict() map[string]string {
	return map[string]string{
		"NoNewPrivileges": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes", "PrivateIPC": "yes", "PrivateMounts": "yes",
		"PrivateNetwork": "yes", "PrivateUsers": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "ProtectProc": "invisible",
		"ProcSubset": "pid", "ProtectClock": "yes", "ProtectHostname": "yes", "ProtectKernelTunables": "yes", "ProtectKernelModules": "yes",
		"ProtectKernelLogs": "yes", "ProtectControlGroups": "yes", "RestrictNamespaces": "yes", "RestrictRealtime": "yes",
		"RestrictSUIDSGID": "yes", "LockPersonality": "yes", "MemoryDenyWriteExecute": "yes", "RemoveIPC": "yes", "UMask": "0077",
		"NoExecPaths": "/ /run /tmp /var/tmp /dev/shm", "ReadOnlyPaths": "/run", "SystemCallArchitectures": "native", "IPAddressDeny": "any", "LimitCORE": "0", "MemorySwapMax": "0",
	}
}

// Off is what is written of a privilege that is an option left open: `PrivateNetwork=no`.
func off(option string) string {
	switch option {
	case "IPAddressDeny":
		return "IPAddressDeny="
	default:
		return option + "=no"
	}
}

// Privileges lists the privileges of a service's unit, sorted.
func Privileges(unit string) ([]string, error) {
	options := map[string][]string{}
	section := ""
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = line
		case section == "[Service]":
			name, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fmt.Errorf("%q is no option", line)
			}
			options[name] = append(options[name], value)
		}
	}
	var out []string
	for name, strict := range Strict() {
		switch got := options[name]; {
		case len(got) == 0 && !strings.HasPrefix(name, "Limit") && name != "MemorySwapMax":
			out = append(out, off(name))
		case len(got) != 1 || got[0] != strict:
			out = append(out, fmt.Sprintf("%s=%s", name, strings.Join(got, " ")))
		}
	}
	if !slices.Equal(options["CapabilityBoundingSet"], options["AmbientCapabilities"]) {
		return nil, fmt.Errorf("CapabilityBoundingSet and AmbientCapabilities differ: %v and %v", options["CapabilityBoundingSet"], options["AmbientCapabilities"])
	}
	for _, list := range []string{"CapabilityBoundingSet", "RestrictAddressFamilies"} {
		if len(options[list]) != 1 {
			return nil, fmt.Errorf("%s must stand once", list)
		}
		out = append(out, strings.Fields(options[list][0])...)
	}
	for _, list := range []string{"ReadWritePaths", "StateDirectory", "RuntimeDirectory", "SupplementaryGroups", "DeviceAllow", "BindPaths"} {
		for _, v := range options[list] {
			for _, one := range strings.Fields(v) {
				out = append(out, list+"="+one)
			}
		}
	}
	calls := options["SystemCallFilter"]
	if len(calls) < 2 || calls[0] != "@system-service" || calls[1] != "~@privileged @resources @debug" {
		return nil, fmt.Errorf("SystemCallFilter must begin with @system-service and ~@privileged @resources @debug")
	}
	for _, more := range calls[2:] {
		out = append(out, strings.Fields(more)...)
	}
	slices.Sort(out)
	return out, nil
}

// Without gives the lines of a drop-in that takes a privilege away from a unit.
func Without(unit, privilege string) (string, error) {
	name, value, option := strings.Cut(privilege, "=")
	strict, isStrict := Strict()[name]
	switch {
	case strings.HasPrefix(privilege, "CAP_"):
		left, err := lessOf(unit, "CapabilityBoundingSet", privilege)
		return "CapabilityBoundingSet=\nCapabilityBoundingSet=" + left + "\nAmbientCapabilities=\nAmbientCapabilities=" + left, err
	case strings.HasPrefix(privilege, "AF_"):
		left, err := lessOf(unit, "RestrictAddressFamilies", privilege)
		return "RestrictAddressFamilies=\nRestrictAddressFamilies=" + left, err
	case isStrict:
		return name + "=" + strict, nil
	case option && (name == "StateDirectory" || name == "RuntimeDirectory"):
		return name + "=\nReadOnlyPaths=-/var/lib/" + value, nil
	case option:
		return name + "=", nil
	}
	return "SystemCallFilter=~" + privilege, nil
}

func lessOf(unit, list, privilege string) (string, error) {
	for line := range strings.Lines(unit) {
		if all, ok := strings.CutPrefix(strings.TrimSpace(line), list+"="); ok {
			names := strings.Fields(all)
			left := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == privilege })
			if len(left) == len(names) {
				return "", fmt.Errorf("%s has no %s", list, privilege)
			}
			return strings.Join(left, " "), nil
		}
	}
	return "", fmt.Errorf("the unit has no %s", list)
}
