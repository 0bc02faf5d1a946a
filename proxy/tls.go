package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Between wards: TLS 1.3 only, X25519MLKEM768 first, both sides authenticated by X.509-SVID. Verification sits in
// VerifyConnection, which also runs on resumed sessions, and sessions are never resumed: a resumed session would
// carry an identity past its revocation.

// ServerTLS is an ingress ward's side. The client's identity is read with PeerID from the finished connection.
func ServerTLS(self Identity, now func() time.Time) *tls.Config {
	return new(memory).serverTLS(self, now)
}

func (m *memory) serverTLS(self Identity, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       curves,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert, // the chain is verified against SPIFFE bundles below
		// A ward offers http/1.1 alone, which is the faster of the two between wards; h2 is for other holders of an SVID.
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(self) },
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := m.verify(s.PeerCertificates, self, now())
			return err
		},
	}
}

// ClientTLS is an egress ward's side, speaking as svid and accepting only want at the other end.
func ClientTLS(svid *x509svid.SVID, bundles x509bundle.Source, want spiffeid.ID, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: curves,
		// Long bodies are written in pieces of many records, which growing records would only cut up.
		DynamicRecordSizingDisabled: true,
		NextProtos:                  []string{"http/1.1"},
		// The chain is verified against SPIFFE bundles in VerifyConnection: the host name means nothing here.
		InsecureSkipVerify: true, //nolint:gosec
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return tlsCertificate(svid), nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := verify(s.PeerCertificates, bundles, now())
			if err == nil && id != want {
				err = fmt.Errorf("%s answered where %s must", id, want)
			}
			return err
		},
	}
}

var curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}

func certificate(src x509svid.Source) (*tls.Certificate, error) {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	return tlsCertificate(svid), nil
}

func tlsCertificate(svid *x509svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, cert := range svid.Certificates {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

var errNoChain = errors.New("no certificate was presented")

// verify checks a chain as an X.509-SVID of a trusted domain. go-spiffe checks signatures, validity, the URI SAN
// and the CA flags; the rules that it leaves out are checked here.
func verify(chain []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, error) {
	id, _, err := verifyChain(chain, bundles, now)
	return id, err
}

// verifyChain is verify, and gives the way from the leaf to the authority that it found.
func verifyChain(chain []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, []*x509.Certificate, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, nil, errNoChain
	}
	id, verified, err := x509svid.Verify(chain, bundles, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, nil, err
	}
	leaf := chain[0]
	switch {
	case id.Path() == "": // X509-SVID §2: a leaf's ID has a non-root path
		return spiffeid.ID{}, nil, fmt.Errorf("%s names a trust domain, not a workload", id)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0: // X509-SVID §4.3
		return spiffeid.ID{}, nil, errors.New("the certificate lacks the digitalSignature key usage")
	case len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && // X509-SVID §4.4
		!(slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)):
		return spiffeid.ID{}, nil, errors.New("the certificate's extended key usage is not that of an SVID")
	}
	return id, verified[0], nil
}

// peerID is the identity of a connection whose chain verify has accepted.
func peerID(s *tls.ConnectionState) (spiffeid.ID, error) {
	if s == nil || len(s.PeerCertificates) == 0 {
		return spiffeid.ID{}, errNoChain
	}
	return x509svid.IDFromCert(s.PeerCertificates[0])
}
