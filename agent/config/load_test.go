package config_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/agent/config"
)

func id(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://clinic.example" + path) }

var equate = cmp.Options{
	cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
	cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(config.Config{}),
	cmpopts.EquateEmpty(),
}

func TestGood(t *testing.T) {
	text, err := os.ReadFile("testdata/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ward.yaml"), string(text))
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(filepath.Join(dir, "ward.yaml"), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("clinic.example"),
		Authority: config.Authority{Dir: filepath.Join(dir, "state/authority"), CATTL: 8760 * time.Hour, X509TTL: time.Hour,
			Keys: config.Keys{Seal: config.SealTPM, TPM: "/run/swtpm/sock", Credential: "ward-keys"}},
		Agent: config.Agent{Socket: "/run/ward/agent/workload.sock", State: filepath.Join(dir, "state/agent"), Wards: config.Wards{
			Egress: []config.Selector{{Type: "unix.uid", Value: "993"}}, Ingress: []config.Selector{{Type: "systemd.unit", Value: "ward-ingress.service"}}}},
		Admin: config.Admin{Socket: "/run/ward/agent/admin.sock", Egress: "/run/ward/egress/admin.sock", Ingress: "/run/ward/ingress/admin.sock", Mesh: "/run/ward/mesh/admin.sock"},
		Workloads: []config.Workload{
			{
				ID: id("/app/portal"), Name: "portal", Proxy: true, MinStrength: "strong",
				Select: []config.Selector{
					{Type: "unix.uid", Value: "991"}, {Type: "unix.gid", Value: "991"}, {Type: "unix.group", Value: "27"}, {Type: "unix.group", Value: "44"},
					{Type: "systemd.unit", Value: "portal.service"}, {Type: "exe.path", Value: "/usr/bin/portal"},
					{Type: "exe.sha256", Value: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
				},
				MaxAge: time.Hour,
				SVID:   config.SVID{X509TTL: 30 * time.Minute, DNSNames: []string{"portal.clinic.example"}, Hint: "portal"},
			},
			{
				ID: id("/bridge/icu"), Name: "/bridge/icu", MinStrength: "weak",
				Select: []config.Selector{{Type: "unix.uid", Value: "992"}, {Type: "unix.group", Value: "20"}, {Type: "systemd.user_unit", Value: "bridge@1.service"}},
			},
		},
		Devices: []config.Device{
			{
				ID: id("/device/ox-0042"), Assurance: "bonded", Via: []spiffeid.ID{id("/bridge/icu")},
				Identifiers: []config.Identifier{
					{Type: "SYSID", System: "urn:oid:1.2.3", Value: "FE-ED-AB-EE-DE-AD-77-C3"},
					{Type: "BTMAC", System: "urn:oid:1.2.840.10004.1.1.1.0.0.8680", Value: "00-11-22-33-44-55"},
				},
				Patients: []config.Window{
					{Ref: "Patient/124", From: time.Date(2026, 11, 30, 7, 0, 0, 0, time.UTC)},
					{Ref: "Patient/123", From: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)},
				},
			},
			{
				ID: id("/device/scale"), Assurance: "declared", Via: []spiffeid.ID{id("/bridge/icu"), id("/app/portal")},
				Identifiers: []config.Identifier{{Type: "ETHMAC", System: "https://example.org/ids", Value: "1"}},
				Patients:    []config.Window{{Ref: "Patient/123"}},
			},
		},
		Services: []config.Service{
			{
				Name: "fhir.ehr.mesh.internal", ID: id("/ward/ehr"), Addresses: []string{"127.0.0.1:8443", "ehr.clinic.example:8443"},
				Callers: []spiffeid.ID{id("/app/portal")}, Base: "/fhir", MaxExchange: 10 * time.Minute,
				Listen: netip.MustParseAddrPort("127.0.0.1:8443"), Upstream: config.Upstream{Network: "unix", Address: "/run/hapi/fhir.sock"}, Mode: config.ModeEnforce,
				ProxyProtocol:  []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("10.0.3.0/28"), netip.MustParsePrefix("2001:db8::/64")},
				MaxConnections: 256, MaxConnectionsTotal: 4096,
			},
			{
				Name: "lab.mesh.internal", ID: id("/ward/lab"), Addresses: []string{"[::1]:8444"}, MaxExchange: 5 * time.Minute,
				Listen: netip.MustParseAddrPort("[::1]:8444"), Upstream: config.Upstream{Network: "tcp", Address: "127.0.0.1:8080",
					Process: []config.Selector{{Type: "unix.uid", Value: "992"}, {Type: "systemd.unit", Value: "hapi.service"}}},
				MaxConnections: 1024, MaxConnectionsTotal: 16384, Mode: config.ModeObserve, ObserveUntil: time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC),
			},
		},
		Tokens: []config.Issuer{
			{
				Issuer: "https://idp.clinic.example", Audience: []string{"http://fhir.ehr.mesh.internal"}, Algorithms: []string{"ES256", "EdDSA"},
				Discovery: "oauth", Types: []string{"at+jwt"}, Leeway: 5 * time.Second,
				Claims: config.Claims{Roles: "groups", Purpose: "purpose_of_use", Name: "name", Patient: "patient", FHIRUser: "fhirUser"},
			},
			{
				Issuer: "http://127.0.0.1:9000", Audience: []string{"http://fhir.ehr.mesh.internal"}, Algorithms: []string{"RS256", "PS256", "ES256"},
				Discovery: "none", JWKSURI: "http://localhost:9000/jwks?v=1", Types: []string{"at+jwt", "JWT", "absent"}, Leeway: 30 * time.Second,
				Claims: config.Claims{Roles: "roles", Purpose: "purpose_of_use", Name: "name", Patient: "patient", FHIRUser: "fhirUser"},
			},
		},
		Bindings: []config.Binding{
			{Issuer: "https://idp.clinic.example", ClientID: "smart-portal", Mode: "client-map", Workloads: []spiffeid.ID{id("/app/portal")}},
			{Issuer: "http://127.0.0.1:9000", ClientID: "smart-portal", Mode: "client-map", Workloads: []spiffeid.ID{id("/app/portal"), id("/bridge/icu")}},
		},
		Policies: config.Policies{Dir: filepath.Join(dir, "policy")},
		Audit:    config.Audit{Dir: "/var/lib/ward/audit", SegmentSize: 4096, MinFree: 1 << 30, Second: "/srv/audit", Reserve: 1 << 20, Keep: 8760 * time.Hour, MaxSize: 1 << 40, Refusals: 10},
		Monitor:  config.Monitor{Metrics: netip.MustParseAddrPort("127.0.0.1:9464")},
		Mesh: config.Mesh{Zone: "mesh.internal", DNS: netip.MustParseAddrPort("127.77.0.53:53"), Sockets: "/run/ward/egress",
			Range: netip.MustParsePrefix("127.128.0.0/16"), Guard: true, Resolver: config.ResolverNone, State: "/var/lib/ward/mesh",
			Intercept: []config.Intercept{{Select: []config.Selector{{Type: "unix.uid", Value: "991"}}, Ports: []uint16{80, 8080}}}},
		Deny: []spiffeid.ID{id("/app/old")},
		Log:  config.Log{Level: "debug", Format: "console"},
	}
	if diff := cmp.Diff(want, got, equate); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	places := map[string]string{
		"trust_domain":                       "2:15",
		"workloads[0].select.unix.uid":       "11:17",
		"workloads[1].id":                    "21:9",
		"devices[0].patient[1].ref":          "33:15",
		"services[0].upstream.address":       "50:25",
		"services[1].upstream":               "56:15",
		"services[1].max_exchange":           "51:5", // a default: where its service begins
		"tokens[1].claims.roles":             "68:5",
		"policies":                           "76:11",
		"policies.dir":                       "76:17",
		"nothing.of.the.kind":                "1:1",
		"bindings[1].workloads[1]":           "74:105",
		"workloads[7].select.exe.path":       "8:3",
		"devices[0].identifiers[1].system":   "28:31",
		"services[0].callers[0]":             "43:15",
		"workloads[0].svid.dns_names[0]":     "17:39",
		"workloads[0].select.systemd.unit":   "14:21",
		"mesh.zone":                          "79:7",
		"monitor.metrics":                    "78:20",
		"authority.x509_ttl":                 "3:60",
		"agent.socket":                       "4:17",
		"log.format":                         "81:29",
		"deny[0]":                            "80:8",
		"audit.min_free":                     "77:65",
		"workloads[1].select.unix.group":     "22:43",
		"workloads[0].min_strength":          "19:19",
		"tokens[0].algorithms[1]":            "63:25",
		"bindings[0].mode":                   "73:5",
		"devices[1].patient[0].ref":          "37:20",
		"services[1].addresses[0]":           "53:17",
		"workloads[0].select.exe.sha256":     "16:19",
		"services[0].upstream.address.extra": "50:25",
	}
	for path, want := range places {
		if got := got.At(path); got.String() != filepath.Join(dir, "ward.yaml")+":"+want {
			t.Errorf("At(%s) = %s, want :%s", path, got, want)
		}
	}
	problem := got.Problem("policies.dir", config.CodePolicy, "no policy permits anything", "write one")
	if want := filepath.Join(dir, "ward.yaml") + ":76:17: no policy permits anything [W0402]; write one"; problem.Error() != want {
		t.Errorf("Problem = %s, want %s", problem, want)
	}
}

// TestMerge: lists of several files add up in the order of the files' names, and mappings are filled from any.
func TestMerge(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ward.yaml"), "deny: [/a]\nlog: {level: warn}\n")
	write(t, filepath.Join(dir, "conf.d/20.yaml"), "deny: [/c]\nworkloads: [{id: /app/b, select: {unix.uid: 2}}]\n")
	write(t, filepath.Join(dir, "conf.d/10.yaml"), "trust_domain: clinic.example\ndeny: [/b]\nlog: {format: console}\n")
	write(t, filepath.Join(dir, "conf.d/30.yaml"), "# nothing\n")
	write(t, filepath.Join(dir, "conf.d/.hidden.yaml"), "nonsense")
	write(t, filepath.Join(dir, "conf.d/README"), "nonsense")
	c, err := config.Load(filepath.Join(dir, "ward.yaml"), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]spiffeid.ID{id("/a"), id("/b"), id("/c")}, c.Deny, equate); diff != "" {
		t.Errorf("deny (-want +got):\n%s", diff)
	}
	if c.Log != (config.Log{Level: "warn", Format: "console"}) {
		t.Errorf("log = %+v", c.Log)
	}
	if got, want := c.At("deny[2]").String(), filepath.Join(dir, "conf.d/20.yaml")+":1:8"; got != want {
		t.Errorf("At(deny[2]) = %s, want %s", got, want)
	}
}

// TestUnsafe: whoever could change what Ward reads could become any workload.
func TestUnsafe(t *testing.T) {
	type tree struct{ dir, file string }
	cases := []struct {
		name string
		root bool // needs to give files away
		do   func(t *testing.T, at tree)
		want string // of the error; "" when it must load
	}{
		{"as it should be", false, func(*testing.T, tree) {}, ""},
		{"file writable by group", false, func(t *testing.T, at tree) { chmod(t, at.file, 0o664) }, "W0102]; run: chmod go-w "},
		{"file writable by all", false, func(t *testing.T, at tree) { chmod(t, at.file, 0o646) }, "W0102]; run: chmod go-w "},
		{"folder writable by all", false, func(t *testing.T, at tree) { chmod(t, at.dir, 0o777) }, "W0102]; run: chmod go-w "},
		{"sticky folder writable by all", false, func(t *testing.T, at tree) { chmod(t, at.dir, 0o777|os.ModeSticky) }, ""},
		{"folder above writable by all", false, func(t *testing.T, at tree) { chmod(t, filepath.Dir(at.dir), 0o777) }, "W0102]; run: chmod go-w "},
		{"somebody else's file", true, func(t *testing.T, at tree) { chown(t, at.file, 4711) }, "belongs to uid 4711"},
		{"somebody else's folder", true, func(t *testing.T, at tree) { chown(t, at.dir, 4711) }, "belongs to uid 4711"},
		{"link to a file that others can replace", false, func(t *testing.T, at tree) {
			open := filepath.Join(filepath.Dir(at.dir), "open")
			write(t, filepath.Join(open, "ward.yaml"), "trust_domain: a.example\n")
			chmod(t, open, 0o777)
			symlink(t, filepath.Join(open, "ward.yaml"), at.file)
		}, "W0102]; run: chmod go-w "},
		{"link to a safe file, by a relative path", false, func(t *testing.T, at tree) {
			write(t, filepath.Join(filepath.Dir(at.dir), "real/ward.yaml"), "trust_domain: a.example\n")
			symlink(t, "../etc/.././real/ward.yaml", at.file)
		}, ""},
		{"somebody else's link", true, func(t *testing.T, at tree) {
			write(t, filepath.Join(filepath.Dir(at.dir), "real/ward.yaml"), "trust_domain: a.example\n")
			symlink(t, "../real/ward.yaml", at.file)
			if err := os.Lchown(at.file, 4711, -1); err != nil {
				t.Fatal(err)
			}
		}, "run: chown -h "},
		{"link to itself", false, func(t *testing.T, at tree) { symlink(t, at.file, at.file) }, "W0101"},
		{"a folder", false, func(t *testing.T, at tree) { os.Remove(at.file); os.Mkdir(at.file, 0o755) }, "is not a regular file"},
		{"a pipe", false, func(t *testing.T, at tree) {
			os.Remove(at.file)
			if err := syscall.Mkfifo(at.file, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
		{"missing", false, func(t *testing.T, at tree) { os.Remove(at.file) }, "does not exist [W0101]"},
		{"conf.d writable by all, even when sticky", false, func(t *testing.T, at tree) {
			write(t, filepath.Join(at.dir, "conf.d/a.yaml"), "deny: [/a]\n")
			chmod(t, filepath.Join(at.dir, "conf.d"), 0o777|os.ModeSticky)
		}, "conf.d:1:1: the folder"},
		{"fragment writable by all", false, func(t *testing.T, at tree) {
			write(t, filepath.Join(at.dir, "conf.d/a.yaml"), "deny: [/a]\n")
			chmod(t, filepath.Join(at.dir, "conf.d/a.yaml"), 0o606)
		}, "conf.d/a.yaml:1:1: the file"},
		{"fragment that would be overlooked", false, func(t *testing.T, at tree) { write(t, filepath.Join(at.dir, "conf.d/a.yml"), "") }, "[W0110]; rename it"},
		{"jwks_file missing", false, func(t *testing.T, at tree) { issuer(t, at.file, "jwks_file: keys.json") }, `ward.yaml:2:66: "`},
		{"jwks_file writable by all", false, func(t *testing.T, at tree) {
			issuer(t, at.file, "jwks_file: keys.json")
			write(t, filepath.Join(at.dir, "keys.json"), "{}")
			chmod(t, filepath.Join(at.dir, "keys.json"), 0o666)
		}, "[W0102]"},
		{"ca_file is a folder", false, func(t *testing.T, at tree) { issuer(t, at.file, "ca_file: .") }, "is not a regular file [W0401]"},
		{"ca_file in order", false, func(t *testing.T, at tree) {
			issuer(t, at.file, "ca_file: ca.pem")
			write(t, filepath.Join(at.dir, "ca.pem"), "x")
		}, ""},
		{"policies missing", false, func(t *testing.T, at tree) { write(t, at.file, "trust_domain: a.example\npolicies: {dir: policy}\n") }, "ward.yaml:2:17: "},
		{"a policy writable by all", false, func(t *testing.T, at tree) {
			write(t, at.file, "trust_domain: a.example\npolicies: {dir: policy}\n")
			write(t, filepath.Join(at.dir, "policy/a.cedar"), "x")
			chmod(t, filepath.Join(at.dir, "policy/a.cedar"), 0o666)
		}, "[W0102]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("SKIPPED: needs root, to give files to another user")
			}
			dir := filepath.Join(t.TempDir(), "etc")
			at := tree{dir, filepath.Join(dir, "ward.yaml")}
			write(t, at.file, "trust_domain: a.example\n")
			c.do(t, at)
			_, err := config.Load(at.file, config.Options{})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("Load: %v", err)
			case c.want != "" && err == nil:
				t.Errorf("Load accepts it; want an error with %q", c.want)
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("Load: %v; want %q in it", err, c.want)
			}
		})
	}
	t.Run("files of the user that Ward will run as", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: needs root, to give files to another user")
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "ward.yaml")
		write(t, file, "trust_domain: a.example\n")
		chown(t, dir, 4711)
		chown(t, file, 4711)
		if _, err := config.Load(file, config.Options{Owner: 4711}); err != nil {
			t.Error(err)
		}
		if _, err := config.Load(file, config.Options{Owner: 4712}); err == nil {
			t.Error("loads another user's file")
		}
	})
}

func TestLimits(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"large":          {"trust_domain: a.example\n" + strings.Repeat("#", 1<<20), "W0103"},
		"not UTF-8":      {"trust_domain: a.example\n# \xff\n", "ward.yaml:2:3: this byte is not UTF-8 [W0104]"},
		"UTF-16":         {"\xff\xfet\x00", "W0104"},
		"NUL":            {"trust_domain: a.example\x00\n", "ward.yaml:1:24: the character U+0000"},
		"line break":     {"trust_domain: a.example\n# a\u2028deny: [/x]\n", "U+2028"},
		"lone CR":        {"trust_domain: a.example\n# a\rdeny: [/x]\n", "U+000D"},
		"deep":           {"deny: " + strings.Repeat("[", 20000), "W0106"},
		"deep, allowed":  {"deny: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "an item of \"deny\" is a list"},
		"billion laughs": {"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n", "W0108"},
		"long ID":        {"trust_domain: a.example\ndeny: [/" + strings.Repeat("x", 2048) + "]\n", "2048 are allowed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := config.Check("ward.yaml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check = %v, want %q in it", err, c.want)
			}
		})
	}
	for name, text := range map[string]string{
		"byte order mark": "\ufefftrust_domain: a.example\n",
		"Windows lines":   "trust_domain: a.example\r\ndeny: []\r\n",
		"document marks":  "---\ntrust_domain: a.example\n...\n",
	} {
		if err := config.Check("ward.yaml", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("longest ID", func(t *testing.T) { // SPIFFE-ID §2.3
		text := "trust_domain: a.example\ndeny: [/" + strings.Repeat("x", 2048-len("spiffe://a.example/")) + "]\n"
		if err := config.Check("ward.yaml", []byte(text)); err != nil {
			t.Error(err)
		}
	})
}

// TestMany: loading stays usable for a large host, also when everything in it is wrong.
func TestMany(t *testing.T) {
	var b strings.Builder
	b.WriteString("trust_domain: a.example\nworkloads:\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "  - {id: /app/w%d, select: {unix.uid: %d}}\n", i, i)
	}
	b.WriteString("bindings:\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "  - {client_id: c%d, workloads: [/app/x%d]}\n", i, i)
	}
	start := time.Now()
	err := config.Check("ward.yaml", []byte(b.String()))
	errs, _ := errors.AsType[config.Errors](err)
	if len(errs) != 10000 {
		t.Errorf("%d errors, want 10000", len(errs))
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestBlocks(t *testing.T) {
	doc := "# Title\n```yaml\ntrust_domain: a.example\ndeny: []\n```\ntext\n```yaml\nfragment: 1\n```\n```sh\nls\n```\n```yaml\ntrust_domain: b.example\n```\n"
	var got []string
	for _, b := range config.Blocks([]byte(doc)) {
		got = append(got, string(b))
		if err := config.Check("README.md", b); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"trust_domain: a.example\ndeny: []\n", "trust_domain: b.example\n"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func issuer(t *testing.T, file, key string) {
	t.Helper()
	write(t, file, "trust_domain: a.example\ntokens: [{issuer: 'https://a.example', audience: [a], "+key+"}]\n")
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, name string, uid int) {
	t.Helper()
	if err := os.Chown(name, uid, -1); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// What the agent keeps lies beside the authority that it belongs to, wherever that is.
func TestStateLiesBesideTheAuthority(t *testing.T) {
	for text, want := range map[string]string{
		"trust_domain: clinic.example\n":                                                             "/var/lib/ward/agent",
		"trust_domain: clinic.example\nauthority: {dir: /srv/a/authority}\n":                         "/srv/a/agent",
		"trust_domain: clinic.example\nauthority: {dir: /srv/a/authority}\nagent: {state: /srv/b}\n": "/srv/b",
	} {
		file := filepath.Join(t.TempDir(), "ward.yaml")
		write(t, file, text)
		c, err := config.Load(file, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c.Agent.State != want {
			t.Errorf("%s\ngives %s, want %s", text, c.Agent.State, want)
		}
	}
}
