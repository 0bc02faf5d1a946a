// Package resolver makes the mesh's zone known to the host, so that any application finds a service by its name, and
// takes it back.
//
// Whoever answers the host's look-ups is asked to send those for the zone, and no others, to Ward's responder:
//
//   - systemd-resolved: a delegation file where it reads them (systemd 258), else a link of Ward's own with the zone as
//     its routing domain. Over D-Bus; no command's output is parsed.
//   - NetworkManager: a connection profile of Ward's own, kept in memory. NetworkManager then serves the zone in
//     whichever way it serves DNS: through systemd-resolved, dnsmasq, or resolv.conf, which it goes on to own.
//   - A plain /etc/resolv.conf: a marked block with Ward's responder before the other servers. The responder refuses
//     names outside the zone, and resolvers then ask the next one.
//
// All of it may be done again at any time, whatever was left by a crash, and [Clear] undoes all of it without knowing
// which was done. Files of others are not touched: a resolv.conf that is a link, a mount or somebody's to generate is
// refused, with what to do instead.
//
// Names route and identities authenticate. A local attacker who could change any of this is root.
//
// Links: org.freedesktop.resolve1(5), systemd.dns-delegate(5), nm-settings-dbus(5), resolv.conf(5), RFC 7600 (the
// address of the link).
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/godbus/dbus/v5"
	"go.uber.org/zap"
)

// Kind is who resolves names on a host. The words are those of the config.
type Kind string

// The kinds.
const (
	Systemd        Kind = "systemd-resolved"
	NetworkManager Kind = "networkmanager"
	File           Kind = "resolv.conf"
	None           Kind = "none"
)

// Zone is what the host is told.
type Zone struct {
	Name   string         // `mesh.internal`
	Server netip.AddrPort // the responder
}

func (z Zone) domain() string { return strings.TrimSuffix(z.Name, ".") }

// Options says where the host keeps things. The zero Options is a real host.
type Options struct {
	Root string // before /etc and /run; "" for none
	Bus  string // D-Bus address; "" for the system bus
	Log  *zap.Logger
}

const (
	systemBus     = "unix:path=/run/dbus/system_bus_socket"
	resolvedName  = "org.freedesktop.resolve1"
	networkName   = "org.freedesktop.NetworkManager"
	resolvConf    = "etc/resolv.conf"
	delegateFile  = "run/systemd/dns-delegate.d/ward.dns-delegate"
	linkName      = "ward0"
	linkPeer      = "ward0p"
	linkAlias     = "ward mesh"
	delegateSince = 258
)

// linkAddress makes the link one that has an address. It is the IPv4 dummy address, which nobody ever sends to or
// forwards (RFC 7600 §3).
func linkAddress() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 0, 8}) }

func (o Options) at(p string) string { return filepath.Join("/", o.Root, p) }

func (o Options) connect(ctx context.Context) (*dbus.Conn, error) {
	address := o.Bus
	if address == "" {
		address = systemBus
	}
	c, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("resolver: D-Bus at %s: %w", address, err)
	}
	return c, nil
}

// owned reports whether somebody serves name on the bus.
func owned(ctx context.Context, c *dbus.Conn, name string) bool {
	var has bool
	err := c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&has)
	return err == nil && has
}

// Detect finds out who resolves names on this host.
func Detect(ctx context.Context, o Options) (Kind, error) {
	c, err := o.connect(ctx)
	if err == nil {
		defer func() { _ = c.Close() }()
		if owned(ctx, c, resolvedName) && o.usesResolved() {
			return Systemd, nil
		}
		if owned(ctx, c, networkName) && networkMode(ctx, c) != "none" {
			return NetworkManager, nil
		}
	}
	fi, err := os.Lstat(o.at(resolvConf))
	switch {
	case err != nil:
		return "", fmt.Errorf("resolver: nothing that resolves names was found: %w; choose with mesh.resolver, or say none", err)
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("resolver: %s is kept by something that Ward does not know; send the zone to Ward's responder there, and say mesh.resolver: none", o.at(resolvConf))
	}
	return File, nil
}

// usesResolved reports whether applications ask systemd-resolved: it may run without being asked.
func (o Options) usesResolved() bool {
	if to, err := os.Readlink(o.at(resolvConf)); err == nil && strings.Contains(to, "systemd/resolve/") {
		return true
	}
	b, err := os.ReadFile(o.at(resolvConf))
	if err == nil && (strings.Contains(string(b), "nameserver 127.0.0.53") || strings.Contains(string(b), "nameserver 127.0.0.54")) {
		return true
	}
	b, err = os.ReadFile(o.at("etc/nsswitch.conf"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "hosts:" {
			for _, service := range f[1:] {
				if service == "resolve" {
					return true
				}
			}
		}
	}
	return false
}

// Apply tells the host of the zone. It may be called again at any time.
func Apply(ctx context.Context, o Options, kind Kind, z Zone) error {
	if kind == None {
		return nil
	}
	if !z.Server.IsValid() || z.domain() == "" {
		return errors.New("resolver: there is no responder or no zone that the host could be told of")
	}
	if kind == File {
		return o.applyFile(z)
	}
	c, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	switch kind {
	case Systemd:
		return o.applyResolved(ctx, c, z)
	case NetworkManager:
		return applyNetworkManager(ctx, c, z)
	}
	return fmt.Errorf("resolver: %q is not known", kind)
}

// Stopped undoes what would harm the host while the responder is away: where it stands before the host's other
// servers, every look-up would pass by it. A zone that is routed to it alone stays so, and its names are not asked of
// anybody else.
func Stopped(ctx context.Context, o Options, kind Kind) error {
	switch kind {
	case File:
		_, err := o.removeFile()
		return err
	case NetworkManager:
		c, err := o.connect(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if mode := networkMode(ctx, c); mode == "dnsmasq" || mode == "systemd-resolved" {
			return nil
		}
		_, err = removeNetworkManager(ctx, c)
		return err
	}
	return nil
}

// Clear undoes everything that Apply can do, and lists what it undid.
func Clear(ctx context.Context, o Options) (removed []string, err error) {
	note := func(what string, done bool, e error) {
		if done {
			removed = append(removed, what)
		}
		err = errors.Join(err, e)
	}
	done, e := o.removeFile()
	note("the block in "+o.at(resolvConf), done, e)
	done, e = o.removeDelegate(ctx)
	note(o.at(delegateFile), done, e)
	// Without a bus there is no NetworkManager, and its profile was in its memory.
	if c, e := o.connect(ctx); e == nil {
		done, e := removeNetworkManager(ctx, c)
		note("the profile of NetworkManager", done, e)
		_ = c.Close()
	}
	done, e = deleteLink()
	note("the link "+linkName, done, e)
	return removed, err
}

// Watch applies the zone anew whenever who resolves names has started again, until ctx ends.
func Watch(ctx context.Context, o Options, kind Kind, z Zone) error {
	if kind == File {
		return o.watchFile(ctx, z)
	}
	name := map[Kind]string{Systemd: resolvedName, NetworkManager: networkName}[kind]
	if name == "" {
		<-ctx.Done()
		return nil
	}
	c, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.AddMatchSignalContext(ctx, dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	c.Signal(signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			if !open {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("resolver: the connection to D-Bus was lost")
			}
			owner, _ := s.Body[len(s.Body)-1].(string)
			if owner == "" {
				continue
			}
			if err := Apply(ctx, o, kind, z); err != nil && ctx.Err() == nil {
				o.Log.Error("the zone is not known to the host any more", zap.String("resolver", string(kind)), zap.Error(err))
			}
		}
	}
}
