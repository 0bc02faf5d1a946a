package seal_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/agent/seal"
)

var domain = spiffeid.RequireTrustDomainFromString("clinic.example")

// clinic is an authority, and a folder in which its SVIDs are kept.
type clinic struct {
	*authority.Authority
	dir   string
	ahead atomic.Int64 // of the clock, in nanoseconds
}

func (c *clinic) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clinic) forward(d time.Duration) { c.ahead.Add(int64(d)) }

func newClinic(t testing.TB) *clinic {
	t.Helper()
	c := &clinic{dir: filepath.Join(t.TempDir(), "state", "svids")}
	a, err := authority.Open(context.Background(), authority.Options{Dir: filepath.Join(t.TempDir(), "ca"), TrustDomain: domain, Logger: zap.NewNop(),
		Clock: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	c.Authority = a
	return c
}

func (c *clinic) open(t testing.TB, box *seal.Box) (*seal.Keep, *seal.Kept) {
	t.Helper()
	k, kept, err := seal.OpenKeep(seal.KeepOptions{Dir: c.dir, Box: box, TrustDomain: domain, Clock: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return k, kept
}

func (c *clinic) svid(t testing.TB, entry string, ttl time.Duration) seal.SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(domain, "/app/"+entry)
	chain, err := c.IssueX509(context.Background(), authority.X509Request{ID: id, PublicKey: key.Public(), TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return seal.SVID{Slot: seal.Slot{Entry: entry, ID: id, TTL: ttl}, Certificates: chain, PrivateKey: key}
}

func (c *clinic) save(t testing.TB, k *seal.Keep, svids ...seal.SVID) {
	t.Helper()
	if err := k.SaveBundle(c.X509Bundle()); err != nil {
		t.Fatal(err)
	}
	for _, s := range svids {
		if err := k.Save(s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeep(t *testing.T) {
	c := newClinic(t)
	box := newBox(t, 1)
	k, kept := c.open(t, box)
	if len(kept.SVIDs) != 0 || kept.Bundle != nil || len(kept.Dropped) != 0 {
		t.Fatalf("at first there is %+v", kept)
	}
	long, short, gone := c.svid(t, "ehr", time.Hour), c.svid(t, "portal", time.Minute), c.svid(t, "lab", time.Hour)
	lent := c.svid(t, "ehr", time.Hour)
	lent.Lent = true
	c.save(t, k, long, short, gone, lent)
	renewed := c.svid(t, "ehr", time.Hour)
	c.save(t, k, renewed)
	if err := errors.Join(k.Forget(gone.Slot), k.Forget(gone.Slot)); err != nil {
		t.Fatal(err)
	}

	_, kept = c.open(t, box)
	if len(kept.SVIDs) != 3 || len(kept.Dropped) != 0 || !kept.Bundle.Equal(c.X509Bundle()) {
		t.Fatalf("kept: %+v", kept)
	}
	got := kept.Find(renewed.Slot)
	if got == nil || !got.Certificates[0].Equal(renewed.Certificates[0]) || !got.PrivateKey.(interface{ Equal(crypto.PrivateKey) bool }).Equal(renewed.PrivateKey) {
		t.Errorf("the renewed SVID is %+v", got)
	}
	if got := kept.Find(lent.Slot); got == nil || !got.Certificates[0].Equal(lent.Certificates[0]) {
		t.Error("the lent SVID is not apart from the workload's own")
	}
	other := renewed.Slot
	other.DNSNames = []string{"ehr.clinic.example"}
	if kept.Find(other) != nil || kept.Find(gone.Slot) != nil {
		t.Error("an SVID for another use, or a forgotten one, is found")
	}

	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 4 {
		t.Fatalf("the folder holds %v, %v", entries, err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
		text, err := os.ReadFile(filepath.Join(c.dir, e.Name()))
		if err != nil || bytes.Contains(text, renewed.Certificates[0].Raw[:40]) || strings.Contains(e.Name(), "ehr") {
			t.Errorf("%s tells something: %v", e.Name(), err)
		}
	}
	if info, err := os.Stat(c.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}

	// What ends is gone, on opening and while it is open.
	c.forward(time.Minute)
	k, kept = c.open(t, box)
	if len(kept.SVIDs) != 2 || len(kept.Dropped) != 1 || !errors.Is(kept.Dropped[0].Err, seal.ErrExpired) {
		t.Errorf("after a minute: %+v", kept)
	}
	c.forward(time.Hour)
	c.save(t, k, c.svid(t, "lab", time.Hour))
	if entries, err = os.ReadDir(c.dir); err != nil || len(entries) != 2 {
		t.Errorf("after an hour the folder holds %v, %v", entries, err)
	}
}

// TestKeepIsNotBelieved: what somebody has done to the folder is dropped, with the reason, and removed.
func TestKeepIsNotBelieved(t *testing.T) {
	box := newBox(t, 1)
	swap := func(t *testing.T, one, two string) {
		a, err1 := os.ReadFile(one)
		b, err2 := os.ReadFile(two)
		if err := errors.Join(err1, err2, os.WriteFile(one, b, 0o600), os.WriteFile(two, a, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		do      func(t *testing.T, c *clinic, files []string)
		kept    int
		dropped int
		is      error
		left    int // files, without the bundle
	}{
		"changed": {func(t *testing.T, c *clinic, files []string) {
			text, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			text[len(text)-1] ^= 1
			if err := os.WriteFile(files[0], text, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 1, 1, seal.ErrTampered, 1},
		"one in the other's place":      {func(t *testing.T, c *clinic, files []string) { swap(t, files[0], files[1]) }, 0, 2, seal.ErrTampered, 0},
		"the bundle in an SVID's place": {func(t *testing.T, c *clinic, files []string) { swap(t, files[0], filepath.Join(c.dir, "bundle")) }, 0, 3, seal.ErrTampered, 1},
		"no bundle": {func(t *testing.T, c *clinic, _ []string) {
			if err := os.Remove(filepath.Join(c.dir, "bundle")); err != nil {
				t.Fatal(err)
			}
		}, 0, 2, nil, 2},
		"empty": {func(t *testing.T, _ *clinic, files []string) {
			if err := os.Truncate(files[0], 0); err != nil {
				t.Fatal(err)
			}
		}, 1, 1, seal.ErrMalformed, 1},
		"huge": {func(t *testing.T, _ *clinic, files []string) {
			if err := os.Truncate(files[0], 1<<30); err != nil {
				t.Fatal(err)
			}
		}, 1, 1, seal.ErrMalformed, 1},
		"readable by others": {func(t *testing.T, _ *clinic, files []string) {
			if err := os.Chmod(files[0], 0o644); err != nil {
				t.Fatal(err)
			}
		}, 1, 1, seal.ErrUnsafe, 1},
		"a link": {func(t *testing.T, _ *clinic, files []string) {
			if err := errors.Join(os.Remove(files[0]), os.Symlink(files[1], files[0])); err != nil {
				t.Fatal(err)
			}
		}, 1, 1, nil, 2},
		"another's file": {func(t *testing.T, c *clinic, _ []string) {
			other := newClinic(t)
			k, _ := other.open(t, newBox(t, 1))
			other.save(t, k, other.svid(t, "intruder", time.Hour)) // the same key, another CA
			found, _ := filepath.Glob(filepath.Join(other.dir, "*.svid"))
			if err := os.Rename(found[0], filepath.Join(c.dir, filepath.Base(found[0]))); err != nil {
				t.Fatal(err)
			}
		}, 2, 1, nil, 2},
		"a CA that was retired by force": {func(t *testing.T, c *clinic, _ []string) {
			force := authority.Order{Force: true}
			ctx := context.Background()
			if err := errors.Join(c.Prepare(ctx, force), c.Activate(ctx, force), c.Retire(ctx, force)); err != nil {
				t.Fatal(err)
			}
			k, _ := c.open(t, newBox(t, 1))
			c.save(t, k)
		}, 0, 2, nil, 0},
		"another key's": {func(t *testing.T, c *clinic, _ []string) {
			for _, name := range []string{"bundle", "*.svid"} {
				found, _ := filepath.Glob(filepath.Join(c.dir, name))
				for _, f := range found {
					if err := os.Remove(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			k, _ := c.open(t, newBox(t, 2))
			c.save(t, k, c.svid(t, "ehr", time.Hour))
		}, 0, 2, seal.ErrForeign, 1},
		"unfinished": {func(t *testing.T, c *clinic, _ []string) {
			if err := os.WriteFile(filepath.Join(c.dir, ".unfinished-1"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 2, 0, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			here := newClinic(t)
			k, _ := here.open(t, box)
			here.save(t, k, here.svid(t, "ehr", time.Hour), here.svid(t, "portal", time.Hour))
			files, err := filepath.Glob(filepath.Join(here.dir, "*.svid"))
			if err != nil || len(files) != 2 {
				t.Fatal(files, err)
			}
			c.do(t, here, files)
			_, kept := here.open(t, box)
			if len(kept.SVIDs) != c.kept || len(kept.Dropped) != c.dropped {
				t.Errorf("kept %d, dropped %v", len(kept.SVIDs), kept.Dropped)
			}
			for _, d := range kept.Dropped {
				if c.is != nil && !errors.Is(d.Err, c.is) && !strings.Contains(d.Err.Error(), "bundle") {
					t.Errorf("%s: %v, want %v", d.File, d.Err, c.is)
				}
			}
			left, _ := filepath.Glob(filepath.Join(here.dir, "*.svid"))
			unfinished, _ := filepath.Glob(filepath.Join(here.dir, ".unfinished-*"))
			if len(left) != c.left || len(unfinished) > 0 {
				t.Errorf("left are %v %v", left, unfinished)
			}
			// Once the day is over, nothing of it is left.
			here.forward(25 * time.Hour)
			here.open(t, box)
			if left, _ := filepath.Glob(filepath.Join(here.dir, "*.svid")); len(left) != 0 {
				t.Errorf("after a day are left %v", left)
			}
		})
	}
}

// A folder of thousands is not read at a start: what is asked for is, by the same checks, and the rest is swept.
func TestKeepFindsOneByOne(t *testing.T) {
	c := newClinic(t)
	box := newBox(t, 1)
	k, _ := c.open(t, box)
	ehr, short, torn := c.svid(t, "ehr", time.Hour), c.svid(t, "portal", time.Minute), c.svid(t, "lab", time.Hour)
	c.save(t, k, torn)
	files, err := filepath.Glob(c.dir + "/*.svid")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Truncate(files[0], 100); err != nil {
		t.Fatal(err)
	}
	c.save(t, k, ehr, short)
	c.forward(2 * time.Minute)

	k, kept, err := seal.ResumeKeep(seal.KeepOptions{Dir: c.dir, Box: box, TrustDomain: domain, Clock: c.now})
	if err != nil || !kept.Bundle.Equal(c.X509Bundle()) || len(kept.SVIDs) != 0 {
		t.Fatalf("%+v, %v", kept, err)
	}
	if got, err := k.Find(ehr.Slot); err != nil || got == nil || !got.Certificates[0].Equal(ehr.Certificates[0]) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := k.Find(short.Slot); got != nil || !errors.Is(err, seal.ErrExpired) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := k.Find(torn.Slot); got != nil || err == nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := k.Find(seal.Slot{Entry: "nobody", ID: ehr.ID}); got != nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	fresh := c.svid(t, "lab", time.Hour)
	c.save(t, k, fresh) // before the sweep comes to it
	dropped, err := k.Sweep(t.Context())
	if err != nil || len(dropped) != 1 || !errors.Is(dropped[0].Err, seal.ErrExpired) {
		t.Errorf("dropped %v, %v", dropped, err)
	}
	for _, s := range []seal.SVID{ehr, fresh} {
		if got, err := k.Find(s.Slot); err != nil || got == nil {
			t.Errorf("%s after the sweep: %+v, %v", s.Entry, got, err)
		}
	}
	if left, err := filepath.Glob(c.dir + "/*.svid"); err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestKeepAtOnce: many tasks save, and every SVID that was saved last for its use is there.
func TestKeepAtOnce(t *testing.T) {
	c := newClinic(t)
	box := newBox(t, 1)
	k, _ := c.open(t, box)
	c.save(t, k)
	var tasks sync.WaitGroup
	for i := range 8 {
		tasks.Go(func() {
			for range 5 {
				if err := k.Save(c.svid(t, fmt.Sprint("app", i), time.Hour)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	tasks.Wait()
	if _, kept := c.open(t, box); len(kept.SVIDs) != 8 || len(kept.Dropped) != 0 {
		t.Errorf("kept %d, dropped %v", len(kept.SVIDs), kept.Dropped)
	}
}

func BenchmarkKeep(b *testing.B) {
	c := newClinic(b)
	box := newBox(b, 1)
	k, _ := c.open(b, box)
	c.save(b, k)
	svid := c.svid(b, "ehr", time.Hour)
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			if err := k.Save(svid); err != nil {
				b.Fatal(err)
			}
		}
	})
	for i := range 200 {
		c.save(b, k, c.svid(b, fmt.Sprint("app", i), time.Hour))
	}
	b.Run("open with 200", func(b *testing.B) {
		for b.Loop() {
			c.open(b, box)
		}
	})
}

// FuzzRecord: any record is refused without being quoted, or says the same when it is written again.
func FuzzRecord(f *testing.F) {
	c := newClinic(f)
	good, err := seal.EncodeSVID(c.svid(f, "ehr", time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1))
	f.Add([]byte(`{"version":1,"trust_domain":"clinic.example","authorities":[]}`))
	f.Add([]byte(`{"version":1,"secret":"x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, recode := range []func([]byte) ([]byte, error){seal.RecodeSVID, seal.RecodeBundle} {
			once, err := recode(text)
			if err != nil {
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("%v quotes", err)
				}
				continue
			}
			twice, err := recode(once)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(once, twice); diff != "" {
				t.Error(diff)
			}
		}
	})
}
