package seal

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// errNoBundle: without a bundle nothing can be verified. It may come back with the right key.
var errNoBundle = errors.New("no bundle is kept to verify it with")

// svidRecord is a kept SVID, before it is sealed.
type svidRecord struct {
	Version  int           `json:"version"`
	Entry    string        `json:"entry"`
	ID       string        `json:"id"`
	DNSNames []string      `json:"dns_names,omitempty"`
	TTL      time.Duration `json:"ttl"`
	Lent     bool          `json:"lent"`
	Chain    [][]byte      `json:"chain"` // DER, leaf first
	Key      []byte        `json:"key"`   // PKCS#8, DER
}

// bundleRecord is a kept bundle, before it is sealed.
type bundleRecord struct {
	Version     int      `json:"version"`
	TrustDomain string   `json:"trust_domain"`
	Authorities [][]byte `json:"authorities"` // DER
}

const recordVersion = 1

// errRecord says nothing of what was read: a parser's words could repeat a key.
var errRecord = fmt.Errorf("%w: the record is not one", ErrMalformed)

func encodeSVID(s SVID) ([]byte, error) {
	r := svidRecord{Version: recordVersion, Entry: s.Entry, ID: s.ID.String(), DNSNames: s.DNSNames, TTL: s.TTL, Lent: s.Lent}
	for _, c := range s.Certificates {
		r.Chain = append(r.Chain, c.Raw)
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		return nil, errors.New("seal: keep: the key is in no form that can be kept")
	}
	r.Key = key
	return encodeRecord(r)
}

func encodeBundle(b *x509bundle.Bundle) ([]byte, error) {
	r := bundleRecord{Version: recordVersion, TrustDomain: b.TrustDomain().Name()}
	for _, c := range b.X509Authorities() {
		r.Authorities = append(r.Authorities, c.Raw)
	}
	return encodeRecord(r)
}

func encodeRecord(r any) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, errors.New("seal: keep: the record cannot be written")
	}
	if len(text) > mostRecord {
		return nil, fmt.Errorf("seal: keep: a record of %d bytes; %d are the most", len(text), mostRecord)
	}
	return text, nil
}

// decode reads a record strictly: what it does not know, it refuses.
func decode(text []byte, r any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(r) != nil {
		return errRecord
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errRecord
	}
	return nil
}

func decodeSVID(text []byte) (*SVID, error) {
	var r svidRecord
	if err := decode(text, &r); err != nil {
		return nil, err
	}
	id, err := spiffeid.FromString(r.ID)
	if err != nil || r.Version != recordVersion || r.Entry == "" || r.TTL < 0 {
		return nil, errRecord
	}
	s := &SVID{Slot: Slot{Entry: r.Entry, ID: id, DNSNames: r.DNSNames, TTL: r.TTL, Lent: r.Lent}}
	if s.Certificates, err = parseCertificates(r.Chain); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(r.Key)
	if err != nil {
		return nil, errRecord
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errRecord
	}
	s.PrivateKey = signer
	return s, nil
}

func decodeBundle(text []byte, td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	var r bundleRecord
	if err := decode(text, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, errRecord
	}
	if r.TrustDomain != td.Name() {
		return nil, errors.New("of another trust domain")
	}
	roots, err := parseCertificates(r.Authorities)
	if err != nil {
		return nil, err
	}
	return x509bundle.FromX509Authorities(td, roots), nil
}

// parseCertificates reads at least one certificate.
func parseCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, errRecord
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errRecord
	}
	return out, nil
}

// verify believes a kept SVID only when it would believe one that was just issued: valid now, of the trust domain, for
// this ID and key, and signed by a CA of the bundle (X509-SVID §5).
func (s *SVID) verify(bundle *x509bundle.Bundle, td spiffeid.TrustDomain, now time.Time) error {
	leaf := s.Certificates[0]
	if now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		return fmt.Errorf("%w: it is for %s to %s", ErrExpired, leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	if !s.ID.MemberOf(td) {
		return errors.New("of another trust domain")
	}
	if bundle == nil {
		return errNoBundle
	}
	id, _, err := x509svid.Verify(s.Certificates, bundle, x509svid.WithTime(now))
	switch {
	case err != nil:
		return errors.New("the kept bundle does not vouch for it")
	case id != s.ID:
		return errors.New("its certificate is for another ID")
	}
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(s.PrivateKey.Public()) {
		return errors.New("its key is not that of its certificate")
	}
	return nil
}
