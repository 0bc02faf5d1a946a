package authority_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/authority"
)

var domain = spiffeid.RequireTrustDomainFromString("clinic.example")

func options(dir string) authority.Options {
	return authority.Options{Dir: dir, TrustDomain: domain, Logger: zap.NewNop()}
}

func open(t testing.TB, o authority.Options) *authority.Authority {
	t.Helper()
	a, err := authority.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, path string) authority.X509Request {
	t.Helper()
	return authority.X509Request{ID: spiffeid.RequireFromPath(domain, path), PublicKey: newKey(t).Public()}
}

// clock is a time that a test sets.
type clock struct{ nanoseconds atomic.Int64 }

func (c *clock) get() time.Time  { return time.Unix(0, c.nanoseconds.Load()) }
func (c *clock) set(t time.Time) { c.nanoseconds.Store(t.UnixNano()) }

func extension(c *x509.Certificate, id ...int) (value []byte, critical, found bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier(id)) {
			return e.Value, e.Critical, true
		}
	}
	return nil, false, false
}

// TestSections is what the SPIFFE specifications and RFC 5280 demand of what is issued, by section.
func TestSections(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	o := options(filepath.Join(t.TempDir(), "ca"))
	o.Clock = func() time.Time { return now }
	a := open(t, o)
	r := request(t, "/app/portal")
	r.DNSNames = []string{"portal.clinic.example"}
	chain, err := a.IssueX509(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	roots := a.X509Bundle().X509Authorities()
	if len(chain) != 1 || len(roots) != 1 {
		t.Fatalf("a chain of %d under %d roots", len(chain), len(roots))
	}
	ca := roots[0]

	for name, holds := range map[string]func() bool{
		"ID §2.3 the ID is the one requested": func() bool {
			id, err := x509svid.IDFromCert(leaf)
			return err == nil && id == r.ID
		},
		"X509-SVID §2 exactly one URI SAN": func() bool {
			return len(leaf.URIs) == 1 && leaf.URIs[0].String() == "spiffe://clinic.example/app/portal"
		},
		"X509-SVID §3.1 the leaf's path is not the root": func() bool { return leaf.URIs[0].Path == "/app/portal" },
		"X509-SVID §3.2 the CA's ID has no path":         func() bool { return len(ca.URIs) == 1 && ca.URIs[0].String() == "spiffe://clinic.example" },
		"RFC 5280 §4.2.1.6 the SAN is critical without a Subject": func() bool {
			_, critical, found := extension(leaf, 2, 5, 29, 17)
			return found && critical && leaf.Subject.String() == ""
		},
		"X509-SVID §4.1 cA false in the leaf": func() bool { return leaf.BasicConstraintsValid && !leaf.IsCA },
		"X509-SVID §4.1 cA true in the CA, for leaves alone": func() bool {
			return ca.BasicConstraintsValid && ca.IsCA && ca.MaxPathLen == 0 && ca.MaxPathLenZero
		},
		"X509-SVID §4.3 key usage is there and critical": func() bool {
			_, a, b := extension(leaf, 2, 5, 29, 15)
			_, c, d := extension(ca, 2, 5, 29, 15)
			return a && b && c && d
		},
		"X509-SVID §4.3 the leaf has digitalSignature only": func() bool { return leaf.KeyUsage == x509.KeyUsageDigitalSignature },
		"X509-SVID §4.3 the CA has keyCertSign and does not authenticate": func() bool {
			return ca.KeyUsage == x509.KeyUsageCertSign|x509.KeyUsageCRLSign && len(ca.ExtKeyUsage) == 0
		},
		"X509-SVID §4.4 EKU server and client": func() bool {
			return len(leaf.ExtKeyUsage) == 2 && leaf.ExtKeyUsage[0] == x509.ExtKeyUsageServerAuth && leaf.ExtKeyUsage[1] == x509.ExtKeyUsageClientAuth && len(leaf.UnknownExtKeyUsage) == 0
		},
		"X509-SVID §5 go-spiffe verifies it": func() bool {
			id, _, err := x509svid.Verify(chain, a, x509svid.WithTime(now))
			return err == nil && id == r.ID
		},
		"RFC 5280 §4.1.2.2 the serial is positive and short": func() bool {
			return leaf.SerialNumber.Sign() > 0 && leaf.SerialNumber.BitLen() <= 127 && leaf.SerialNumber.BitLen() > 64
		},
		"RFC 5280 §4.1.2.4 the issuer is the CA's subject, which is not empty": func() bool {
			return leaf.Issuer.String() == ca.Subject.String() && ca.Subject.String() != ""
		},
		"RFC 5280 §4.1.2.5 half a minute early, and an hour long": func() bool {
			return leaf.NotBefore.Equal(now.Add(-30*time.Second)) && leaf.NotAfter.Equal(now.Add(time.Hour))
		},
		"RFC 5280 §4.2.1.1 key identifiers lead to the CA": func() bool {
			return len(leaf.SubjectKeyId) == 20 && string(leaf.AuthorityKeyId) == string(ca.SubjectKeyId) && len(ca.SubjectKeyId) == 20 && string(leaf.SubjectKeyId) != string(ca.SubjectKeyId)
		},
		"RFC 5280 §6 crypto/x509 verifies it by name, as client and as server": func() bool {
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "portal.clinic.example", CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
					return false
				}
			}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !holds() {
				t.Errorf("does not hold of\nleaf %+v\nca %+v", leaf, ca)
			}
		})
	}

	t.Run("X509-SVID §4 go-spiffe parses it with its key", func(t *testing.T) {
		key := newKey(t)
		chain, err := a.IssueX509(context.Background(), authority.X509Request{ID: r.ID, PublicKey: key.Public()})
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if svid, err := x509svid.ParseRaw(chain[0].Raw, der); err != nil || svid.ID != r.ID {
			t.Errorf("ParseRaw = %v, %v", svid, err)
		}
	})

	t.Run("X509-SVID §6, Bundle §4 the bundle document", func(t *testing.T) {
		text, err := a.Bundle().Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Keys []struct {
				Use string   `json:"use"`
				Kid *string  `json:"kid"`
				X5c []string `json:"x5c"`
			} `json:"keys"`
			Sequence uint64 `json:"spiffe_sequence"`
			Hint     int    `json:"spiffe_refresh_hint"`
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.Keys) != 1 || doc.Keys[0].Use != "x509-svid" || doc.Keys[0].Kid != nil || len(doc.Keys[0].X5c) != 1 || doc.Sequence != 1 || doc.Hint != 300 {
			t.Errorf("bundle %s", text)
		}
		b, err := spiffebundle.Parse(domain, text)
		if err != nil || !b.X509Bundle().Equal(a.X509Bundle()) {
			t.Errorf("Parse = %v", err)
		}
	})
}

// TestRefused is what may not be issued, whoever asks.
func TestRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := open(t, options(dir))
	caKey, err := authority.NewFileKeys(dir).Signer(authority.KeyName{Class: authority.X509CA, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	off := *newKey(t)
	//lint:ignore SA1019 a key that is no point of its curve cannot be made in any other way
	off.PublicKey.X = new(big.Int).Add(off.PublicKey.X, big.NewInt(1))
	modulus := func(bits uint) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1))
	}
	id := func(s string) spiffeid.ID { return spiffeid.RequireFromString(s) }
	fine := id("spiffe://clinic.example/app/portal")
	key := newKey(t).Public()

	for _, c := range []struct {
		name string
		r    authority.X509Request
		want string // of the error; "" when it must be issued
	}{
		{"plain", authority.X509Request{ID: fine, PublicKey: key}, ""},
		{"no ID", authority.X509Request{PublicKey: key}, "no ID"},
		{"X509-SVID §3.1 root path", authority.X509Request{ID: id("spiffe://clinic.example"), PublicKey: key}, "has no path"},
		{"another trust domain", authority.X509Request{ID: id("spiffe://other.example/app/portal"), PublicKey: key}, "not of the trust domain"},
		{"a trust domain below ours", authority.X509Request{ID: id("spiffe://a.clinic.example/app/portal"), PublicKey: key}, "not of the trust domain"},
		{"ID §2.3 2048 bytes", authority.X509Request{ID: id("spiffe://clinic.example/" + strings.Repeat("x", 2024)), PublicKey: key}, ""},
		{"ID §2.3 2049 bytes", authority.X509Request{ID: id("spiffe://clinic.example/" + strings.Repeat("x", 2025)), PublicKey: key}, "2049 bytes"},
		{"no key", authority.X509Request{ID: fine}, "unknown kind"},
		{"a nil ECDSA key", authority.X509Request{ID: fine, PublicKey: (*ecdsa.PublicKey)(nil)}, "curve"},
		{"P-224", authority.X509Request{ID: fine, PublicKey: p224.Public()}, "curve"},
		{"a point off the curve", authority.X509Request{ID: fine, PublicKey: &off.PublicKey}, "no point"},
		{"X25519", authority.X509Request{ID: fine, PublicKey: x25519.Public()}, "unknown kind"},
		{"Ed25519", authority.X509Request{ID: fine, PublicKey: edPublic}, ""},
		{"short Ed25519", authority.X509Request{ID: fine, PublicKey: edPublic[:31]}, "wrong length"},
		{"RSA 2048", authority.X509Request{ID: fine, PublicKey: &rsa.PublicKey{N: modulus(2048), E: 65537}}, ""},
		{"RSA 1024", authority.X509Request{ID: fine, PublicKey: &rsa.PublicKey{N: modulus(1024), E: 65537}}, "RSA"},
		{"RSA 16384", authority.X509Request{ID: fine, PublicKey: &rsa.PublicKey{N: modulus(16384), E: 65537}}, "RSA"},
		{"RSA exponent 3", authority.X509Request{ID: fine, PublicKey: &rsa.PublicKey{N: modulus(2048), E: 3}}, "exponent"},
		{"RSA without a modulus", authority.X509Request{ID: fine, PublicKey: &rsa.PublicKey{E: 65537}}, "RSA"},
		{"the CA's own key", authority.X509Request{ID: fine, PublicKey: caKey.Public()}, "CA's own"},
		{"DNS names", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"a", "a-b.example", "1.a2"}}, ""},
		{"an empty DNS name", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{""}}, "DNS name"},
		{"a wildcard", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"*.clinic.example"}}, "DNS name"},
		{"upper case", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"A.example"}}, "DNS name"},
		{"an address", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"10.0.0.1"}}, "DNS name"},
		{"a final dot", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"a.example."}}, "DNS name"},
		{"a zero byte", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"a.example\x00.b"}}, "DNS name"},
		{"a name twice", authority.X509Request{ID: fine, PublicKey: key, DNSNames: []string{"a.b", "a.b"}}, "twice"},
		{"too many names", authority.X509Request{ID: fine, PublicKey: key, DNSNames: make([]string, 65)}, "65 DNS names"},
		{"a negative life", authority.X509Request{ID: fine, PublicKey: key, TTL: -1}, "a life of"},
		{"a life of 25 h", authority.X509Request{ID: fine, PublicKey: key, TTL: 25 * time.Hour}, "a life of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := a.IssueX509(context.Background(), c.r)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("IssueX509: %v", err)
			case c.want != "" && (!errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("IssueX509 = %v, want ErrRefused with %q", err, c.want)
			}
		})
	}
}

// TestLives: nothing outlives its CA, and without a valid CA nothing is issued.
func TestLives(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	var now clock
	now.set(start)
	o := options(filepath.Join(t.TempDir(), "ca"))
	o.CATTL, o.X509TTL = 2*time.Hour, time.Hour
	o.Clock = now.get
	a := open(t, o)
	issue := func(ttl time.Duration) (*x509.Certificate, error) {
		r := request(t, "/app/portal")
		r.TTL = ttl
		chain, err := a.IssueX509(context.Background(), r)
		if err != nil {
			return nil, err
		}
		return chain[0], nil
	}
	end := start.Add(2 * time.Hour)
	for _, c := range []struct {
		name string
		at   time.Duration
		ttl  time.Duration
		want time.Time
	}{
		{"as requested", 0, 10 * time.Minute, start.Add(10 * time.Minute)},
		{"the default", 0, 0, start.Add(time.Hour)},
		{"up to the CA's end", 90 * time.Minute, 0, end},
		{"in its last second", 2*time.Hour - time.Second, 0, end},
	} {
		now.set(start.Add(c.at))
		leaf, err := issue(c.ttl)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !leaf.NotAfter.Equal(c.want) || leaf.NotBefore.Before(a.Status().CANotBefore) {
			t.Errorf("%s: from %s to %s, want the end %s", c.name, leaf.NotBefore, leaf.NotAfter, c.want)
		}
	}
	now.set(end)
	if _, err := issue(0); !errors.Is(err, authority.ErrExpired) {
		t.Errorf("after the CA's end: %v", err)
	}
	now.set(start.Add(-time.Minute))
	if _, err := issue(0); !errors.Is(err, authority.ErrExpired) {
		t.Errorf("before the CA's beginning: %v", err)
	}
}

// TestLedger: what was issued is known until an hour after its end, and then forgotten.
func TestLedger(t *testing.T) {
	var now clock
	now.set(time.Now())
	o := options(filepath.Join(t.TempDir(), "ca"))
	o.Clock = now.get
	advance := func(d time.Duration) { now.set(now.get().Add(d)) }
	a := open(t, o)
	ctx := context.Background()
	var issued []*x509.Certificate
	for range 250 { // more than one transaction can remove
		r := request(t, "/app/portal")
		r.TTL = 10 * time.Minute
		chain, err := a.IssueX509(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		issued = append(issued, chain[0])
	}
	known := func() (n int) {
		for _, c := range issued {
			id, err := a.Issued(ctx, c)
			switch {
			case err == nil && id == "spiffe://clinic.example/app/portal":
				n++
			case !errors.Is(err, authority.ErrNotFound):
				t.Errorf("Issued = %q, %v", id, err)
			}
		}
		return n
	}
	if n := known(); n != 250 {
		t.Errorf("%d of 250 are known", n)
	}
	// The ledger looks for what has ended before it takes an entry; the second of two finds that done.
	again := func() {
		for range 2 {
			if _, err := a.IssueX509(ctx, request(t, "/app/other")); err != nil {
				t.Fatal(err)
			}
		}
	}
	advance(time.Hour)
	again()
	if n := known(); n != 250 {
		t.Errorf("%d of 250 are known 50 minutes after their end", n)
	}
	advance(11 * time.Minute)
	again()
	if n := known(); n != 0 {
		t.Errorf("%d of 250 are still known", n)
	}
	if s := a.Status(); s.Issued != 254 || s.LastIssued.IsZero() {
		t.Errorf("Status = %+v", s)
	}
}

// TestSerialsDiffer also with requests at once, which share batches.
func TestSerialsDiffer(t *testing.T) {
	a := open(t, options(filepath.Join(t.TempDir(), "ca")))
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for range 16 {
		r := request(t, "/app/portal")
		wg.Go(func() {
			for range 20 {
				chain, err := a.IssueX509(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := a.Issued(context.Background(), chain[0]); err != nil {
					t.Errorf("returned before it was in the journal: %v", err)
				}
				mu.Lock()
				if s := chain[0].SerialNumber.String(); seen[s] {
					t.Errorf("serial %s twice", s)
				} else {
					seen[s] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	a := open(t, options(filepath.Join(t.TempDir(), "ca")))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.IssueX509(ended, request(t, "/app/portal")); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		r := request(t, "/app/portal")
		wg.Go(func() {
			for {
				if _, err := a.IssueX509(context.Background(), r); err != nil {
					if !errors.Is(err, authority.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestClasses(t *testing.T) {
	uses := make(map[string]bool)
	for _, c := range authority.Classes() {
		if !c.Valid() || uses[c.Use()] {
			t.Errorf("the use of %s, %s, is another class's too", c, c.Use())
		}
		uses[c.Use()] = true
	}
	for _, use := range []string{"x509-svid", "jwt-svid", "wit-svid", "ward-token", "ward-device"} {
		if !uses[use] {
			t.Errorf("no class has the use %s", use)
		}
	}
	if authority.Class("other").Valid() {
		t.Error("an unknown class is valid")
	}
}

func BenchmarkIssueX509(b *testing.B) {
	a := open(b, options(filepath.Join(b.TempDir(), "ca")))
	r := request(b, "/app/portal")
	ctx := context.Background()
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			if _, err := a.IssueX509(ctx, r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 at once", func(b *testing.B) {
		b.SetParallelism(32) // of 2 cores and more
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := a.IssueX509(ctx, r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func BenchmarkOpen(b *testing.B) {
	b.Run("first run", func(b *testing.B) {
		for b.Loop() {
			a, err := authority.Open(context.Background(), options(filepath.Join(b.TempDir(), "ca")))
			if err != nil {
				b.Fatal(err)
			}
			a.Close()
		}
	})
	b.Run("again", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "ca")
		open(b, options(dir)).Close()
		for b.Loop() {
			a, err := authority.Open(context.Background(), options(dir))
			if err != nil {
				b.Fatal(err)
			}
			a.Close()
		}
	})
}
