package main

import (
	"fmt"
	"os"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// trails are the folders in which this host's decisions are recorded: that of ward run, and that of an ingress that runs
// by itself. Of these, the ones that exist; a host that has neither is told of the first.
func trails(cfg *config.Config) []string {
	var dirs []string
	for _, r := range []config.Role{config.RoleRun, config.RoleIngress} {
		if _, err := os.Stat(cfg.Trail(r)); err == nil {
			dirs = append(dirs, cfg.Trail(r))
		}
	}
	if len(dirs) == 0 {
		dirs = []string{cfg.Trail(config.RoleRun)}
	}
	return dirs
}

// recordedFlags choose recorded calls.
type recordedFlags struct {
	configFlag
	Audit string        `type:"path" placeholder:"LOG" help:"The audit folder (default: the config's)."`
	Since time.Duration `placeholder:"DURATION" help:"Only calls of so long ago, for example 168h (default: all)."`
}

// each gives every record that is meant to add, oldest first. The trail may be any size: nothing of it is kept here.
// other is called for each record that another version of Ward wrote.
func (f recordedFlags) each(c *console, add func(*proxy.Record), other func()) error {
	dirs := []string{f.Audit}
	if f.Audit == "" {
		cfg, err := f.load()
		if err != nil {
			return err
		}
		dirs = trails(cfg)
	}
	if f.Since < 0 {
		return fmt.Errorf("--since %s lies ahead; it is a time that has passed, for example 168h", f.Since)
	}
	var from time.Time
	if f.Since > 0 {
		from = time.Now().Add(-f.Since)
	}
	if isTerminal(c.err) {
		slow := time.AfterFunc(time.Second, func() { fmt.Fprintln(c.err, "ward: reading the trail …") })
		defer slow.Stop()
	}
	for _, dir := range dirs {
		for e, err := range audit.ScanKnown(c.ctx, dir, 0, func(string) { other() }) {
			if err != nil {
				return err
			}
			if !e.Record.Time.Before(from) {
				add(&e.Record)
			}
		}
	}
	return nil
}
