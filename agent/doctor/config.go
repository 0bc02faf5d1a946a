package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/wardmesh/ward/agent/config"
)

// wholeConfig is the ground of most checks: what is wrong with config is said by ward check, with its places.
func wholeConfig(_ context.Context, x *examination) []Finding {
	if x.cfg != nil {
		return nil
	}
	if x.Path == "" {
		return []Finding{fail("there is no config", "Ward cannot run", "ward doctor --discover > ward.yaml; read it, and put it into /etc/ward")}
	}
	if _, err := os.ReadFile(x.Path); errors.Is(err, fs.ErrPermission) && x.host.UID != 0 {
		return skip(needRoot)
	}
	mend := "ward check --config " + quoted(x.Path)
	errs, ok := errors.AsType[config.Errors](x.Broken)
	if !ok {
		return []Finding{fail("the config cannot be read", "a daemon that is started now does not come up", mend)}
	}
	return []Finding{fail(plural(len(errs), "error")+" in the config, the first at "+fmt.Sprintf("%s:%d:%d [%s]", errs[0].File, errs[0].Line, errs[0].Column, errs[0].Code),
		"a daemon that is started now does not come up, and one that runs keeps what it has", mend)}
}

// serves lists the services that have their FHIR server on this host.
func (x *examination) serves() []config.Service {
	var out []config.Service
	for _, s := range x.cfg.Services {
		if s.Upstream.Network != "" {
			out = append(out, s)
		}
	}
	return out
}

// wantStrong names the entries that match nothing but strong attestations.
func (x *examination) wantStrong() []string {
	var out []string
	if x.cfg != nil {
		for _, w := range x.cfg.Workloads {
			if w.MinStrength == "strong" {
				out = append(out, w.ID.Path())
			}
		}
	}
	return out
}

// takeUnits names what in config selects by unit.
func (x *examination) takeUnits() []string {
	var out []string
	add := func(name string, selectors []config.Selector) {
		if _, ok := selector(selectors, "systemd.unit"); ok {
			out = append(out, name)
		}
	}
	if x.cfg != nil {
		for _, w := range x.cfg.Workloads {
			add(w.ID.Path(), w.Select)
		}
		for _, s := range x.serves() {
			add(s.Name, s.Upstream.Process)
		}
	}
	return out
}

func selector(all []config.Selector, kind string) (string, bool) {
	for _, s := range all {
		if s.Type == kind {
			return s.Value, true
		}
	}
	return "", false
}

// selectedUID is the user of the selectors.
func selectedUID(all []config.Selector) (uint32, bool) {
	v, ok := selector(all, "unix.uid")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 32)
	return uint32(n), err == nil //nolint:gosec // parsed as 32 bits
}

// at is where a key stands, for edits: ward.yaml:41.
func (x *examination) at(key string) string {
	p := x.cfg.At(key)
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// userName is a uid as people know it. Users from directories elsewhere stay numbers.
func (h Host) userName(uid uint32) string {
	text := "uid " + strconv.FormatUint(uint64(uid), 10)
	if name := h.loginName(uid); name != "" {
		text += " (" + name + ")"
	}
	return text
}

// loginName is the user's name in /etc/passwd, the first by the alphabet where several share the uid.
func (h Host) loginName(uid uint32) string {
	found := ""
	for name, u := range readUsers(h.in("/etc/passwd")) {
		if u.uid == uid && (found == "" || name < found) {
			found = name
		}
	}
	return found
}
