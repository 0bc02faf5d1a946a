package proxy_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/proxy"
)

// badSVIDs are certificates that no ward may take for a workload's: PROXY 15, with the places in the X509-SVID standard.
func badSVIDs() map[string]func(t *testing.T, w *world) *x509svid.SVID {
	bad := func(change func(*x509.Certificate)) func(*testing.T, *world) *x509svid.SVID {
		return func(t *testing.T, w *world) *x509svid.SVID { return w.ca.issue(t, "/app/portal", change) }
	}
	return map[string]func(t *testing.T, w *world) *x509svid.SVID{
		"X509-SVID §2 no URI SAN": bad(func(c *x509.Certificate) { c.URIs = nil }),
		"X509-SVID §2 two URI SANs": bad(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "clinic.test", Path: "/app/ehr"})
		}),
		"X509-SVID §2 the URI is no SPIFFE ID": bad(func(c *x509.Certificate) {
			c.URIs[0] = &url.URL{Scheme: "https", Host: "clinic.test", Path: "/app/portal"}
		}),
		"X509-SVID §2 a leaf of the root path": bad(func(c *x509.Certificate) { c.URIs[0] = &url.URL{Scheme: "spiffe", Host: "clinic.test"} }),
		"X509-SVID §4.1 a CA as leaf": bad(func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
		}),
		"X509-SVID §4.3 keyCertSign":        bad(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
		"X509-SVID §4.3 cRLSign":            bad(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"X509-SVID §4.3 no key usage":       bad(func(c *x509.Certificate) { c.KeyUsage = 0 }),
		"X509-SVID §4.3 keyAgreement alone": bad(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }),
		"X509-SVID §4.4 codeSigning alone":  bad(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
		"X509-SVID §4.4 serverAuth alone":   bad(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"X509-SVID §4.4 clientAuth alone":   bad(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
		"RFC 5280 §4.1.2.5 expired":         bad(endingIn(-time.Second)),
		"RFC 5280 §4.1.2.5 not yet valid":   bad(issuedAgo(-time.Hour)),
		"another authority of the same name": func(t *testing.T, _ *world) *x509svid.SVID {
			return newAuthority(t, "clinic.test").issue(t, "/app/portal")
		},
		"a trust domain that is not trusted": func(t *testing.T, _ *world) *x509svid.SVID {
			return newAuthority(t, "evil.test").issue(t, "/app/portal")
		},
		"our name from their authority":          crossDomain,
		"X509-SVID §4.2 a leaf signed by a leaf": signedByLeaf,
	}
}

// crossDomain is an ID of our domain, signed by the authority of another one that is trusted for its own.
func crossDomain(t *testing.T, w *world) *x509svid.SVID {
	partner := newAuthority(t, "partner.test")
	w.self.Add(partner.bundle())
	return partner.issue(t, "/app/portal", func(c *x509.Certificate) { c.URIs[0].Host = "clinic.test" })
}

func signedByLeaf(t *testing.T, w *world) *x509svid.SVID {
	parent := w.ca.issue(t, "/app/portal")
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(99), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{{Scheme: "spiffe", Host: "clinic.test", Path: "/app/ehr"}}}
	leaf := sign(t, template, parent.Certificates[0], key, parent.PrivateKey.(*ecdsa.PrivateKey))
	return &x509svid.SVID{ID: parent.ID, Certificates: []*x509.Certificate{leaf, parent.Certificates[0]}, PrivateKey: key}
}

// 15: ingress closes the connection, answers nothing and records it.
func testIngressRefusesCertificates(t *testing.T) {
	for name, svid := range badSVIDs() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			w.refusedByIngress(t, svid(t, w), nil)
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.refusedByIngress(t, w.portal.svid.Load(), func(c *tls.Config) { c.GetClientCertificate = nil })
	})
	t.Run("another key than the certificate's", func(t *testing.T) {
		w := newWorld(t, setup{})
		stolen := *w.portal.svid.Load()
		stolen.PrivateKey = newKey(t)
		w.refusedByIngress(t, &stolen, nil)
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.refusedByIngress(t, w.portal.svid.Load(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	})
	t.Run("RFC 7301 §3.2 no protocol that is spoken here", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.refusedByIngress(t, w.portal.svid.Load(), func(c *tls.Config) { c.NextProtos = []string{"h2c", "http/1.0", "h3"} })
	})
	t.Run("plain HTTP", func(t *testing.T) {
		w := newWorld(t, setup{})
		c := w.dial(w.address)
		_, _ = io.WriteString(c, request("GET /fhir/metadata", ""))
		out, _ := io.ReadAll(c)
		if contains(string(out), "200") || contains(string(out), "resourceType") {
			t.Errorf("answered %q", out)
		}
		w.awaitHandshakeRefusal(t)
	})
}

// refusedByIngress tries to call with svid, and sees that nothing comes of it.
func (w *world) refusedByIngress(t *testing.T, svid *x509svid.SVID, change func(*tls.Config)) {
	t.Helper()
	c, err := w.handshake(svid, change)
	if err == nil {
		_, _ = io.WriteString(c, request("GET /fhir/metadata", ""))
		var n int
		if n, err = c.Read(make([]byte, 1)); n > 0 {
			t.Error("it was answered")
		}
	}
	if err == nil {
		t.Error("the connection was accepted")
	}
	w.awaitHandshakeRefusal(t)
	w.upstream.untouched(t)
}

func (w *world) awaitHandshakeRefusal(t *testing.T) {
	t.Helper()
	r := w.trail.await(t, 1, func(*proxy.Record) bool { return true })[0]
	if r.Stage != proxy.StageRefusal || r.Cause != proxy.CauseNoIdentity || r.Caller != "" || r.Remote == "" || r.Decision == "" {
		t.Errorf("record %s", toJSON(r))
	}
}

// 15, the other way round: egress speaks to nobody but the service's own identity.
func testEgressRefusesServers(t *testing.T) {
	check := func(t *testing.T, w *world, svid *x509svid.SVID, change func(*tls.Config)) {
		t.Helper()
		cfg := proxy.ServerTLS(newIdentity(svid, w.ca.bundle()), time.Now)
		cfg.VerifyConnection = nil // it takes whoever comes
		if change != nil {
			change(cfg)
		}
		next := newUpstream(t, tls.NewListener(listen(t), cfg))
		next.always(reply(200, "", "Ward-Decision: "+someDecision))
		w.service.Addresses = []string{next.Addr().String()}
		a := w.call(w.portal, request("GET /fhir/Patient/a", "", bearer(w.token())))
		w.checkRefusal(t, a, proxy.HopEgress, proxy.CauseUpstream)
		next.untouched(t)
	}
	for name, svid := range badSVIDs() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			check(t, w, svid(t, w), nil)
		})
	}
	t.Run("wrong destination", func(t *testing.T) {
		w := newWorld(t, setup{})
		check(t, w, w.ca.issue(t, "/ward/other"), nil)
	})
	t.Run("a caller's own identity", func(t *testing.T) {
		w := newWorld(t, setup{})
		check(t, w, w.portal.svid.Load(), nil)
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		w := newWorld(t, setup{})
		check(t, w, w.self.svid.Load(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	})
	t.Run("it ends within max_exchange", func(t *testing.T) {
		w := newWorld(t, setup{})
		check(t, w, w.ca.issue(t, "/ward/ehr", endingIn(30*time.Second)), nil)
	})
	t.Run("plain HTTP", func(t *testing.T) {
		w := newWorld(t, setup{})
		next := newUpstream(t, listen(t))
		w.service.Addresses = []string{next.Addr().String()}
		w.checkRefusal(t, w.call(w.portal, request("GET /fhir/Patient/a", "")), proxy.HopEgress, proxy.CauseUpstream)
		next.untouched(t)
	})
}

// ARCHITECTURE, Fixed choices: TLS 1.3, the post-quantum key exchange first. No session is resumed and no data goes
// early: both would carry an identity past its end.
func testHandshake(t *testing.T) {
	w := newWorld(t, setup{})
	cache := tls.NewLRUClientSessionCache(8)
	for range 3 {
		c, err := w.handshake(w.portal.svid.Load(), func(c *tls.Config) {
			c.ClientSessionCache, c.ServerName = cache, "ward"
		})
		if err != nil {
			t.Fatal(err)
		}
		// The answer is behind whatever tickets there are.
		if a := send(t, c, request("GET /fhir/metadata", "")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		s := c.ConnectionState()
		if s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 || s.DidResume {
			t.Errorf("version %x, key exchange %v, resumed %v", s.Version, s.CurveID, s.DidResume)
		}
		if _, ok := cache.Get("ward"); ok {
			t.Error("the server gave a ticket")
		}
		_ = c.Close()
	}
	cfg := proxy.ClientTLS(w.portal.svid.Load(), w.ca.bundle(), w.service.ID, time.Now)
	if cfg.ClientSessionCache != nil || cfg.MinVersion != tls.VersionTLS13 {
		t.Error("the client would resume")
	}
}

// A connection ends with the first of the two SVIDs on it, whatever runs.
func testConnectionEndsWithItsIdentities(t *testing.T) {
	for name, issue := range map[string]func(t *testing.T, w *world) *x509svid.SVID{
		"caller's": func(t *testing.T, w *world) *x509svid.SVID {
			return w.ca.issue(t, "/app/portal", endingIn(2500*time.Millisecond))
		},
		"ward's": func(t *testing.T, w *world) *x509svid.SVID {
			w.self.svid.Store(w.ca.issue(t, "/ward/ehr", endingIn(2500*time.Millisecond)))
			return w.portal.svid.Load()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			release := make(chan struct{})
			w.upstream.script(func(c net.Conn, r *received) bool {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
				<-release
				return false
			})
			defer close(release)
			c := w.dialIngress(issue(t, w))
			if _, err := io.WriteString(c, request("GET /fhir/Observation/1", "", bearer(w.token()))); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) || !contains(string(rest), "200 OK") || strings.HasSuffix(string(rest), "0\r\n\r\n") {
				t.Errorf("the connection ended with %v after %q", err, rest)
			}
			out := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })[0]
			if out.Complete {
				t.Errorf("recorded as complete: %s", toJSON(out))
			}
		})
	}
}

// Between the moments at which a timer runs, the time itself is asked: a host that slept wakes to ended SVIDs.
func testRequestOnAnEndedIdentityIsRefused(t *testing.T) {
	w := newWorld(t, setup{})
	c := w.dialIngress(w.portal.svid.Load())
	if a := send(t, c, request("GET /fhir/metadata", "")); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.clock.Advance(2 * time.Hour)
	a := send(t, c, request("GET /fhir/metadata", ""))
	w.checkRefusal(t, a, proxy.HopIngress, proxy.CausePeerChanged)
	if !a.close {
		t.Error("the connection goes on")
	}
}

// 15: whatever changes between two handshakes, the second is a full one: the caller's certificate is looked at again, by
// the rules that hold then. Without a ticket there is no early data either (RFC 8446 §2.3).
func TestNoSessionOutlivesWhatItRestedOn(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(t *testing.T, w *world)
		refused bool
	}{
		"nothing":    {func(*testing.T, *world) {}, false},
		"the policy": {func(_ *testing.T, w *world) { w.live.Replace(proxy.NewIngress(w.rules)) }, false},
		"the ward's SVID": {func(t *testing.T, w *world) {
			w.self.svid.Store(w.ca.issue(t, "/ward/ehr"))
		}, false},
		"the caller's SVID": {func(t *testing.T, w *world) { w.portal.svid.Store(w.ca.issue(t, "/app/portal")) }, false},
		"the bundle": {func(t *testing.T, w *world) {
			w.self.Add(newAuthority(t, "clinic.test").bundle())
		}, true},
	} {
		for _, protocol := range []string{"http/1.1", "h2"} {
			t.Run(name+"/"+protocol, func(t *testing.T) {
				w := newWorld(t, setup{})
				cache := tls.NewLRUClientSessionCache(8)
				with := func(c *tls.Config) {
					c.ClientSessionCache, c.ServerName, c.NextProtos = cache, "ward", []string{protocol}
				}
				first, err := w.handshake(w.portal.svid.Load(), with)
				if err != nil {
					t.Fatal(err)
				}
				if protocol == "http/1.1" && !c.refused {
					if a := send(t, first, request("GET /fhir/metadata", "")); a.status != 200 {
						t.Fatalf("%d %s", a.status, a.body)
					}
				}
				c.change(t, w)
				if c.refused {
					w.refusedByIngress(t, w.portal.svid.Load(), with)
					return
				}
				second, err := w.handshake(w.portal.svid.Load(), with)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := cache.Get("ward"); ok || second.ConnectionState().DidResume {
					t.Error("there is a session to resume")
				}
				if got := second.ConnectionState().PeerCertificates[0]; !got.Equal(w.self.svid.Load().Certificates[0]) {
					t.Error("the ward shows a certificate that it has replaced")
				}
			})
		}
	}
}

// A ticket that a ward has not made, and be it of a server with its own certificate, is no ticket.
func TestAnothersTicketIsNotTaken(t *testing.T) {
	w := newWorld(t, setup{})
	cache := tls.NewLRUClientSessionCache(8)
	with := func(c *tls.Config) { c.ClientSessionCache, c.ServerName = cache, "ward" }
	cfg := proxy.ServerTLS(newIdentity(w.self.svid.Load(), w.ca.bundle()), time.Now)
	cfg.SessionTicketsDisabled = false
	l := tls.NewListener(listen(t), cfg)
	next := newUpstream(t, l)
	next.always(reply(200, ""))
	ward := w.address
	w.address = l.Addr().String()
	c, err := w.handshake(w.portal.svid.Load(), with)
	if err != nil {
		t.Fatal(err)
	}
	if a := send(t, c, request("GET /fhir/metadata", "")); a.status != 200 {
		t.Fatalf("%d", a.status)
	}
	if _, ok := cache.Get("ward"); !ok {
		t.Fatal("the other server gave no ticket: this test shows nothing")
	}
	w.address = ward
	if c, err = w.handshake(w.portal.svid.Load(), with); err != nil {
		t.Fatal(err)
	}
	if a := send(t, c, request("GET /fhir/metadata", "")); a.status != 200 || c.ConnectionState().DidResume {
		t.Errorf("%d, resumed %v", a.status, c.ConnectionState().DidResume)
	}
}
