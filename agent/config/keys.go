package config

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The table of everything that may be written. Each function lists the keys of one mapping and where their values
// go; decoding, defaults, the JSON Schema and `ward schema` all read it.

func unsupported(names ...string) map[string]fault {
	m := make(map[string]fault, len(names))
	for _, n := range names {
		m[n] = fault{codeUnsupported, "the key " + quote(n) + " is not supported by this version of Ward", "remove it"}
	}
	return m
}

func (c *Config) keys() keys {
	return keys{
		list: []key{
			{name: "trust_domain", value: trustDomain(&c.TrustDomain), required: true, example: "clinic.example",
				doc: "The trust domain: the name under which every identity of this site lies. It cannot be changed later without enrolling everything anew."},
			{name: "authority", value: object{c.Authority.keys()}, example: "{x509_ttl: 1h}",
				doc: "The certificate authority inside the agent."},
			{name: "agent", value: object{c.Agent.keys()}, example: "{socket: /run/ward/agent/workload.sock}",
				doc: "The agent, which attests processes and serves them the SPIFFE Workload API."},
			{name: "admin", value: object{c.Admin.keys()}, example: "{socket: /run/ward/agent/admin.sock}",
				doc: "The operator's socket: status, entries, metrics, explanations."},
			{name: "workloads", value: list[Workload]{into: &c.Workloads, item: func(w *Workload) value { return object{w.keys()} }},
				example: "[{id: /app/portal, select: {unix.uid: 991}}]",
				doc:     "The entries: which local processes are which workload."},
			{name: "devices", value: list[Device]{into: &c.Devices, item: func(v *Device) value { return object{v.keys()} }},
				example: "[{id: /device/ox-0042, identifiers: [{type: SYSID, system: 'urn:oid:1.2.3', value: FE-ED-AB-EE}], via: [/bridge/icu]}]",
				doc:     "Wearables and sensors that reach Ward through a bridge."},
			{name: "services", value: list[Service]{into: &c.Services, item: func(s *Service) value { return object{s.keys()} }},
				example: "[{name: fhir.ehr.mesh.internal, id: /ward/ehr, addresses: ['10.0.0.5:8443'], callers: [/app/portal]}]",
				doc:     "The FHIR services of the mesh, and where this host serves one, its listener and FHIR server."},
			{name: "tokens", value: list[Issuer]{into: &c.Tokens, item: func(i *Issuer) value { return object{i.keys()} }},
				example: "[{issuer: 'https://idp.clinic.example', audience: ['http://fhir.ehr.mesh.internal']}]",
				doc:     "The OpenID Providers whose access tokens are accepted for users."},
			{name: "bindings", value: list[Binding]{into: &c.Bindings, item: func(b *Binding) value { return object{b.keys()} }},
				example: "[{client_id: smart-portal, workloads: [/app/portal]}]",
				doc:     "Which workloads may carry the tokens that were issued to which OAuth client. A token of a client without a binding is refused."},
			{name: "policies", value: object{c.Policies.keys()}, example: "{dir: /etc/ward/policy}",
				doc: "The Cedar policies that decide each call."},
			{name: "audit", value: object{c.Audit.keys()}, example: "{dir: /var/lib/ward/audit}",
				doc: "The audit log."},
			{name: "monitor", value: object{c.Monitor.keys()}, example: "{metrics: '127.0.0.1:9464'}",
				doc: "How Ward itself is watched."},
			{name: "mesh", value: object{c.Mesh.keys()}, example: "{zone: mesh.internal}",
				doc: "How applications on this host reach services."},
			{name: "deny", value: list[spiffeid.ID]{into: &c.Deny, item: func(id *spiffeid.ID) value { return identity(id) }}, example: "[/app/old]",
				doc: "Identities that are refused, whatever certificate they show. They need not be workloads of this host."},
			{name: "log", value: object{c.Log.keys()}, example: "{level: info, format: json}",
				doc: "The daemon's own log. It never holds patient data or tokens."},
		},
		refused: unsupported("hosts", "limits", "validation", "federation"),
	}
}

func (a *Authority) keys() keys {
	return keys{list: []key{
		{name: "dir", value: path(&a.Dir, "a folder"), def: "/var/lib/ward/authority", example: "/var/lib/ward/authority",
			doc: "Folder of the authority's keys and journal; mode 0700. It is made on the first run. Back it up."},
		{name: "ca_ttl", value: duration(&a.CATTL, time.Minute, 10*365*24*time.Hour), def: "8760h", example: "8760h",
			doc: "How long the CA certificate lives, from the first run on."},
		{name: "x509_ttl", value: duration(&a.X509TTL, 5*time.Second, 24*time.Hour), def: "1h", example: "1h",
			doc: "How long an X.509-SVID lives unless its entry says otherwise. It is renewed at half of that."},
		{name: "keys", value: object{a.Keys.keys()}, example: "{seal: tpm}",
			doc: "How the authority's private keys are protected on the disk."},
	}}
}

func (k *Keys) keys() keys {
	return keys{list: []key{
		{name: "seal", value: word(&k.Seal, []string{SealNone, SealTPM, SealCredential}), def: SealNone, example: SealTPM,
			doc: "none: files of mode 0600. tpm: encrypted under a key that only this machine's TPM 2.0 opens. credential: encrypted under a systemd credential. Keys that are there already are not changed."},
		{name: "tpm", value: path(&k.TPM, "the TPM's device"), def: "/dev/tpmrm0", example: "/dev/tpmrm0",
			doc: "The TPM's resource manager, or the socket of a software TPM."},
		{name: "credential", value: matching(&k.Credential, "the name of a credential", `^[A-Za-z0-9._-]{1,64}$`, "use letters, digits, dots, dashes and underscores; 64 at most"), def: "ward-keys", example: "ward-keys",
			doc: "The systemd credential that holds the key (LoadCredentialEncrypted= in the unit); 32 bytes at least."},
	}}
}

func (a *Agent) keys() keys {
	return keys{list: []key{
		{name: "socket", value: socket(&a.Socket), def: "/run/ward/agent/workload.sock", example: "/run/ward/agent/workload.sock",
			doc: "Unix socket of the Workload API. Workloads find it by SPIFFE_ENDPOINT_SOCKET=unix://PATH."},
		{name: "broker", value: socketOrOff(&a.Broker), def: "/run/ward/agent/broker.sock", example: "/run/ward/agent/broker.sock",
			doc: "Unix socket of the SPIFFE Broker API, where this host's egress gets its callers' identities. Only the process that wards.egress names is served."},
		{name: "state", value: path(&a.State, "a folder"), def: "/var/lib/ward/agent", example: "/var/lib/ward/agent",
			doc: "Folder of what the agent keeps for a start without its authority: sealed SVIDs. Mode 0700. The default lies beside authority.dir."},
		{name: "wards", value: object{a.Wards.keys()}, example: "{egress: {systemd.unit: ward-egress.service}}",
			doc: "Which processes are this host's own proxies, where they run apart from the agent."},
	}}
}

func (w *Wards) keys() keys {
	return keys{list: []key{
		{name: "egress", value: object{boundaries(&w.Egress)}, example: "{systemd.unit: ward-egress.service}",
			doc: "The egress proxy, to which identities with proxy: true are lent. The default is the unit ward-egress.service."},
		{name: "ingress", value: object{boundaries(&w.Ingress)}, example: "{systemd.unit: ward-ingress.service}",
			doc: "The ingress proxy, which answers as the services that this host serves. The default is the unit ward-ingress.service."},
	}}
}

func (a *Admin) keys() keys {
	return keys{list: []key{
		{name: "socket", value: socket(&a.Socket), def: "/run/ward/agent/admin.sock", example: "/run/ward/agent/admin.sock",
			doc: "Unix socket of the agent, and of ward run, for root and the group ward-admin."},
		{name: "egress", value: socket(&a.Egress), def: "/run/ward/egress/admin.sock", example: "/run/ward/egress/admin.sock",
			doc: "The same of the egress proxy, where it is a process of its own."},
		{name: "ingress", value: socket(&a.Ingress), def: "/run/ward/ingress/admin.sock", example: "/run/ward/ingress/admin.sock",
			doc: "The same of the ingress proxy."},
		{name: "mesh", value: socket(&a.Mesh), def: "/run/ward/mesh/admin.sock", example: "/run/ward/mesh/admin.sock",
			doc: "The same of ward mesh."},
	}}
}

func (w *Workload) keys() keys {
	return keys{
		list: []key{
			{name: "id", value: identity(&w.ID), required: true, example: "/app/portal",
				doc: "The SPIFFE ID that the workload gets: its path, or the full ID."},
			{name: "name", value: matching(&w.Name, "a name of letters, digits, dots, dashes, underscores and slashes", `^[A-Za-z0-9._/-]{1,256}$`, "use other characters; 256 at most"),
				example: "portal", doc: "A name of the entry, unique. Without it the ID's path is the name."},
			{name: "select", value: object{selectors(&w.Select)}, required: true, example: "{unix.uid: 991, systemd.unit: portal.service}",
				doc: "What must be attested of a process, all of it. unix.uid or systemd.unit must be among it: the other facts narrow an entry, and cannot carry one."},
			{name: "svid", value: object{w.SVID.keys()}, example: "{x509_ttl: 1h}",
				doc: "What is put into the workload's certificates."},
			{name: "proxy", value: flag(&w.Proxy), def: "false", example: "true",
				doc: "Whether the local proxy may borrow this identity to make the workload's calls. Workloads that call services through Ward need it."},
			{name: "min_strength", value: word(&w.MinStrength, []string{"weak", "strong"}), def: "weak", example: "strong",
				doc: "How firmly a process must have been pinned while it was attested. strong needs a kernel that pins the peer of a socket itself, Linux 6.5 or later."},
			{name: "max_age", value: duration(&w.MaxAge, time.Second, 30*24*time.Hour), example: "1h",
				doc: "How old an attestation may grow before the process is attested anew. Without it a process is attested when it connects and after every change."},
		},
		refused: unsupported("hosts", "may_act_for", "fhir", "posture", "federates_with"),
	}
}

func (s *SVID) keys() keys {
	return keys{
		list: []key{
			{name: "x509_ttl", value: duration(&s.X509TTL, 5*time.Second, 24*time.Hour), example: "1h",
				doc: "How long this workload's X.509-SVIDs live. Without it authority.x509_ttl counts."},
			{name: "dns_names", value: list[string]{into: &s.DNSNames, item: dnsName}, example: "[portal.clinic.example]",
				doc: "DNS names in the certificate, for clients that know no SPIFFE."},
			{name: "hint", value: text(&s.Hint, "text of at most 1024 bytes", 1024), example: "portal", // SPIFFE Workload API §8
				doc: "A word by which a workload that has several identities tells them apart."},
		},
		refused: unsupported("wit", "jwt_ttl"),
	}
}

func (v *Device) keys() keys {
	return keys{
		list: []key{
			{name: "id", value: identity(&v.ID), required: true, example: "/device/ox-0042",
				doc: "The SPIFFE ID of the device."},
			{name: "identifiers", value: list[Identifier]{into: &v.Identifiers, least: 1, item: func(i *Identifier) value { return object{i.keys()} }}, required: true,
				example: "[{type: SYSID, system: 'urn:oid:1.2.3', value: FE-ED-AB-EE}]",
				doc:     "What FHIR resources call the device (Device.identifier). No two devices may share one."},
			{name: "via", value: list[spiffeid.ID]{into: &v.Via, least: 1, item: func(id *spiffeid.ID) value { return identity(id) }}, required: true,
				example: "[/bridge/icu]", doc: "The workloads that may speak for the device."},
			{name: "assurance", value: word(&v.Assurance, []string{"declared", "bonded", "attested"}), def: "declared", example: "bonded",
				doc: "How sure it is that data come from this very device. attested: its own key answered a challenge. bonded: the Bluetooth peer is the one that was enrolled. declared: it says so."},
			{name: "patient", value: list[Window]{into: &v.Patients, lone: true, item: func(w *Window) value { return object{w.keys()} }},
				example: "{ref: Patient/123, from: 2026-11-20, until: 2026-11-30}",
				doc:     "Who wears the device, and when. A list of such windows, which must not overlap, is possible."},
		},
		refused: unsupported("allow"),
	}
}

func (i *Identifier) keys() keys {
	return keys{list: []key{
		{name: "type", value: word(&i.Type, []string{"SYSID", "BTMAC", "ETHMAC", "USB", "ZIGBEE"}), required: true, example: "SYSID",
			doc: "The kind of identifier."},
		{name: "system", value: uri(&i.System, "an absolute URI such as urn:oid:1.2.3"), required: true, example: "'urn:oid:1.2.3'",
			doc: "The naming system, as in Identifier.system."},
		{name: "value", value: text(&i.Value, "the identifier itself", 256), required: true, example: "FE-ED-AB-EE-DE-AD-77-C3",
			doc: "The identifier itself, as in Identifier.value."},
	}}
}

func (w *Window) keys() keys {
	return keys{list: []key{
		{name: "ref", value: matching(&w.Ref, "a reference such as Patient/123", `^Patient/[A-Za-z0-9.-]{1,64}$`, "write Patient/ and the resource's id"), required: true, example: "Patient/123",
			doc: "The patient, as a relative reference."},
		{name: "from", value: instant(&w.From), example: "2026-11-20", doc: "When the window begins; without it, it has always been open."},
		{name: "until", value: instant(&w.Until), example: "2026-11-30", doc: "The first moment after the window; without it, it stays open."},
	}}
}

func (s *Service) keys() keys {
	return keys{
		list: []key{
			{name: "name", value: dnsName(&s.Name), required: true, example: "fhir.ehr.mesh.internal",
				doc: "The name by which applications call the service; below mesh.zone."},
			{name: "id", value: identity(&s.ID), required: true, example: "/ward/ehr",
				doc: "The SPIFFE ID that must answer. It belongs to the ward in front of the FHIR server and to no workload."},
			{name: "addresses", value: list[string]{into: &s.Addresses, least: 1, item: peer}, required: true, example: "['10.0.0.5:8443']",
				doc: "Where that ward listens, in order of preference."},
			{name: "callers", value: list[spiffeid.ID]{into: &s.Callers, item: func(id *spiffeid.ID) value { return identity(id) }}, required: true, example: "[/app/portal]",
				doc: "The workloads that may call the service at all. What they may do there, policy says."},
			{name: "base", value: basePath(&s.Base), def: `""`, example: "/fhir",
				doc: "Path under which FHIR lives; the same for callers and at the FHIR server."},
			{name: "max_exchange", value: duration(&s.MaxExchange, time.Second, 8*time.Hour), def: "5m", example: "5m",
				doc: "The longest single request and reply. At most a third of the shortest SVID's life that is involved, since no connection may outlive its certificates."},
			{name: "listen", value: address(&s.Listen), example: "10.0.0.5:8443",
				doc: "Where the ward in front of the FHIR server listens. On the serving host only, together with upstream."},
			{name: "upstream", value: object{s.Upstream.keys()}, example: "{address: 'unix:/run/hapi/fhir.sock'}",
				doc: "The FHIR server. On the serving host only, together with listen."},
			{name: "proxy_protocol", value: list[netip.Prefix]{into: &s.ProxyProtocol, least: 1, item: balancers}, example: "[10.0.0.2, 10.0.3.0/28]",
				doc: "The balancers in front of listen that pass TLS through: addresses, or ranges of them. Connections from there must begin with a PROXY protocol header, version 2, which says whose they are; from anywhere else they must not. That address is for the audit log and for fairness between sources: who calls, only a certificate says."},
			{name: "max_connections", value: count(&s.MaxConnections, 1, 1<<20), def: "1024", example: "256",
				doc: "How many connections with listen one caller may have open. One more is closed, and recorded."},
			{name: "max_connections_total", value: count(&s.MaxConnectionsTotal, 1, 1<<20), def: "16384", example: "8192",
				doc: "The same of all callers together; no less than max_connections."},
			{name: "mode", value: word(&s.Mode, []string{ModeEnforce, ModeObserve}), def: ModeEnforce, example: ModeObserve,
				doc: "enforce refuses what may not be. observe lets through what token, scope, policy, limits or validation would refuse, and records that; identity, parsing and audit hold as ever. It needs observe_until."},
			{name: "observe_until", value: instant(&s.ObserveUntil), example: "2026-12-31",
				doc: "When observing ends and the service enforces by itself."},
		},
		refused: unsupported("srv", "via"),
	}
}

func (u *Upstream) keys() keys {
	return keys{
		list: []key{
			{name: "address", value: upstream(u), required: true, example: "'unix:/run/hapi/fhir.sock'",
				doc: "Where the FHIR server listens: a Unix socket, which is preferred, or a loopback address. It must not be reachable in any other way."},
			{name: "process", value: object{serving(&u.Process)}, example: "{uid: 992, unit: hapi.service}",
				doc: "Who must be serving there: attested on each new connection, before a byte is sent. Needed for a loopback address, on which any local user can listen while the server is away."},
		},
		refused: unsupported("lookup_token"),
	}
}

func (i *Issuer) keys() keys {
	return keys{list: []key{
		{name: "issuer", value: webURL(&i.Issuer, "the issuer's URL", false), required: true, example: "'https://idp.clinic.example'",
			doc: "The issuer, exactly as in the iss claim. http is accepted to a loopback host only."},
		{name: "audience", value: list[string]{into: &i.Audience, least: 1, item: func(s *string) value { return text(s, "an audience", 2048) }}, required: true, example: "['http://fhir.ehr.mesh.internal']",
			doc: "A token must name at least one of these in its aud claim."},
		{name: "algorithms", value: list[string]{into: &i.Algorithms, least: 1, item: func(s *string) value {
			return word(s, []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
		}}, def: "[RS256, PS256, ES256]", example: "[ES256]",
			doc: "The signature algorithms that are accepted."},
		{name: "discovery", value: word(&i.Discovery, []string{DiscoverOpenID, DiscoverOAuth, DiscoverNone}), example: "oauth",
			doc: "How the keys are found: openid by /.well-known/openid-configuration, oauth by RFC 8414's document, none by jwks_uri or jwks_file. The default is none where one of those is given, and openid elsewhere."},
		{name: "jwks_uri", value: webURL(&i.JWKSURI, "the URL of a JWK set", true), example: "'https://idp.clinic.example/jwks'",
			doc: "Where the keys are, instead of discovery."},
		{name: "jwks_file", value: path(&i.JWKSFile, "a file with a JWK set"), example: "/etc/ward/idp.jwks",
			doc: "A file that holds the keys, instead of discovery and jwks_uri. It must be writable by root and the running user only."},
		{name: "ca_file", value: path(&i.CAFile, "a PEM file"), example: "/etc/ward/idp-ca.pem",
			doc: "The roots for TLS to the issuer, instead of the system's. It must be writable by root and the running user only."},
		{name: "types", value: list[string]{into: &i.Types, least: 1, item: func(s *string) value { return word(s, []string{"at+jwt", "JWT", TypeAbsent}) }},
			def: "[at+jwt, JWT, absent]", example: "[at+jwt]",
			doc: "The values of a token's typ header that are accepted; absent stands for a token without one. Where the issuer follows RFC 9068, write [at+jwt]: an ID token is no access token."},
		{name: "leeway", value: duration(&i.Leeway, 0, time.Minute), def: "30s", example: "30s",
			doc: "By how much the issuer's clock may differ from this one."},
		{name: "claims", value: object{i.Claims.keys()}, example: "{roles: groups}",
			doc: "The claims that carry facts about the user."},
	}}
}

func (c *Claims) keys() keys {
	claim := func(into *string) value { return text(into, "the name of a claim", 256) }
	return keys{list: []key{
		{name: "roles", value: claim(&c.Roles), def: "roles", example: "groups", doc: "The user's roles: text, or a list of texts."},
		{name: "purpose", value: claim(&c.Purpose), def: "purpose_of_use", example: "purpose_of_use", doc: "The purpose of use, such as TREAT."},
		{name: "name", value: claim(&c.Name), def: "name", example: "preferred_username", doc: "A name for operators to read."},
		{name: "patient", value: claim(&c.Patient), def: "patient", example: "patient", doc: "The SMART launch context's patient."},
		{name: "fhir_user", value: claim(&c.FHIRUser), def: "fhirUser", example: "fhirUser", doc: "The FHIR resource that is the user."},
	}}
}

func (b *Binding) keys() keys {
	return keys{
		list: []key{
			{name: "issuer", value: webURL(&b.Issuer, "the issuer's URL", false), example: "'https://idp.clinic.example'",
				doc: "One of the issuers under tokens. It may be left out when there is only one."},
			{name: "client_id", value: text(&b.ClientID, "a client's ID", 256), required: true, example: "smart-portal",
				doc: "The OAuth client to which the tokens were issued."},
			{name: "mode", value: word(&b.Mode, []string{"client-map"}, "pin", "cnf", "exchange"), def: "client-map", example: "client-map",
				doc: "How a token is tied to its workload. client-map: the client's tokens are accepted from these workloads and from no others."},
			{name: "workloads", value: list[spiffeid.ID]{into: &b.Workloads, least: 1, item: func(id *spiffeid.ID) value { return identity(id) }}, required: true, example: "[/app/portal]",
				doc: "The workloads that may carry the tokens."},
		},
		refused: unsupported("pin"),
	}
}

func (p *Policies) keys() keys {
	return keys{list: []key{
		{name: "dir", value: path(&p.Dir, "a folder"), def: "/etc/ward/policy", example: "/etc/ward/policy",
			doc: "Folder of the Cedar policies. It and the files in it must be writable by root and the running user only."},
	}}
}

func (a *Audit) keys() keys {
	return keys{list: []key{
		{name: "dir", value: path(&a.Dir, "a folder"), def: "/var/lib/ward/audit", example: "/var/lib/ward/audit",
			doc: "Folder of the audit log."},
		{name: "segment_size", value: size(&a.SegmentSize, 4<<10, 4<<30), def: "64MiB", example: "64MiB",
			doc: "How large one file of the log grows before the next is begun."},
		{name: "min_free", value: size(&a.MinFree, 1<<20, 1<<40), def: "64MiB", example: "1GiB",
			doc: "With less free space than this, calls are refused: what cannot be recorded does not happen."},
		{name: "second", value: pathOrOff(&a.Second, "a folder"), def: `""`, example: "/srv/ward-audit",
			doc: "Folder on another filesystem that takes the records while dir cannot."},
		{name: "reserve", value: size(&a.Reserve, 64<<10, 1<<40), def: "16MiB", example: "16MiB",
			doc: "Space that is allocated ahead in dir, for emergency treatment and break-glass when nothing else can be recorded."},
		{name: "keep", value: duration(&a.Keep, 24*time.Hour, 50*365*24*time.Hour), example: "52560h",
			doc: "For how long the log is kept; older segments are removed whole. Without it, it is kept for good."},
		{name: "max_size", value: size(&a.MaxSize, 1<<20, 1<<50), example: "200GiB",
			doc: "How large the log may grow before its oldest segments are removed. Without it, only min_free bounds it."},
		{name: "refusals", value: count(&a.Refusals, 1, 100000), def: "60", example: "60",
			doc: "How many refusals of one identity (of one source, where there is none) are recorded one by one in a minute. More are counted, and folded into summaries."},
	}}
}

func (m *Monitor) keys() keys {
	return keys{list: []key{
		{name: "metrics", value: loopbackOrOff(&m.Metrics), def: `""`, example: "'127.0.0.1:9464'",
			doc: "Loopback address for Prometheus metrics, which any local user can then read. They are on the admin socket in any case."},
	}}
}

func (m *Mesh) keys() keys {
	return keys{list: []key{
		{name: "zone", value: zone(&m.Zone), def: "mesh.internal", example: "mesh.internal",
			doc: "The DNS zone below which services are named."},
		{name: "dns", value: loopbackOrOff(&m.DNS), def: "127.77.0.53:53", example: "127.77.0.53:53",
			doc: "Where the DNS responder for the zone listens."},
		{name: "listen", value: loopbackOrOff(&m.Listen), def: "127.77.0.1:80", example: "127.77.0.1:80",
			doc: "Where egress accepts plain HTTP from applications, also as their http_proxy."},
		{name: "sockets", value: pathOrOff(&m.Sockets, "a folder"), def: "/run/ward/egress", example: "/run/ward/egress",
			doc: "Folder in which egress has a Unix socket for each service, SERVICE.sock."},
		{name: "range", value: loopbackRange(&m.Range), def: "127.128.0.0/10", example: "127.128.0.0/10",
			doc: "The virtual addresses of services. ward mesh redirects what is sent there to mesh.listen, and leaves a reject rule when it stops."},
		{name: "intercept", value: list[Intercept]{into: &m.Intercept, item: func(i *Intercept) value { return object{i.keys()} }}, example: "[{select: {systemd.unit: portal.service}, ports: [80, 8080]}]",
			doc: "Processes whose outbound FHIR traffic goes through egress, whatever address they send it to."},
		{name: "guard", value: flag(&m.Guard), def: "false", example: "true",
			doc: "Whether ward mesh lets nobody but Ward dial the TCP upstreams of this host."},
		{name: "resolver", value: word(&m.Resolver, []string{ResolverAuto, ResolverSystemd, ResolverNetworkManager, ResolverFile, ResolverNone}), def: ResolverAuto, example: ResolverNone,
			doc: "How ward mesh makes the zone known to this host. auto takes what it finds; none leaves it to you."},
		{name: "state", value: path(&m.State, "a folder"), def: "/var/lib/ward/mesh", example: "/var/lib/ward/mesh",
			doc: "Folder of the table of virtual addresses, which stay with their services across restarts."},
	}}
}

func (i *Intercept) keys() keys {
	return keys{list: []key{
		{name: "select", value: object{boundaries(&i.Select)}, required: true, example: "{systemd.unit: portal.service}",
			doc: "The processes, by one of the two."},
		{name: "ports", value: list[uint16]{into: &i.Ports, least: 1, item: port}, required: true, example: "[80, 8080]",
			doc: "The TCP ports to which they send FHIR."},
	}}
}

func (l *Log) keys() keys {
	return keys{list: []key{
		{name: "level", value: word(&l.Level, []string{"debug", "info", "warn", "error"}), def: "info", example: "debug",
			doc: "The least important message that is written."},
		{name: "format", value: word(&l.Format, []string{"json", "console"}), def: "json", example: "console",
			doc: "json for machines, console for people."},
	}}
}

// basePath is "" or a path in its plain form, without a slash at the end.
func basePath(into *string) value {
	return matching(into, "a path such as /fhir", `^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$`, "begin with a slash, end without one, and use letters, digits, dots, dashes, underscores and tildes")
}

// zone is a DNS name, and "" stands for none.
func zone(into *string) value {
	named := dnsName(into).(scalar[string])
	parse := named.form.parse
	named.form.what += `, or "" for none`
	named.form.parse = func(d *decoder, s string) (string, *fault) {
		if s == "" {
			return "", nil
		}
		return parse(d, s)
	}
	named.form.props = map[string]any{"type": "string", "maxLength": 253}
	return named
}
