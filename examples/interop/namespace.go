package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// enter arranges the namespaces that this process was started in: nothing that is mounted here can be seen outside,
// the network is a loopback interface and nothing else, and names are Ward's to resolve.
func enter(p *parts) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("-inside is not for you: it mounts, and must be in namespaces of its own")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	resolv := p.at("resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.77.0.53\noptions timeout:2 attempts:1\n"), 0o644); err != nil { //nolint:gosec // everybody resolves
		return err
	}
	// The folder itself first: where /run is mounted noexec, what is in it could not be run.
	if err := bind(p.Dir, p.Dir); err != nil {
		return err
	}
	// What npm, pip and the machine brought may lie in folders that only root can enter. Mounted here, the
	// applications' users reach it.
	for _, m := range [][2]string{
		{p.Tools.Node, p.at("bin", "node")},
		{filepath.Join(p.Node, "node_modules"), p.at("node", "node_modules")},
		{p.Tools.PythonHome, p.at("python", "home")},
		{p.Site, p.at("python", "site")},
		{resolv, "/etc/resolv.conf"},
	} {
		if err := bind(m[0], m[1]); err != nil {
			return err
		}
	}
	if p.Lenient != "" {
		if err := bind(filepath.Join(p.Lenient, "node_modules"), p.at("lenient", "node_modules")); err != nil {
			return err
		}
	}
	return loopback()
}

// bind mounts a file or folder at another place as well.
func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", from, to, err)
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("remount %s: %w", to, err)
	}
	return nil
}

// loopback brings the namespace's only interface up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}
