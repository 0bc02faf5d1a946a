package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// serverName is what the peers' server hops are called. Some of them verify a DNS name and nothing else.
const serverName = "server.bench.internal"

// certify makes what the peers need for mutual TLS, in the folder tls: a CA of P-256 and two leaves under it, each with
// one URI for a name, as an X.509-SVID has, and a DNS name for the proxies that know no other.
func (b *bench) certify() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return err
	}
	if err := b.write("tls/ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644, 0); err != nil {
		return err
	}
	for i, name := range []string{"client", "server"} {
		leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name + ".bench.internal"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
			URIs: []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/bench/" + name}}, DNSNames: []string{name + ".bench.internal"}}
		leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), key)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
		if err != nil {
			return err
		}
		certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER})
		private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		both := slices.Concat(certificate, private)
		// HAProxy reads both from one file.
		err = errors.Join(b.write("tls/"+name+".crt", certificate, 0o644, 0), b.write("tls/"+name+".key", private, 0o600, uidPeer), b.write("tls/"+name+".pem", both, 0o600, uidPeer))
		if err != nil {
			return err
		}
		if name == "client" { // the load generators shake hands as the client hop does
			b.credentials = &credentials{CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Leaf: certificate, Key: private}
		}
	}
	return nil
}

// credentials are what a load generator shows to a server hop: PEM of its own, or what the Workload API gives it.
type credentials struct {
	CA, Leaf, Key []byte
	API, Peer     string // the Workload API's address, and the SPIFFE ID that must answer
}

// socketFolder is where the Workload API's socket lies.
func (c *credentials) socketFolder() string {
	return filepath.Dir(strings.TrimPrefix(c.API, "unix://"))
}

func (c *credentials) config(ctx context.Context) (*tls.Config, error) {
	if c.API != "" {
		got, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(c.API))
		if err != nil {
			return nil, err
		}
		id, err := spiffeid.FromString(c.Peer)
		if err != nil {
			return nil, err
		}
		config := tlsconfig.MTLSClientConfig(got.DefaultSVID(), got.Bundles, tlsconfig.AuthorizeID(id))
		config.MinVersion, config.NextProtos = tls.VersionTLS13, []string{"http/1.1"}
		return config, nil
	}
	leaf, err := tls.X509KeyPair(c.Leaf, c.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CA)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{leaf}, RootCAs: roots, ServerName: serverName, NextProtos: []string{"http/1.1"}}, nil
}
