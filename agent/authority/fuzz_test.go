package authority_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/wardmesh/ward/agent/authority"
)

// FuzzJournal: with anything written over any part of the journal's file, it opens and can be read and written, or
// it is named as damaged. It never panics, faults, or hangs.
func FuzzJournal(f *testing.F) {
	path := filepath.Join(f.TempDir(), "journal.db")
	if err := authority.NewBoltStore(path, domain); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{}, false)
	f.Add(uint32(0), []byte{1}, true)
	f.Add(uint32(8192+8), []byte{0x10, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false)
	f.Add(uint32(12288), []byte{9, 9, 9, 9, 9, 9, 9, 9, 2}, false)
	f.Fuzz(func(t *testing.T, at uint32, with []byte, cut bool) {
		text := bytes.Clone(good)
		at %= uint32(len(text))
		copy(text[at:], with)
		if cut {
			text = text[:at]
		}
		path := filepath.Join(t.TempDir(), "journal.db")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := authority.OpenBoltStore(path)
		if err != nil {
			if !errors.Is(err, authority.ErrCorrupt) {
				t.Fatalf("OpenBoltStore = %v", err)
			}
			return
		}
		defer s.Close()
		ctx := context.Background()
		record := authority.Record{Bucket: authority.BucketJoins, Key: []byte("a"), Value: []byte("b")}
		if err := s.Commit(ctx, authority.Tx{Put: []authority.Record{record}}); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Get(ctx, record.Bucket, record.Key); err != nil || string(v) != "b" {
			t.Fatalf("Get = %q, %v", v, err)
		}
	})
}
