package doctor

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
)

// blind reports whether /proc shows this user nothing but their own processes (hidepid, proc(5)).
func (x *examination) blind() bool {
	return x.host.UID != 0 && !slices.ContainsFunc(x.running(), func(p Process) bool { return p.PID == 1 })
}

// sharedUser looks for entries whose one boundary is a user in whose name other programs run as well.
func sharedUser(_ context.Context, x *examination) []Finding {
	var out []Finding
	unseen := false
	for i, w := range x.cfg.Workloads {
		uid, ok := selectedUID(w.Select)
		if _, unit := selector(w.Select, "systemd.unit"); !ok || unit {
			continue
		}
		edit := "add systemd.unit to select at " + x.at(fmt.Sprintf("workloads[%d].select", i))
		if uid == 0 {
			out = append(out, warn(w.ID.Path()+" selects by root alone", "every daemon that runs as root gets this identity", edit))
			continue
		}
		unseen = unseen || x.blind()
		var units []string
		for _, p := range x.running() {
			if p.UID == uid && p.Unit != "" && !slices.Contains(units, p.Unit) {
				units = append(units, p.Unit)
			}
		}
		if slices.Sort(units); len(units) > 1 {
			out = append(out, warn(fmt.Sprintf("%s selects by %s alone, who runs %s", w.ID.Path(), x.host.userName(uid), some(units)), "each of these units gets this identity", edit))
		}
	}
	return seen(out, unseen)
}

func interpreter(_ context.Context, x *examination) []Finding {
	known := regexp.MustCompile(`^(ba|da|z|k|c|tc|fi)?sh$|^busybox$|^(python|pypy|perl|ruby|node|nodejs|deno|bun|java|php|php-cgi|php-fpm|lua|luajit|dotnet|mono|tclsh|Rscript|erl|beam\.smp|julia|guile|gawk|awk)[0-9.-]*$`)
	var out []Finding
	for i, w := range x.cfg.Workloads {
		exe, ok := selector(w.Select, "exe.path")
		if !ok || !known.MatchString(path.Base(exe)) {
			continue
		}
		out = append(out, warn(w.ID.Path()+" selects by "+exe+", which is an interpreter", "whatever program it runs is attested as the interpreter: exe.path narrows nothing here",
			"tell the program apart by systemd.unit at "+x.at(fmt.Sprintf("workloads[%d].select", i))+", and remove exe.path"))
	}
	return out
}
