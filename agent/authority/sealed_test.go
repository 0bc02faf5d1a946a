package authority_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/wardmesh/ward/agent/authority"
	"github.com/wardmesh/ward/agent/seal"
)

func sealedOptions(t *testing.T, dir string, fill byte) authority.Options {
	t.Helper()
	box, err := seal.New(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	o := options(dir)
	o.Keys = authority.NewSealedKeys(dir, box)
	return o
}

func turnCA(t *testing.T, a *authority.Authority) {
	t.Helper()
	ctx, force := context.Background(), authority.Order{Force: true}
	if err := errors.Join(a.Prepare(ctx, force), a.Activate(ctx, force), a.Retire(ctx, force)); err != nil {
		t.Fatal(err)
	}
}

// TestSealedKeys: the key is in no file in plain, and opens again, also after a rotation.
func TestSealedKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := open(t, sealedOptions(t, dir, 1))
	ca := a.X509Bundle().X509Authorities()[0]
	if g := a.Rotation().Generations[0]; !g.Sealed || g.KeyPath != filepath.Join(dir, "x509-ca-1.key.sealed") {
		t.Errorf("the key is described as %+v", g)
	}
	if info, err := os.Stat(filepath.Join(dir, "x509-ca-1.key.sealed")); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if text, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || bytes.Contains(text, []byte("PRIVATE KEY")) {
			t.Errorf("%s has a key in plain: %v", e.Name(), err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, sealedOptions(t, dir, 1))
	if !a.X509Bundle().X509Authorities()[0].Equal(ca) || issue(t, a).CheckSignatureFrom(ca) != nil {
		t.Error("another CA after a restart")
	}
	turnCA(t, a)
	issue(t, a)
	if left, _ := filepath.Glob(filepath.Join(dir, "x509-ca-1*")); len(left) > 0 {
		t.Errorf("of a retired CA is left %v", left)
	}
}

// TestSealingBegins: plain keys are used until rotation replaces them, and Status tells.
func TestSealingBegins(t *testing.T) {
	dir, ca := made(t)
	a := open(t, sealedOptions(t, dir, 1))
	if g := a.Status().Rotation.Generations[0]; g.Sealed || g.KeyPath != filepath.Join(dir, "x509-ca-1.key") || !a.X509Bundle().X509Authorities()[0].Equal(ca) {
		t.Errorf("the plain key is described as %+v", g)
	}
	turnCA(t, a)
	if g := a.Status().Rotation.Generations[0]; !g.Sealed || g.Number != 2 {
		t.Errorf("the next key is described as %+v", g)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x509-ca-1.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plain key is there: %v", err)
	}
}

// TestSealedKeyDoesNotOpen: a key that cannot be opened is named, with what to do, and nothing is touched.
func TestSealedKeyDoesNotOpen(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, dir string) authority.Options
		want string
		is   error
	}{
		"another machine or credential": {func(t *testing.T, dir string) authority.Options { return sealedOptions(t, dir, 2) }, "under another key", authority.ErrSealed},
		"sealing switched off":          {func(_ *testing.T, dir string) authority.Options { return options(dir) }, "set authority.keys.seal", authority.ErrSealed},
		"changed": {func(t *testing.T, dir string) authority.Options {
			path := filepath.Join(dir, "x509-ca-1.key.sealed")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text[len(text)-1] ^= 1
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			return sealedOptions(t, dir, 1)
		}, "changed since it was sealed", authority.ErrSealed},
		"beside a plain one": {func(t *testing.T, dir string) authority.Options {
			if err := os.WriteFile(filepath.Join(dir, "x509-ca-1.key"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			return sealedOptions(t, dir, 1)
		}, "move one of them away", authority.ErrCorrupt},
		"readable by others": {func(t *testing.T, dir string) authority.Options {
			if err := os.Chmod(filepath.Join(dir, "x509-ca-1.key.sealed"), 0o640); err != nil {
				t.Fatal(err)
			}
			return sealedOptions(t, dir, 1)
		}, "chmod 0600", authority.ErrUnsafe},
		"missing": {func(t *testing.T, dir string) authority.Options {
			if err := os.Remove(filepath.Join(dir, "x509-ca-1.key.sealed")); err != nil {
				t.Fatal(err)
			}
			return sealedOptions(t, dir, 1)
		}, "the CA key is missing", authority.ErrCorrupt},
		"journal missing": {func(t *testing.T, dir string) authority.Options {
			if err := os.Remove(filepath.Join(dir, "journal.db")); err != nil {
				t.Fatal(err)
			}
			return sealedOptions(t, dir, 1)
		}, "the journal is missing, and x509-ca-1.key.sealed is there", authority.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			a, err := authority.Open(context.Background(), sealedOptions(t, dir, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			o := c.do(t, dir)
			before := contents(t, dir)
			_, err = authority.Open(context.Background(), o)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v, want %v with %q", err, c.is, c.want)
			}
			if outage := c.is != authority.ErrUnsafe; authority.Outage(err) != outage {
				t.Errorf("Outage(%v) = %v", err, !outage)
			}
			for name, was := range before {
				if contents(t, dir)[name] != was {
					t.Errorf("Open changed %s", name)
				}
			}
		})
	}
}

// TestExisting: an authority that is known to have been there is not made anew when its disk is not mounted.
func TestExisting(t *testing.T) {
	for name, dir := range map[string]string{"no folder": filepath.Join(t.TempDir(), "ca"), "an empty folder": t.TempDir()} {
		o := options(dir)
		o.Existing = true
		_, err := authority.Open(context.Background(), o)
		if !errors.Is(err, authority.ErrUnreadable) || !authority.Outage(err) {
			t.Errorf("%s: Open = %v", name, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s: left behind %v", name, entries)
		}
	}
	dir, _ := made(t)
	o := options(dir)
	o.Existing = true
	open(t, o)
}

// TestUnreadable: what the system does not let be read is an outage, and no damage.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Run("to root nothing is forbidden", func(t *testing.T) {
			t.Skip("SKIPPED: needs an ordinary user, to be refused its own files")
		})
	} else {
		for _, name := range []string{"journal.db", "x509-ca-1.key", ""} {
			dir, _ := made(t)
			path := filepath.Join(dir, name)
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
			_, err := authority.Open(context.Background(), options(dir))
			if !errors.Is(err, authority.ErrUnreadable) || !authority.Outage(err) {
				t.Errorf("%q: Open = %v", name, err)
			}
			if err := os.Chmod(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A disk that fails, as the key store sees it.
	dir, _ := made(t)
	o := options(dir)
	o.Keys = failingKeys{authority.NewFileKeys(dir)}
	if _, err := authority.Open(context.Background(), o); !errors.Is(err, authority.ErrUnreadable) || !errors.Is(err, syscall.EIO) {
		t.Errorf("Open = %v", err)
	}
	for _, err := range []error{authority.ErrInUse, authority.ErrTrustDomain, authority.ErrUnsafe, authority.ErrExpired, errors.New("else"), nil} {
		if authority.Outage(err) {
			t.Errorf("Outage(%v)", err)
		}
	}
}

// failingKeys is on a disk that fails.
type failingKeys struct{ authority.KeyStore }

func (failingKeys) Signer(authority.KeyName) (crypto.Signer, error) {
	return nil, &fs.PathError{Op: "read", Path: "x509-ca-1.key", Err: syscall.EIO}
}

// TestOldJournal: the journal of a version that knew one CA only is taken over.
func TestOldJournal(t *testing.T) {
	dir, _ := made(t)
	db, err := bbolt.Open(filepath.Join(dir, "journal.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		serials := tx.Bucket([]byte("serials"))
		old := make(map[string][]byte)
		err := serials.ForEach(func(k, v []byte) error {
			old[string(k)] = bytes.Replace(v, []byte(`,"ca":1`), nil, 1)
			return nil
		})
		for k, v := range old {
			err = errors.Join(err, serials.Put([]byte(k), v))
		}
		return errors.Join(err, tx.Bucket([]byte("meta")).Delete([]byte("x509_ca_newest")))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	a := open(t, options(dir))
	if a.Rotation().Generations[0].LastSVID.IsZero() {
		t.Error("the SVIDs of before are not counted")
	}
	force := authority.Order{Force: true}
	if err := errors.Join(a.Prepare(context.Background(), force), a.Activate(context.Background(), force)); err != nil {
		t.Fatal(err)
	}
	wantStates(t, a, 2, "1 old", "2 active")
	if err := a.Retire(context.Background(), authority.Order{}); !errors.Is(err, authority.ErrTransition) {
		t.Errorf("a CA was retired under its SVIDs: %v", err)
	}
}
