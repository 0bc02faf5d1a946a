package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

type runCommand struct{ configFlag }

// Run is all of Ward on a small host, in one process.
func (cmd runCommand) Run(c *console) error { return cmd.serve(c, config.RoleRun, succession{}) }

type agentCommand struct{ configFlag }

// Run is the identity side alone.
func (cmd agentCommand) Run(c *console) error {
	return cmd.serve(c, config.RoleAgent, succession{})
}

type proxyCommand struct {
	configFlag
	succession
	Role string `enum:"egress,ingress,both" required:"" help:"egress carries local applications' calls; ingress stands before the FHIR servers of this host; both is both in one process."`
}

// succession is how a process takes the place of one that runs.
type succession struct {
	TakeOver bool `help:"Take the place of the process of this role that runs here, with its sockets and without a call that fails; it goes on serving until this one is ready. See: ward upgrade."`
	Tell     int  `hidden:"" help:"Descriptor on which to say ok once ready."`
}

// Run is one proxy hop, or both, apart from the agent.
func (cmd proxyCommand) Run(c *console) error {
	return cmd.serve(c, proxyRole(cmd.Role), cmd.succession)
}

func proxyRole(word string) config.Role {
	if word == "both" {
		return config.RoleProxy
	}
	return config.Role(word)
}

// serve is a daemon of one role.
func (f configFlag) serve(c *console, role config.Role, after succession) error {
	return f.started(c, func(cfg *config.Config, log *zap.Logger, s sockets) error {
		o := daemon.Options{Role: role, Version: versionText(), Log: log, Load: f.load, Listeners: s.listeners, Datagrams: s.datagrams, Confine: true,
			Ready: ready, Reloading: reloading, Reloaded: ready, Succeeded: succeeded}
		if after.TakeOver {
			var err error
			if o.Predecessor, err = daemon.Precede(cfg, role, versionText()); err != nil {
				return fmt.Errorf("nothing was taken over: %w", err)
			}
			if o.Predecessor.Notify != "" { // what takes another's place is started beside the service, and not told
				if err := os.Setenv("NOTIFY_SOCKET", o.Predecessor.Notify); err != nil {
					return err
				}
			}
			o.Ready = func() {
				ready()
				after.tell()
			}
		}
		d, err := daemon.New(c.ctx, cfg, o)
		if err != nil {
			return listErrors(c.err, err)
		}
		return d.Run(c.ctx)
	})
}

// started runs a daemon with what each needs first. A config that is not whole starts nothing: every error is listed,
// and the status is 1.
func (f configFlag) started(c *console, run func(*config.Config, *zap.Logger, sockets) error) error {
	// Until the daemon follows its config, which begins with a look at it, a hangup must not end it.
	signal.Ignore(syscall.SIGHUP)
	cfg, err := f.load()
	if err != nil {
		return listErrors(c.err, err)
	}
	log, err := newLog(cfg.Log, c.err)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	s, err := handedOver()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(c.ctx, func() { notify(sd.SdNotifyStopping) })
	defer stop()
	return run(cfg, log, s)
}

// notify tells the service manager, where there is one. That it does not listen changes nothing.
func notify(state string) { _, _ = sd.SdNotify(false, state) }

func ready() { notify(sd.SdNotifyReady) }

// succeeded tells the service manager which process is its service's main one from now on (sd_notify(3), MAINPID=). Only
// the one that has been up to now is heard.
func succeeded(pid int) { notify("MAINPID=" + strconv.Itoa(pid)) }

// reloading says that a change of config is under way (sd_notify(3), Type=notify-reload).
func reloading() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		notify(sd.SdNotifyReloading + "\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10))
	}
}

// sockets are those that the service manager has opened: the ones that listen by their address, a path or host and port.
// It holds them while this process is replaced, and callers wait instead of being refused.
type sockets struct {
	listeners map[string]net.Listener
	datagrams []net.PacketConn
}

func handedOver() (sockets, error) {
	s := sockets{listeners: map[string]net.Listener{}}
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		if err != nil {
			var c net.PacketConn
			if c, err = net.FilePacketConn(f); err == nil {
				s.datagrams = append(s.datagrams, c)
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return s, fmt.Errorf("the socket %s of the service manager: %w", f.Name(), err)
		}
		if l == nil {
			continue
		}
		if _, taken := s.listeners[l.Addr().String()]; taken {
			return s, fmt.Errorf("the service manager hands over two sockets for %s", l.Addr())
		}
		s.listeners[l.Addr().String()] = l
	}
	return s, nil
}
