// Package doctor looks for what makes Ward weaker than its operator thinks: ways around it, facts that cannot be
// attested as config assumes, permissions, wiring, time, space, and daemons that run something other than what is
// on disk.
//
// # What
//
// [Run] makes the checks of one table ([Checks]). Each has a code with a page in the binary ([Explain]), is a small
// function over a [Host], and says for each thing it finds what is wrong, what that means, and a command or an edit
// that mends it. A check whose ground is missing is skipped and names what it waits for, so that one cause is
// reported once. [Discover] looks at who serves and who calls on this host and proposes a config. [Bundle] is what
// a bug report needs.
//
// # What it may do
//
// Nothing is changed. A check reads files' names and modes, /proc, the kernel's answers about sockets, the admin
// sockets, and asks DNS for a service's name; with Online it asks token issuers for the time; Discover sends
// nothing at all unless it is told to probe, and then only to loopback. Every check is bounded in time. Without
// root some facts cannot be seen, and the checks that need them say so rather than pass.
//
// # Threat
//
// What is read here is partly written by others: names of processes and units, paths, DNS answers. It is escaped
// where it is shown, never run, and never parsed as more than what it is. No file's content is read but config and
// the user database, so no key, token or patient can reach a finding, and none reaches a report: [Bundle] lists what
// it takes field by field. The doctor is a help against mistakes, not a boundary; root can deceive it, and what
// leaves a network namespace of its own (a container with published ports that no process on the host holds) is
// seen only by an operator who looks there.
//
// See THREATS in the design for what is promised, proc_net(5), sock_diag(7) and adjtimex(2) for what is read.
package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/wardmesh/ward/agent/config"
)

// Schema names the shape of a Report; fields are only ever added.
const Schema = "ward.doctor/1"

// Level is how a check ended.
type Level string

// The levels, worst first.
const (
	Fail Level = "FAIL" // Ward can be passed by, or does not do what config says
	Warn Level = "WARN" // it holds, and will not for long, or less firmly than it could
	Skip Level = "SKIP" // not looked at; Reason says why
	OK   Level = "ok"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Level Level  `json:"level"`
	What  string `json:"what"`
	Means string `json:"means,omitempty"` // what follows from it
	Mend  string `json:"mend,omitempty"`  // a command to paste, or an edit
}

// Result is how one check ended. Level is that of its worst finding.
type Result struct {
	Code     string    `json:"code"`
	Name     string    `json:"name"`
	Group    string    `json:"group"`
	Level    Level     `json:"level"`
	Findings []Finding `json:"findings,omitempty"`
	Reason   string    `json:"reason,omitempty"` // why it was skipped
}

// Report is the outcome of all checks, in the order of the table.
type Report struct {
	Schema   string    `json:"schema"`
	Version  string    `json:"version"`
	Time     time.Time `json:"time"`
	Results  []Result  `json:"results"`
	OK       int       `json:"ok"`
	Warnings int       `json:"warnings"` // checks, not findings
	Failures int       `json:"failures"`
	Skipped  int       `json:"skipped"`

	examined *examination
}

// Options says what is examined. Host must be set, and one of Config and Broken.
type Options struct {
	Config  *config.Config
	Path    string // of the config's first file; "" where there is none
	Broken  error  // why Config is nil
	Host    Host
	Version string   // of this program
	Codes   []string // only these checks; all where there are none
	Online  bool     // other hosts may be asked
}

// How long one check and all of them may take.
const (
	checkTime = 5 * time.Second
	totalTime = 30 * time.Second
	grace     = time.Second // for a check that minds its context to say so
)

// examination is what the checks of one Run share: what is examined, and what has been seen so far.
type examination struct {
	Options
	cfg    *config.Config
	host   Host
	now    time.Time
	levels map[string]Level // of the checks that were made

	kernel    *Kernel
	sockets   []Socket
	processes []Process
	roles     []role
}

// Run makes the checks. Its error is about the codes that were asked for; what is wrong with the host is in the
// Report.
func Run(ctx context.Context, o Options) (*Report, error) {
	all := checks()
	wanted, err := selected(all, o.Codes)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, totalTime)
	defer cancel()
	x := &examination{Options: o, cfg: o.Config, host: o.Host, now: o.Host.Now(), levels: map[string]Level{}}
	r := &Report{Schema: Schema, Version: o.Version, Time: x.now.UTC().Truncate(time.Second), Results: []Result{}}
	for _, c := range all {
		if !wanted[c.code] {
			continue
		}
		if ctx.Err() != nil {
			x.levels[c.code] = Skip
			r.add(Result{Code: c.code, Name: c.name, Group: c.group, Level: Skip, Reason: "have no time left"})
			continue
		}
		res, stuck := x.make(ctx, c)
		if stuck {
			x = x.anew() // what hangs keeps the old one
		}
		x.levels[c.code] = res.Level
		// What was made only as the ground of what was asked for is of interest only when it gave way.
		if len(o.Codes) > 0 && !slices.Contains(o.Codes, c.code) && res.Level == OK {
			continue
		}
		r.add(res)
	}
	r.examined = x
	return r, nil
}

// anew is x with nothing seen so far.
func (x *examination) anew() *examination {
	return &examination{Options: x.Options, cfg: x.cfg, host: x.host, now: x.now, levels: maps.Clone(x.levels)}
}

// selected is the checks of the codes, with those that they stand on.
func selected(all []check, codes []string) (map[string]bool, error) {
	wanted := map[string]bool{}
	var want func(code string) bool
	want = func(code string) bool {
		i := slices.IndexFunc(all, func(c check) bool { return c.code == code })
		if i < 0 {
			return false
		}
		wanted[code] = true
		for _, ground := range all[i].after {
			want(ground)
		}
		return true
	}
	for _, code := range codes {
		if !want(code) {
			return nil, fmt.Errorf("the doctor has no check %q; ward doctor -v lists all", code)
		}
	}
	if len(codes) == 0 {
		for _, c := range all {
			wanted[c.code] = true
		}
	}
	return wanted, nil
}

// make runs one check, unless what it stands on is missing. Stuck says that it did not end in time and is still under
// way: a call on a filesystem that is gone cannot be broken off.
func (x *examination) make(ctx context.Context, c check) (res Result, stuck bool) {
	res = Result{Code: c.code, Name: c.name, Group: c.group, Level: OK}
	for _, ground := range c.after {
		if x.levels[ground] != OK {
			res.Level, res.Reason = Skip, "wait for "+ground
			return res, false
		}
	}
	if c.root && x.host.UID != 0 {
		res.Level, res.Reason = Skip, needRoot
		return res, false
	}
	if c.online && !x.Online {
		res.Level, res.Reason = Skip, "ask other hosts (ward doctor --online)"
		return res, false
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	done := make(chan []Finding, 1)
	go func() { done <- c.run(ctx, x) }()
	late := time.NewTimer(checkTime + grace)
	defer late.Stop()
	select {
	case res.Findings = <-done:
	case <-late.C:
		res.Findings, stuck = skip("take too long"), true
	}
	for _, f := range res.Findings {
		if f.Level == Skip && res.Reason == "" {
			res.Reason = f.What
		}
		if severity(f.Level) > severity(res.Level) {
			res.Level = f.Level
		}
	}
	return res, stuck
}

func (r *Report) add(res Result) {
	r.Results = append(r.Results, res)
	switch res.Level {
	case Fail:
		r.Failures++
	case Warn:
		r.Warnings++
	case Skip:
		r.Skipped++
	default:
		r.OK++
	}
}

func severity(l Level) int { return slices.Index([]Level{OK, Skip, Warn, Fail}, l) }

func fail(what, means, mend string) Finding { return Finding{Fail, what, means, mend} }
func warn(what, means, mend string) Finding { return Finding{Warn, what, means, mend} }

// skip says why a check cannot be made, after "3 checks …".
func skip(reason string) []Finding { return []Finding{{Level: Skip, What: reason}} }

// needRoot is the reason of checks that see nothing without root.
const needRoot = "need root (sudo ward doctor)"
