package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// X509Request asks for an X.509-SVID.
type X509Request struct {
	ID        spiffeid.ID
	PublicKey crypto.PublicKey // ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits
	DNSNames  []string         // lower case, without wildcards
	TTL       time.Duration    // 0 stands for Options.X509TTL; at most MaxX509TTL, and cut at the CA's end
}

const (
	longestID   = 2048 // bytes; SPIFFE-ID §2.3
	mostNames   = 64
	leastRSA    = 2048 // bits; NIST SP 800-57 part 1, table 2
	mostRSA     = 8192 // a larger one only costs its verifiers time
	leastRSAExp = 65537
)

// IssueX509 signs an X.509-SVID and returns its chain, leaf first, without the root, which is in the bundle. When it
// returns, the serial is durable in the journal. A request that may not be fulfilled is ErrRefused; with a CA that
// is not valid now the error is ErrExpired.
func (a *Authority) IssueX509(ctx context.Context, r X509Request) ([]*x509.Certificate, error) {
	if err := a.admit(r); err != nil {
		return nil, err
	}
	serial, err := newSerial(a.rand)
	if err != nil {
		return nil, err
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = a.x509TTL
	}
	now, ca, end, err := a.engage(ttl)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    latest(now.Add(-backdate), ca.cert.NotBefore),
		NotAfter:     end,
		SubjectKeyId: keyID(r.PublicKey),
		// X509-SVID §2, §3.1: exactly one URI SAN. There is no Subject, so crypto/x509 makes the SAN critical, as
		// RFC 5280 §4.2.1.6 demands.
		URIs:     []*url.URL{r.ID.URL()},
		DNSNames: r.DNSNames,
		// X509-SVID §4.1: a leaf has cA false.
		BasicConstraintsValid: true, IsCA: false,
		// X509-SVID §4.3: digitalSignature, and neither keyCertSign nor cRLSign. crypto/x509 marks it critical.
		KeyUsage: x509.KeyUsageDigitalSignature,
		// X509-SVID §4.4: both, since a workload is a client and a server.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	// The authority key identifier is the CA's subject key identifier (RFC 5280 §4.2.1.1); crypto/x509 adds it.
	der, err := x509.CreateCertificate(a.rand, template, ca.cert, r.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("authority: sign: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("authority: sign: %w", err)
	}
	if err := a.serial.add(ctx, leaf, ca.name.Generation); err != nil {
		return nil, err
	}
	a.issued.Add(1)
	a.latest.Store(now.UnixNano())
	return []*x509.Certificate{leaf}, nil
}

// engage picks the CA that signs now, and the end of what it is to sign. From then on that CA stays in the bundle until
// this end, also when another one takes its place before the signature is made.
func (a *Authority) engage(ttl time.Duration) (now time.Time, ca *caGeneration, end time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, ca = a.clock(), a.active
	if now.Before(ca.cert.NotBefore) || !now.Before(ca.cert.NotAfter) {
		return now, nil, end, fmt.Errorf("%w: it is for %s to %s, and the clock says %s", ErrExpired,
			ca.cert.NotBefore.Format(time.RFC3339), ca.cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	end = earliest(now.Add(ttl), ca.cert.NotAfter) // nothing outlives its CA
	a.ends[ca.name.Generation] = latest(a.ends[ca.name.Generation], end)
	return now, ca, end, nil
}

// admit refuses requests for certificates that may not exist.
func (a *Authority) admit(r X509Request) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
	}
	switch {
	case r.ID.IsZero():
		return refuse("no ID")
	case !r.ID.MemberOf(a.domain): // X509-SVID §3.2, and the authority's whole purpose
		return refuse("%s is not of the trust domain %s", r.ID, a.domain.Name())
	case r.ID.Path() == "": // X509-SVID §3.1: a leaf's path is not the root
		return refuse("%s has no path", r.ID)
	case len(r.ID.String()) > longestID: // SPIFFE-ID §2.3
		return refuse("the ID has %d bytes; %d are allowed", len(r.ID.String()), longestID)
	case r.TTL < 0 || r.TTL > MaxX509TTL:
		return refuse("a life of %s; %s is the most", r.TTL, MaxX509TTL)
	case len(r.DNSNames) > mostNames:
		return refuse("%d DNS names; %d are allowed", len(r.DNSNames), mostNames)
	}
	seen := make(map[string]bool, len(r.DNSNames))
	for _, name := range r.DNSNames {
		if !validDNSName(name) {
			return refuse("%s is not a lower-case DNS name", strconv.Quote(name))
		}
		if seen[name] {
			return refuse("the DNS name %s twice", name)
		}
		seen[name] = true
	}
	if why := weak(r.PublicKey); why != "" {
		return refuse("%s", why)
	}
	a.mu.Lock()
	cas := a.cas
	a.mu.Unlock()
	for _, g := range cas {
		if samePublic(g.cert.PublicKey, r.PublicKey) { // X509-SVID §4.3: a signing key never authenticates
			return refuse("the key is the CA's own")
		}
	}
	return nil
}

// weak says why a public key may not be certified, or "".
func weak(public crypto.PublicKey) string {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return "an ECDSA key on a curve other than P-256 and P-384"
		}
		if _, err := k.ECDH(); err != nil { // checks that the point is on the curve
			return "an ECDSA key that is no point of its curve"
		}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "an Ed25519 key of a wrong length"
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < leastRSA || k.N.BitLen() > mostRSA || k.N.Bit(0) == 0 {
			return fmt.Sprintf("an RSA key that has not %d to %d bits", leastRSA, mostRSA)
		}
		if k.E < leastRSAExp || k.E%2 == 0 || k.E > 1<<31-1 { // FIPS 186-5 §A.1.1
			return "an RSA key with a weak exponent"
		}
	default:
		return "a key of an unknown kind"
	}
	return ""
}

// validDNSName reports whether s is a host name (RFC 1123 §2.1) in its plain form: lower case, no dot at the end,
// no wildcard, no IP address.
func validDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	_, err := strconv.ParseUint(labels[len(labels)-1], 0, 64)
	return err != nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
