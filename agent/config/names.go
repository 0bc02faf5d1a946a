package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// longestID is the longest SPIFFE ID that may be minted, in bytes (SPIFFE-ID §2.3).
const longestID = 2048

// longestSocket is how long the path of a Unix socket may be: sun_path has 108 bytes and ends with a zero.
const longestSocket = 107

// unknownDomain stands in while IDs are checked although the trust domain is missing or wrong.
const unknownDomain = "unknown.invalid"

func trustDomain(into *spiffeid.TrustDomain) value {
	return scalar[spiffeid.TrustDomain]{into, form[spiffeid.TrustDomain]{
		what:  "a trust domain such as clinic.example",
		parse: parseTrustDomain,
		props: map[string]any{"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"},
	}}
}

func parseTrustDomain(_ *decoder, s string) (spiffeid.TrustDomain, *fault) {
	if name, prefixed := strings.CutPrefix(s, "spiffe://"); prefixed {
		return spiffeid.TrustDomain{}, &fault{codeTrustDomain, quote(s) + " is an ID, not a trust domain", "write " + strings.Split(name, "/")[0]}
	}
	// SPIFFE-ID §2.1: lower case letters, digits, dots, dashes and underscores; §2.3: at most 255 bytes.
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil || len(s) > 255 {
		return spiffeid.TrustDomain{}, &fault{codeTrustDomain, quote(s) + " is not a trust domain", "use at most 255 lower-case letters, digits, dots, dashes and underscores"}
	}
	return td, nil
}

// identity is a SPIFFE ID of the own trust domain, in full or as its path.
func identity(into *spiffeid.ID) value {
	return scalar[spiffeid.ID]{into, form[spiffeid.ID]{
		what:  "a path such as /app/portal, or a full SPIFFE ID of this trust domain",
		parse: parseID,
		props: map[string]any{"type": "string", "pattern": `^(spiffe://[a-z0-9._-]+)?(/[A-Za-z0-9._-]+)+$`, "maxLength": longestID},
	}}
}

func parseID(d *decoder, s string) (spiffeid.ID, *fault) {
	domain := d.domain
	if domain.IsZero() {
		domain = spiffeid.RequireTrustDomainFromString(unknownDomain)
	}
	wrong := func(why string) (spiffeid.ID, *fault) {
		return spiffeid.ID{}, &fault{codeID, quote(s) + " is not a SPIFFE ID: " + why, "write a path such as /app/portal; its segments hold letters, digits, dots, dashes and underscores"}
	}
	var id spiffeid.ID
	var err error
	switch {
	case strings.HasPrefix(s, "spiffe://"):
		// SPIFFE-ID §2
		if id, err = spiffeid.FromString(s); err != nil {
			return wrong(err.Error())
		}
		if id.TrustDomain() != domain && !d.domain.IsZero() {
			return spiffeid.ID{}, &fault{codeForeignID, quote(s) + " belongs to another trust domain", "use an ID of " + domain.Name()}
		}
	case strings.HasPrefix(s, "/"):
		// SPIFFE-ID §2.2
		if id, err = spiffeid.FromPath(domain, s); err != nil {
			return wrong(err.Error())
		}
	case spiffeid.ValidatePath("/"+s) == nil:
		return spiffeid.ID{}, &fault{codeID, quote(s) + " is not a SPIFFE ID", "did you mean " + quote("/"+s) + "?"}
	default:
		return wrong("it starts with neither / nor spiffe://")
	}
	switch {
	case id.Path() == "":
		return wrong("it has no path, and the trust domain itself is nobody's identity") // X509-SVID §3.1
	case len(id.String()) > longestID: // SPIFFE-ID §2.3
		return wrong(fmt.Sprintf("it would have %d bytes, and %d are allowed", len(id.String()), longestID))
	}
	return id, nil
}

// path is a place in the file system. A relative one starts at the folder of the config file.
func path(into *string, what string) value {
	return scalar[string]{into, form[string]{
		what:  what,
		parse: func(d *decoder, s string) (string, *fault) { return d.path(s) },
		props: map[string]any{"type": "string", "minLength": 1},
	}}
}

// pathOrOff is like path, and "" stands for none.
func pathOrOff(into *string, what string) value {
	return scalar[string]{into, form[string]{
		what: what + `, or "" for none`,
		parse: func(d *decoder, s string) (string, *fault) {
			if s == "" {
				return "", nil
			}
			return d.path(s)
		},
		props: map[string]any{"type": "string"},
	}}
}

// socket is the path of a Unix socket.
func socket(into *string) value {
	return scalar[string]{into, form[string]{
		what:  "the path of a Unix socket",
		parse: func(d *decoder, s string) (string, *fault) { return d.socket(s) },
		props: map[string]any{"type": "string", "minLength": 1, "maxLength": longestSocket},
	}}
}

// socketOrOff is like socket, and "" stands for none.
func socketOrOff(into *string) value {
	return scalar[string]{into, form[string]{
		what: `the path of a Unix socket, or "" for none`,
		parse: func(d *decoder, s string) (string, *fault) {
			if s == "" {
				return "", nil
			}
			return d.socket(s)
		},
		props: map[string]any{"type": "string", "maxLength": longestSocket},
	}}
}

func (d *decoder) path(s string) (string, *fault) {
	switch {
	case s == "":
		return "", &fault{codePath, "the path is empty", "write a path"}
	case strings.HasPrefix(s, "~"):
		return "", &fault{codePath, quote(s) + " begins with ~, which only a shell replaces", "write the path out"}
	case strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }):
		return "", &fault{codePath, quote(s) + " holds a character that cannot be seen", "rename it"}
	case len(s) > 4095:
		return "", &fault{codePath, "the path is longer than 4095 bytes", "shorten it"}
	case filepath.IsAbs(s):
		return filepath.Clean(s), nil
	}
	return filepath.Join(d.dir, s), nil
}

func (d *decoder) socket(s string) (string, *fault) {
	p, f := d.path(s)
	if f == nil && len(p) > longestSocket {
		f = &fault{codePath, fmt.Sprintf("the socket's path %s has %d bytes; %d are possible", quote(p), len(p), longestSocket), "use a shorter folder"}
	}
	return p, f
}

// isClean reports whether p is absolute and spelt as the kernel would spell it.
func isClean(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsFunc(p, func(r rune) bool { return !strconv.IsPrint(r) })
}

// address is an IP address and a port, on which something listens here.
func address(into *netip.AddrPort) value {
	return scalar[netip.AddrPort]{into, form[netip.AddrPort]{
		what:  "an address such as 10.0.0.5:8443",
		parse: func(_ *decoder, s string) (netip.AddrPort, *fault) { return parseAddress(s) },
		props: map[string]any{"type": "string"},
	}}
}

// loopbackOrOff is a loopback address and a port, and "" stands for none.
func loopbackOrOff(into *netip.AddrPort) value {
	return scalar[netip.AddrPort]{into, form[netip.AddrPort]{
		what: `a loopback address such as 127.0.0.1:9464, or "" for none`,
		parse: func(_ *decoder, s string) (netip.AddrPort, *fault) {
			if s == "" {
				return netip.AddrPort{}, nil
			}
			return parseLoopback(s)
		},
		props: map[string]any{"type": "string"},
	}}
}

// loopbackRange is a part of 127.0.0.0/8, large enough for a few hundred services.
func loopbackRange(into *netip.Prefix) value {
	return scalar[netip.Prefix]{into, form[netip.Prefix]{
		what: "a range of loopback addresses such as 127.128.0.0/10",
		parse: func(_ *decoder, s string) (netip.Prefix, *fault) {
			p, err := netip.ParsePrefix(s)
			switch {
			case err != nil || p != p.Masked() || !p.Addr().Is4():
				return netip.Prefix{}, &fault{codeAddress, quote(s) + " is not a range of IPv4 addresses", "write, for example, 127.128.0.0/10"}
			case !p.Addr().IsLoopback() || p.Bits() < 9:
				return netip.Prefix{}, &fault{codeLoopback, quote(s) + " is not a part of 127.0.0.0/8", "use, for example, 127.128.0.0/10"}
			case p.Bits() > 24:
				return netip.Prefix{}, &fault{codeRange, quote(s) + " is too small", "use a range of at least 256 addresses, /24 or larger"}
			}
			return p, nil
		},
		props: map[string]any{"type": "string", "pattern": `^127\.[0-9.]+/[0-9]+$`},
	}}
}

// balancers are the addresses from which balancers connect: one, or a range.
func balancers(into *netip.Prefix) value {
	return scalar[netip.Prefix]{into, form[netip.Prefix]{
		what: "an address such as 10.0.0.2, or a range such as 10.0.3.0/28",
		parse: func(_ *decoder, s string) (netip.Prefix, *fault) {
			if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
				return netip.PrefixFrom(a, a.BitLen()), nil
			}
			p, err := netip.ParsePrefix(s)
			switch {
			case err != nil || p.Addr().Is4In6():
				return netip.Prefix{}, &fault{codeAddress, quote(s) + " is not an address or a range of addresses", "write, for example, 10.0.0.2 or 10.0.3.0/28"}
			case p != p.Masked():
				return netip.Prefix{}, &fault{codeAddress, quote(s) + " is an address inside a range", "write " + p.Masked().String() + " for the range, or " + p.Addr().String() + " for the address"}
			case p.Addr().Is4() && p.Bits() < 8, p.Addr().Is6() && p.Bits() < 32:
				// Whoever is in the range can name any client.
				return netip.Prefix{}, &fault{codeRange, quote(s) + " is too wide", "name the balancers' own addresses; at most a /8 of IPv4, or a /32 of IPv6"}
			}
			return p, nil
		},
		props: map[string]any{"type": "string"},
	}}
}

func parseAddress(s string) (netip.AddrPort, *fault) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		advice := "write an IP address and a port, as in 127.0.0.1:8443 or [::1]:8443"
		if port, cut := strings.CutPrefix(s, "localhost:"); cut {
			advice = "write 127.0.0.1:" + port + ": a name could come to mean another address"
		}
		return netip.AddrPort{}, &fault{codeAddress, quote(s) + " is not an address with a port", advice}
	}
	return ap, nil
}

func parseLoopback(s string) (netip.AddrPort, *fault) {
	ap, f := parseAddress(s)
	if f == nil && !ap.Addr().IsLoopback() {
		f = &fault{codeLoopback, quote(s) + " can be reached from outside this host", fmt.Sprintf("use a loopback address, as in 127.0.0.1:%d", ap.Port())}
	}
	return ap, f
}

// peer is a host, by address or name, and a port that is dialled.
func peer(into *string) value {
	return scalar[string]{into, form[string]{
		what: "a host and a port such as ehr.clinic.example:8443",
		parse: func(_ *decoder, s string) (string, *fault) {
			host, port, err := net.SplitHostPort(s)
			if err == nil {
				if _, bad := parseAddress(s); bad == nil {
					return s, nil
				}
				// What looks like an IP address and is none must not be looked up as a name.
				if n, bad := strconv.ParseUint(port, 10, 16); bad == nil && n > 0 && isHost(host) && !numericEnd(host) {
					return s, nil
				}
			}
			return "", &fault{codeAddress, quote(s) + " is not a host with a port", "write, for example, 10.0.0.5:8443 or ehr.clinic.example:8443"}
		},
		props: map[string]any{"type": "string"},
	}}
}

// upstream is where a FHIR server on this host listens.
func upstream(u *Upstream) value {
	return scalar[Upstream]{u, form[Upstream]{
		what: "unix:/path/to/socket, or a loopback address such as 127.0.0.1:8080",
		parse: func(d *decoder, s string) (Upstream, *fault) {
			if p, unix := strings.CutPrefix(s, "unix:"); unix {
				p, f := d.socket(p)
				return Upstream{Network: "unix", Address: p, Process: u.Process}, f
			}
			ap, f := parseLoopback(s)
			if f != nil && f.code == codeLoopback {
				f.advice = "forward to a server on this host, by unix:/path or a loopback address, and run Ward where the server is"
			} else if f != nil {
				f.advice = "write unix:/path/to/socket or 127.0.0.1:8080, without a scheme"
			}
			return Upstream{Network: "tcp", Address: ap.String(), Process: u.Process}, f
		},
		props: map[string]any{"type": "string", "pattern": `^(unix:.+|127\.[0-9.]+:[0-9]+|\[::1\]:[0-9]+)$`},
	}}
}

const labelRE = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`

// dnsName is a lower-case DNS name (RFC 1123 §2.1), without a final dot and without wildcards.
func dnsName(into *string) value {
	return scalar[string]{into, form[string]{
		what: "a lower-case DNS name",
		parse: func(_ *decoder, s string) (string, *fault) {
			switch {
			case isHost(s) && !numericEnd(s):
				return s, nil
			case isHost(strings.TrimSuffix(strings.ToLower(s), ".")) && !numericEnd(strings.TrimSuffix(s, ".")):
				return "", &fault{codeDNSName, quote(s) + " is not in its plain form", "did you mean " + quote(strings.TrimSuffix(strings.ToLower(s), ".")) + "?"}
			}
			return "", &fault{codeDNSName, quote(s) + " is not a DNS name", "use letters, digits and dashes between dots; at most 63 a label and 253 in all, no wildcard"}
		},
		props: map[string]any{"type": "string", "format": "hostname", "pattern": "^" + labelRE + `(\.` + labelRE + ")*$", "maxLength": 253},
	}}
}

func isHost(s string) bool {
	return len(s) <= 253 && regexp.MustCompile("^"+labelRE+`(\.`+labelRE+")*$").MatchString(s)
}

// numericEnd reports whether the last label is a number, as in an IPv4 address. No such name exists in DNS.
func numericEnd(s string) bool {
	_, err := strconv.ParseUint(s[strings.LastIndexByte(s, '.')+1:], 0, 64)
	return err == nil
}

// webURL is an https URL, or http to this host alone. path says whether the URL may have a path and query.
func webURL(into *string, what string, query bool) value {
	return scalar[string]{into, form[string]{
		what: what,
		parse: func(_ *decoder, s string) (string, *fault) {
			u, err := url.Parse(s)
			bad := func(problem, advice string) (string, *fault) {
				return "", &fault{codeURL, quote(s) + " " + problem, advice}
			}
			if err == nil && u.User != nil || err != nil && strings.Contains(s, "@") {
				// Not repeated in the message: it may hold a password.
				return "", &fault{codeSecret, "the URL holds a user name or password", "remove it from the URL; config holds no secrets"}
			}
			switch {
			case err != nil || u.Opaque != "" || !u.IsAbs():
				return bad("is not a full URL", "write, for example, https://idp.clinic.example")
			case u.Scheme != "https" && u.Scheme != "http":
				return bad("is neither https nor http", "use https")
			case !validURLHost(u):
				return bad("has no valid host", "write, for example, https://idp.clinic.example")
			case u.Scheme == "http" && !isLoopbackHost(u.Hostname()):
				return bad("is not encrypted", "use https; http is accepted to a loopback address only")
			case u.Fragment != "" || strings.Contains(s, "#"):
				return bad("has a fragment", "remove # and what follows")
			case !query && (u.RawQuery != "" || u.ForceQuery):
				// OpenID Connect Discovery §2, RFC 8414 §2: no query or fragment in an issuer
				return bad("has a query", "remove ? and what follows")
			}
			return s, nil
		},
		props: map[string]any{"type": "string", "format": "uri", "pattern": "^https?://"},
	}}
}

func validURLHost(u *url.URL) bool {
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return false
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return false
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		return addr.Zone() == ""
	}
	return isHost(u.Hostname()) && !numericEnd(u.Hostname())
}

func isLoopbackHost(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// uri is any absolute URI, as FHIR uses them for naming systems.
func uri(into *string, what string) value {
	return scalar[string]{into, form[string]{
		what: what,
		parse: func(_ *decoder, s string) (string, *fault) {
			u, err := url.Parse(s)
			if err != nil || !u.IsAbs() || u.Host == "" && u.Opaque == "" || strings.ContainsAny(s, " \"<>") {
				return "", &fault{codeURL, quote(s) + " is not an absolute URI", "write, for example, urn:oid:1.2.3 or https://example.org/ids"}
			}
			return s, nil
		},
		props: map[string]any{"type": "string", "format": "uri"},
	}}
}
