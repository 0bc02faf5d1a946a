package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func (d *decoder) workloads(c *Config) directory {
	dir := directory{index: make(map[spiffeid.ID]int, len(c.Workloads)), whole: true}
	names := make(map[string]string, len(c.Workloads))
	for i := range c.Workloads {
		w, at := &c.Workloads[i], fmt.Sprintf("workloads[%d]", i)
		if !d.ok(at+".id") || w.ID.IsZero() {
			dir.whole = false
		} else if first, taken := dir.index[w.ID]; taken {
			d.failAt(at+".id", fault{codeSameID, w.ID.Path() + " is already the ID of a workload", "give one of the two another ID; the first is at " + d.whereFrom(at, fmt.Sprintf("workloads[%d].id", first))})
		} else {
			dir.index[w.ID] = i
			dir.paths = append(dir.paths, w.ID.Path())
		}
		if w.Name == "" && !w.ID.IsZero() {
			w.Name = w.ID.Path()
		}
		if w.Name != "" && d.ok(at+".name") && d.ok(at+".id") {
			d.unique(names, w.Name, at+".name", codeSameName, "the name "+quote(w.Name)+" is already a workload's")
		}
		if d.ok(at+".select") && (len(w.Select) > 0 || d.set(at+".select")) {
			d.boundary(w, at)
		}
		d.noRepeats(w.SVID.DNSNames, at+".svid.dns_names")
	}
	slices.Sort(dir.paths)
	return dir
}

// boundary refuses entries that any process of some user could match at will.
func (d *decoder) boundary(w *Workload, at string) {
	has := func(kind string) bool {
		return slices.ContainsFunc(w.Select, func(s Selector) bool { return s.Type == kind })
	}
	const mend = "add unix.uid or systemd.unit"
	f := fault{codeNoBoundary, "", mend}
	switch {
	case has("unix.uid"), has("systemd.unit"):
		if w.MinStrength == "strong" && has("systemd.user_unit") && d.ok(at+".min_strength") {
			d.failAt(at+".min_strength", fault{codeNeverStrong, "an entry with systemd.user_unit is never attested as strong, since its user names the unit",
				"remove min_strength, or select by systemd.unit"})
		}
		return
	case len(w.Select) == 0:
		f.problem = "the entry selects nothing, so every process would match"
	case has("systemd.user_unit"):
		f.problem = "systemd.user_unit alone does not identify a workload: every user can name a unit of their own so"
	case has("unix.gid"), has("unix.group"):
		f.problem = "a group alone does not identify a workload: each of its members can run anything"
	default:
		f.code = codeOnlyExecutable
		f.problem = "a path or hash alone does not identify a workload: any user can run the same file with LD_PRELOAD"
	}
	d.failAt(at+".select", f)
}

func (d *decoder) devices(c *Config, dir directory) {
	ids, identifiers := make(map[string]string), make(map[string]string)
	for i := range c.Devices {
		v, at := &c.Devices[i], fmt.Sprintf("devices[%d]", i)
		if d.ok(at+".id") && !v.ID.IsZero() {
			if n, taken := dir.index[v.ID]; taken {
				d.failAt(at+".id", fault{codeSameID, v.ID.Path() + " is already the ID of a workload", "give the device another ID; the workload is at " + d.whereFrom(at, fmt.Sprintf("workloads[%d].id", n))})
			} else {
				d.unique(ids, v.ID.Path(), at+".id", codeSameID, v.ID.Path()+" is already the ID of a device")
			}
		}
		for j, id := range v.Identifiers {
			if sub := fmt.Sprintf("%s.identifiers[%d]", at, j); d.ok(sub) {
				d.unique(identifiers, id.System+"|"+id.Value, sub, codeSameIdentifier, "the identifier "+quote(id.Value)+" already belongs to a device")
			}
		}
		d.references(v.Via, at+".via", dir, c)
		d.windows(v, at)
	}
}

// windows refuses a device that has two patients at one time.
func (d *decoder) windows(v *Device, at string) {
	var usable []int
	for i, w := range v.Patients {
		sub := windowPath(at, i)
		switch {
		case !d.ok(sub):
		case !w.Until.IsZero() && !w.From.Before(w.Until):
			d.failAt(join(sub, "until"), fault{codeWindow, "the window ends before it begins", "until is the first moment after the window; make it later than from"})
		default:
			usable = append(usable, i)
		}
	}
	// In order of time, a window overlaps with an earlier one exactly if it does with the one that ends last.
	slices.SortStableFunc(usable, func(a, b int) int { return v.Patients[a].From.Compare(v.Patients[b].From) })
	latest := -1
	for _, i := range usable {
		if latest >= 0 && v.Patients[latest].ends().After(v.Patients[i].From) {
			since := "for all time"
			if from := v.Patients[i].From; !from.IsZero() {
				since = "from " + day(from)
			}
			here, there := windowPath(at, i), windowPath(at, latest)
			d.failAt(here, fault{codeTwoPatients, fmt.Sprintf("%s has two patients %s", v.ID.Path(), since), "end the window at " + d.whereFrom(here, there) + " first"})
		}
		if latest < 0 || v.Patients[i].ends().After(v.Patients[latest].ends()) {
			latest = i
		}
	}
}

// ends is Until, or later than any time that config can hold.
func (w Window) ends() time.Time {
	if w.Until.IsZero() {
		return time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return w.Until
}

// windowPath is the path of a device's window.
func windowPath(device string, i int) string { return fmt.Sprintf("%s.patient[%d]", device, i) }

// day writes a time as its author probably did.
func day(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339)
}
