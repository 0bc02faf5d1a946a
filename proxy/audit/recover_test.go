package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/wardmesh/ward/proxy"
)

func again(o Options) Options {
	o.Registerer = prometheus.NewRegistry()
	return o
}

// withoutCheckpoints gives what a kill leaves: the log as it is, and none but the first checkpoint.
func withoutCheckpoints(t *testing.T, all map[string]string) {
	t.Helper()
	first, _, _ := strings.Cut(all[checkpointsName], "\n")
	all[checkpointsName] = first + "\n"
}

// Wherever in a line the writer is interrupted, what was whole before stays, and the rest is moved aside and kept.
func TestTornAnywhere(t *testing.T) {
	o := testOptions(t)
	ids := fill(t, o, 3)
	all := snapshot(t, o.Dir)
	withoutCheckpoints(t, all)
	name := segmentName(0)
	content := all[name]
	ends := []int{} // of the header and of each record
	for i, c := range content {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	for cut := range len(content) {
		near := slices.ContainsFunc(ends, func(end int) bool { return cut-end >= -2 && cut-end <= 2 })
		if cut%13 != 0 && !near {
			continue // an opening takes its milliseconds, and within a line all bytes are alike
		}
		all[name] = content[:cut]
		restore(t, o.Dir, all)
		whole := 0 // lines
		for whole < len(ends) && ends[whole] <= cut {
			whole++
		}
		l := mustOpen(t, again(o))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		want := ids[:max(0, whole-1)]
		if got := decisions(t, o.Dir); !slices.Equal(got, want) {
			t.Fatalf("cut at %d: the log holds %v, want %v", cut, got, want)
		}
		kept := ""
		if aside := asides(t, o.Dir); len(aside) == 1 {
			kept = readFile(t, aside[0])
		} else if len(aside) > 1 {
			t.Fatalf("cut at %d: %v", cut, aside)
		}
		tail := content[:cut]
		if whole > 0 {
			tail = content[ends[whole-1]:cut]
		}
		if kept != tail {
			t.Fatalf("cut at %d: %q was moved aside, want %q", cut, kept, tail)
		}
		mustVerify(t, o)
	}
}

// What a loss of power can leave, and what it cannot.
func TestTailOrDamage(t *testing.T) {
	o := testOptions(t)
	ids := fill(t, o, 6)
	all := snapshot(t, o.Dir)
	withoutCheckpoints(t, all)
	name := segmentName(0)
	lines := strings.SplitAfter(all[name], "\n")[:7] // header and records
	flip := func(s string) string { return strings.Replace(s, "portal", "p0rtal", 1) }
	for _, c := range []struct {
		name    string
		content []string
		kept    int   // records, when it is a torn tail
		damaged int64 // else the index
	}{
		{"zeros at the end", append(slices.Clone(lines), string(make([]byte, 4096))), 6, 0},
		{"zeros, and a newline", append(slices.Clone(lines), string(make([]byte, 4096))+"\n"), 6, 0},
		{"a line longer than any", append(slices.Clone(lines), strings.Repeat("x", maxLine+10)+"\n"), 6, 0},
		{"the last record altered", append(slices.Clone(lines[:6]), flip(lines[6])), 5, 0},
		{"a record in the middle altered", slices.Concat(lines[:3], []string{flip(lines[3])}, lines[4:]), 0, 2},
		{"a record in the middle zeroed", slices.Concat(lines[:3], []string{string(make([]byte, 100)) + "\n"}, lines[4:]), 0, 2},
		{"a record removed", slices.Concat(lines[:3], lines[4:]), 0, 2},
		{"two records swapped", slices.Concat(lines[:3], []string{lines[4], lines[3]}, lines[5:]), 0, 2},
		{"a record twice", slices.Concat(lines[:4], lines[3:]), 0, 3},
		{"the header altered", append([]string{strings.Replace(lines[0], "icu", "ICU", 1)}, lines[1:]...), 0, 0},
		{"no header", lines[1:], 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			all[name] = strings.Join(c.content, "")
			restore(t, o.Dir, all)
			before := snapshot(t, o.Dir)
			l, err := Open(context.Background(), again(o))
			if c.kept > 0 {
				if err != nil {
					t.Fatal(err)
				}
				l.Close()
				if got := decisions(t, o.Dir); !slices.Equal(got, ids[:c.kept]) {
					t.Errorf("the log holds %v", got)
				}
				if len(asides(t, o.Dir)) != 1 {
					t.Error("nothing was moved aside")
				}
				return
			}
			var ce *CorruptError
			if !errors.As(err, &ce) || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("Open gave %v", err)
			}
			if ce.Index != c.damaged || ce.File != filepath.Join(o.Dir, name) || ce.Advice == "" {
				t.Errorf("the error is %+v, want record %d", ce, c.damaged)
			}
			if diff := cmp.Diff(before, snapshot(t, o.Dir)); diff != "" {
				t.Errorf("the folder was changed:\n%s", diff)
			}
		})
	}
}

// A log that is not what was signed is named and left as it is.
func TestOpenRefuses(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	fill(t, o, 20)
	whole := snapshot(t, o.Dir)
	segments, err := listSegments(o.Dir)
	if err != nil || len(segments) < 4 {
		t.Fatal(segments, err)
	}
	last := filepath.Base(segments[len(segments)-1].path)
	second := filepath.Base(segments[1].path)
	for _, c := range []struct {
		name   string
		change func(all map[string]string)
		file   string
		want   string
	}{
		{"a segment in the middle is missing", func(all map[string]string) { delete(all, second) }, segmentName(0), "ends before record"},
		{"the first segment is missing", func(all map[string]string) { delete(all, segmentName(0)) }, segmentName(0), "is missing"},
		{"damage, and torn ends besides", func(all map[string]string) {
			delete(all, second)
			all[checkpointsName] += "{half"
			all[segmentName(20)] = "{half"
		}, segmentName(0), "ends before record"},
		{"the last segment is missing", func(all map[string]string) { delete(all, last) }, "", "are signed"},
		{"all segments are missing", func(all map[string]string) {
			for _, s := range segments {
				delete(all, filepath.Base(s.path))
			}
		}, segmentName(0), "20 records are signed, but there is no segment"},
		{"the checkpoints are missing", func(all map[string]string) { delete(all, checkpointsName) }, checkpointsName, "no checkpoint"},
		{"the checkpoints are empty", func(all map[string]string) { all[checkpointsName] = "" }, checkpointsName, "no checkpoint"},
		{"the last record is cut off", func(all map[string]string) {
			all[last] = all[last][:strings.LastIndexByte(strings.TrimSuffix(all[last], "\n"), '\n')+1]
		}, last, "but 20 records are signed"},
		{"half of the last record is cut off", func(all map[string]string) { all[last] = all[last][:len(all[last])-20] }, last, "but 20 records are signed"},
		{"a signed record altered, its line made right", func(all map[string]string) {
			j := jsonOf(t, all[last])
			j[1] = strings.Replace(j[1], "portal", "p0rtal", 1)
			all[last] = reframe(t, segments[len(segments)-1].first, j)
		}, last, "this record was altered"},
		{"the same without the hashes", func(all map[string]string) {
			j := jsonOf(t, all[last])
			j[1] = strings.Replace(j[1], "portal", "p0rtal", 1)
			all[last] = reframe(t, segments[len(segments)-1].first, j)
			delete(all, hashesName)
		}, last, "one or more of the records"},
		{"an old record altered, and the hashes gone", func(all map[string]string) {
			j := jsonOf(t, all[second])
			j[1] = strings.Replace(j[1], "portal", "p0rtal", 1)
			all[second] = reframe(t, segments[1].first, j)
			delete(all, hashesName)
		}, filepath.Base(segments[2].path), "has the root"},
		{"a checkpoint's signature altered", func(all map[string]string) {
			j := jsonOf(t, all[checkpointsName])
			end := len(j) - 1
			sig := strings.LastIndex(j[end], " ") + 20
			flipped := byte('A')
			if j[end][sig] == 'A' {
				flipped = 'B'
			}
			j[end] = j[end][:sig] + string(flipped) + j[end][sig+1:]
			lines := strings.SplitAfter(all[checkpointsName], "\n")
			all[checkpointsName] = strings.Join(lines[:end], "") + string(appendFrame(nil, []byte(j[end]), frameSum([]byte(j[end])), 20, 20))
		}, checkpointsName, "signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := map[string]string{}
			for name, content := range whole {
				all[name] = content
			}
			c.change(all)
			restore(t, o.Dir, all)
			_, err := Open(context.Background(), again(o))
			var ce *CorruptError
			if !errors.As(err, &ce) {
				t.Fatalf("Open gave %v", err)
			}
			if c.file != "" && filepath.Base(ce.File) != c.file || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open gave %v\nwant %s: %s", err, c.file, c.want)
			}
			after := snapshot(t, o.Dir)
			for _, m := range []map[string]string{all, after} { // a cache may come and go
				delete(m, hashesName)
				delete(m, hashesName+".new")
			}
			if diff := cmp.Diff(all, after); diff != "" {
				t.Errorf("the folder was changed:\n%s", diff)
			}
		})
	}
}

// The hashes are a cache: without them, or with wrong ones, the log opens and makes them again.
func TestHashesAreACache(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	fill(t, o, 20)
	want := readFile(t, filepath.Join(o.Dir, hashesName))
	for name, content := range map[string]string{"missing": "", "short": want[:100], "wrong": strings.Repeat("x", len(want)), "too long": want + want} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(o.Dir, hashesName)
			if writeFile(t, path, content); content == "" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			if err := mustOpen(t, again(o)).Close(); err != nil {
				t.Fatal(err)
			}
			if readFile(t, path) != want {
				t.Error("the hashes are not what they were")
			}
			mustVerify(t, o)
		})
	}
}

// A checkpoint that was half written is moved aside, and one that covers everything is made instead.
func TestTornCheckpoint(t *testing.T) {
	o := testOptions(t)
	fill(t, o, 3)
	path := filepath.Join(o.Dir, checkpointsName)
	content := readFile(t, path)
	for _, cut := range []int{1, 50, 200} {
		writeFile(t, path, content[:len(content)-cut])
		if err := mustOpen(t, again(o)).Close(); err != nil {
			t.Fatal(err)
		}
		if r := mustVerify(t, o); r.Signed != 3 {
			t.Errorf("%d records are signed", r.Signed)
		}
	}
	if n := len(asides(t, o.Dir)); n != 3 {
		t.Errorf("%d files were moved aside", n)
	}
}

func TestSecondWriter(t *testing.T) {
	o := testOptions(t)
	l := mustOpen(t, o)
	_, err := Open(context.Background(), again(o))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open gave %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, again(o))
}

func TestKey(t *testing.T) {
	o := testOptions(t)
	fill(t, o, 1)
	key := o.Dir + ".key"
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key is %v, %v", info, err)
	}
	content := readFile(t, key)
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"missing", func() { os.Remove(key) }, "is missing"},
		{"readable by others", func() { os.Chmod(key, 0o644) }, "chmod 0600"},
		{"not a key", func() { writeFile(t, key, "secret-"+content) }, "not a signed note's key"},
		{"a folder", func() { os.Remove(key); os.Mkdir(key, 0o700) }, "not a regular file"},
		{"another one", func() {
			os.Remove(key)
			if err := createKey(key, testOrigin); err != nil {
				t.Fatal(err)
			}
		}, "another key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() {
				os.RemoveAll(key)
				writeFile(t, key, content)
			})
			c.change()
			_, err := Open(context.Background(), again(o))
			if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open gave %v, want %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), strings.TrimSpace(content)[20:]) {
				t.Error("the error shows the key")
			}
		})
	}
	mustVerify(t, o)
}

func TestAccess(t *testing.T) {
	o := testOptions(t)
	fill(t, o, 1)
	name := filepath.Join(o.Dir, segmentName(0))
	for path, mode := range map[string]os.FileMode{o.Dir: 0o700, name: 0o600, filepath.Join(o.Dir, checkpointsName): 0o600, filepath.Join(o.Dir, lockName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
	}
	for path, modes := range map[string][2]os.FileMode{o.Dir: {0o755, 0o700}, name: {0o660, 0o600}} {
		if err := os.Chmod(path, modes[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), again(o)); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("with %s open to others, Open gave %v", path, err)
		}
		if err := os.Chmod(path, modes[1]); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(o.Dir, segmentName(1))
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), again(o)); !errors.Is(err, ErrAccess) {
		t.Errorf("with a symbolic link in the folder, Open gave %v", err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	// A folder that a group may read makes files that it may read.
	o.SegmentSize = 1
	if err := os.Chmod(o.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	fill(t, again(o), 2)
	if info, err := os.Stat(lastSegment(t, o.Dir).path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("a new segment has mode %v, %v", info.Mode(), err)
	}
}

func TestOptions(t *testing.T) {
	good := testOptions(t)
	for name, change := range map[string]func(*Options){
		"no folder":           func(o *Options) { o.Dir = "" },
		"no origin":           func(o *Options) { o.Origin = "" },
		"spaces in origin":    func(o *Options) { o.Origin = "a b" },
		"a plus in origin":    func(o *Options) { o.Origin = "a+b" },
		"controls in origin":  func(o *Options) { o.Origin = "a\u202eb" },
		"half a key":          func(o *Options) { o.Key = &Key{} },
		"no logger":           func(o *Options) { o.Logger = nil },
		"no registry":         func(o *Options) { o.Registerer = nil },
		"negative size":       func(o *Options) { o.SegmentSize = -1 },
		"folder's parent":     func(o *Options) { o.Dir = filepath.Join(o.Dir, "none", "audit") },
		"folder is a file":    func(o *Options) { writeFile(t, o.Dir+"x", ""); o.Dir += "x" },
		"metrics named twice": func(o *Options) { mustOpen(t, *o); o.Dir += "y" },
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			change(&o)
			if l, err := Open(context.Background(), o); err == nil {
				l.Close()
				t.Error("it was opened")
			}
		})
	}
}

// What the log says while it runs and recovers holds nothing of its records.
func TestLogsNothingOfRecords(t *testing.T) {
	o := testOptions(t)
	core, logs := observer.New(zapcore.DebugLevel)
	o.Logger = zap.New(core)
	disk := &faultyDisk{}
	o.FS = disk
	l := mustOpen(t, o)
	r := refusal(newDecision())
	r.Patients, r.User = []string{"patient-4711"}, "dr.lee"
	mustAdd(t, l, r)
	disk.set(func() { disk.write = errors.New("broken") })
	receipt, err := l.Append(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = receipt.Wait(context.Background())
	l.Close()
	o.FS = nil
	mustOpen(t, again(o)).Close()
	if logs.Len() == 0 {
		t.Fatal("nothing was logged")
	}
	for _, e := range logs.All() {
		if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, "4711") || strings.Contains(text, "dr.lee") {
			t.Error(text)
		}
	}
}

// An opening can be given up.
func TestOpenCanceled(t *testing.T) {
	o := testOptions(t)
	fill(t, o, 1)
	if _, err := Open(canceled(), again(o)); !errors.Is(err, context.Canceled) {
		t.Errorf("Open gave %v", err)
	}
	mustOpen(t, again(o))
}

func TestClosed(t *testing.T) {
	l := mustOpen(t, testOptions(t))
	receipt, err := l.Append(&proxy.Record{Stage: proxy.StageEvent})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := receipt.Wait(context.Background()); err != nil {
		t.Errorf("what was appended before Close: %v", err)
	}
	if _, err := l.Append(&proxy.Record{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Append gave %v", err)
	}
}
