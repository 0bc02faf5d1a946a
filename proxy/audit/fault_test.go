package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// faultyDisk is the host's file system, with a disk that can lose its power, fail, fill up and be slow.
type faultyDisk struct {
	Host
	mu     sync.Mutex
	files  map[string]*faultyFile
	names  map[string]bool // created, and not yet made durable by SyncDir
	off    bool            // the power is gone: nothing works any more
	write  error           // what the next writes give, after half of the bytes
	sync   error           // what the next syncs give
	free   int64           // what Free says; 0 is the truth
	nospc  bool            // Reserve finds no room
	gate   chan struct{}   // when set, each sync of a segment waits for a value,
	atGate chan struct{}   // having sent one
	synced atomic.Int64    // syncs that were begun
}

type faultyFile struct {
	File
	disk *faultyDisk
	path string
	safe int64 // the bytes that survive a loss of power
	size int64
}

var errPower = errors.New("the power is gone")

func (d *faultyDisk) Append(name string, create bool, mode fs.FileMode) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, errPower
	}
	f, err := d.Host.Append(name, create, mode)
	if err != nil {
		return nil, err
	}
	if d.files == nil {
		d.files, d.names = map[string]*faultyFile{}, map[string]bool{}
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	ff := &faultyFile{File: f, disk: d, path: name, safe: info.Size(), size: info.Size()}
	d.files[name] = ff
	d.names[name] = create
	return ff, nil
}

func (d *faultyDisk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPower
	}
	for name := range d.names {
		if filepath.Dir(name) == dir {
			d.names[name] = false
		}
	}
	return d.Host.SyncDir(dir)
}

func (d *faultyDisk) Free(dir string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.free != 0 {
		return d.free, nil
	}
	return d.Host.Free(dir)
}

func (f *faultyFile) Write(p []byte) (int, error) {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.off:
		return 0, errPower
	case d.write != nil:
		n, _ := f.File.Write(p[:len(p)/2])
		f.size += int64(n)
		return n, d.write
	}
	n, err := f.File.Write(p)
	f.size += int64(n)
	return n, err
}

func (f *faultyFile) Sync() error {
	f.disk.synced.Add(1)
	f.disk.mu.Lock()
	gate := f.disk.gate
	f.disk.mu.Unlock()
	if gate != nil && filepath.Base(f.path) != checkpointsName {
		f.disk.atGate <- struct{}{}
		<-gate
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	switch {
	case f.disk.off:
		return errPower
	case f.disk.sync != nil:
		return f.disk.sync
	}
	f.safe = f.size
	return nil
}

func (f *faultyFile) Reserve(offset, size int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.nospc {
		return &os.PathError{Op: "fallocate", Path: f.path, Err: unix.ENOSPC}
	}
	return f.File.Reserve(offset, size)
}

// losePower makes the files what a disk may hold afterwards: all that was synced, and of the rest any part, with pages
// in between that were never written.
func (d *faultyDisk) losePower(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	for name, f := range d.files {
		if d.names[name] && rnd.IntN(2) == 0 {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b := []byte(readFile(t, name))
		keep := f.safe + rnd.Int64N(int64(len(b))-f.safe+1)
		b = b[:keep]
		if n := keep - f.safe; n > 0 && rnd.IntN(2) == 0 {
			hole := f.safe + rnd.Int64N(n)
			clear(b[hole:min(keep, hole+1+rnd.Int64N(512))])
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *faultyDisk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// After a loss of power every record whose Wait had returned is in the log, and the log is whole.
func TestPowerLoss(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	o := testOptions(t)
	o.SegmentSize, o.CheckpointRecords = 4<<10, 16
	kept := map[string]bool{}
	for round := range 25 {
		disk := &faultyDisk{}
		o.FS, o.Registerer = disk, prometheus.NewRegistry()
		l := mustOpen(t, o)
		var mu sync.Mutex
		var work sync.WaitGroup
		enough := make(chan struct{})
		var once sync.Once
		limit := len(kept) + 1 + rnd.IntN(60)
		for range 4 {
			work.Go(func() {
				for {
					id := newDecision()
					receipt, err := l.Append(refusal(id))
					if err == nil {
						_, _ = l.Append(&proxy.Record{Stage: proxy.StageEgress}) // for which nobody waits
						err = receipt.Wait(context.Background())
					}
					if err != nil {
						return
					}
					mu.Lock()
					kept[id] = true
					if len(kept) >= limit {
						once.Do(func() { close(enough) })
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		// While the writer works: what it has synced by now counts, nothing else.
		mu.Lock()
		disk.losePower(t, rnd)
		mu.Unlock()
		work.Wait()
		if err := l.Close(); !errors.Is(err, ErrFailed) {
			t.Fatalf("round %d: Close gave %v", round, err)
		}

		o.FS, o.Registerer = nil, prometheus.NewRegistry()
		if err := mustOpen(t, o).Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, o)
		found := map[string]bool{}
		for _, id := range decisions(t, o.Dir) {
			found[id] = true
		}
		for id := range kept {
			if !found[id] {
				t.Fatalf("round %d: %s was durable and is gone", round, id)
			}
		}
	}
}

// After an error of write or fdatasync nothing is accepted, what had been waited for stays, and a new opening is good.
func TestFailsClosed(t *testing.T) {
	for name, fault := range map[string]func(*faultyDisk){
		"EIO on write":        func(d *faultyDisk) { d.write = unix.EIO },
		"EIO on fdatasync":    func(d *faultyDisk) { d.sync = unix.EIO },
		"ENOSPC on write":     func(d *faultyDisk) { d.write = unix.ENOSPC },
		"ENOSPC on fdatasync": func(d *faultyDisk) { d.sync = unix.ENOSPC },
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			disk := &faultyDisk{}
			o.FS = disk
			l := mustOpen(t, o)
			before := newDecision()
			mustAdd(t, l, refusal(before))

			disk.set(func() { fault(disk) })
			receipt, err := l.Append(refusal(newDecision()))
			if err != nil {
				t.Fatal(err)
			}
			if err := receipt.Wait(context.Background()); !errors.Is(err, ErrFailed) {
				t.Fatalf("Wait gave %v", err)
			}
			syncs := disk.synced.Load()
			disk.set(func() { disk.write, disk.sync = nil, nil }) // the disk looks well again
			for range 3 {
				if _, err := l.Append(refusal(newDecision())); !errors.Is(err, ErrFailed) {
					t.Fatalf("Append gave %v", err)
				}
			}
			if err := receipt.Wait(context.Background()); !errors.Is(err, ErrFailed) {
				t.Fatalf("a second Wait gave %v", err)
			}
			if err := l.Close(); !errors.Is(err, ErrFailed) {
				t.Fatalf("Close gave %v", err)
			}
			if disk.synced.Load() != syncs {
				t.Error("the file was synced again")
			}

			o.FS, o.Registerer = nil, prometheus.NewRegistry()
			after := newDecision()
			l = mustOpen(t, o)
			mustAdd(t, l, refusal(after))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			mustVerify(t, o)
			ids := decisions(t, o.Dir)
			if ids[0] != before || ids[len(ids)-1] != after {
				t.Errorf("the log holds %v", ids)
			}
		})
	}
}

// What is written to a removed file is durable for nobody.
func TestRemovedFileFailsClosed(t *testing.T) {
	for _, name := range []string{segmentName(0), "."} {
		o := testOptions(t)
		l := mustOpen(t, o)
		mustAdd(t, l, refusal(newDecision()))
		if err := os.RemoveAll(filepath.Clean(filepath.Join(o.Dir, name))); err != nil {
			t.Fatal(err)
		}
		receipt, err := l.Append(refusal(newDecision()))
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if !errors.Is(err, ErrFailed) {
			t.Errorf("a record after the removal of %s: %v", name, err)
		}
		if err := l.Close(); !errors.Is(err, ErrFailed) {
			t.Errorf("Close gave %v", err)
		}
	}
}

// A disk without room is refused before anything is written; with room again, the log goes on by itself.
func TestDiskFull(t *testing.T) {
	for name, fault := range map[string]func(*faultyDisk){
		"below MinFree":   func(d *faultyDisk) { d.free = 1000 },
		"no room to take": func(d *faultyDisk) { d.nospc = true },
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			o.MinFree = 1 << 20
			disk := &faultyDisk{}
			o.FS = disk
			if l, err := Open(context.Background(), o); err != nil {
				t.Fatal(err)
			} else if err := l.Close(); err != nil { // gives its reserved room back
				t.Fatal(err)
			}
			disk.set(func() { fault(disk) })
			o.Registerer = prometheus.NewRegistry()
			l := mustOpen(t, o)
			receipt, err := l.Append(refusal(newDecision()))
			if err != nil {
				t.Fatal(err)
			}
			if err := receipt.Wait(context.Background()); !errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) {
				t.Fatalf("Wait gave %v", err)
			}
			if _, err := l.Append(refusal(newDecision())); !errors.Is(err, ErrFull) {
				t.Fatalf("Append gave %v", err)
			}
			if err := l.Status().Err; !errors.Is(err, ErrFull) {
				t.Fatalf("Status says %v", err)
			}
			disk.set(func() { disk.free, disk.nospc = 0, false })
			var ids []string
			for len(ids) < 3 {
				id := newDecision()
				if receipt, err := l.Append(refusal(id)); err == nil {
					if err := receipt.Wait(context.Background()); err != nil {
						t.Fatal(err)
					}
					ids = append(ids, id)
				} else if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got := decisions(t, o.Dir); !slices.Equal(got, ids) {
				t.Errorf("the log holds %v, want %v", got, ids)
			}
			mustVerify(t, o)
		})
	}
}

// A little room that is left over, too little for a record, is not taken for room again and again.
func TestDiskStaysFull(t *testing.T) {
	o := testOptions(t)
	o.MinFree = 1 << 20
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	disk.set(func() { disk.free = 1000 })
	for { // until what was reserved is used up
		receipt, err := l.Append(refusal(newDecision()))
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if _, err := l.Append(refusal(newDecision())); !errors.Is(err, ErrFull) {
			t.Fatalf("Append gave %v", err)
		}
		for len(l.kick) > 0 { // until the writer has looked again
			runtime.Gosched()
		}
	}
}

// While the disk is slow, appending goes on until the queue is full, then waits, and then gives up; nothing is lost.
func TestSlowDisk(t *testing.T) {
	o := testOptions(t)
	o.QueueRecords, o.Patience = 8, 1
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	gate := make(chan struct{})
	disk.set(func() { disk.gate, disk.atGate = gate, make(chan struct{}, 100) })

	first, err := l.Append(refusal("first"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	waiting := make(chan error)
	go func() { waiting <- first.Wait(ctx) }()
	<-disk.atGate // the writer has taken the first record
	for i := range o.QueueRecords {
		if _, err := l.Append(refusal(fmt.Sprint(i))); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if _, err := l.Append(refusal("too many")); !errors.Is(err, ErrBusy) {
		t.Fatalf("Append to a full queue gave %v", err)
	}
	if _, err := l.AppendContext(canceled(), refusal("too many")); !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Fatalf("AppendContext to a full queue gave %v", err)
	}
	if s := l.Status(); s.Queued != o.QueueRecords+1 || s.Capacity != o.QueueRecords || s.Latency <= 0 {
		t.Errorf("the status is %+v", s)
	}
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Fatalf("Wait gave %v", err)
	}

	patient := make(chan error)
	go func() {
		receipt, err := l.AppendContext(context.Background(), refusal("last"))
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		patient <- err
	}()
	close(gate)
	if err := <-patient; err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"first", "0", "1", "2", "3", "4", "5", "6", "7", "last"}
	if got := decisions(t, o.Dir); !slices.Equal(got, want) {
		t.Errorf("the log holds %v", got)
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
