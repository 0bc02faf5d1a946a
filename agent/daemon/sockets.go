package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/workload"
)

// listen opens address, or takes the socket that was handed in for it.
func (d *Daemon) listen(ctx context.Context, network, address string) (net.Listener, error) {
	if l, ok := d.o.Listeners[address]; ok {
		return another(l)
	}
	return d.opened(address, func() (net.Listener, error) {
		if network == "unix" {
			if err := guardFolder(address); err != nil {
				return nil, err
			}
			// Anyone may connect: who it is decides what it gets.
			return admin.ListenUnix(address, 0o666)
		}
		lc := net.ListenConfig{Control: peer.Control}
		return lc.Listen(ctx, network, address)
	})
}

// opened is a socket of this process's own: the one that the process before it had for this address, or a new one.
func (d *Daemon) opened(address string, open func() (net.Listener, error)) (net.Listener, error) {
	l := d.o.Predecessor.take(address)
	if l == nil {
		var err error
		if l, err = open(); err != nil {
			return nil, err
		}
	}
	d.sockets.add(address, l)
	return l, nil
}

// another opens a handed-over socket once more: whoever closes it, as a service that leaves the config does, must find
// it again when it comes back.
func another(l net.Listener) (net.Listener, error) {
	held, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return l, nil
	}
	f, err := held.File()
	if err != nil {
		return nil, err
	}
	again, err := net.FileListener(f)
	return again, errors.Join(err, f.Close())
}

// listensAt is the socket for one address among those that were handed over, if there is one.
func listensAt(handed map[string]net.Listener, address netip.AddrPort) []net.Listener {
	if l := handed[address.String()]; l != nil {
		return []net.Listener{l}
	}
	return nil
}

// guardFolder makes the folder of a socket where it is missing, and refuses one in which others could put a socket of
// their own in its place: applications would get their identities from it, and send it their users' tokens.
func guardFolder(socket string) error {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // every user's applications go through it
		return err
	}
	err := config.GuardDir(dir, config.Options{})
	var unsafe *config.UnsafeError
	if errors.As(err, &unsafe) {
		return fmt.Errorf("the socket %s: %w; %s", socket, err, unsafe.Mend())
	}
	return err
}

// pinned opens address for local callers, each of which is pinned before a byte is read from it.
func (d *Daemon) pinned(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := d.listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p, err := d.pinner.Listen(l, d.unpinned(address))
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return p, nil
}

// unpinned is told of connections whose process is not known.
func (d *Daemon) unpinned(address string) func(error) {
	return func(err error) {
		d.log.Info("a local connection was cut off: its process cannot be pinned", zap.String("socket", address), zap.Error(err))
	}
}

// pin gives the process that the listener has pinned.
func pin(c net.Conn) (workload.Process, error) {
	pinned, ok := c.(interface{ Process() (*peer.Process, error) })
	if !ok {
		return nil, fmt.Errorf("a %T cannot be attested", c)
	}
	return pinned.Process()
}
