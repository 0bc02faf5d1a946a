package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

type auditCommands struct {
	Tail   auditTailCommand   `cmd:"" help:"Show the latest records, and those that come."`
	Verify auditVerifyCommand `cmd:"" help:"Prove that nothing is missing or altered."`
}

type auditDir struct {
	configFlag
	Dir  string `type:"path" placeholder:"DIR" help:"The audit folder (default: the config's, of every role, and the second ones)."`
	Role string `enum:",run,agent,egress,ingress,mesh" default:"" placeholder:"ROLE" help:"Only the folders of this role: run, agent, egress, ingress or mesh."`
}

// dirs are the folders that are meant: those that there are, or else the one that there should be.
func (f auditDir) dirs() ([]string, error) {
	if f.Dir != "" {
		return []string{f.Dir}, nil
	}
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	roles := []config.Role{config.RoleRun, config.RoleAgent, config.RoleEgress, config.RoleIngress, config.RoleMesh}
	if f.Role != "" {
		roles = []config.Role{config.Role(f.Role)}
	}
	var dirs []string
	for _, r := range roles {
		dirs = append(dirs, cfg.Trail(r), cfg.SecondTrail(r))
	}
	if found := audit.Dirs(dirs...); len(found) > 0 {
		return found, nil
	}
	return dirs[:1], nil
}

type auditTailCommand struct {
	auditDir
	Last   int64 `short:"n" default:"20" help:"How many of the latest records."`
	Follow bool  `short:"f" help:"Go on with records as they come, until Ctrl-C."`
	All    bool  `short:"a" help:"Also show intents, and what the callers' side recorded of calls that the service's side decided."`
	JSON   bool  `help:"One JSON object per record, schema ward.audit/1."`
}

func (cmd auditTailCommand) Run(c *console) error {
	dirs, err := cmd.dirs()
	if err != nil {
		return err
	}
	o := audit.TailOptions{Last: cmd.Last, Follow: cmd.Follow}
	if !cmd.All && !cmd.JSON { // a call leaves an intent, an outcome and the callers' side's record
		o.Show = func(e audit.Entry) bool {
			return e.Record.Stage != proxy.StageIntent && e.Record.Stage != proxy.StageEgress
		}
	}
	err = audit.TailAll(c.ctx, dirs, o, func(e audit.Entry) error {
		switch {
		case e.Lost > 0:
			_, err := fmt.Fprintln(c.err, audit.LostLine(e))
			return err
		case cmd.JSON:
			_, err := fmt.Fprintf(c.out, "%s\n", e.JSON)
			return err
		}
		_, err := fmt.Fprintln(c.out, audit.Line(e.Record, audit.LineOptions{}))
		return err
	})
	if c.ctx.Err() != nil {
		return nil // Ctrl-C ends it well
	}
	return err
}

type auditVerifyCommand struct {
	auditDir
	Key  string `type:"path" placeholder:"FILE" help:"The public key that signed the log (default: beside the audit folder). Keep a copy of it elsewhere."`
	JSON bool   `help:"One JSON object."`
}

func (cmd auditVerifyCommand) Run(c *console) error {
	dirs, err := cmd.dirs()
	if err != nil {
		return err
	}
	if cmd.Key != "" && len(dirs) > 1 {
		return fmt.Errorf("there are %d logs, each with a key of its own: name one with --dir DIR beside --key; they are %v", len(dirs), dirs)
	}
	var failed error
	for _, dir := range dirs {
		if err := cmd.verify(c, dir, len(dirs) > 1); err != nil {
			failed = errors.Join(failed, err) // the others are looked at all the same
		}
	}
	return failed
}

// verify proves one log.
func (cmd auditVerifyCommand) verify(c *console, dir string, named bool) error {
	key := cmd.Key
	if key == "" {
		key = audit.PublicFile(dir)
	}
	verifier, err := audit.LoadVerifier(key)
	if err != nil {
		return err
	}
	report, err := audit.Verify(c.ctx, dir, verifier)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(struct {
			Schema string `json:"schema"`
			Dir    string `json:"dir"`
			*audit.Report
		}{"ward.audit.verify/1", dir, report})
	}
	if named {
		fmt.Fprintf(c.out, "%s\n", audit.Escape(dir))
	}
	fmt.Fprintf(c.out, "whole: %d records in %d segments, %d signed by %d checkpoints of %s\n", report.Records, report.Segments, max(0, report.Signed-report.Begin), report.Checkpoints, report.Origin)
	if report.Records > 0 {
		fmt.Fprintf(c.out, "from %s to %s, root %s\n", report.First.UTC().Format(time.RFC3339), report.Last.UTC().Format(time.RFC3339), report.Root)
	}
	if r := report.Removal; r != nil {
		fmt.Fprintf(c.out, "removed by the log itself: records 0 to %d, the last of %s, for their %s; it recorded and signed that first\n", r.To-1, r.Last.UTC().Format(time.RFC3339), r.Why)
	}
	for _, p := range report.Presumed {
		fmt.Fprintf(c.out, "presumed disclosed: %s at %s (an intent without an outcome)\n", p.Decision, p.Time.UTC().Format(time.RFC3339))
	}
	for _, a := range report.Aside {
		fmt.Fprintf(c.out, "set aside after an interrupted write: %s\n", a)
	}
	return nil
}
