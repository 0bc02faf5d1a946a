package proxy_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
)

// 10-14, as far as one request plays them.
func refusedIdentity() []refused {
	rows := []refused{
		got("10 a pseudo-header field", proxy.CauseMalformed, hostLine, ":ward-caller: forged"),
		got("10 :authority as a field", proxy.CauseMalformed, hostLine, ":authority: fhir.other.mesh.internal"),
		got("10 an identity in a folded line", proxy.CauseMalformed, hostLine, "X: a", " Ward-Caller: forged"),
		got("10 an identity behind a bare LF", proxy.CauseMalformed, hostLine, "X: a\nWard-Caller: forged"),
		got("10 an identity behind a bare CR", proxy.CauseMalformed, hostLine, "X: a\rWard-Caller: forged"),
	}
	for name, lines := range map[string][]string{
		"Authorization": {"Connection: keep-alive, AUTHORIZATION"}, "Host": {"Connection: host"}, "an identity": {"Connection: x-forwarded-client-cert"}, "Forwarded": {"Connection: close, forwarded"},
		"an identity with _": {"Connection: Ward_Caller"}, "Authorization after an empty line": {"Connection:", "Connection: authorization"}, "it after an empty line": {"Connection:", "Connection: , ,Ward-User"},
		"it between commas": {"Connection: ,,\tWard-User\t,"}, "a condition": {"Connection: If-Match", `If-Match: W/"1"`}, "the body's type": {"Connection: content_type"}, "the body's length": {"Connection: content-length"},
		"it in a second field": {"Connection: keep-alive", "CONNECTION: ward-purpose"}, "the decision": {"Connection: Ward-Decision"},
	} {
		rows = append(rows, got("11 Connection names "+name, proxy.CauseHeaders, append([]string{hostLine}, lines...)...))
	}
	rows = append(rows, refusedTokens()...)
	for name, value := range map[string]string{
		"empty": "Host:", "with @": "Host: a@" + serviceName, "with a user and a password": "Host: a:b@" + serviceName, "with /": hostLine + "/x", `with \`: hostLine + `\x`, "with #": hostLine + "#x", "with ?": hostLine + "?x",
		"with a bad port": hostLine + ":99999", "with port 0": hostLine + ":0", "with an empty port": hostLine + ":", "with a signed port": hostLine + ":+80", "with a port in letters": hostLine + ":http", "with two ports": hostLine + ":80:80",
		"with a space": "Host: fhir ehr.mesh.internal", "with a comma": hostLine + "," + serviceName, "with %": "Host: fhir%2eehr.mesh.internal", "with ;": hostLine + ";x", "with a byte above 0x7f": "Host: fh\xefr.ehr.mesh.internal",
		"a URL": "Host: http://" + serviceName, "twice": hostLine + "\r\n" + hostLine, "twice, differing": hostLine + "\r\nHost: fhir.other.mesh.internal", "twice in two spellings": hostLine + "\r\nhOST: " + serviceName, "twice, one empty": hostLine + "\r\nHost:",
	} {
		rows = append(rows, got("13 Host "+name, proxy.CauseMalformed, strings.Split(value, "\r\n")...))
	}
	const absolute = "GET http://" + serviceName + "/fhir/Patient/a HTTP/1.1"
	line := func(name string, cause proxy.Cause, only proxy.Hop, lines ...string) refused {
		return refused{name: name, raw: rawHead(lines...), cause: cause, only: only}
	}
	return append(rows,
		got("13 Host missing", proxy.CauseMalformed),
		line("13 Host missing in HTTP/1.0", proxy.CauseMalformed, "", getLine+" HTTP/1.0"),
		got("13 Host of nobody", proxy.CauseUnknownService, "Host: fhir.other.mesh.internal").but(proxy.HopEgress),
		got("13 Host is an address", proxy.CauseUnknownService, "Host: 127.0.0.1").but(proxy.HopEgress),
		got("13 Host with a dot at its end", proxy.CauseUnknownService, hostLine+".").but(proxy.HopEgress),
		got("13 Host not the route's", proxy.CauseMalformed, "Host: fhir.other.mesh.internal").but(proxy.HopIngress),
		got("13 Host with a port, at ingress", proxy.CauseMalformed, hostLine+":80").but(proxy.HopIngress),
		got("13 Host in capitals, at ingress", proxy.CauseMalformed, "Host: FHIR.EHR.mesh.internal").but(proxy.HopIngress),

		line("14 absolute form of nobody", proxy.CauseUnknownService, proxy.HopEgress, "GET http://evil.example/fhir/Patient/a HTTP/1.1", "Host: evil.example"),
		line("14 absolute form of nobody, own Host", proxy.CauseMalformed, "", "GET http://evil.example/fhir/Patient/a HTTP/1.1", hostLine),
		line("14 absolute form, another Host", proxy.CauseMalformed, "", absolute, "Host: localhost"),
		line("14 absolute form, no Host", proxy.CauseMalformed, "", absolute),
		line("14 absolute form, another port", proxy.CauseMalformed, "", absolute, hostLine+":8080"),
		line("14 absolute form with a user", proxy.CauseMalformed, "", "GET http://u@"+serviceName+"/fhir/Patient/a HTTP/1.1", hostLine),
		line("14 absolute form with a user in both", proxy.CauseMalformed, "", "GET http://u@"+serviceName+"/fhir/Patient/a HTTP/1.1", "Host: u@"+serviceName),
		line("14 absolute form of nothing", proxy.CauseMalformed, "", "GET http:///fhir/Patient/a HTTP/1.1", hostLine),
		line("14 absolute form of another scheme", proxy.CauseMalformed, "", "GET https://"+serviceName+"/fhir/Patient/a HTTP/1.1", hostLine),
		line("14 absolute form of a file", proxy.CauseMalformed, "", "GET file:///etc/passwd HTTP/1.1", hostLine),
		line("14 absolute form at ingress", proxy.CauseMalformed, proxy.HopIngress, absolute, hostLine),
		line("14 authority form", proxy.CauseMalformed, "", "GET "+serviceName+":80 HTTP/1.1", hostLine),
		line("14 no form at all", proxy.CauseMalformed, "", "GET fhir/Patient/a HTTP/1.1", hostLine),
		line("14 asterisk form", proxy.CauseMalformed, "", "OPTIONS * HTTP/1.1", hostLine),
		line("14 asterisk form of a GET", proxy.CauseMalformed, "", "GET * HTTP/1.1", hostLine),
		line("14 CONNECT", proxy.CauseMethod, proxy.HopEgress, "CONNECT "+serviceName+":80 HTTP/1.1", hostLine+":80"),
		line("14 CONNECT at ingress", proxy.CauseMethod, proxy.HopIngress, "CONNECT "+serviceName+" HTTP/1.1", hostLine),
		line("14 CONNECT, another Host", proxy.CauseMalformed, "", "CONNECT evil.example:443 HTTP/1.1", hostLine),
		line("14 CONNECT of a path", proxy.CauseMalformed, "", "CONNECT /fhir/Patient/a HTTP/1.1", hostLine),
		line("14 TRACE", proxy.CauseMethod, proxy.HopIngress, "TRACE /fhir/Patient/a HTTP/1.1", hostLine),
		line("14 TRACK", proxy.CauseMethod, proxy.HopIngress, "TRACK /fhir/Patient/a HTTP/1.1", hostLine),
		line("14 lower-case get", proxy.CauseMethod, proxy.HopIngress, "get /fhir/Patient/a HTTP/1.1", hostLine),
		line("14 mixed-case Delete", proxy.CauseMethod, proxy.HopIngress, "Delete /fhir/Patient/a HTTP/1.1", hostLine),
		line("14 a method of 33 letters", proxy.CauseUnsupported, "", strings.Repeat("A", 33)+" /fhir/Patient/a HTTP/1.1", hostLine),
	)
}

// 12: tokens that are none. Each is ingress's to refuse: to egress they are bytes.
func refusedTokens() []refused {
	var rows []refused
	add := func(name string, cause proxy.Cause, fields ...string) {
		rows = append(rows, got("12 "+name, cause, append([]string{hostLine}, fields...)...).but(proxy.HopIngress))
	}
	malformed := proxy.CauseTokenMalformed
	add("two Authorization fields", malformed, "Authorization: Bearer a.b.c", "authorization: Bearer a.b.c")
	add("two tokens in one field", malformed, "Authorization: Bearer a.b.c, Bearer a.b.c")
	add("another scheme", malformed, "Authorization: Basic YTpi")
	add("no scheme", malformed, "Authorization: a.b.c")
	add("no token", malformed, "Authorization: Bearer ")
	add("two spaces", malformed, "Authorization: Bearer  a.b.c")
	add("an oversized token", malformed, bearer(strings.Repeat("a", 17<<10)))
	add("an oversized token of three parts", malformed, bearer(strings.Repeat("a", 9<<10)+"."+strings.Repeat("a", 9<<10)+".a"))
	rows = append(rows,
		refused{name: "12 a token in the query", raw: request(getLine+"?access_token=a.b.c", ""), cause: malformed, only: proxy.HopIngress},
		refused{name: "12 a token in the query, escaped", raw: request(getLine+"?%61ccess_token=a.b.c", ""), cause: malformed, only: proxy.HopIngress})

	// forged is a token of the issuer's in all but its head and its signature.
	forged := func(name string, cause proxy.Cause, head claims, sign func(w *world, input string) []byte) {
		r := got("12 "+name, cause).but(proxy.HopIngress)
		r.alone = contains(name, "kid") // the issuer's keys are read anew for it, which is not done often
		r.of = func(w *world) string {
			now := time.Now()
			input := segment(w, head) + "." + segment(w, claims{"iss": issuerURL, "aud": audience, "sub": "dr.lee", "client_id": "portal", "jti": "t-1",
				"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "scope": "user/*.cruds", "roles": []string{"physician"}})
			return request(getLine, "", bearer(input+"."+base64.RawURLEncoding.EncodeToString(sign(w, input))))
		}
		rows = append(rows, r)
	}
	head := func(alg string, more claims) claims {
		h := claims{"alg": alg, "typ": "at+jwt", "kid": "k1"}
		maps.Copy(h, more)
		return h
	}
	none := func(*world, string) []byte { return nil }
	genuine := func(w *world, input string) []byte { return w.issuer.sign(w, input) }
	another := func(w *world, input string) []byte { return (&issuer{key: newKey(w)}).sign(w, input) }
	for _, alg := range []string{"none", "None", "NONE", "nOnE"} {
		forged("alg "+alg, malformed, head(alg, nil), none)
		forged("alg "+alg+" with a signature", proxy.CauseTokenSignature, head(alg, nil), genuine)
	}
	forged("no signature", malformed, head("ES256", nil), none)
	forged("no alg", malformed, claims{"typ": "at+jwt", "kid": "k1"}, genuine)
	for name, secret := range map[string]func(der []byte) []byte{
		"the key's DER": func(der []byte) []byte { return der },
		"the key's PEM": func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}) },
		"the key's PEM without a newline": func(der []byte) []byte {
			return bytes.TrimSpace(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		},
		"the key's point": func(der []byte) []byte { return der[len(der)-65:] },
		"nothing":         func([]byte) []byte { return nil },
	} {
		forged("HS256 by "+name, proxy.CauseTokenSignature, head("HS256", nil), func(w *world, input string) []byte {
			der, err := x509.MarshalPKIXPublicKey(w.issuer.key.Public())
			if err != nil {
				w.Fatal(err)
			}
			m := hmac.New(sha256.New, secret(der))
			_, _ = io.WriteString(m, input)
			return m.Sum(nil)
		})
	}
	for _, alg := range []string{"RS256", "PS256", "ES384", "EdDSA", "HS512"} {
		forged("ES256 that calls itself "+alg, proxy.CauseTokenSignature, head(alg, nil), genuine)
	}
	forged("another's key under a known kid", proxy.CauseTokenSignature, head("ES256", nil), another)
	forged("an unknown kid", proxy.CauseTokenSignature, head("ES256", claims{"kid": "k2"}), another)
	forged("an unknown kid over the issuer's own key", proxy.CauseTokenSignature, head("ES256", claims{"kid": "k2"}), genuine)
	forged("a kid that is a path", proxy.CauseTokenSignature, head("ES256", claims{"kid": "../../../../dev/null"}), another)
	forged("no kid", proxy.CauseTokenSignature, claims{"alg": "ES256", "typ": "at+jwt"}, another)
	for _, name := range []string{"jwk", "jku", "x5u", "x5c", "crit"} {
		forged("a key of its own in "+name, malformed, head("ES256", claims{name: []string{"x"}}), another)
	}
	return rows
}

func identityBehaviours() []behaviour {
	const both = atEgress + " " + atIngress
	return []behaviour{
		{"10 forged fields are stripped", both, testForgedFieldsAreStripped},
		{"11 what Connection names is stripped", both, testConnectionStrips},
		{"13 how a caller may name the service", atIngress, testHostAtIngress},
		{"15 certificates that are no SVIDs, from callers", atIngress, testIngressRefusesCertificates},
		{"15 certificates that are no SVIDs, from services", atEgress, testEgressRefusesServers},
		{"15 no session is resumed", atIngress, testHandshake},
		{"15 nor after a change", atIngress, testNothingIsResumed},
		{"15 no data goes early", atIngress, testNoEarlyData},
		{"15 a connection ends with its identities", atIngress, testConnectionEndsWithItsIdentities},
		{"15 a request on an identity that has ended", atIngress, testRequestOnAnEndedIdentityIsRefused},
	}
}

// 11: a field that Connection names goes no further, wherever in a list it stands.
func testConnectionStrips(t *testing.T) {
	for name, connection := range map[string][]string{
		"alone": {"Connection: traceparent"}, "in a list": {"Connection: keep-alive, Traceparent"}, "after an empty line": {"Connection:", "Connection: TRACEPARENT"},
		"after empty members": {"Connection: , ,\ttraceparent"}, "with _": {"Connection: trace_parent, traceparent"}, "in the second of two": {"Connection: keep-alive", "connection: traceparent"},
	} {
		for _, h := range hops {
			t.Run(string(h.name)+"/"+name, func(t *testing.T) {
				w := newWorld(t, setup{})
				a := send(t, h.dial(w, w.portal), request(getLine, "", append(connection, "Traceparent: 00-a-b-01", "X-Request-Id: 7", bearer(w.token()))...))
				r := w.upstream.only(t)
				if a.status != 200 || contains(r.raw, "00-a-b-01") || len(r.field("X-Request-Id")) != 1 || contains(r.head, "Connection") {
					t.Errorf("%d, passed on: %q", a.status, r.head)
				}
			})
		}
	}
}

// 15: a client that keeps what it could resume gets nowhere with it once what its identity rests on has changed.
func testNothingIsResumed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		ok     bool
	}{
		"the bundle":        {func(w *world) { w.self.Set.Add(newAuthority(w, "clinic.test").bundle()) }, false},
		"the caller's SVID": {func(w *world) { w.portal.svid.Store(w.ca.issue(w, "/app/portal", endingIn(-time.Second))) }, false},
		"the ward's SVID":   {func(w *world) { w.self.svid.Store(w.ca.issue(w, "/ward/ehr")) }, true},
		"the policy": {func(w *world) {
			o := w.rules
			o.Policy = denyAll{}
			w.live.Replace(proxy.NewIngress(o))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			cache := tls.NewLRUClientSessionCache(8)
			keep := func(c *tls.Config) { c.ClientSessionCache, c.ServerName = cache, "ward" }
			first, err := w.handshake(w.portal.svid.Load(), keep)
			if err != nil {
				t.Fatal(err)
			}
			if a := send(t, first, request("GET /fhir/metadata", "")); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			_ = first.Close()
			c.change(w)
			if !c.ok {
				w.upstream.mu.Lock()
				w.upstream.requests = nil
				w.upstream.mu.Unlock()
				second, err := w.handshake(w.portal.svid.Load(), keep)
				if err == nil {
					_, err = second.Read(make([]byte, 1))
				}
				if err == nil || os.IsTimeout(err) {
					t.Errorf("the connection stands: %v", err)
				}
				w.trail.await(t, 1, func(r *proxy.Record) bool {
					return r.Cause == proxy.CauseNoIdentity && r.Stage == proxy.StageRefusal && r.Decision != ""
				})
				w.upstream.untouched(t)
				return
			}
			second, err := w.handshake(w.portal.svid.Load(), keep)
			if err != nil || second.ConnectionState().DidResume {
				t.Fatalf("%v, or it has resumed", err)
			}
			// What has been decided before the change is nothing to this connection.
			a := send(t, second, request("GET /fhir/metadata", ""))
			if name == "the policy" {
				w.checkRefusal(t, a, proxy.HopIngress, proxy.CausePolicy)
			} else if a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// 15: a request that comes with the first flight, before the server has proved anything, is read by nobody.
func testNoEarlyData(t *testing.T) {
	w := newWorld(t, setup{})
	raw := w.dial(w.address)
	hello := &firstWrite{Conn: raw, then: "\x17\x03\x03\x00\x40" + strings.Repeat("G", 0x40)} // application data in RFC 8446 §4.2.10's place
	cfg := proxy.ClientTLS(w.portal.svid.Load(), w.ca.bundle(), w.service.ID, time.Now)
	c := tls.Client(hello, cfg)
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || os.IsTimeout(err) {
		t.Errorf("the connection stands: %v", err)
	}
	w.awaitHandshakeRefusal(t)
	w.upstream.untouched(t)
}

// firstWrite sends something more behind the first of what is written.
type firstWrite struct {
	net.Conn
	then string
}

func (f *firstWrite) Write(p []byte) (int, error) {
	n, err := f.Conn.Write(append(bytes.Clone(p), f.then...))
	f.then = ""
	return min(n, len(p)), err
}
