package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

type auditCommands struct {
	Tail   auditTailCommand   `cmd:"" help:"Show the latest records, and those that come."`
	Verify auditVerifyCommand `cmd:"" help:"Prove that nothing is missing or altered."`
}

type auditDir struct {
	configFlag
	Dir string `type:"path" placeholder:"DIR" help:"The audit folder (default: the config's)."`
}

func (f auditDir) dir() (string, error) {
	if f.Dir != "" {
		return f.Dir, nil
	}
	cfg, err := f.load()
	if err != nil {
		return "", err
	}
	return cfg.Audit.Dir, nil
}

type auditTailCommand struct {
	auditDir
	Last   int64 `short:"n" default:"20" help:"How many of the latest records."`
	Follow bool  `short:"f" help:"Go on with records as they come, until Ctrl-C."`
	All    bool  `short:"a" help:"Also show intents, and what the callers' side recorded of calls that the service's side decided."`
	JSON   bool  `help:"One JSON object per record, schema ward.audit/1."`
}

func (cmd auditTailCommand) Run(c *console) error {
	dir, err := cmd.dir()
	if err != nil {
		return err
	}
	last := cmd.Last
	if !cmd.All && !cmd.JSON {
		last *= 3 // a call leaves an intent, an outcome and the callers' side's record
	}
	err = audit.Tail(c.ctx, dir, audit.TailOptions{Last: last, Follow: cmd.Follow}, func(e audit.Entry) error {
		switch {
		case e.Lost > 0:
			_, err := fmt.Fprintln(c.err, audit.LostLine(e))
			return err
		case cmd.JSON:
			_, err := fmt.Fprintf(c.out, "%s\n", e.JSON)
			return err
		case !cmd.All && (e.Record.Stage == proxy.StageIntent || e.Record.Stage == proxy.StageEgress):
			return nil
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
	dir, err := cmd.dir()
	if err != nil {
		return err
	}
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
			*audit.Report
		}{"ward.audit.verify/1", report})
	}
	fmt.Fprintf(c.out, "whole: %d records in %d segments, %d signed by %d checkpoints of %s\n", report.Records, report.Segments, report.Signed, report.Checkpoints, report.Origin)
	if report.Records > 0 {
		fmt.Fprintf(c.out, "from %s to %s, root %s\n", report.First.UTC().Format(time.RFC3339), report.Last.UTC().Format(time.RFC3339), report.Root)
	}
	for _, p := range report.Presumed {
		fmt.Fprintf(c.out, "presumed disclosed: %s at %s (an intent without an outcome)\n", p.Decision, p.Time.UTC().Format(time.RFC3339))
	}
	for _, a := range report.Aside {
		fmt.Fprintf(c.out, "set aside after an interrupted write: %s\n", a)
	}
	return nil
}
