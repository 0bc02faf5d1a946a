package workload

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func TestVerifyX509(t *testing.T) {
	id := spiffeid.RequireFromPath(clinic, "/portal")
	uri := func(raw string) *url.URL {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	nothing := func(*x509.Certificate) {}
	for _, tc := range []struct {
		name string // the section of X509-SVID, unless another standard is named
		leaf func(*x509.Certificate)
		ca   func(*x509.Certificate)
		want string // "" for a good one
		// lax says that go-spiffe's own Verify lets it pass.
		lax bool
	}{
		{name: "5 good", leaf: nothing, ca: nothing, lax: true},
		{name: "2 no URI SAN", leaf: func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"a.test"} }, ca: nothing, want: "0 URI SANs"},
		{name: "2 two URI SANs", leaf: func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("https://a.test")) }, ca: nothing, want: "2 URI SANs"},
		{name: "SPIFFE-ID 2.1 scheme", leaf: func(c *x509.Certificate) { c.URIs[0] = uri("https://clinic.test/portal") }, ca: nothing, want: "scheme"},
		{name: "SPIFFE-ID 2.2 dot segment", leaf: func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://clinic.test/../portal") }, ca: nothing, want: "dot segment"},
		{name: "SPIFFE-ID 2.2 trailing slash", leaf: func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://clinic.test/portal/") }, ca: nothing, want: "trailing"},
		{name: "SPIFFE-ID 2.2 percent encoding", leaf: func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://clinic.test/p%6frtal") }, ca: nothing, want: "percent|characters"},
		{name: "3.1 root path", leaf: func(c *x509.Certificate) { c.URIs[0] = clinic.ID().URL() }, ca: nothing, want: "no path", lax: true},
		{name: "2 another ID", leaf: func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://clinic.test/ehr") }, ca: nothing, want: "is for spiffe://clinic.test/ehr", lax: true},
		{name: "4.1 CA", leaf: func(c *x509.Certificate) { c.IsCA = true }, ca: nothing, want: "is a CA"},
		{name: "4.3 no key usage", leaf: func(c *x509.Certificate) { c.KeyUsage = 0 }, ca: nothing, want: "no critical key usage", lax: true},
		{name: "4.3 key usage not critical", leaf: func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = []pkix.Extension{{Id: oidKeyUsage, Value: []byte{0x03, 0x02, 0x07, 0x80}}}
		}, ca: nothing, want: "no critical key usage", lax: true},
		{name: "4.3 no digitalSignature", leaf: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, ca: nothing, want: "lacks digitalSignature", lax: true},
		{name: "4.3 keyCertSign", leaf: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, ca: nothing, want: "allows signing"},
		{name: "4.3 cRLSign", leaf: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, ca: nothing, want: "allows signing"},
		{name: "4.4 codeSigning only", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, ca: nothing, want: "lacks serverAuth or clientAuth", lax: true},
		{name: "4.4 no clientAuth", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, ca: nothing, want: "lacks serverAuth or clientAuth", lax: true},
		{name: "4.4 no extended key usage at all", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, ca: nothing, lax: true},
		{name: "3.1 SAN not critical without Subject", leaf: func(c *x509.Certificate) {
			// GeneralNames with one URI, as an extension that is not critical.
			san := append([]byte{0x30, byte(2 + len(id.String())), 0x86, byte(len(id.String()))}, id.String()...)
			c.URIs, c.ExtraExtensions = nil, []pkix.Extension{{Id: oidSubjectAltName, Value: san}}
		}, ca: nothing, want: "SAN is not critical", lax: true},
		{name: "3.1 SAN not critical with Subject", leaf: func(c *x509.Certificate) { c.Subject.CommonName = "portal" }, ca: nothing, lax: true},
		{name: "RFC 5280 6 expired", leaf: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, ca: nothing, want: "expired"},
		{name: "RFC 5280 6 not yet valid", leaf: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, ca: nothing, want: "not yet valid"},
		{name: "3.2 CA with a path", leaf: nothing, ca: func(c *x509.Certificate) { c.URIs[0] = id.URL() }, want: "unknown authority", lax: true},
		{name: "4.3 CA without keyCertSign", leaf: nothing, ca: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, want: "unknown authority"},
		{name: "4.1 CA without cA", leaf: nothing, ca: func(c *x509.Certificate) { c.IsCA = false }, want: "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			caKey, root := newRoot(t, tc.ca)
			key := newKey(t)
			template := leafTemplate(t, X509Request{ID: id})
			tc.leaf(template)
			chain := []*x509.Certificate{sign(t, template, root, key.Public(), caKey)}
			bundle := x509bundle.FromX509Authorities(clinic, []*x509.Certificate{root})
			check(t, VerifyX509(chain, id, key.Public(), bundle, time.Now()), tc.want)
			if _, _, err := x509svid.Verify(chain, bundle); (err == nil) != tc.lax {
				t.Errorf("go-spiffe's own Verify: %v", err)
			}
		})
	}
}

func TestVerifyX509Chain(t *testing.T) {
	id := spiffeid.RequireFromPath(clinic, "/portal")
	rootKey, root := newRoot(t, func(*x509.Certificate) {})
	bundle := x509bundle.FromX509Authorities(clinic, []*x509.Certificate{root})
	key := newKey(t)
	chain := func(twist func(*x509.Certificate)) []*x509.Certificate {
		middleKey := newKey(t)
		middle := &x509.Certificate{
			SerialNumber: serial(t), Subject: pkix.Name{CommonName: "replica"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{clinic.ID().URL()},
		}
		twist(middle)
		ca := sign(t, middle, root, middleKey.Public(), rootKey)
		return []*x509.Certificate{sign(t, leafTemplate(t, X509Request{ID: id}), ca, key.Public(), middleKey), ca}
	}
	now := time.Now()
	other := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("other.test"), []*x509.Certificate{root})
	good := chain(func(*x509.Certificate) {})
	check(t, VerifyX509(good, id, key.Public(), bundle, now), "")
	check(t, VerifyX509(nil, id, key.Public(), bundle, now), "chain is empty")
	check(t, VerifyX509(good[:1], id, key.Public(), bundle, now), "unknown authority")
	check(t, VerifyX509(good, id, newKey(t).Public(), bundle, now), "another key")
	check(t, VerifyX509(good, id, "no key", bundle, now), "another key")
	check(t, VerifyX509(good, id, key.Public(), nil, now), "no bundle")
	check(t, VerifyX509(good, id, key.Public(), other, now), "no bundle")
	check(t, VerifyX509(chain(func(c *x509.Certificate) { c.URIs = []*url.URL{id.URL()} }), id, key.Public(), bundle, now), "without a path")
	check(t, VerifyX509(chain(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), id, key.Public(), bundle, now), "keyCertSign")
	check(t, VerifyX509(chain(func(c *x509.Certificate) { c.IsCA = false }), id, key.Public(), bundle, now), "is no CA")
}

// check wants an error that says one of the alternatives in want, or none when want is "".
func check(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("unexpected error: %v", err)
		}
		return
	}
	if err == nil {
		t.Errorf("no error; want %q", want)
		return
	}
	for _, w := range strings.Split(want, "|") {
		if strings.Contains(err.Error(), w) {
			return
		}
	}
	t.Errorf("error %q does not say %q", err, want)
}
