package systemd

import (
	"strings"
	"testing"
)

func TestParseUnits(t *testing.T) {
	for cgroup, want := range map[string]units{
		"/":                         {},
		"/system.slice":             {},
		"/system.slice/a.service":   {system: "a.service", slice: "/system.slice"},
		"/system.slice/run-1.scope": {system: "run-1.scope", slice: "/system.slice"},
		"/system.slice/system-a.slice/a@1.service": {system: "a@1.service", slice: "/system.slice/system-a.slice"},
		"/system.slice/_cpu.service":               {system: "cpu.service", slice: "/system.slice"},
		"/system.slice/a.service/.control":         {system: "a.service", slice: "/system.slice"},

		// The outermost unit counts; what lies in it is named by whoever it was delegated to.
		"/system.slice/a.service/bridge.service":           {system: "a.service", slice: "/system.slice", user: "bridge.service"},
		"/system.slice/a.service/system.slice/b.service":   {system: "a.service", slice: "/system.slice", user: "b.service"},
		"/system.slice/a.service/c/b.scope/bridge.service": {system: "a.service", slice: "/system.slice", user: "b.scope"},

		// A user's own manager.
		"/user.slice/user-1000.slice/user@1000.service/app.slice/bridge.service":        {user: "bridge.service"},
		"/user.slice/user-1000.slice/user@1000.service/bridge.service":                  {user: "bridge.service"},
		"/user.slice/user-1000.slice/user@1000.service/system.slice/bridge.service":     {user: "bridge.service"},
		"/user.slice/user-1000.slice/user@1000.service/init.scope":                      {user: "init.scope"},
		"/user.slice/user-1000.slice/user@1000.service":                                 {},
		"/user.slice/user-1000.slice/session-3.scope":                                   {},
		"/user.slice/user-1000.slice/session-3.scope/bridge.service":                    {user: "bridge.service"},
		"/system.slice/user@1000.service/bridge.service":                                {user: "bridge.service"},
		"/system.slice/system-user.slice/user@1000.service/system.slice/bridge.service": {user: "bridge.service"},

		// Not below system.slice.
		"/init.scope":                                   {},
		"/clinic.slice/bridge.service":                  {},
		"/machine.slice/systemd-nspawn@a.service":       {},
		"/bridge.service":                               {},
		"/system.slice.d/bridge.service":                {user: "bridge.service"},
		"/a/system.slice/bridge.service":                {user: "bridge.service"},
		"/machine.slice/a.scope/system.slice/b.service": {user: "b.service"},

		// Not made by the system manager, though below system.slice.
		"/system.slice/plain/bridge.service": {user: "bridge.service"},
		"/system.slice/.service":             {},
		"/system.slice/a.service.d":          {},
		"/system.slice/a.socket":             {},
	} {
		if got := parseUnits(cgroup); got != want {
			t.Errorf("%s: %+v; want %+v", cgroup, got, want)
		}
	}
}

// Whatever the path, a system unit is the first thing below system.slice and its slices.
func FuzzParseUnits(f *testing.F) {
	f.Add("/system.slice/system-a.slice/a@1.service/b")
	f.Add("/user.slice/user-1000.slice/user@1000.service/app.slice/bridge.service")
	f.Fuzz(func(t *testing.T, cgroup string) {
		u := parseUnits(cgroup)
		if u.system == "" {
			return
		}
		if u.slice != "/system.slice" && !strings.HasPrefix(u.slice, "/system.slice/") {
			t.Errorf("%q lies in %q", u.system, u.slice)
		}
		for part := range strings.SplitSeq(strings.TrimPrefix(u.slice, "/"), "/") {
			if !strings.HasSuffix(part, ".slice") {
				t.Errorf("%q lies in %q", u.system, u.slice)
			}
		}
		if strings.HasPrefix(u.system, "user@") && strings.HasSuffix(u.system, ".service") {
			t.Errorf("%q is a user's manager", u.system)
		}
	})
}
