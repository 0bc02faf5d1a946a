package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var clinic = spiffeid.RequireTrustDomainFromString("clinic.test")

// authority is an issuer made of crypto/x509, with a bundle that can be rotated. It runs on the clock of the
// bubble that its test is in.
type authority struct {
	t *testing.T

	mu      sync.Mutex
	key     *ecdsa.PrivateKey
	root    *x509.Certificate
	bundle  *x509bundle.Bundle
	changed chan struct{}
	issued  []X509Request
	fail    error                        // returned instead of a chain
	hang    chan struct{}                // issuing waits for it to close
	twist   func(leaf *x509.Certificate) // changes the template of a leaf
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, changed: make(chan struct{})}
	a.rotate()
	return a
}

// rotate makes a new CA, which takes the old one's place in the bundle.
func (a *authority) rotate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key, a.root = newRoot(a.t, func(*x509.Certificate) {})
	a.publish(a.root)
}

// announce publishes the current CA and a further one.
func (a *authority) announce() {
	_, more := newRoot(a.t, func(*x509.Certificate) {})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.publish(a.root, more)
}

func (a *authority) publish(roots ...*x509.Certificate) {
	a.bundle = x509bundle.FromX509Authorities(clinic, roots)
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *authority) set(change func(*authority)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.issued)
}

// X509Bundle implements Bundles.
func (a *authority) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle, a.changed
}

// IssueX509 implements Issuer.
func (a *authority) IssueX509(ctx context.Context, r X509Request) ([]*x509.Certificate, error) {
	a.mu.Lock()
	hang := a.hang
	a.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issued = append(a.issued, r)
	if a.fail != nil {
		return nil, a.fail
	}
	leaf := leafTemplate(a.t, r)
	if a.twist != nil {
		a.twist(leaf)
	}
	return []*x509.Certificate{sign(a.t, leaf, a.root, r.PublicKey, a.key)}, nil
}

func leafTemplate(t *testing.T, r X509Request) *x509.Certificate {
	ttl := r.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	return &x509.Certificate{
		SerialNumber: serial(t), NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(ttl),
		URIs: []*url.URL{r.ID.URL()}, DNSNames: r.DNSNames, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func newRoot(t *testing.T, twist func(*x509.Certificate)) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key := newKey(t)
	root := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "clinic.test"}, URIs: []*url.URL{clinic.ID().URL()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	twist(root)
	return key, sign(t, root, root, key.Public(), key)
}

func sign(t *testing.T, template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}
