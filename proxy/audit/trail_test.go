package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// twoDisks sends what happens below one folder to a disk that can fail.
type twoDisks struct {
	faultyDisk
	dir string // on the faulty one
}

func (d *twoDisks) on(name string) FS {
	if rel, err := filepath.Rel(d.dir, name); err == nil && filepath.IsLocal(rel) {
		return &d.faultyDisk
	}
	return Host{}
}

func (d *twoDisks) Append(name string, create bool, mode os.FileMode) (File, error) {
	return d.on(name).Append(name, create, mode)
}
func (d *twoDisks) SyncDir(dir string) error       { return d.on(dir).SyncDir(dir) }
func (d *twoDisks) Free(dir string) (int64, error) { return d.on(dir).Free(dir) }

func mustOpenTrail(t testing.TB, o Options, second string) *Trail {
	t.Helper()
	trail, err := OpenTrail(context.Background(), o, second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trail.Close() })
	return trail
}

func trailOptions(t testing.TB) (Options, string, *twoDisks) {
	t.Helper()
	o := testOptions(t)
	o.Retry, o.MinFree = time.Millisecond, 1<<20
	disk := &twoDisks{dir: o.Dir}
	o.FS = disk
	return o, filepath.Join(t.TempDir(), "second"), disk
}

// events gives the links between two logs, in order, with the index of each.
func events(t testing.TB, dir string) (all []string, links []Link, indexes []int64) {
	t.Helper()
	for e, err := range Scan(context.Background(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Event == EventStandIn || e.Record.Event == EventReturned {
			var l Link
			if err := json.Unmarshal(e.Record.Data, &l); err != nil {
				t.Fatal(err)
			}
			all, links, indexes = append(all, e.Record.Event), append(links, l), append(indexes, e.Index)
		}
	}
	return all, links, indexes
}

// While the first log fails or has no room, under load, no record is refused; both logs say how they hang together, and
// verify.
func TestSecondStandsIn(t *testing.T) {
	for name, fault := range map[string]func(*faultyDisk, bool){
		"EIO on write": func(d *faultyDisk, on bool) {
			d.write = nil
			if on {
				d.write = unix.EIO
			}
		},
		"EIO on fdatasync": func(d *faultyDisk, on bool) {
			d.sync = nil
			if on {
				d.sync = unix.EIO
			}
		},
		"no room": func(d *faultyDisk, on bool) {
			d.free, d.nospc = 0, on
			if on {
				d.free = 1000
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, second, disk := trailOptions(t)
			trail := mustOpenTrail(t, o, second)
			var mu sync.Mutex
			kept, refused := map[string]bool{}, 0
			ctx, cancel := context.WithCancel(context.Background())
			var work sync.WaitGroup
			for range 4 {
				work.Go(func() {
					for ctx.Err() == nil {
						r := refusal(newDecision())
						r.Detail = fmt.Sprintf("%20000s", "x")
						err := add(trail, r)
						mu.Lock()
						if err == nil {
							kept[r.Decision] = true
						} else {
							refused++
						}
						mu.Unlock()
					}
				})
			}
			for range 2 {
				before := trail.first.durable.Load()
				until(t, "records in the first", func() bool { return trail.first.durable.Load() > before+20 })
				disk.set(func() { fault(&disk.faultyDisk, true) })
				until(t, "the second", func() bool { return trail.Status().Away })
				before = trail.second.durable.Load()
				until(t, "records in the second", func() bool { return trail.second.durable.Load() > before+20 })
				if err := trail.Err(); err != nil {
					t.Errorf("the trail says %v", err)
				}
				disk.set(func() { fault(&disk.faultyDisk, false) })
				until(t, "the first again", func() bool { return !trail.Status().Away })
			}
			cancel()
			work.Wait()
			if err := trail.Close(); err != nil {
				t.Fatal(err)
			}
			if refused > 0 {
				t.Errorf("%d records were refused", refused)
			}
			mustVerify(t, o)
			two := o
			two.Dir = second
			mustVerify(t, two)
			found := map[string]bool{}
			for _, dir := range []string{o.Dir, second} {
				for _, id := range decisions(t, dir) {
					found[id] = true
				}
			}
			for id := range kept {
				if !found[id] {
					t.Fatalf("%s was durable, and is in neither log", id)
				}
			}
			inFirst, firstLinks, _ := events(t, o.Dir)
			inSecond, secondLinks, at := events(t, second)
			if len(inFirst) < 2 || len(inSecond) != 2*len(inFirst) {
				t.Fatalf("the first log says %q, the second %q", inFirst, inSecond)
			}
			for i, l := range firstLinks {
				in := secondLinks[2*i]
				if inFirst[i] != EventReturned || inSecond[2*i] != EventStandIn || in.Why == "" || in.Signed > in.Records || in.Origin != testOrigin {
					t.Errorf("%+v", in)
				}
				if l.From != at[2*i] || l.To != at[2*i+1] || l.Origin != testOrigin+"/second" {
					t.Errorf("the first says %d to %d of %s, it was %d to %d", l.From, l.To, l.Origin, at[2*i], at[2*i+1])
				}
			}
			if at[0] != 0 {
				t.Errorf("the second log's first link is its record %d", at[0])
			}
		})
	}
}

// A restart while the second stands in does not lose the link; the first may be out of reach then.
func TestSecondAcrossRestart(t *testing.T) {
	o, second, disk := trailOptions(t)
	trail := mustOpenTrail(t, o, second)
	mustAppendWait(t, trail, "one")
	disk.set(func() { disk.sync = unix.EIO })
	mustAppendWait(t, trail, "two")
	if err := trail.Close(); !errors.Is(err, ErrFailed) {
		t.Fatalf("Close gave %v", err)
	}
	disk.set(func() { disk.off = true })
	o = again(o)
	trail = mustOpenTrail(t, o, second)
	if s := trail.Status(); !s.Away || !errors.Is(s.First.Err, ErrFailed) || s.Err() != nil {
		t.Fatalf("the status is %+v", s)
	}
	mustAppendWait(t, trail, "three")
	disk.set(func() { disk.off, disk.sync = false, nil })
	until(t, "the first", func() bool { mustAppendWait(t, trail, "four"); return !trail.Status().Away })
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	_, links, _ := events(t, o.Dir)
	if len(links) != 1 || links[0].From != 0 || links[0].To < 3 {
		t.Errorf("the first log says %+v", links)
	}
	mustVerify(t, o)
}

func mustAppendWait(t testing.TB, l proxy.Recorder, id string) {
	t.Helper()
	if err := add(l, refusal(id)); err != nil {
		t.Fatal(err)
	}
}

// With neither log able to take anything, records are refused, but for emergencies, for which there is the reserve.
func TestNeither(t *testing.T) {
	o, second, disk := trailOptions(t)
	o.Reserve = 256 << 10
	disk.dir = filepath.Dir(filepath.Dir(filepath.Dir(second))) // both on the one that fails
	o.FS = disk
	trail := mustOpenTrail(t, o, second)
	disk.set(func() { disk.free = 1000 })
	fillUp(t, trail, 20000)
	if err := add(trail, refusal("no")); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := trail.Err(); !errors.Is(err, ErrFull) {
		t.Errorf("the trail says %v", err)
	}
	for range 400 { // more than one reserve holds
		if err := add(trail, emergency(newDecision())); err != nil {
			t.Fatal(err)
		}
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o)
}

// A first log that is damaged is not one that cannot be reached.
func TestTrailRefusesDamage(t *testing.T) {
	o, second, _ := trailOptions(t)
	fill(t, o, 3)
	path := lastSegment(t, o.Dir).path
	writeFile(t, path, "{}"+readFile(t, path))
	if _, err := OpenTrail(context.Background(), again(o), second); !errors.Is(err, ErrCorrupt) {
		t.Errorf("OpenTrail gave %v", err)
	}
}
