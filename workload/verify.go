package workload

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// VerifyX509 checks that chain, leaf first, is an X.509-SVID for id and public under bundle at the time now.
// It asks for all that the standard asks of an SVID, more than go-spiffe's own check does: that one takes a
// root path, a missing key usage, and an extended key usage that has nothing to do with TLS.
func VerifyX509(chain []*x509.Certificate, id spiffeid.ID, public crypto.PublicKey, bundle *x509bundle.Bundle, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	leaf := chain[0]
	if err := verifyLeaf(leaf, id); err != nil {
		return err
	}
	if key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(public) {
		return errors.New("the leaf is for another key")
	}
	for _, c := range chain[1:] {
		if err := verifyCA(c); err != nil {
			return err
		}
	}
	// X509-SVID §5.1: RFC 5280 path validation, against the bundle of the leaf's own trust domain alone.
	if bundle == nil || bundle.TrustDomain() != id.TrustDomain() {
		return fmt.Errorf("there is no bundle for trust domain %q", id.TrustDomain().Name())
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		if err := verifyCA(c); err != nil {
			continue // X509-SVID §3.2: only a signing certificate can vouch for a leaf
		}
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the leaf's own are checked in verifyLeaf
	})
	return err
}

func verifyLeaf(leaf *x509.Certificate, want spiffeid.ID) error {
	if len(leaf.URIs) != 1 { // X509-SVID §2: exactly one URI SAN
		return fmt.Errorf("the leaf has %d URI SANs instead of one", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0]) // SPIFFE-ID §2
	if err != nil {
		return fmt.Errorf("the leaf's URI SAN: %w", err)
	}
	if id.Path() == "" { // X509-SVID §3.1, §5.2: non-root path
		return errors.New("the leaf's SPIFFE ID has no path")
	}
	if id != want {
		return fmt.Errorf("the leaf is for %s instead of %s", id, want)
	}
	// X509-SVID §3.1 with RFC 5280 §4.1.2.6: without a Subject, the SAN is critical.
	if emptyName(leaf.RawSubject) && !critical(leaf, oidSubjectAltName) {
		return errors.New("the leaf has no Subject, and its SAN is not critical")
	}
	if leaf.IsCA { // X509-SVID §4.1
		return errors.New("the leaf is a CA")
	}
	if !critical(leaf, oidKeyUsage) { // X509-SVID §4.3: set on all SVIDs, and critical
		return errors.New("the leaf has no critical key usage")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("the leaf's key usage lacks digitalSignature")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("the leaf's key usage allows signing certificates or CRLs")
	}
	// X509-SVID §4.4: when the extension is there, it has both.
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 {
		if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
			return errors.New("the leaf's extended key usage lacks serverAuth or clientAuth")
		}
	}
	return nil
}

func verifyCA(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA { // X509-SVID §4.1
		return errors.New("a signing certificate is no CA")
	}
	if !critical(c, oidKeyUsage) || c.KeyUsage&x509.KeyUsageCertSign == 0 { // X509-SVID §4.3
		return errors.New("a signing certificate has no critical key usage with keyCertSign")
	}
	if len(c.URIs) == 0 { // X509-SVID §3.2: SHOULD itself be an SVID
		return nil
	}
	if len(c.URIs) > 1 { // X509-SVID §2
		return errors.New("a signing certificate has more than one URI SAN")
	}
	if id, err := spiffeid.FromURI(c.URIs[0]); err != nil || id.Path() != "" { // X509-SVID §3.2
		return errors.New("a signing certificate has a URI SAN that is not a SPIFFE ID without a path")
	}
	return nil
}

func critical(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Critical && e.Id.Equal(oid) })
}

// emptyName reports whether the DER name has no attributes: an empty SEQUENCE.
func emptyName(der []byte) bool { return bytes.Equal(der, []byte{0x30, 0x00}) }
