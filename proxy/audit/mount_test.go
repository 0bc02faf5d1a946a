package audit

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// inMounts says that this process has a mount namespace of its own.
const inMounts = "WARD_AUDIT_TEST_MOUNTS"

// mounted runs the rest of the test in a process with a mount namespace of its own, in which an ext4 file system of
// so many MiB in a file stands at the path that it gives. All of it is gone with that process. ok is false in the
// process that only waits.
func mounted(t *testing.T, mib string) (disk string, ok bool) {
	t.Helper()
	if os.Getenv(inMounts) == "" {
		for _, tool := range []string{"mkfs.ext4", "mount", "umount", "truncate"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("SKIPPED: needs %s", tool)
			}
		}
		if os.Getuid() != 0 {
			t.Skip("SKIPPED: needs root, to mount a file system in a mount namespace of its own")
		}
		if out, err := inNamespace(exec.Command("mount", "-t", "tmpfs", "none", t.TempDir())).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: needs to mount in a namespace of its own: %v: %s", err, out)
		}
		cmd := inNamespace(exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s"))
		cmd.Env = append(os.Environ(), inMounts+"=1", "TMPDIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.Contains(string(out), "SKIPPED"):
			t.Skip("SKIPPED: see above")
		}
		return "", false
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	disk = filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "truncate", "-s", mib+"M", image)
	run(t, "mkfs.ext4", "-q", "-F", image)
	if out, err := exec.Command("mount", "-o", "loop", image, disk).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: needs a loop device: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	return disk, true
}

// inNamespace gives the command a mount namespace of its own; what it mounts is seen nowhere else.
func inNamespace(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // makes / private, too
	return cmd
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func diskOptions(t *testing.T, disk string) Options {
	o := testOptions(t)
	o.Dir, o.KeyFile = filepath.Join(disk, "audit"), filepath.Join(t.TempDir(), "key")
	o.MinFree, o.Reserve, o.SegmentSize = 8<<20, 1<<20, 4<<20
	return o
}

// stuff fills the disk but for so many bytes, as another program would.
func stuff(t *testing.T, disk string, leave int64) string {
	t.Helper()
	free, err := Host{}.Free(disk)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(disk, "stuff")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, free-leave); err != nil {
		t.Fatal(err)
	}
	return path
}

// A real disk that fills up: ordinary records stop while MinFree is left, emergencies go on even when others take the
// last byte, and all goes on when there is room.
func TestMountedDiskFull(t *testing.T) {
	disk, ok := mounted(t, "24")
	if !ok {
		return
	}
	o := diskOptions(t, disk)
	l := mustOpen(t, o)
	wrote := len(fillUp(t, l, 20000))
	free, err := Host{}.Free(disk)
	if err != nil || free < o.MinFree || wrote == 0 {
		t.Fatalf("%d bytes are left after %d records (%v), %d must be", free, wrote, err, o.MinFree)
	}
	var path string
	for leave := int64(64 << 10); ; leave *= 2 { // others take all that they can get
		if f, _ := (Host{}).Free(disk); f > leave {
			path = stuff(t, disk, leave)
			break
		}
	}
	n := 0
	for ; ; n++ {
		if err := add(l, emergency(newDecision())); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n < 1000 {
		t.Errorf("the reserve of %d bytes held %d emergencies", o.Reserve, n)
	}
	t.Logf("%d ordinary records until MinFree was reached; %d emergencies in the reserve of %d bytes, with %d bytes left on the disk", wrote, n, o.Reserve, func() int64 { f, _ := Host{}.Free(disk); return f }())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := add(l, refusal("again")); !errors.Is(err, ErrFull) {
		t.Errorf("with MinFree reached, a record gave %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
}

// fsShutdown ends a file system as a disk that dies does: FS_IOC_SHUTDOWN of the kernel. The journal is
// flushed first: without that, an fdatasync that is under way can return well although its journal was dropped.
func fsShutdown(t *testing.T, disk string) {
	t.Helper()
	d, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const fsIocShutdown, logFlush = 0x8004587d, 1
	if err := unix.IoctlSetPointerInt(int(d.Fd()), fsIocShutdown, logFlush); err != nil {
		t.Skipf("SKIPPED: needs a file system that can be shut down: %v", err)
	}
}

// load appends from several goroutines until stop is called, which gives the ids of what was durable.
func load(l proxy.Recorder, pause *sync.RWMutex) (durable *atomic.Int64, stop func() map[string]bool) {
	var mu sync.Mutex
	var work sync.WaitGroup
	kept := map[string]bool{}
	durable = new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	for range 4 {
		work.Go(func() {
			for ctx.Err() == nil {
				id := newDecision()
				pause.RLock()
				err := add(l, refusal(id))
				pause.RUnlock()
				if err == nil {
					mu.Lock()
					kept[id] = true
					mu.Unlock()
					durable.Add(1)
				}
			}
		})
	}
	return durable, func() map[string]bool { cancel(); work.Wait(); return kept }
}

func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(2 * time.Minute); !done(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited for long: %s", what)
		}
	}
}

// A real file system dies under load, is unmounted, checked and mounted again while the process lives: nothing that was
// durable is lost, nothing is accepted in between, and the log goes on.
func TestMountedDiskDies(t *testing.T) {
	disk, ok := mounted(t, "48")
	if !ok {
		return
	}
	image := filepath.Join(filepath.Dir(disk), "image")
	o := diskOptions(t, disk)
	o.Retry, o.Logger = 20*time.Millisecond, zap.NewExample()
	l := mustOpen(t, o)
	var pause sync.RWMutex
	durable, stop := load(l, &pause)
	kills := []struct {
		name string
		kill func(*testing.T, string)
	}{
		{"input/output errors", fsShutdown},
		{"read-only by the kernel", func(t *testing.T, disk string) { run(t, "mount", "-o", "remount,abort", disk) }},
	}
	for _, k := range kills {
		before := durable.Load()
		until(t, "records", func() bool { return durable.Load() > before+200 })
		// Between two syncs: one that is under way can return well although the kernel drops its journal.
		pause.Lock()
		k.kill(t, disk)
		pause.Unlock()
		until(t, "the failure", func() bool { return errors.Is(l.Err(), ErrFailed) })
		n := durable.Load()
		// The log holds no file open, so that the disk can be mended.
		until(t, "unmounting", func() bool { return unix.Unmount(disk, 0) == nil })
		if out, err := exec.Command("fsck.ext4", "-p", "-f", image).CombinedOutput(); err != nil {
			t.Logf("fsck: %v: %s", err, out)
		}
		run(t, "mount", "-o", "loop", image, disk)
		until(t, "going on", func() bool { return l.Err() == nil })
		t.Logf("%s: failed, unmounted, mounted again, went on after %d records", k.name, n)
	}
	before := durable.Load()
	until(t, "records", func() bool { return durable.Load() > before+200 })
	kept := stop()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
	gaps(t, o.Dir, len(kills))
	found := map[string]bool{}
	for _, id := range decisions(t, o.Dir) {
		found[id] = true
	}
	for id := range kept {
		if !found[id] {
			t.Fatalf("%s was durable and is gone", id)
		}
	}
	t.Logf("%d durable records, none lost", len(kept))
}

// A disk that stays read-only: the log stays closed, without changing what is there.
func TestMountedReadOnly(t *testing.T) {
	disk, ok := mounted(t, "32")
	if !ok {
		return
	}
	o := diskOptions(t, disk)
	o.Retry = 20 * time.Millisecond
	l := mustOpen(t, o)
	mustAdd(t, l, refusal("before"))
	// The kernel does not do it by request while a file is open for writing, but on errors it does.
	run(t, "mount", "-o", "remount,abort", disk)
	until(t, "the failure", func() bool { return errors.Is(add(l, refusal("lost")), ErrFailed) })
	for range 20 {
		if err := add(l, refusal("lost")); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
	}
	if err := l.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("Close gave %v", err)
	}
	if got := decisions(t, o.Dir); got[0] != "before" {
		t.Errorf("the log holds %v", got)
	}
}
