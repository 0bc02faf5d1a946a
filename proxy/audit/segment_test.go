package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// FuzzSegment reads any bytes as a segment. Whatever is accepted is exactly what the writer would have written, and a
// torn tail never begins before the end of what was accepted.
func FuzzSegment(f *testing.F) {
	head, err := encodeHeader(header{Schema: segmentSchema, Time: testTime, Origin: testOrigin, Root: newMemoryTree().root()})
	if err != nil {
		f.Fatal(err)
	}
	record := []byte(`{"schema":"ward.audit/1","stage":"event","time":"2026-11-23T08:40:04Z"}`)
	two := appendFrame(appendFrame(bytes.Clone(head), record, frameSum(record), 0, 0), record, frameSum(record), 1, 1)
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(head)
	f.Add(bytes.Replace(two, []byte("event"), []byte("evenT"), 1))
	f.Add(append(bytes.Clone(two), make([]byte, 4096)...))
	f.Add([]byte("{} 0 0 0\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := newReader(segment{}, bytes.NewReader(content))
		if err != nil {
			return
		}
		at := r.lines.at
		for {
			f, offset, err := r.read()
			var d *damage
			if errors.As(err, &d) {
				if d.offset != at {
					t.Fatalf("damage at %d, the last record ended at %d", d.offset, at)
				}
				if _, err := r.torn(d, 0); err != nil {
					t.Fatal(err)
				}
				return
			}
			if errors.Is(err, io.EOF) {
				if offset != at || bytes.IndexByte(content[at:], '\n') >= 0 {
					t.Fatalf("the end is at %d, but a line begins at %d", offset, at)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			line := appendFrame(nil, f.json, frameSum(f.json), f.index, f.synced)
			if !bytes.HasPrefix(content[offset:], line) || offset != at {
				t.Fatalf("read %q at %d", line, offset)
			}
			at += int64(len(line))
		}
	})
}

// A changed bit, anywhere in a line, is seen.
func TestFrameSeesEveryBit(t *testing.T) {
	record := []byte(`{"schema":"ward.audit/1","stage":"event","time":"2026-11-23T08:40:04Z"}`)
	line := bytes.TrimSuffix(appendFrame(nil, record, frameSum(record), 41, 38), []byte("\n"))
	if _, err := parseFrame(line); err != nil {
		t.Fatal(err)
	}
	for i := range line {
		for bit := range 8 {
			bad := bytes.Clone(line)
			bad[i] ^= 1 << bit
			if _, err := parseFrame(bad); err == nil {
				t.Errorf("accepted %s", bad)
			}
		}
	}
	for _, bad := range []string{"", " ", "{}", "{} 0 0", "{} 00 0 1", "{} -1 0 1", "{} 0 1 1"} {
		if _, err := parseFrame([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

// lines gives the same lines however the file gives its bytes, and goes on after the end when there is more.
func TestLines(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), 300<<10))
	content := "one\n\n" + long + "\nfour"
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader([]byte(content)), "half": iotest.HalfReader(bytes.NewReader([]byte(content)))} {
		t.Run(name, func(t *testing.T) {
			g := &growing{}
			l := &lines{r: g}
			if _, err := io.Copy(g, r); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"one", "", long} {
				if got, _, err := l.next(); err != nil || string(got) != want {
					t.Fatalf("got %.20q, %v", got, err)
				}
			}
			for range 2 {
				if _, at, err := l.next(); !errors.Is(err, io.EOF) || at != int64(len(content)-4) {
					t.Fatalf("at %d: %v, want EOF", at, err)
				}
			}
			fmt.Fprint(g, "th\n")
			if got, _, err := l.next(); err != nil || string(got) != "fourth" {
				t.Fatalf("got %q, %v", got, err)
			}
			fmt.Fprint(g, string(make([]byte, maxLine+1)))
			if _, _, err := l.next(); !errors.Is(err, errFrame) {
				t.Fatalf("a line without end: %v", err)
			}
		})
	}
}

// growing is a file to which something is appended.
type growing struct{ b []byte }

func (g *growing) Write(p []byte) (int, error) { g.b = append(g.b, p...); return len(p), nil }
func (g *growing) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(g.b).ReadAt(p, at)
}

// The tree that grows at its edge, its file and its resumption are tlog's tree.
func TestTreeIsTlogs(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 300).Draw(rt, "records")
		stop := rapid.IntRange(0, n).Draw(rt, "resumed at")
		file, err := openHashes(filepath.Join(dir, hashesName), os.O_TRUNC, 0o600)
		if err != nil {
			rt.Fatal(err)
		}
		defer file.Close()
		mine := newTree(file)
		var stored []tlog.Hash
		reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			var all []tlog.Hash
			for _, i := range indexes {
				all = append(all, stored[i])
			}
			return all, nil
		})
		for i := range n {
			if i == stop {
				mine.flush()
				mine = newTree(file)
				if err := mine.resume(int64(i)); err != nil {
					rt.Fatal(err)
				}
			}
			record := fmt.Appendf(nil, "record %d", i)
			more, err := tlog.StoredHashes(int64(i), record, reader)
			if err != nil {
				rt.Fatal(err)
			}
			stored = append(stored, more...)
			mine.add(record)
		}
		mine.flush()
		want, err := tlog.TreeHash(int64(n), reader)
		if err != nil {
			rt.Fatal(err)
		}
		fromFile, err := mine.storedRoot(int64(n))
		if err != nil || mine.root() != want || fromFile != want {
			rt.Fatalf("root %v, from the file %v (%v), want %v", mine.root(), fromFile, err, want)
		}
	})
}
