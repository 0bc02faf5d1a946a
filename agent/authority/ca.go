package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/url"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"
)

// backdate is how long before its making a certificate begins. A peer whose clock is a little slow would otherwise
// refuse an SVID that was just made, at every renewal. Half a minute is what leeway elsewhere in Ward is; a clock
// that is further off is a fault, and fails.
const backdate = 30 * time.Second

// keyRecord is a key's entry in the journal: its public half, and what was certified of it.
type keyRecord struct {
	Class       Class     `json:"class"`
	Generation  uint32    `json:"generation"`
	Use         string    `json:"use"`
	State       State     `json:"state"`
	Public      []byte    `json:"public"`                // PKIX, DER
	Certificate []byte    `json:"certificate,omitempty"` // of an x509-ca, DER
	Created     time.Time `json:"created"`
	Activated   time.Time `json:"activated,omitzero"`
	Replaced    time.Time `json:"replaced,omitzero"`
}

// loadCAs loads the CAs that the journal mentions, by number. There are none before the first run has ended.
func loadCAs(ctx context.Context, o Options, store Store) ([]*caGeneration, error) {
	journal := filepath.Join(o.Dir, journalFile)
	var out []*caGeneration
	count := make(map[State]int)
	err := store.Range(ctx, BucketKeys, []byte(X509CA+"/"), []byte(X509CA+"0"), func(k, v []byte) error {
		g := &caGeneration{stored: bytes.Clone(v)}
		err := json.Unmarshal(v, &g.record)
		g.name = KeyName{X509CA, g.record.Generation}
		if err != nil || g.record.Class != X509CA || g.record.Use != X509CA.Use() || !bytes.Equal(k, g.name.record()) || g.name.Generation == 0 {
			return &CorruptError{Path: journal, Problem: "the record of a CA key cannot be read", Advice: restore, Err: err}
		}
		count[g.record.State]++
		out = append(out, g)
		return nil
	})
	if err != nil {
		return nil, err
	}
	wrong := ""
	switch {
	case len(out) == 0:
		return nil, nil
	case count[Active] > 1:
		wrong = "two CA keys are active"
	case count[Active] == 0:
		wrong = "no CA key is active"
	case count[Prepared] > 1:
		wrong = "two CA keys are prepared"
	case count[Active]+count[Prepared]+count[Old] != len(out):
		wrong = "a CA key is in an unknown state"
	}
	if wrong != "" {
		return nil, &CorruptError{Path: journal, Problem: wrong, Advice: restore}
	}
	for _, g := range out {
		if err := g.load(o); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// load completes a generation by its certificate and, unless it signs no more, its key.
func (g *caGeneration) load(o Options) (err error) {
	journal := filepath.Join(o.Dir, journalFile)
	g.cert, err = x509.ParseCertificate(g.record.Certificate)
	if err == nil {
		err = checkCA(g.cert, o.TrustDomain)
	}
	if err != nil {
		return &CorruptError{Path: journal, Problem: "the CA certificate in the journal is not one", Advice: restore, Err: err}
	}
	if !bytes.Equal(publicDER(g.cert.PublicKey), g.record.Public) {
		return &CorruptError{Path: journal, Problem: "the CA certificate in the journal is of another key", Advice: restore}
	}
	if g.record.State != Old {
		g.key, err = o.Keys.Signer(g.name)
		g.place = o.Keys.Place(g.name)
		switch {
		case errors.Is(err, ErrNoKey):
			return &CorruptError{Path: keyPath(o.Dir, g.name), Problem: "the CA key is missing", Advice: restore}
		case err != nil:
			return err
		case !samePublic(g.key.Public(), g.cert.PublicKey):
			return &CorruptError{Path: g.place.Path, Problem: "the key is not that of the CA certificate in the journal", Advice: restore}
		}
	}
	file, err := readCertificate(o.Dir, g.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &CorruptError{Path: certificatePath(o.Dir, g.name), Problem: "the CA certificate is missing", Advice: restore}
	case err != nil:
		return err
	case !bytes.Equal(file.Raw, g.cert.Raw):
		return &CorruptError{Path: certificatePath(o.Dir, g.name), Problem: "the certificate is not the one in the journal", Advice: restore}
	}
	return nil
}

// firstCA makes the first CA. An earlier first run may have been killed after any of the steps; what it finished is
// used, so that there is only ever one key.
func firstCA(ctx context.Context, o Options, store Store) (*caGeneration, error) {
	name := KeyName{X509CA, 1}
	key, err := o.Keys.Signer(name)
	if errors.Is(err, ErrNoKey) {
		key, err = o.Keys.Create(name)
	}
	if err != nil {
		return nil, err
	}
	if why := weak(key.Public()); why != "" {
		return nil, fmt.Errorf("authority: the key store made %s", why)
	}
	o.reached("key")

	cert, err := readCertificate(o.Dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if cert, err = makeCA(o, key); err != nil {
			return nil, err
		}
		if err := writeNew(certificatePath(o.Dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		if err := checkCA(cert, o.TrustDomain); err != nil || !samePublic(key.Public(), cert.PublicKey) {
			return nil, &CorruptError{Path: certificatePath(o.Dir, name), Problem: "the certificate does not fit the CA key", Advice: restore, Err: err}
		}
	}
	o.reached("certificate")

	g := newGeneration(name, Active, cert, key, o.Clock())
	g.place = o.Keys.Place(name)
	err = store.Commit(ctx, Tx{
		If:  []Condition{{Bucket: BucketKeys, Key: name.record()}},
		Put: []Record{{BucketKeys, name.record(), g.stored}, sequenceNow(1), newestNow(name.Generation)},
	})
	if err != nil {
		return nil, fmt.Errorf("authority: record the CA: %w", err)
	}
	o.reached("record")
	o.Logger.Info("made the CA of the trust domain", zap.String("trust_domain", o.TrustDomain.Name()),
		zap.String("subject_key_id", fmt.Sprintf("%x", cert.SubjectKeyId)), zap.Time("not_after", cert.NotAfter))
	return g, nil
}

// makeCA signs a CA certificate with its own key.
func makeCA(o Options, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := newSerial(o.Rand)
	if err != nil {
		return nil, err
	}
	now := o.Clock()
	template := &x509.Certificate{
		SerialNumber: serial,
		// RFC 5280 §4.1.2.6: a CA has a subject. It is unique, for software that builds paths by names.
		Subject:      pkix.Name{Organization: []string{"Ward"}, CommonName: "Ward CA", SerialNumber: serial.Text(16)},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(o.CATTL),
		SubjectKeyId: keyID(key.Public()),
		// X509-SVID §3.1, §3.2: one URI SAN, the trust domain's ID without a path.
		URIs: []*url.URL{o.TrustDomain.ID().URL()},
		// X509-SVID §4.1: a signing certificate has cA true. It signs leaves alone, hence the path length.
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: 0, MaxPathLenZero: true,
		// X509-SVID §4.3: a signing certificate has keyCertSign, and nothing to authenticate by.
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(o.Rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("authority: CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("authority: CA certificate: %w", err)
	}
	return cert, nil
}

// checkCA refuses a certificate that is not a CA of the trust domain, as makeCA makes them.
func checkCA(cert *x509.Certificate, td spiffeid.TrustDomain) error {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return errors.New("it is not a CA")
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it may not sign certificates")
	case len(cert.URIs) != 1 || cert.URIs[0].String() != td.IDString():
		return fmt.Errorf("it is not of %s", td.IDString())
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("it is not signed by itself: %w", err)
	}
	return nil
}

func certificatePath(dir string, name KeyName) string {
	return filepath.Join(dir, name.String()+".crt")
}

func readCertificate(dir string, name KeyName) (*x509.Certificate, error) {
	path := certificatePath(dir, name)
	text, err := readPrivate(path, 0o644) // no secret, but nobody else's either
	if err != nil {
		return nil, fmt.Errorf("authority: certificate: %w", err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		return nil, &CorruptError{Path: path, Problem: "the file is not one certificate in PEM form", Advice: restore}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &CorruptError{Path: path, Problem: "the certificate cannot be read", Advice: restore, Err: err}
	}
	return cert, nil
}

// newSerial is a random number of 127 bits, more than the 64 that CAs need to be unpredictable, and positive in
// the 20 bytes that RFC 5280 §4.1.2.2 allows.
func newSerial(random io.Reader) (*big.Int, error) {
	var b [16]byte
	for {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return nil, fmt.Errorf("authority: serial: %w", err)
		}
		b[0] &= 0x7f
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n, nil
		}
	}
}

// keyID is a key identifier by RFC 7093 §2, method 1.
func keyID(public crypto.PublicKey) []byte {
	sum := sha256.Sum256(publicBits(public))
	return sum[:20]
}

// publicBits is the key in a SubjectPublicKeyInfo, without the algorithm.
func publicBits(public crypto.PublicKey) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(publicDER(public), &info); err != nil {
		return nil
	}
	return info.Key.Bytes
}

// publicDER is a public key in PKIX form; nil for a type that has none.
func publicDER(public crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil
	}
	return der
}

func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}
