package token

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// How an issuer's keys are found, in Issuer.Discovery.
const (
	DiscoverOpenID = "openid" // OpenID Connect Discovery 1.0: /.well-known/openid-configuration
	DiscoverOAuth  = "oauth"  // RFC 8414: /.well-known/oauth-authorization-server
	DiscoverNone   = "none"   // they are not: JWKSURI or JWKSFile says where they are
)

// Types of tokens, in Issuer.Types.
const (
	TypeAccessToken = "at+jwt" // RFC 9068 §2.1
	TypeJWT         = "jwt"    // a plain JWT; further checks make sure that it is an access token
	TypeAbsent      = "absent" // no typ at all; checked like a plain JWT
)

// What Issuer means when it does not say.
const (
	DefaultRefresh  = 5 * time.Minute
	DefaultCoolDown = 10 * time.Second
	DefaultKeyAge   = 6 * time.Hour
	DefaultLifetime = 24 * time.Hour
)

// maxLeeway is the most that clocks may differ.
const maxLeeway = time.Minute

// Issuer is an authorization server whose access tokens are accepted. Issuer and Audience are required.
type Issuer struct {
	Issuer   string   // the iss claim, exactly
	Audience []string // a token must be meant for one of these
	// Algorithms are the signature algorithms that are accepted; none means RS256, PS256, ES256 and EdDSA.
	Algorithms []string

	// Discovery is how the keys are found; "" means DiscoverNone where JWKSURI or JWKSFile is set, else DiscoverOpenID.
	Discovery string
	JWKSURI   string         // https; http only on this host
	JWKSFile  string         // a file that nobody but root and the running user can write
	RootCAs   *x509.CertPool // who may vouch for the issuer's server; nil is the system's roots

	// Types are the values of the typ header parameter that are accepted, none meaning TypeAccessToken alone.
	Types  []string
	Leeway time.Duration // how far clocks may differ: at most a minute; 0 allows no difference
	Claims Claims
	// FHIRBases are the absolute URLs under which our FHIR service is known to the issuer: a fhirUser claim
	// below one of them is ours.
	FHIRBases []string

	Refresh     time.Duration // the keys are read at least this often, more often where the issuer says so; 0 is DefaultRefresh
	CoolDown    time.Duration // unknown keys cause one reading for each, and three at once at the most; 0 is DefaultCoolDown
	MaxKeyAge   time.Duration // keys that could not be read again for so long are not used; 0 is DefaultKeyAge
	MaxLifetime time.Duration // a token issued for longer is refused; 0 is DefaultLifetime
}

// Claims names the claims that say something of the user. A name may be a path: `realm_access.roles` descends
// into an object, `extensions.ihe_iua.subject_role[].code` also into each element of an array. A name that
// holds `://` is one claim, dots and all.
type Claims struct {
	Roles   string // the user's roles: a string or an array of them; "" reads none
	Purpose string // the purpose of use, one HL7 v3 ActReason code; "" reads none
	Name    string // the display name; "" is `name`
	Patient string // the launch patient: `id` or `Patient/id`; "" is `patient`
	// FHIRUser is the user's own resource; "" is `fhirUser`.
	FHIRUser string
}

// algorithms are those that may be configured. RFC 8725 §3.2: neither none nor, as the issuer would have to share its
// key with us, anything symmetric.
var algorithms = [...]jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// issuer is an Issuer with its defaults in place, ready for use.
type issuer struct {
	Issuer
	algorithms []jose.SignatureAlgorithm
	paths      struct{ roles, purpose, name, patient, fhirUser claimPath }
	keys       *keyring

	fresh, cached prometheus.Counter // tokens accepted
}

func newIssuer(c Issuer, o Options) (*issuer, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	is := &issuer{Issuer: c}
	if !isPrintable(c.Issuer, 1024) {
		fault("issuer: not an issuer identifier")
	}
	if len(c.Audience) == 0 || slices.Contains(c.Audience, "") {
		fault("audience: at least one is needed, and none may be empty")
	}
	is.Audience = slices.Clone(c.Audience)
	for _, a := range c.Algorithms {
		if !slices.Contains(algorithms[:], jose.SignatureAlgorithm(a)) {
			fault("algorithms: %q is not accepted; use one of %v", a, algorithms)
		}
		is.algorithms = append(is.algorithms, jose.SignatureAlgorithm(a))
	}
	if len(is.algorithms) == 0 {
		is.algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
	}
	is.Types = nil
	for _, t := range c.Types {
		m := mediaType(t)
		if m != TypeAccessToken && m != TypeJWT && m != TypeAbsent {
			fault("types: %q is not the type of an access token; use %s, %s or %s", t, TypeAccessToken, TypeJWT, TypeAbsent)
		}
		is.Types = append(is.Types, m)
	}
	if len(is.Types) == 0 {
		is.Types = []string{TypeAccessToken}
	}
	set := func(name string, d *time.Duration, standard, least, most time.Duration) {
		if *d == 0 {
			*d = standard
		}
		if *d < least || *d > most {
			fault("%s: %s is not between %s and %s", name, *d, least, most)
		}
	}
	set("leeway", &is.Leeway, 0, 0, maxLeeway)
	set("refresh", &is.Refresh, DefaultRefresh, time.Second, time.Hour)
	set("cool-down", &is.CoolDown, DefaultCoolDown, time.Second, time.Hour)
	set("max key age", &is.MaxKeyAge, DefaultKeyAge, is.Refresh, 7*24*time.Hour)
	set("max lifetime", &is.MaxLifetime, DefaultLifetime, time.Minute, 366*24*time.Hour)

	is.FHIRBases = nil
	for _, b := range c.FHIRBases {
		u, err := url.Parse(b)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			fault("FHIR base %q: not an absolute http or https URL", b)
		}
		is.FHIRBases = append(is.FHIRBases, strings.TrimRight(b, "/"))
	}
	for _, p := range []struct {
		into     *claimPath
		name     string
		path     string
		standard string
	}{
		{&is.paths.roles, "roles", c.Claims.Roles, ""},
		{&is.paths.purpose, "purpose", c.Claims.Purpose, ""},
		{&is.paths.name, "name", c.Claims.Name, "name"},
		{&is.paths.patient, "patient", c.Claims.Patient, "patient"},
		{&is.paths.fhirUser, "fhirUser", c.Claims.FHIRUser, "fhirUser"},
	} {
		if p.path == "" {
			p.path = p.standard
		}
		var err error
		if *p.into, err = parsePath(p.path); err != nil {
			fault("claims: %s: %w", p.name, err)
		}
	}
	src, err := newSource(is.Issuer, o)
	if err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	is.keys, err = newKeyring(is, src, o)
	return is, err
}

// newSource decides where the keys come from.
func newSource(c Issuer, o Options) (source, error) {
	given := 0
	for _, s := range []string{c.JWKSURI, c.JWKSFile} {
		if s != "" {
			given++
		}
	}
	how := c.Discovery
	if how == "" {
		how = DiscoverOpenID
		if given > 0 {
			how = DiscoverNone
		}
	}
	switch {
	case how != DiscoverOpenID && how != DiscoverOAuth && how != DiscoverNone:
		return nil, fmt.Errorf("discovery: %q is not one of %s, %s and %s", how, DiscoverOpenID, DiscoverOAuth, DiscoverNone)
	case how == DiscoverNone && given != 1:
		return nil, errors.New("keys: without discovery, give either a JWKS URI or a JWKS file")
	case how != DiscoverNone && given > 0:
		return nil, errors.New("keys: give a JWKS URI or file, or let them be discovered, not both")
	case c.JWKSFile != "":
		return file(c.JWKSFile), nil
	}
	r := &remote{issuer: c.Issuer}
	first := c.JWKSURI
	if how != DiscoverNone {
		var err error
		if r.metadata, err = metadataURL(c.Issuer, how); err != nil {
			return nil, err
		}
		first = r.metadata
	}
	r.jwks = c.JWKSURI
	u, err := url.Parse(first)
	if err != nil {
		return nil, errors.New("keys: not a URL")
	}
	r.scheme = u.Scheme
	if err := r.allowed(first); err != nil {
		return nil, err
	}
	r.client = newClient(u.Scheme == "http", c.RootCAs, o.dial)
	return r, nil
}

// metadataURL is where an issuer publishes its metadata.
func metadataURL(issuer, how string) (string, error) {
	u, err := url.Parse(issuer)
	// OpenID Connect Discovery §3, RFC 8414 §2: a URL without query or fragment
	if err != nil || u.Host == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", errors.New("discovery: the issuer is not a URL without query and fragment; name its JWKS URI or file")
	}
	if how == DiscoverOAuth {
		// RFC 8414 §3.1: inserted between host and path, without a slash at the end
		u.Path = "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/")
		u.RawPath = ""
		return u.String(), nil
	}
	// OpenID Connect Discovery §4.1: appended, after a slash at the end has been removed
	return strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration", nil
}

// isLoopback reports whether host can only mean this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
