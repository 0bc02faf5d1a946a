package main

import (
	"encoding/json"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
	"github.com/wardmesh/ward/proxy/policy"
)

type replayCommand struct {
	recordedFlags
	Policy string `type:"path" required:"" placeholder:"NEW" help:"The folder of the new policies."`
	FailOn string `enum:"widened,changed," default:"" placeholder:"WHAT" help:"Exit 1 when a call that was refused would be allowed (widened), or when any call is decided otherwise (changed)."`
	JSON   bool   `help:"One JSON object, schema ward.replay/1."`
}

// Run decides each recorded call again by the new policies.
func (cmd replayCommand) Run(c *console) error {
	set, err := policy.Load(cmd.Policy)
	if err != nil {
		return err
	}
	replay := policy.NewReplay(set)
	add := func(r *proxy.Record) {
		if n := folded(r); n > 0 {
			replay.Fold(n)
			return
		}
		replay.Add(r)
	}
	if err := cmd.each(c, add, replay.Skip); err != nil {
		return err
	}
	r := replay.Report()
	if cmd.JSON {
		err = json.NewEncoder(c.out).Encode(r)
	} else {
		_, err = r.WriteTo(c.out)
	}
	if err != nil {
		return err
	}
	if changed := r.Calls > r.Unchanged; cmd.FailOn == "widened" && r.Widened() || cmd.FailOn == "changed" && changed {
		return errSilent
	}
	return nil
}

// folded is how many of ingress's refusals r stands for, 0 when it is no such record.
func folded(r *proxy.Record) int64 {
	if r.Stage != proxy.StageEvent || r.Event != audit.EventFolded || r.Process != "" { // egress names the process
		return 0
	}
	var f audit.Folded
	if err := json.Unmarshal(r.Data, &f); err != nil {
		return 0
	}
	return f.Count
}
