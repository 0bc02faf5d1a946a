package broker_test

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

	"github.com/wardmesh/ward/workload"
)

// authority is an issuer made of crypto/x509.
type authority struct {
	t testing.TB

	mu      sync.Mutex
	key     *ecdsa.PrivateKey
	root    *x509.Certificate
	bundle  *x509bundle.Bundle
	changed chan struct{}
	fail    error
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, changed: make(chan struct{})}
	a.key, a.root = a.ca()
	a.publish(a.root)
	return a
}

func (a *authority) ca() (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "clinic.test"}, URIs: []*url.URL{clinic.ID().URL()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c, err := signed(template, template, key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, c
}

func (a *authority) publish(roots ...*x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bundle = x509bundle.FromX509Authorities(clinic, roots)
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *authority) set(fail error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = fail
}

func (a *authority) X509Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle, a.changed
}

func (a *authority) IssueX509(_ context.Context, r workload.X509Request) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	leaf, err := signed(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{r.ID.URL()}, DNSNames: r.DNSNames,
		NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(ttl), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.root, r.PublicKey, a.key)
	return []*x509.Certificate{leaf}, err
}

func signed(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
