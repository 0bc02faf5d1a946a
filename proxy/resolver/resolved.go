package resolver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// linkServer and linkDomain are D-Bus's (iayqs) and (sb), as org.freedesktop.resolve1(5) has them.
type (
	linkServer struct {
		Family  int32
		Address []byte
		Port    uint16
		Name    string
	}
	linkDomain struct {
		Domain  string
		Routing bool
	}
)

// applyResolved routes the zone to the responder by a delegation, or by a link where there are none.
func (o Options) applyResolved(ctx context.Context, c *dbus.Conn, z Zone) error {
	if systemdVersion(ctx, c) >= delegateSince {
		err := o.applyDelegate(ctx, c, z)
		if err == nil {
			_, err = deleteLink()
			return err
		}
		// Without the right to write there, the link serves as well.
		if !errors.Is(err, fs.ErrPermission) && !denied(err) {
			return err
		}
	}
	index, err := ensureLink()
	if err != nil {
		return err
	}
	addr := z.Server.Addr()
	family := int32(unix.AF_INET)
	if addr.Is6() {
		family = unix.AF_INET6
	}
	manager := c.Object(resolvedName, "/org/freedesktop/resolve1")
	for _, call := range []struct {
		method string
		arg    any
	}{
		{"SetLinkDNSEx", []linkServer{{family, addr.AsSlice(), z.Server.Port(), ""}}},
		{"SetLinkDomains", []linkDomain{{z.domain(), true}}}, // routed here, and never searched
		{"SetLinkDefaultRoute", false},                       // nothing but the zone comes here
		{"SetLinkDNSSEC", "no"},                              // the zone is not signed; its answers do not leave the host
		{"SetLinkDNSOverTLS", "no"},
		{"SetLinkLLMNR", "no"},
		{"SetLinkMulticastDNS", "no"},
	} {
		if err := eventually(ctx, func() error {
			return manager.CallWithContext(ctx, "org.freedesktop.resolve1.Manager."+call.method, 0, index, call.arg).Err
		}); err != nil {
			return fmt.Errorf("resolver: systemd-resolved: %s: %w%s", call.method, err, permission(err))
		}
	}
	return nil
}

// eventually repeats f while systemd-resolved has not yet heard of the link.
func eventually(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		var de dbus.Error
		if !errors.As(err, &de) || de.Name != "org.freedesktop.resolve1.NoSuchLink" {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func denied(err error) bool {
	var de dbus.Error
	return errors.As(err, &de) && (strings.HasSuffix(de.Name, ".AccessDenied") || strings.HasSuffix(de.Name, ".InteractiveAuthorizationRequired"))
}

// permission says what to do about a refusal by the host's policy.
func permission(err error) string {
	if denied(err) || errors.Is(err, fs.ErrPermission) {
		return "; allow it to the user of ward mesh in polkit (the rule stands in the package's README), or say mesh.resolver: none"
	}
	return ""
}

// systemdVersion is the service manager's major version, or 0.
func systemdVersion(ctx context.Context, c *dbus.Conn) int {
	var v dbus.Variant
	err := c.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.systemd1.Manager", "Version").Store(&v)
	text, ok := v.Value().(string)
	if err != nil || !ok {
		return 0
	}
	major := strings.TrimLeft(text, "v")
	if i := strings.IndexFunc(major, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		major = major[:i]
	}
	n, _ := strconv.Atoi(major)
	return n
}

// delegation is the file's text, as systemd.dns-delegate(5) has it.
func delegation(z Zone) string {
	return fmt.Sprintf("# Written by ward mesh, removed by ward mesh clear.\n[Delegate]\nDNS=%s\nDomains=%s\n", z.Server, z.domain())
}

func (o Options) applyDelegate(ctx context.Context, c *dbus.Conn, z Zone) error {
	path, text := o.at(delegateFile), delegation(z)
	if b, err := os.ReadFile(path); err == nil && string(b) == text {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // systemd-resolved reads it
		return fmt.Errorf("resolver: %w", err)
	}
	if err := replaceFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	if err := reloadResolved(ctx, c); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("resolver: systemd-resolved does not reload: %w%s", err, permission(err))
	}
	return nil
}

func reloadResolved(ctx context.Context, c *dbus.Conn) error {
	return c.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
		CallWithContext(ctx, "org.freedesktop.systemd1.Manager.ReloadUnit", 0, "systemd-resolved.service", "replace").Err
}

func (o Options) removeDelegate(ctx context.Context) (bool, error) {
	err := os.Remove(o.at(delegateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("resolver: %w", err)
	}
	c, err := o.connect(ctx)
	if err != nil {
		return true, nil // nobody reads it
	}
	defer func() { _ = c.Close() }()
	if !owned(ctx, c, resolvedName) {
		return true, nil
	}
	if err := reloadResolved(ctx, c); err != nil {
		return true, fmt.Errorf("resolver: systemd-resolved does not reload, and uses the delegation until it is started again: %w", err)
	}
	return true, nil
}

// replaceFile puts a file in place whole, or not at all.
func replaceFile(path string, b []byte, mode fs.FileMode) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".ward-new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a crash
		return err
	}
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}
