// Package storetest holds what every authority.Store must do, as tests. A store that passes can hold the journal.
//
// See authority.Store for the contract. The tests ask nothing of how a store is made: New opens an empty one, and
// Reopen opens the same one again after it was closed, as a restart does.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/agent/authority"
)

// Backend makes the stores under test.
type Backend interface {
	// New opens a store that holds nothing in the buckets joins and deny.
	New(t *testing.T) authority.Store
	// Reopen opens again what the store that New returned last has held. That store is closed.
	Reopen(t *testing.T) authority.Store
}

const (
	bucket = authority.BucketJoins
	other  = authority.BucketDeny
)

// Run runs the suite.
func Run(t *testing.T, b Backend) {
	ctx := context.Background()
	with := func(name string, f func(*testing.T, authority.Store)) {
		t.Run(name, func(t *testing.T) {
			s := b.New(t)
			defer s.Close()
			f(t, s)
		})
	}

	with("a record is there once it is committed", func(t *testing.T, s authority.Store) {
		want(t, s, "a", "")
		commit(t, s, authority.Tx{Put: []authority.Record{put("a", "1")}})
		want(t, s, "a", "1")
		commit(t, s, authority.Tx{Put: []authority.Record{put("a", "2")}})
		want(t, s, "a", "2")
		commit(t, s, authority.Tx{Delete: []authority.Record{put("a", "")}})
		want(t, s, "a", "")
		commit(t, s, authority.Tx{Delete: []authority.Record{put("a", "")}})
	})

	with("buckets are apart", func(t *testing.T, s authority.Store) {
		commit(t, s, authority.Tx{Put: []authority.Record{put("a", "1"), {Bucket: other, Key: []byte("a"), Value: []byte("2")}}})
		want(t, s, "a", "1")
		if v, err := s.Get(ctx, other, []byte("a")); err != nil || string(v) != "2" {
			t.Errorf("Get = %q, %v", v, err)
		}
		if diff := cmp.Diff([]string{"a=1"}, list(t, s, "", "")); diff != "" {
			t.Error(diff)
		}
	})

	with("values belong to the caller", func(t *testing.T, s authority.Store) {
		value := []byte("1")
		commit(t, s, authority.Tx{Put: []authority.Record{{Bucket: bucket, Key: []byte("a"), Value: value}}})
		value[0] = 'x'
		got, err := s.Get(ctx, bucket, []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		got[0] = 'y'
		want(t, s, "a", "1")
	})

	with("a range is in the order of bytes, without its end", func(t *testing.T, s authority.Store) {
		commit(t, s, authority.Tx{Put: []authority.Record{put("b", "2"), put("\xff", "4"), put("a", "1"), put("a\x00", "1b"), put("c", "3")}})
		for _, c := range []struct {
			from, to string
			want     []string
		}{
			{"", "", []string{"a=1", "a\x00=1b", "b=2", "c=3", "\xff=4"}},
			{"a\x00", "c", []string{"a\x00=1b", "b=2"}},
			{"b", "b", nil},
			{"d", "", []string{"\xff=4"}},
		} {
			if diff := cmp.Diff(c.want, list(t, s, c.from, c.to)); diff != "" {
				t.Errorf("%q to %q (-want +got):\n%s", c.from, c.to, diff)
			}
		}
		stop, seen := errors.New("stop"), 0
		err := s.Range(ctx, bucket, nil, nil, func(_, _ []byte) error { seen++; return stop })
		if !errors.Is(err, stop) || seen != 1 {
			t.Errorf("Range = %v after %d records, want it to stop", err, seen)
		}
	})

	with("a transaction happens whole or not at all", func(t *testing.T, s authority.Store) {
		commit(t, s, authority.Tx{Put: []authority.Record{put("a", "1"), put("b", "1")}})
		err := s.Commit(ctx, authority.Tx{
			If:     []authority.Condition{cond("a", "1"), cond("b", "2")},
			Put:    []authority.Record{put("a", "9"), put("c", "9")},
			Delete: []authority.Record{put("b", "")},
		})
		if !errors.Is(err, authority.ErrConflict) {
			t.Fatalf("Commit = %v, want ErrConflict", err)
		}
		if diff := cmp.Diff([]string{"a=1", "b=1"}, list(t, s, "", "")); diff != "" {
			t.Error(diff)
		}
	})

	with("conditions", func(t *testing.T, s authority.Store) {
		commit(t, s, authority.Tx{If: []authority.Condition{cond("a", "")}, Put: []authority.Record{put("a", "1")}})
		for name, c := range map[string]authority.Condition{"is absent": cond("a", ""), "has another value": cond("a", "2"), "is there": cond("b", "1")} {
			if err := s.Commit(ctx, authority.Tx{If: []authority.Condition{c}}); !errors.Is(err, authority.ErrConflict) {
				t.Errorf("%s: Commit = %v, want ErrConflict", name, err)
			}
		}
		commit(t, s, authority.Tx{If: []authority.Condition{cond("a", "1"), cond("b", "")}, Delete: []authority.Record{put("a", "")}})
		want(t, s, "a", "")
	})

	with("a record can be taken once", func(t *testing.T, s authority.Store) { // a join token
		commit(t, s, authority.Tx{Put: []authority.Record{put("token", "1")}})
		var wg sync.WaitGroup
		results := make(chan error, 16)
		for range cap(results) {
			wg.Go(func() {
				results <- s.Commit(ctx, authority.Tx{If: []authority.Condition{cond("token", "1")}, Delete: []authority.Record{put("token", "")}})
			})
		}
		wg.Wait()
		close(results)
		taken := 0
		for err := range results {
			switch {
			case err == nil:
				taken++
			case !errors.Is(err, authority.ErrConflict):
				t.Error(err)
			}
		}
		if taken != 1 {
			t.Errorf("taken %d times", taken)
		}
	})

	with("what one store would refuse, all refuse", func(t *testing.T, s authority.Store) {
		var many authority.Tx
		for i := range authority.MaxWrites {
			many.Put = append(many.Put, put(fmt.Sprintf("%03d", i), "x"))
		}
		commit(t, s, many)
		many.Put = append(many.Put, put("more", "x"))
		for name, tx := range map[string]authority.Tx{
			"too many":        many,
			"twice":           {Put: []authority.Record{put("a", "1"), put("a", "2")}},
			"put and deleted": {Put: []authority.Record{put("a", "1")}, Delete: []authority.Record{put("a", "")}},
			"no key":          {Put: []authority.Record{put("", "1")}},
			"no value":        {Put: []authority.Record{put("a", "")}},
		} {
			if err := s.Commit(ctx, tx); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	})

	with("a context that has ended ends the call", func(t *testing.T, s authority.Store) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Commit(ended, authority.Tx{Put: []authority.Record{put("a", "1")}}); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit = %v", err)
		}
		if _, err := s.Get(ended, bucket, []byte("a")); !errors.Is(err, context.Canceled) {
			t.Errorf("Get = %v", err)
		}
		want(t, s, "a", "")
	})

	t.Run("what was committed outlives the store", func(t *testing.T) {
		s := b.New(t)
		commit(t, s, authority.Tx{Put: []authority.Record{put("a", "1")}})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = b.Reopen(t)
		defer s.Close()
		want(t, s, "a", "1")
	})
}

func put(key, value string) authority.Record {
	return authority.Record{Bucket: bucket, Key: []byte(key), Value: []byte(value)}
}

func cond(key, value string) authority.Condition {
	c := authority.Condition{Bucket: bucket, Key: []byte(key)}
	if value != "" {
		c.Value = []byte(value)
	}
	return c
}

func commit(t *testing.T, s authority.Store, tx authority.Tx) {
	t.Helper()
	if err := s.Commit(context.Background(), tx); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// want checks a record's value; "" stands for no record.
func want(t *testing.T, s authority.Store, key, value string) {
	t.Helper()
	got, err := s.Get(context.Background(), bucket, []byte(key))
	if value == "" && errors.Is(err, authority.ErrNotFound) {
		return
	}
	if err != nil || string(got) != value {
		t.Errorf("Get(%q) = %q, %v; want %q", key, got, err, value)
	}
}

func list(t *testing.T, s authority.Store, from, to string) []string {
	t.Helper()
	var end []byte
	if to != "" {
		end = []byte(to)
	}
	var out []string
	err := s.Range(context.Background(), bucket, []byte(from), end, func(k, v []byte) error {
		out = append(out, string(k)+"="+string(v))
		return nil
	})
	if err != nil {
		t.Fatalf("Range: %v", err)
	}
	return out
}
