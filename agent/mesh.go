package main

import (
	"fmt"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

// meshCommands are `ward mesh --config FILE`, and `ward mesh clear`.
type meshCommands struct {
	Serve meshCommand      `cmd:"" default:"withargs" help:"Lead the mesh's addresses to egress and answer for its names."`
	Clear meshClearCommand `cmd:"" help:"Remove every packet rule, link and file that ward mesh has made of this host, whether it runs or not."`
}

type meshCommand struct{ configFlag }

// Run is the mesh's daemon.
func (cmd meshCommand) Run(c *console) error {
	return cmd.started(c, func(cfg *config.Config, log *zap.Logger, s sockets) error {
		return daemon.RunMesh(c.ctx, cfg, daemon.MeshOptions{Version: versionText(), Log: log, Load: cmd.load, Listeners: s.listeners, UDP: s.datagrams,
			Confine: true, Ready: ready, Reloading: reloading, Reloaded: ready})
	})
}

type meshClearCommand struct{}

// Run needs neither a daemon nor a config: it is what the removal of the package calls.
func (meshClearCommand) Run(c *console) error {
	removed, err := daemon.ClearMesh(c.ctx, daemon.MeshOptions{Log: zap.NewNop()})
	for _, what := range removed {
		fmt.Fprintln(c.out, "removed", printable(what))
	}
	if err == nil && len(removed) == 0 {
		fmt.Fprintln(c.out, "nothing to remove")
	}
	return err
}
