package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// profile is the UUID of Ward's connection: one for all hosts, so that it is found again after a crash.
const profile = "6d1c2f0e-77a5-5d53-8f4b-77617264306d"

// Before everything else's servers (a VPN's have 50, others 100), and beside them: a negative one would exclude them.
const dnsPriority = int32(10)

const (
	networkSettings = dbus.ObjectPath("/org/freedesktop/NetworkManager/Settings")
	networkRoot     = dbus.ObjectPath("/org/freedesktop/NetworkManager")
)

// networkMode is how NetworkManager serves DNS: default (it writes resolv.conf), dnsmasq, systemd-resolved, none.
func networkMode(ctx context.Context, c *dbus.Conn) string {
	var v dbus.Variant
	err := c.Object(networkName, "/org/freedesktop/NetworkManager/DnsManager").
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.NetworkManager.DnsManager", "Mode").Store(&v)
	mode, ok := v.Value().(string)
	if err != nil || !ok {
		return ""
	}
	return mode
}

// settings is the profile: a link that goes nowhere, with a DNS server and the zone as its routing domain.
func settings(z Zone) map[string]map[string]dbus.Variant {
	v := func(x any) dbus.Variant { return dbus.MakeVariant(x) }
	server := z.Server.Addr().As4()
	return map[string]map[string]dbus.Variant{
		"connection": {"id": v(linkAlias), "uuid": v(profile), "type": v("dummy"), "interface-name": v(linkName), "autoconnect": v(true)},
		"dummy":      {},
		"ipv4": {
			"method":        v("manual"),
			"address-data":  v([]map[string]dbus.Variant{{"address": v(linkAddress().String()), "prefix": v(uint32(32))}}),
			"dns":           v([]uint32{binary.NativeEndian.Uint32(server[:])}), // in network order
			"dns-search":    v([]string{"~" + z.domain()}),
			"dns-priority":  v(dnsPriority),
			"never-default": v(true),
		},
		"ipv6": {"method": v("ignore")},
	}
}

func applyNetworkManager(ctx context.Context, c *dbus.Conn, z Zone) error {
	if !z.Server.Addr().Is4() || z.Server.Port() != 53 {
		return fmt.Errorf("resolver: NetworkManager sends look-ups to port 53 of an IPv4 address, and mesh.dns is %s; change mesh.dns, or say mesh.resolver: none", z.Server)
	}
	path, err := findProfile(ctx, c)
	if err != nil {
		return err
	}
	if path == "" {
		err = c.Object(networkName, networkSettings).
			CallWithContext(ctx, "org.freedesktop.NetworkManager.Settings.AddConnectionUnsaved", 0, settings(z)).Store(&path)
	} else {
		err = c.Object(networkName, path).
			CallWithContext(ctx, "org.freedesktop.NetworkManager.Settings.Connection.UpdateUnsaved", 0, settings(z)).Err
	}
	if err != nil {
		return fmt.Errorf("resolver: NetworkManager's profile: %w%s", err, permission(err))
	}
	root := dbus.ObjectPath("/")
	if err := c.Object(networkName, networkRoot).
		CallWithContext(ctx, "org.freedesktop.NetworkManager.ActivateConnection", 0, path, root, root).Err; err != nil {
		return fmt.Errorf("resolver: NetworkManager does not activate its profile: %w%s", err, permission(err))
	}
	return nil
}

// findProfile gives the path of Ward's profile, or "".
func findProfile(ctx context.Context, c *dbus.Conn) (path dbus.ObjectPath, err error) {
	err = c.Object(networkName, networkSettings).
		CallWithContext(ctx, "org.freedesktop.NetworkManager.Settings.GetConnectionByUuid", 0, profile).Store(&path)
	var de dbus.Error
	if errors.As(err, &de) && de.Name == "org.freedesktop.NetworkManager.Settings.InvalidConnection" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("resolver: NetworkManager: %w", err)
	}
	return path, nil
}

func removeNetworkManager(ctx context.Context, c *dbus.Conn) (bool, error) {
	if !owned(ctx, c, networkName) {
		return false, nil
	}
	path, err := findProfile(ctx, c)
	if err != nil || path == "" {
		return false, err
	}
	if err := c.Object(networkName, path).CallWithContext(ctx, "org.freedesktop.NetworkManager.Settings.Connection.Delete", 0).Err; err != nil {
		return false, fmt.Errorf("resolver: NetworkManager's profile: %w%s", err, permission(err))
	}
	return true, nil
}
