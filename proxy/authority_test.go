package proxy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// authority is a certificate authority of one trust domain.
type authority struct {
	domain spiffeid.TrustDomain
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	serial atomic.Int64
}

func newAuthority(t testing.TB, domain string) *authority {
	t.Helper()
	a := &authority{domain: spiffeid.RequireTrustDomainFromString(domain), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{a.domain.ID().URL()},
	}
	a.cert = sign(t, template, template, a.key, a.key)
	a.serial.Store(1)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.domain, []*x509.Certificate{a.cert})
}

// issue makes an X.509-SVID for a path of the domain, good for an hour, with changes to its template.
func (a *authority) issue(t testing.TB, path string, changes ...func(*x509.Certificate)) *x509svid.SVID {
	t.Helper()
	id := spiffeid.RequireFromPath(a.domain, path)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial.Add(1)), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.URL()}, BasicConstraintsValid: true,
	}
	for _, change := range changes {
		change(template)
	}
	key := newKey(t)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{sign(t, template, a.cert, key, a.key)}, PrivateKey: key}
}

// endingIn makes an SVID that ends after d.
func endingIn(d time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotAfter = time.Now().Add(d) }
}

// issuedAgo makes an SVID that began d ago: of two, the one that began later is the newer.
func issuedAgo(d time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-d) }
}

// identity is a proxy.Identity whose SVID can be replaced.
type identity struct {
	*x509bundle.Set
	svid atomic.Pointer[x509svid.SVID]
}

func newIdentity(svid *x509svid.SVID, bundles ...*x509bundle.Bundle) *identity {
	i := &identity{Set: x509bundle.NewSet(bundles...)}
	i.svid.Store(svid)
	return i
}

func (i *identity) GetX509SVID() (*x509svid.SVID, error) { return i.svid.Load(), nil }
