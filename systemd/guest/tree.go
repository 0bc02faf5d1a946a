package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The Debian: its release, and what is in it beside the essentials. A change of either is another tarball.
const (
	release  = "bookworm"
	packages = "systemd,systemd-sysv,dbus,curl,procps"
)

// unpack makes the guest's tree, from the tarball in the cache or from a mirror.
func (g *guest) unpack(ctx context.Context, o options) error {
	for _, t := range [][2]string{{"debootstrap", "debootstrap"}, {"systemd-nspawn", "systemd-container"}} {
		if err := need(ctx, t[0], t[1]); err != nil {
			return err
		}
	}
	tarball := filepath.Join(o.cache, fmt.Sprintf("%s-%s.tar", release, strings.ReplaceAll(packages, ",", "-")))
	if _, err := os.Stat(tarball); err != nil {
		if err := debootstrap(ctx, o, tarball); err != nil {
			return err
		}
	}
	if err := os.Mkdir(g.tree, 0o755); err != nil { //nolint:gosec // the guest's root folder
		return err
	}
	return quiet(ctx, "tar", "-C", g.tree, "-xf", tarball)
}

// need installs a tool of the host where it lacks.
func need(ctx context.Context, tool, from string) error {
	if _, err := exec.LookPath(tool); err == nil {
		return nil
	}
	if err := quiet(ctx, "apt-get", "update"); err != nil {
		return err
	}
	return quiet(ctx, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", from)
}

func debootstrap(ctx context.Context, o options, tarball string) error {
	if err := os.MkdirAll(o.cache, 0o755); err != nil { //nolint:gosec // it holds nothing but Debian
		return err
	}
	tmp, err := os.MkdirTemp(o.cache, "debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	args := []string{"--variant=minbase", "--include=" + packages, release, tree}
	if o.mirror != "" {
		args = append(args, o.mirror)
	}
	if err := quiet(ctx, "debootstrap", args...); err != nil {
		return err
	}
	// Archives that were unpacked, and lists of a mirror that the guest cannot reach.
	for _, dir := range []string{"var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"} {
		if err := os.RemoveAll(filepath.Join(tree, dir)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(tree, "var/cache/apt/archives/partial"), 0o755); err != nil { //nolint:gosec // as it was
		return err
	}
	done := filepath.Join(tmp, "done.tar")
	if err := quiet(ctx, "tar", "-C", tree, "-cf", done, "."); err != nil {
		return err
	}
	return os.Rename(done, tarball)
}

// quiet runs a command, whose output is part of the error if it fails.
func quiet(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(string(out), 30))
	}
	return nil
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
