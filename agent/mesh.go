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

// Run is the mesh's daemon. SIGHUP reads the config anew.
func (cmd meshCommand) Run(c *console) error {
	cfg, err := cmd.load()
	if err != nil {
		return listErrors(c.err, err)
	}
	log, err := newLog(cfg.Log, c.err)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	udp, tcp, err := inheritedSockets()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	return daemon.RunMesh(ctx, cfg, daemon.MeshOptions{Version: versionText(), Log: log, UDP: udp, TCP: tcp, Reloads: cmd.hangups(ctx, log)})
}

// hangups reads the config anew at each SIGHUP. One that is not whole changes nothing.
func (cmd meshCommand) hangups(ctx context.Context, log *zap.Logger) <-chan daemon.MeshReload {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	reloads := make(chan daemon.MeshReload)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			cfg, err := cmd.load()
			var listed config.Errors
			if errors.As(err, &listed) {
				for _, e := range listed {
					log.Error("the config is not whole; what runs is unchanged", zap.Error(e))
				}
				continue
			}
			if err != nil {
				log.Error("the config cannot be read; what runs is unchanged", zap.Error(err))
				continue
			}
			done := make(chan error, 1)
			select {
			case <-ctx.Done():
				return
			case reloads <- daemon.MeshReload{Config: cfg, Done: done}:
			}
		}
	}()
	return reloads
}

// inheritedSockets takes the sockets that the service manager holds for this process (sd_listen_fds(3)).
func inheritedSockets() (udp []net.PacketConn, tcp []net.Listener, err error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 64 {
		return nil, nil, fmt.Errorf("LISTEN_FDS is %q; the service manager hands over sockets in another way than is known", os.Getenv("LISTEN_FDS"))
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, nil, err
		}
	}
	const first = 3 // SD_LISTEN_FDS_START
	for fd := first; fd < first+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "inherited socket")
		if l, lerr := net.FileListener(f); lerr == nil {
			tcp = append(tcp, l)
		} else if pc, perr := net.FilePacketConn(f); perr == nil {
			udp = append(udp, pc)
		} else {
			err = fmt.Errorf("the service manager's socket %d is neither for UDP nor for TCP: %w", fd, errors.Join(lerr, perr))
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return udp, tcp, nil
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
