// Package config turns the operator's YAML into a Config, or into every error in it at once.
//
// # What
//
// Config is one file, /etc/ward/ward.yaml, and the files conf.d/*.yaml beside it. Lists in several files add up;
// anything else may be set once only. [Load] reads and validates all of it, [Check] does the same for bytes
// that are not (yet) a file, [Schema] and [Describe] say what may be written. All of them work from one table,
// the keys in keys.go, so that documentation and decoder cannot drift apart.
//
// # Why so strict
//
// Config decides who may have which identity. A key that is misspelt and ignored is an entry that is wider than
// its author thinks, so there is nothing that is ignored: unknown and repeated keys, wrong types, numbers where
// text belongs, tabs, anchors, several documents are errors, each with its place, a stable code with a page of
// its own ([Explain]), and what to do. References are checked here too, so that a loaded Config is whole: each
// caller exists, each binding names a configured issuer.
//
// # Threat
//
// Whoever can write config can become any workload. A file, a folder that leads to it, or a symbolic link on the
// way that somebody other than root and the running user could replace is refused (see [Guard]). Files are
// limited in size and number, YAML aliases are refused, and nesting is followed only where the table expects it.
// Secrets have no place in config: no key takes one, and a URL that carries a password is refused.
//
// The package imports nothing of Ward. See https://spiffe.io/docs/latest/spiffe-specs/ (SPIFFE-ID §2) for the
// syntax of IDs, and https://json-schema.org/draft/2020-12 for the schema.
package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is everything the operator has said, with defaults filled in. It is whole and consistent, and must not
// be changed: other goroutines share it.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Authority   Authority
	Agent       Agent
	Admin       Admin
	Workloads   []Workload
	Devices     []Device
	Services    []Service
	Tokens      []Issuer
	Bindings    []Binding
	Policies    Policies
	Audit       Audit
	Monitor     Monitor
	Mesh        Mesh
	Deny        []spiffeid.ID // identities that nothing may use, whatever else they hold
	Log         Log

	file   string
	files  []string
	digest string
	places map[string]span
}

// File is the config file that was loaded, as it was named.
func (c *Config) File() string { return c.file }

// Files lists the files that were read, the config file first.
func (c *Config) Files() []string { return slices.Clone(c.files) }

// Digest names the content of the files: equal digests mean equal config. It is 16 hexadecimal digits.
func (c *Config) Digest() string { return c.digest }

// Authority is the embedded certificate authority.
type Authority struct {
	Dir     string        // keys and journal
	CATTL   time.Duration // life of the CA certificate
	X509TTL time.Duration // life of an X.509-SVID whose entry does not say
	Keys    Keys
}

// How private keys are kept.
const (
	SealNone       = "none"       // files of mode 0600
	SealTPM        = "tpm"        // files encrypted under a key that only this machine's TPM 2.0 opens
	SealCredential = "credential" // files encrypted under a credential that the service manager hands over
)

// Keys is how the private keys at rest are protected.
type Keys struct {
	Seal       string // SealNone, SealTPM or SealCredential
	TPM        string // the TPM's device
	Credential string // the credential's name
}

// Agent is the identity side of this host.
type Agent struct {
	Socket string // of the Workload API
	Broker string // Unix socket of the Broker API, where this host's egress gets its callers' SVIDs
	State  string // folder of what the agent keeps beside the authority: sealed SVIDs
	Wards  Wards
}

// Wards says which processes are this host's own proxies, where they run apart from the agent.
type Wards struct{ Egress, Ingress []Selector }

// Admin is the operator's own sockets, one for each role that runs in a process of its own.
type Admin struct {
	Socket                string // of the agent, and of ward run
	Egress, Ingress, Mesh string
}

// Workload is an entry: which processes are this workload, and what they get.
type Workload struct {
	ID          spiffeid.ID
	Name        string     // unique; the ID's path unless given
	Select      []Selector // all must be attested; in the order of the table
	SVID        SVID
	Proxy       bool   // its SVIDs may be lent to the local proxy
	MinStrength string // weak or strong
	// MaxAge is how old an attestation may grow before the process is attested anew; 0 stands for no bound.
	MaxAge time.Duration
}

// Selector is one fact that a process must show. Type is spelt as in config (`unix.uid`), Value canonically.
type Selector struct{ Type, Value string }

// SVID says what is put into a workload's certificates.
type SVID struct {
	X509TTL  time.Duration // 0 stands for Authority.X509TTL
	DNSNames []string
	Hint     string
}

// Device is a wearable or sensor behind a bridge.
type Device struct {
	ID          spiffeid.ID
	Identifiers []Identifier
	Via         []spiffeid.ID
	Assurance   string   // attested, bonded or declared
	Patients    []Window // in the order written; they do not overlap
}

// Identifier is a FHIR Device.identifier.
type Identifier struct{ Type, System, Value string }

// Window is a time during which a device belongs to one patient.
type Window struct {
	Ref   string    // relative reference, `Patient/123`
	From  time.Time // zero is open
	Until time.Time // exclusive; zero is open
}

// Service is a FHIR service of the mesh.
type Service struct {
	Name        string
	ID          spiffeid.ID
	Addresses   []string // host:port
	Callers     []spiffeid.ID
	Base        string // "" or a path such as /fhir
	MaxExchange time.Duration
	Listen      netip.AddrPort // not valid unless this host serves it
	Upstream    Upstream       // zero unless this host serves it
	// ProxyProtocol are the balancers that hand on others' connections to Listen, and say whose.
	ProxyProtocol []netip.Prefix
	// MaxConnections is how many connections with Listen one caller may have open, MaxConnectionsTotal all together.
	MaxConnections, MaxConnectionsTotal int
	// Mode is ModeEnforce, or ModeObserve until ObserveUntil.
	Mode         string
	ObserveUntil time.Time
}

// How a service treats what policy, token, limits and validation would refuse.
const (
	ModeEnforce = "enforce"
	ModeObserve = "observe" // let through, and recorded as what would have been refused
)

// Upstream is where the serving host forwards to.
type Upstream struct {
	Network, Address string // "unix" and a path, or "tcp" and a loopback host:port
	// Process is what must be attested of the process that serves there, before a byte is sent to it: unix.uid,
	// systemd.unit or both. Empty only for a Unix socket, whose folder's permissions then stand for it.
	Process []Selector
}

// Where the keys of an issuer come from.
const (
	DiscoverOpenID = "openid" // /.well-known/openid-configuration
	DiscoverOAuth  = "oauth"  // /.well-known/oauth-authorization-server, RFC 8414
	DiscoverNone   = "none"   // JWKSURI or JWKSFile is given
)

// TypeAbsent stands in Issuer.Types for a token without a typ header.
const TypeAbsent = "absent"

// Issuer is an OpenID Provider or authorization server whose access tokens are accepted.
type Issuer struct {
	Issuer     string
	Audience   []string
	Algorithms []string
	Discovery  string
	JWKSURI    string
	JWKSFile   string
	CAFile     string
	Types      []string
	Leeway     time.Duration
	Claims     Claims
}

// Claims names the claims that carry facts about the user.
type Claims struct{ Roles, Purpose, Name, Patient, FHIRUser string }

// Binding says which workloads may carry the tokens of one OAuth client.
type Binding struct {
	Issuer    string
	ClientID  string
	Mode      string // client-map
	Workloads []spiffeid.ID
}

// Policies is where the Cedar policies lie.
type Policies struct{ Dir string }

// Audit is where the audit log lies and how it grows. Sizes are bytes.
type Audit struct {
	Dir                  string
	SegmentSize, MinFree int64
	// Second is a folder on another filesystem that takes the records while Dir cannot; "" for none.
	Second string
	// Reserve is allocated ahead, for emergency treatment and break-glass when nothing else can be recorded.
	Reserve int64
	// Keep is for how long whole segments are kept, and MaxSize how large the log may grow; 0 stands for no bound.
	Keep    time.Duration
	MaxSize int64
	// Refusals is how many refusals of one identity (of one source, where there is none) are recorded one by one in a
	// minute; more are counted and folded into summaries.
	Refusals int
}

// Monitor is how Ward itself is watched. A Metrics that is not valid means: only on the admin socket.
type Monitor struct{ Metrics netip.AddrPort }

// Mesh is how local applications reach services. Each part that is empty or not valid is off.
type Mesh struct {
	Zone    string         // services live below it
	DNS     netip.AddrPort // the responder for the zone
	Listen  netip.AddrPort // where egress accepts plain HTTP
	Sockets string         // folder with one Unix socket for each service
	// Range is where the virtual addresses of services come from: what is sent there is redirected to Listen.
	Range netip.Prefix
	// Intercept redirects what these processes send to these ports to Listen.
	Intercept []Intercept
	// Guard lets nobody but Ward's own users dial the TCP upstreams of this host.
	Guard bool
	// Resolver is how the zone is made known to the host: one of the words Resolver….
	Resolver string
	State    string // folder of the table of virtual addresses
}

// Who is told of the mesh's zone.
const (
	ResolverAuto           = "auto" // whichever of the others the host has
	ResolverSystemd        = "systemd-resolved"
	ResolverNetworkManager = "networkmanager"
	ResolverFile           = "resolv.conf"
	ResolverNone           = "none"
)

// Intercept names processes, by uid or by unit, whose outbound FHIR traffic is redirected to egress.
type Intercept struct {
	Select []Selector // unix.uid or systemd.unit, one of them
	Ports  []uint16
}

// Log is how the daemon logs.
type Log struct{ Level, Format string }
