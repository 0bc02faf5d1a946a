package exe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

func TestOptions(t *testing.T) {
	for _, o := range []Options{{MaxBytes: -1}, {Remember: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

func TestOrigin(t *testing.T) {
	for magic, want := range map[uint32]origin{
		unix.EXT4_SUPER_MAGIC: local, unix.XFS_SUPER_MAGIC: local, unix.BTRFS_SUPER_MAGIC: local, unix.TMPFS_MAGIC: local,
		unix.FUSE_SUPER_MAGIC: untold, unix.NFS_SUPER_MAGIC: remote, unix.CIFS_SUPER_MAGIC: remote, unix.OVERLAYFS_SUPER_MAGIC: remote,
	} {
		if got := originOfType(magic); got != want {
			t.Errorf("%#x: %d; want %d", magic, got, want)
		}
	}
}

func TestTimesReliable(t *testing.T) {
	for release, want := range map[string]bool{
		"5.14.0-427.el9.x86_64": true, "6.1.0-25-amd64": true, "6.11.0": false, "6.12.9-arch1": false, "6.12": false,
		"6.13.0": true, "6.18.44": true, "6.110.1": true,
	} {
		if got := timesReliable(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}

func TestYoung(t *testing.T) {
	now := time.Now()
	for age, want := range map[time.Duration]bool{time.Hour: false, time.Second: false, 999 * time.Millisecond: true, 0: true, -time.Hour: true} {
		if got := (file{ctime: now.Add(-age).UnixNano()}).young(now); got != want {
			t.Errorf("%v old: %v", age, got)
		}
	}
}

// A file that changes while it is hashed has no hash.
func TestHashOfChangingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f, err := stat(fd)
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256([]byte("content"))
	if sum, err := hash(t.Context(), fd, f); err != nil || sum != hex.EncodeToString(want[:]) {
		t.Fatalf("%s, %v", sum, err)
	}
	for name, then := range map[string]file{
		"shorter": {dev: f.dev, ino: f.ino, size: f.size + 1, mtime: f.mtime, ctime: f.ctime},
		"changed": {dev: f.dev, ino: f.ino, size: f.size, mtime: f.mtime, ctime: f.ctime - 1},
	} {
		if sum, err := hash(t.Context(), fd, then); err == nil {
			t.Errorf("%s: %s", name, sum)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hash(ended, fd, f); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
}

// Only one of those who need the same hash makes it, and one that fails is not the others' failure.
func TestFlights(t *testing.T) {
	var g flights
	key := file{ino: 1}
	leads, lead := make(chan struct{}), make(chan error)
	failed := make(chan error, 1)
	go func() {
		_, err := g.do(context.Background(), key, func() (string, error) { close(leads); return "", <-lead })
		failed <- err
	}()
	<-leads
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.do(ended, key, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("one that gives up waiting: %v", err)
	}
	if sum, err := g.do(t.Context(), file{ino: 2}, func() (string, error) { return "other", nil }); sum != "other" || err != nil {
		t.Errorf("another file waits: %s, %v", sum, err)
	}
	var made int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			sum, err := g.do(t.Context(), key, func() (string, error) {
				mu.Lock()
				defer mu.Unlock()
				made++
				return "sum", nil
			})
			if sum != "sum" || err != nil {
				t.Errorf("%s, %v", sum, err)
			}
		})
	}
	broken := errors.New("broken")
	lead <- broken
	wg.Wait()
	if err := <-failed; !errors.Is(err, broken) {
		t.Errorf("the one that failed: %v", err)
	}
	if made == 0 {
		t.Error("nobody made it after all")
	}
}

// myself is this test as a process.
type myself struct {
	attest.Process
	proc *os.File
}

func (myself) UID() uint32      { return uint32(os.Geteuid()) }
func (m myself) Proc() *os.File { return m.proc }

// A hash is remembered once its file has settled, and made anew for as long as it is too young for that.
func TestRemembers(t *testing.T) {
	proc, err := os.Open("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	a, err := New(Options{SHA256: true})
	if err != nil {
		t.Fatal(err)
	}
	me := myself{proc: proc}
	x, err := a.look(t.Context(), me)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(x.fd)
	f := x.file
	first, err := a.sha256(t.Context(), me.UID(), x)
	if err != nil || len(first) != 64 {
		t.Fatal(first, err)
	}
	settled := !f.young(time.Now())
	if _, found := a.hashes.GetIfPresent(f); found && !settled {
		t.Error("the hash of a young file is remembered")
	}
	for f.young(time.Now()) { // this test may have been built just now
		if _, err := a.sha256(t.Context(), me.UID(), x); err != nil {
			t.Fatal(err)
		}
	}
	again, err := a.sha256(t.Context(), me.UID(), x)
	if err != nil || again != first {
		t.Fatal(again, err)
	}
	if sum, found := a.hashes.GetIfPresent(f); (found && sum == first) != (a.keep && x.origin == local) {
		t.Errorf("remembered: %v", found)
	}
}
