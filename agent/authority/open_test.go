package authority_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/wardmesh/ward/agent/authority"
)

// contents is a digest of every file in a folder, and its mode, without the lock.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = fmt.Sprintf("%s %x", info.Mode(), sha256.Sum256(text))
	}
	return out
}

// made is a folder with an authority in it that has issued a few certificates, closed, and its CA.
func made(t *testing.T) (dir string, ca *x509.Certificate) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	a, err := authority.Open(context.Background(), options(dir))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := a.IssueX509(context.Background(), request(t, "/app/portal")); err != nil {
			t.Fatal(err)
		}
	}
	ca = a.X509Bundle().X509Authorities()[0]
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, ca
}

func TestOpenAgain(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, ca := made(t)
	before := contents(t, dir)
	for name, mode := range map[string]string{"x509-ca-1.key": "-rw-------", "x509-ca-1.crt": "-rw-------", "journal.db": "-rw-------"} {
		if !strings.HasPrefix(before[name], mode+" ") {
			t.Errorf("%s is %q, want mode %s", name, before[name], mode)
		}
	}
	if len(before) != 3 {
		t.Errorf("the folder holds %v", before)
	}
	a, err := authority.Open(context.Background(), options(dir))
	if err != nil {
		t.Fatal(err)
	}
	if got := a.X509Bundle().X509Authorities(); len(got) != 1 || !got[0].Equal(ca) {
		t.Error("another CA after a restart")
	}
	if a.TrustDomain() != domain || !a.Status().CANotAfter.Equal(ca.NotAfter) {
		t.Errorf("Status = %+v", a.Status())
	}
	select {
	case <-a.BundleChanged():
		t.Error("the bundle has changed")
	default:
	}
	if _, err := authority.Open(context.Background(), options(dir)); !errors.Is(err, authority.ErrInUse) {
		t.Errorf("opened twice at once: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("opening changed the folder:\n%s", diff)
	}
}

// TestDamage: whatever is wrong with the folder is named, with its file and what to do, and nothing is touched.
func TestDamage(t *testing.T) {
	file := func(dir, name string) string { return filepath.Join(dir, name) }
	rewrite := func(t *testing.T, path string, f func([]byte) []byte) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	record := func(bucket, key, value string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			db, err := bbolt.Open(file(dir, "journal.db"), 0o600, &bbolt.Options{Timeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			err = db.Update(func(tx *bbolt.Tx) error {
				if key == "" {
					return tx.DeleteBucket([]byte(bucket))
				}
				return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	pkcs8 := func(t *testing.T, curve elliptic.Curve) []byte {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	chmod := func(name string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(file(dir, name), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(file(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const journal, key, cert = "journal.db", "x509-ca-1.key", "x509-ca-1.crt"

	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string)
		is   error
		want string // in the error
	}{
		{"journal empty", func(t *testing.T, dir string) { rewrite(t, file(dir, journal), func([]byte) []byte { return nil }) }, authority.ErrCorrupt, journal},
		{"journal cut to one page", func(t *testing.T, dir string) {
			rewrite(t, file(dir, journal), func(b []byte) []byte { return b[:4096] })
		}, authority.ErrCorrupt, journal},
		{"journal cut to its beginning", func(t *testing.T, dir string) {
			rewrite(t, file(dir, journal), func(b []byte) []byte { return b[:8192] })
		}, authority.ErrCorrupt, journal},
		{"journal of zeros", func(t *testing.T, dir string) {
			rewrite(t, file(dir, journal), func(b []byte) []byte { return make([]byte, len(b)) })
		}, authority.ErrCorrupt, journal},
		{"journal of something else", func(t *testing.T, dir string) {
			rewrite(t, file(dir, journal), func([]byte) []byte { return bytes.Repeat([]byte("something else\n"), 5000) })
		}, authority.ErrCorrupt, journal},
		{"journal without its pages", func(t *testing.T, dir string) {
			rewrite(t, file(dir, journal), func(b []byte) []byte { clear(b[8192:]); return b })
		}, authority.ErrCorrupt, journal},
		{"journal missing", remove(journal), authority.ErrCorrupt, "journal is missing"},
		{"journal without a bucket", record("serials", "", ""), authority.ErrCorrupt, journal},
		{"journal without a trust domain", record("meta", "", ""), authority.ErrCorrupt, journal},
		{"CA record unreadable", record("keys", "x509-ca/0000000001", "{"), authority.ErrCorrupt, journal},
		{"CA record of another use", record("keys", "x509-ca/0000000001", `{"class":"x509-ca","use":"jwt-svid","state":"active"}`), authority.ErrCorrupt, journal},
		{"CA record without a certificate", record("keys", "x509-ca/0000000001", `{"class":"x509-ca","generation":1,"use":"x509-svid","state":"active"}`), authority.ErrCorrupt, journal},
		{"two CA keys", record("keys", "x509-ca/0000000002", `{"class":"x509-ca","generation":2,"use":"x509-svid","state":"active"}`), authority.ErrCorrupt, "two CA keys"},
		{"no CA key active", record("keys", "x509-ca/0000000001", `{"class":"x509-ca","generation":1,"use":"x509-svid","state":"old"}`), authority.ErrCorrupt, "no CA key is active"},
		{"CA record in another's place", record("keys", "x509-ca/0000000002", `{"class":"x509-ca","generation":3,"use":"x509-svid","state":"prepared"}`), authority.ErrCorrupt, journal},
		{"CA in an unknown state", record("keys", "x509-ca/0000000002", `{"class":"x509-ca","generation":2,"use":"x509-svid","state":"new"}`), authority.ErrCorrupt, "unknown state"},
		{"number of CAs unreadable", record("meta", "x509_ca_newest", "-1"), authority.ErrCorrupt, "how many CAs"},
		{"serial unreadable", record("serials", "\x01\x7f\x00\x00\x00\x00\x00\x00\x00\x01", "{"), authority.ErrCorrupt, "serial"},
		{"bundle sequence unreadable", record("meta", "bundle_sequence", "one"), authority.ErrCorrupt, "sequence"},
		{"format of a later version", record("meta", "format", "2"), nil, "use the version that wrote it"},
		{"another trust domain", record("meta", "trust_domain", "other.example"), authority.ErrTrustDomain, "other.example"},

		{"key missing", remove(key), authority.ErrCorrupt, key},
		{"key empty", func(t *testing.T, dir string) { rewrite(t, file(dir, key), func([]byte) []byte { return nil }) }, authority.ErrCorrupt, key},
		{"key cut", func(t *testing.T, dir string) {
			rewrite(t, file(dir, key), func(b []byte) []byte { return b[:len(b)/2] })
		}, authority.ErrCorrupt, key},
		{"key with something after it", func(t *testing.T, dir string) {
			rewrite(t, file(dir, key), func(b []byte) []byte { return append(b, b...) })
		}, authority.ErrCorrupt, key},
		{"key of another CA", func(t *testing.T, dir string) {
			rewrite(t, file(dir, key), func([]byte) []byte { return pkcs8(t, elliptic.P256()) })
		}, authority.ErrCorrupt, key},
		{"key on another curve", func(t *testing.T, dir string) {
			rewrite(t, file(dir, key), func([]byte) []byte { return pkcs8(t, elliptic.P384()) })
		}, authority.ErrCorrupt, key},
		{"certificate missing", remove(cert), authority.ErrCorrupt, cert},
		{"certificate unreadable", func(t *testing.T, dir string) {
			rewrite(t, file(dir, cert), func(b []byte) []byte { return b[:len(b)/2] })
		}, authority.ErrCorrupt, cert},
		{"certificate of another CA", func(t *testing.T, dir string) {
			_, other := made(t)
			rewrite(t, file(dir, cert), func([]byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Raw}) })
		}, authority.ErrCorrupt, cert},

		{"folder open to its group", chmod("", 0o750), authority.ErrUnsafe, "run: chmod 0700 '"},
		{"folder open to all", chmod("", 0o701), authority.ErrUnsafe, "run: chmod 0700 '"},
		{"key readable by its group", chmod(key, 0o640), authority.ErrUnsafe, "run: chmod 0600 '"},
		{"key readable by all", chmod(key, 0o604), authority.ErrUnsafe, "run: chmod 0600 '"},
		{"certificate writable by all", chmod(cert, 0o646), authority.ErrUnsafe, "run: chmod 0644 '"},
		{"journal readable by all", chmod(journal, 0o644), authority.ErrUnsafe, "run: chmod 0600 '"},
		{"key of another user", owned(key), authority.ErrUnsafe, "run: chown 0 '"},
		{"journal of another user", owned(journal), authority.ErrUnsafe, "run: chown 0 '"},
		{"folder of another user", owned(""), authority.ErrUnsafe, "run: chown 0 '"},
		{"key behind a link", func(t *testing.T, dir string) {
			if err := errors.Join(os.Rename(file(dir, key), file(dir, "elsewhere")), os.Symlink("elsewhere", file(dir, key))); err != nil {
				t.Fatal(err)
			}
		}, nil, key},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := made(t)
			c.do(t, dir)
			before := contents(t, dir)
			a, err := authority.Open(context.Background(), options(dir))
			if err == nil {
				a.Close()
				t.Fatal("opens")
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Open = %v, want %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open = %v, want %q in it", err, c.want)
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("Open changed the folder:\n%s", diff)
			}
		})
	}
}

func owned(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: needs root, to give files to another user")
		}
		if err := os.Chown(filepath.Join(dir, name), 4711, -1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlips: with any byte of the journal changed, the authority is the same as before or says that it is damaged.
// It never crashes, and never begins again.
func TestFlips(t *testing.T) {
	dir, ca := made(t)
	journal := filepath.Join(dir, "journal.db")
	good, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	random := mathrand.New(mathrand.NewPCG(1, 2))
	refused := 0
	for range 300 {
		bad := bytes.Clone(good)
		at := random.IntN(len(bad))
		if random.IntN(2) == 0 {
			at = random.IntN(64) + 4096*random.IntN(len(bad)/4096) // the beginning of a page
		}
		bad[at] ^= byte(1 + random.IntN(255))
		if err := os.WriteFile(journal, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := authority.Open(context.Background(), options(dir))
		if err != nil {
			refused++
			continue
		}
		if got := a.X509Bundle().X509Authorities()[0]; !got.Equal(ca) {
			t.Fatalf("byte %d: another CA", at)
		}
		if err := a.Close(); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	t.Logf("%d of 300 refused", refused)
	if refused == 0 {
		t.Error("no damage was seen")
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(*authority.Options){
		"no folder":               func(o *authority.Options) { o.Dir = "" },
		"no trust domain":         func(o *authority.Options) { o.TrustDomain = spiffeid.TrustDomain{} },
		"no logger":               func(o *authority.Options) { o.Logger = nil },
		"a negative life":         func(o *authority.Options) { o.CATTL = -1 },
		"SVIDs of two days":       func(o *authority.Options) { o.X509TTL = 48 * time.Hour },
		"SVIDs that outlive a CA": func(o *authority.Options) { o.CATTL, o.X509TTL = time.Minute, time.Hour },
		"a file for a folder": func(o *authority.Options) {
			o.Dir = filepath.Join(dir, "file")
			if err := os.WriteFile(o.Dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		o := options(filepath.Join(dir, "ca"))
		change(&o)
		if a, err := authority.Open(context.Background(), o); err == nil {
			a.Close()
			t.Errorf("%s: opens", name)
		}
	}
	t.Run("folders above are made", func(t *testing.T) {
		o := options(filepath.Join(dir, "a", "b", "ca"))
		a := open(t, o)
		if _, err := a.IssueX509(context.Background(), request(t, "/app/portal")); err != nil {
			t.Error(err)
		}
	})
}
