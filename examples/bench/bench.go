package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// bench is one run: its folder, its secrets and what runs.
type bench struct {
	o          *options
	progress   io.Writer
	dir        string // on a disk
	memory     string // in memory
	processors int
	files      int // that one process may have open
	counted    int

	credentials    *credentials // of the peers' client hop
	staff, patient string       // access tokens
	origin         *process
	direct         string // the FHIR server's own address
}

func (b *bench) at(elem ...string) string { return filepath.Join(append([]string{b.dir}, elem...)...) }

func (b *bench) originSocket() string { return b.at("origin", "fhir.sock") }

// say tells how far the run is.
func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.progress, format+"\n", args...) }

// count gives a number that nothing else has: folders and logs are named by it.
func (b *bench) count() int {
	b.counted++
	return b.counted
}

// write writes a file below the folder, for one user or, by its mode, for all.
func (b *bench) write(name string, text []byte, mode os.FileMode, uid int) error {
	path := b.at(filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // roles of several users read it
		return err
	}
	return errors.Join(os.WriteFile(path, text, mode), os.Chmod(path, mode), os.Chown(path, uid, uid))
}

// prepare lays everything out that all chains share, and starts the FHIR server.
func prepare(ctx context.Context, o *options, progress io.Writer) (_ *bench, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("SKIPPED: it needs root, because Ward's roles and their callers are told apart by users of their own")
	}
	unix.Umask(0o022)
	b := &bench{o: o, progress: progress, processors: runtime.NumCPU()}
	if b.files, err = moreFiles(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "ward-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.memory, err = os.MkdirTemp("/dev/shm", "ward-bench-"); err != nil {
		return nil, fmt.Errorf("the audit folder in memory: %w", err)
	}
	for _, d := range []string{"", "bin", "logs", "origin", "home", "peers", "tls", "ward"} {
		if err := errors.Join(os.MkdirAll(b.at(d), 0o755), os.Chmod(b.at(d), 0o755)); err != nil { //nolint:gosec // roles of several users read it
			return nil, err
		}
	}
	if err := errors.Join(os.Chmod(b.memory, 0o755), os.Chown(b.at("origin"), uidOrigin, uidOrigin), b.certify(), b.sign()); err != nil { //nolint:gosec // the folders in it are not
		return nil, err
	}
	if err := b.prepareWard(ctx); err != nil {
		return nil, err
	}
	return b, b.startOrigin(ctx)
}

func (b *bench) startOrigin(ctx context.Context) error {
	if err := b.copySelf(); err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	if b.direct = ports[0]; b.o.front == "unix" {
		b.direct = "unix:" + b.originSocket()
	}
	if b.origin, err = b.start(command{name: "origin", uid: uidOrigin, argv: []string{b.at("bin", "bench"), "origin", ports[0], "unix:" + b.originSocket()}}); err != nil {
		return err
	}
	return b.serves(ctx, &chain{front: b.direct})
}

// copySelf puts this program where every user can run it.
func (b *bench) copySelf() error {
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return b.write("bin/bench", text, 0o755, 0)
}

// trail makes the folder for a Ward's audit trail: in memory for ward@memory, else on the disk.
func (b *bench) trail(name string) (string, error) {
	in := b.at("trails")
	if name == inMemory {
		in = b.memory
	} else if err := os.MkdirAll(in, 0o755); err != nil { //nolint:gosec // the folders in it are not
		return "", err
	}
	dir, err := os.MkdirTemp(in, "trail-")
	return dir, errors.Join(err, os.Chmod(dir, 0o755)) //nolint:gosec // the folders in it are not
}

func (b *bench) close() {
	b.origin.stop()
	if b.memory != "" {
		_ = os.RemoveAll(b.memory)
	}
	if b.o.keep {
		b.say("everything stays in %s", b.dir)
		return
	}
	_ = os.RemoveAll(b.dir)
}

// moreFiles raises the bound on open files, for this process and all that it starts: as far as is wanted, or as far as
// may be. It gives the bound.
func moreFiles() (int, error) {
	const wanted = 131072
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wanted, Max: wanted}) == nil {
		return wanted, nil
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, err
	}
	now.Cur = now.Max
	return int(now.Max), unix.Setrlimit(unix.RLIMIT_NOFILE, &now) //nolint:gosec // less than wanted
}

// lateBind lets many connections from one address share its ports, as long as they go elsewhere (ip(7)).
func lateBind(_, _ string, c syscall.RawConn) error {
	var refused error
	err := c.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	return errors.Join(err, refused)
}
