package doctor

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the doctor says into testdata")

func TestMain(m *testing.M) {
	syscall.Umask(0o022)
	os.Exit(m.Run())
}

func tcpSite(f *fake) {
	f.conf = strings.Replace(wholeSite, "unix:/run/hapi/fhir.sock", "127.0.0.1:8080", 1)
	f.listens("127.0.0.1:8080", 992, 5002)
	f.process(702, 992, "java", "/system.slice/hapi.service", 5002)
}

// findings are hosts with one thing wrong each, by the check that has to find it. What it then says stands in
// testdata/findings.txtar.
var findings = []struct {
	name, code string
	level      Level
	spoil      func(*fake)
}{
	{"no-config", codeConfig, Fail, func(f *fake) { f.conf = "" }},
	{"config-errors", codeConfig, Fail, func(f *fake) { f.conf = "trust_domain: clinic.example\nworklods: []\nlimits: {}\n" }},

	{"wildcard", codeUpstreamNetwork, Fail, func(f *fake) { tcpSite(f); f.listens("0.0.0.0:8080", 992, 5003) }},
	{"interface", codeUpstreamNetwork, Fail, func(f *fake) { tcpSite(f); f.listens("10.0.0.5:8080", 992, 5003) }},
	{"wildcard-6", codeUpstreamNetwork, Fail, func(f *fake) { tcpSite(f); f.listens("[::]:8080", 992, 5003) }},
	{"socket-for-all", codeUpstreamSocket, Fail, func(f *fake) {
		f.mode(".", 0o755)
		f.mode("run/hapi", 0o755)
		f.mode("run/hapi/fhir.sock", 0o666)
	}},
	{"socket-folder", codeUpstreamSocket, Fail, func(f *fake) { f.mode("run/hapi", 0o777) }},
	{"socket-group", codeUpstreamSocket, Warn, func(f *fake) {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(f.root, "run/hapi/fhir.sock"), &st); err != nil {
			f.t.Fatal(err)
		}
		f.write("etc/group", "hapi:x:"+itoa(st.Gid)+":ward-ingress,mallory\n")
		f.write("etc/passwd", "hapi:x:992:992::/:/bin/false\nward-ingress:x:990:990::/:/bin/false\nmallory:x:4000000:4000000::/:/bin/sh\n")
	}},
	{"front", codeUpstreamNetwork, Warn, func(f *fake) { tcpSite(f); f.listens("10.0.0.5:8080", 33, 5003) }},
	{"dial", codeUpstreamOpen, Warn, tcpSite},
	{"guard-without-mesh", codeUpstreamOpen, Warn, func(f *fake) { tcpSite(f); f.conf += "mesh: {guard: true}\n" }},
	{"away", codeUpstreamAway, Warn, func(f *fake) { f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n") }},
	{"away-tcp", codeUpstreamAway, Warn, func(f *fake) { tcpSite(f); f.sockets = nil }},
	{"squatter", codeUpstreamProcess, Fail, func(f *fake) { tcpSite(f); f.sockets[0].UID = 1000 }},
	{"other-unit", codeUpstreamProcess, Fail, func(f *fake) { tcpSite(f); f.process(702, 992, "java", "/system.slice/job.service") }},
	{"no-unit", codeUpstreamProcess, Fail, func(f *fake) {
		tcpSite(f)
		f.process(702, 992, "java", "/user.slice/user-992.slice/user@992.service/app.slice/hapi.service")
	}},
	{"squatter-unix", codeUpstreamProcess, Fail, func(f *fake) { f.process(700, 1000, "evil", "/user.slice/user-1000.slice/session-1.scope") }},
	{"other-port", codeServerElsewhere, Warn, func(f *fake) { f.listens("0.0.0.0:9090", 992, 5004) }},

	{"old-kernel", codeKernel, Warn, func(f *fake) { f.kernel = Kernel{Release: "6.1.0", SockDiag: true} }},
	{"old-kernel-strong", codeKernel, Fail, func(f *fake) {
		f.kernel = Kernel{Release: "5.14.0", SockDiag: true}
		f.conf = strings.Replace(wholeSite, "proxy: true", "proxy: true, min_strength: strong", 1)
	}},
	{"shared-user", codeSharedUser, Warn, func(f *fake) {
		f.conf = strings.Replace(wholeSite, ", systemd.unit: portal.service", "", 1)
		f.process(703, 991, "cron", "/system.slice/job.service")
	}},
	{"root-alone", codeSharedUser, Warn, func(f *fake) {
		f.conf = strings.Replace(wholeSite, "unix.uid: 991, systemd.unit: portal.service", "unix.uid: 0", 1)
	}},
	{"interpreter", codeInterpreter, Warn, func(f *fake) {
		f.conf = strings.Replace(wholeSite, "systemd.unit: portal.service", "exe.path: /usr/bin/python3.13", 1)
	}},
	{"no-cgroup2", codeCgroup, Fail, func(f *fake) { f.write("proc/1/mountinfo", "26 1 0:24 / /sys rw - sysfs sysfs rw\n") }},
	{"no-cgroup2-unused", codeCgroup, Warn, func(f *fake) {
		f.write("proc/1/mountinfo", "26 1 0:24 / /sys rw - sysfs sysfs rw\n")
		f.conf = "trust_domain: clinic.example\n"
	}},
	{"no-landlock", codeLandlock, Warn, func(f *fake) { f.kernel.Landlock = 0 }},
	{"old-landlock", codeLandlock, Warn, func(f *fake) { f.kernel.Landlock = 3 }},
	{"no-exec-events", codeExecEvents, Warn, func(f *fake) { f.write("proc/net/connector", "Name            ID\n") }},
	{"no-diag", codeDiag, Fail, func(f *fake) { f.kernel.SockDiag = false }},

	{"unsynced", codeClock, Warn, func(f *fake) { f.clock.Synced = false }},
	{"future", codeFuture, Fail, func(f *fake) { f.segment("/var/lib/ward/audit", 0, 10, epoch.Add(3*time.Hour)) }},
	{"issuer-ahead", codeIssuerTime, Fail, func(f *fake) { withIssuer(f); f.date = epoch.Add(5 * time.Minute) }},
	{"issuer-silent", codeIssuerTime, Warn, func(f *fake) { withIssuer(f); f.date = time.Time{} }},

	{"keys-open", codeStateMode, Fail, func(f *fake) { f.mode("var/lib/ward/authority", 0o750) }},
	{"trail-open", codeStateMode, Fail, func(f *fake) { f.mode("var/lib/ward/audit", 0o755) }},
	{"sockets-open", codeSocketDir, Fail, func(f *fake) { f.mode("run/ward/agent", 0o777) }},
	{"workload-admin", codeAdminGroup, Fail, func(f *fake) { f.write("etc/group", "ward-admin:x:989:alice,portal,ward-ingress\n") }},
	{"service-admin", codeAdminGroup, Fail, func(f *fake) {
		f.write("etc/group", "ward-admin:x:989:mallory\n")
		f.process(703, 1000, "agent", "/system.slice/backup.service")
	}},
	{"primary-admin", codeAdminGroup, Fail, func(f *fake) { f.write("etc/passwd", "hapi:x:992:989::/:/bin/false\n") }},
	{"admin-open", codeAdminMode, Fail, func(f *fake) { f.mode("run/ward/agent/admin.sock", 0o666) }},

	{"no-responder", codeResponder, Warn, func(f *fake) { f.askErr = errors.New("refused") }},
	{"responder-ignorant", codeResponder, Fail, func(f *fake) { f.ask = nil }},
	{"responder-foreign", codeResponder, Fail, func(f *fake) { f.ask = addrs("203.0.113.9") }},
	{"unwired", codeResolver, Warn, func(f *fake) { f.resolve = nil }},
	{"wired-elsewhere", codeResolver, Fail, func(f *fake) { f.resolve = addrs("127.128.0.1", "203.0.113.9") }},

	{"ca-ends", codeExpiring, Warn, func(f *fake) { f.says(func(s *status) { s.Expires[0].Ends = epoch.AddDate(0, 0, 6) }) }},
	{"ca-ended", codeExpiring, Fail, func(f *fake) { f.says(func(s *status) { s.Expires[0].Ends = epoch.AddDate(0, 0, -6) }) }},
	{"no-renewal", codeRenewal, Fail, func(f *fake) { f.says(func(s *status) { s.Identity.Renewals = "failing" }) }},
	{"svid-ended", codeRenewal, Fail, func(f *fake) { f.says(func(s *status) { s.Identity.EarliestEnd = epoch.Add(-time.Minute) }) }},
	{"observe-ends", codeObserve, Warn, func(f *fake) { observes(f, "2026-11-26") }},
	{"observe-ended", codeObserve, Warn, func(f *fake) { observes(f, "2026-10-01") }},
	{"no-keys", codeIssuers, Fail, func(f *fake) {
		f.says(func(s *status) { s.Issuers[0].State = "no keys yet: its tokens are refused" })
	}},
	{"stale-keys", codeIssuers, Warn, func(f *fake) {
		f.says(func(s *status) { s.Issuers[0].State = "ok, 2 keys; last refresh failed: timeout" })
	}},

	{"full", codeSpace, Fail, func(f *fake) { f.space["/var/lib/ward/audit"] = Space{Free: 900 << 20} }},
	{"nearly-full", codeSpace, Warn, func(f *fake) { f.space["/var/lib/ward/audit"] = Space{Free: 3 << 29} }},
	{"fills", codeGrowth, Warn, func(f *fake) {
		f.space["/var/lib/ward/audit"] = Space{Free: 11 << 30}
		for i := range 4 {
			f.segment("/var/lib/ward/audit", i, 1<<30, epoch.AddDate(0, 0, i-3))
		}
	}},
	{"inodes", codeInodes, Warn, func(f *fake) { f.space["/var/lib/ward/audit"] = Space{Free: 1 << 40, Inodes: 1000, InodeFree: 20} }},
	{"second-shares", codeSecond, Fail, func(f *fake) {
		f.conf = strings.Replace(wholeSite, "min_free: 1GiB", "min_free: 1GiB, second: /var/lib/second", 1)
	}},

	{"down", codeNoDaemon, Fail, func(f *fake) { delete(f.status, "/run/ward/agent/admin.sock") }},
	{"role-down", codeRoleAway, Fail, func(f *fake) { f.socket("/run/ward/ingress/admin.sock", 0o660) }},
	{"versions", codeVersions, Warn, func(f *fake) { f.says(func(s *status) { s.Version = "1.3.0" }) }},
	{"edited", codeRunning, Warn, func(f *fake) { f.says(func(s *status) { s.Started = epoch.Add(-3 * time.Hour) }) }},
	{"other-hash", codeRunning, Warn, func(f *fake) { f.says(func(s *status) { s.Config = "0123456789abcdef" }) }},
	{"trail-fails", codeTrail, Fail, func(f *fake) {
		f.says(func(s *status) { s.Audit.Error, s.Audit.Dir = "no space left on device", "/var/lib/ward/audit" })
	}},
	{"second-in-use", codePressure, Warn, func(f *fake) {
		f.says(func(s *status) { s.Audit.Second, s.Audit.Dir = true, "/var/lib/ward/audit" })
	}},
	{"reserve", codePressure, Fail, func(f *fake) {
		f.says(func(s *status) { s.Audit.ReserveUsed, s.Audit.Dir = true, "/var/lib/ward/audit" })
	}},
	{"folded", codePressure, Warn, func(f *fake) { f.says(func(s *status) { s.Audit.Folded = 20000 }) }},
	{"problem", codeProblems, Warn, func(f *fake) {
		f.says(func(s *status) { s.Problems = []string{"a route \x1b[2J is down\nok"} })
	}},
}

func withIssuer(f *fake) {
	f.conf += "tokens: [{issuer: 'https://idp.clinic.example', audience: ['x']}]\n"
}

func observes(f *fake, until string) {
	f.conf = strings.Replace(wholeSite, "    listen:", "    mode: observe\n    observe_until: "+until+"\n    listen:", 1)
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// says changes what the agent answers.
func (f *fake) says(change func(*status)) {
	s := f.status["/run/ward/agent/admin.sock"]
	change(&s)
	f.status["/run/ward/agent/admin.sock"] = s
}

// segment makes a file of the log; its bytes are a hole.
func (f *fake) segment(dir string, n int, size int64, at time.Time) {
	name := filepath.Join(f.root, dir, "00000000000"+itoa(uint32(n))+".log")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size), os.Chtimes(name, at, at)); err != nil {
		f.t.Fatal(err)
	}
}

func TestFindings(t *testing.T) {
	const golden = "testdata/findings.txtar"
	want := map[string]string{}
	if a, err := txtar.ParseFile(golden); err == nil {
		for _, f := range a.Files {
			want[f.Name] = string(f.Data)
		}
	} else if !*update {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: []byte("What the doctor says of each host in TestFindings.\n")}
	for _, tt := range findings {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			tt.spoil(f)
			r := f.examine(tt.code)
			i := slices.IndexFunc(r.Results, func(x Result) bool { return x.Code == tt.code })
			if i < 0 || r.Results[i].Level != tt.level {
				t.Errorf("%s is not %s: %+v", tt.code, tt.level, r.Results)
			}
			var b strings.Builder
			if err := r.Write(&b, false); err != nil {
				t.Fatal(err)
			}
			said := strings.ReplaceAll(b.String(), f.root, "$ROOT")
			got.Files = append(got.Files, txtar.File{Name: tt.name, Data: []byte(said)})
			for _, c := range said {
				if c != '\n' && plain(string(c)) != string(c) {
					t.Errorf("a character that cannot be seen: %q", said)
				}
			}
			if d := cmp.Diff(want[tt.name], said); d != "" && !*update {
				t.Error(d)
			}
		})
	}
	for _, code := range Codes() {
		if !slices.ContainsFunc(findings, func(f struct {
			name, code string
			level      Level
			spoil      func(*fake)
		}) bool {
			return f.code == code
		}) {
			t.Errorf("no host here spoils %s", code)
		}
	}
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, txtar.Format(got), 0o644)); err != nil { //nolint:gosec // part of the source
			t.Fatal(err)
		}
	}
}

// Where nothing is wrong nothing is said, and one cause is reported once.
func TestHealthyHost(t *testing.T) {
	r := newFake(t).examine()
	for _, res := range r.Results {
		if res.Level != OK {
			t.Errorf("%+v", res)
		}
	}
	if r.OK != len(checks()) || r.Failures+r.Warnings+r.Skipped != 0 {
		t.Errorf("%+v", r)
	}
}

func TestRootCauseOnly(t *testing.T) {
	f := newFake(t)
	f.conf = "trust_domain: x y\n"
	r := f.examine()
	if r.Failures != 1 || r.Warnings != 0 || r.Skipped == 0 {
		t.Errorf("%d failures, %d warnings, %d skipped: %+v", r.Failures, r.Warnings, r.Skipped, r.Results)
	}
	for _, res := range r.Results {
		if res.Level == Skip && res.Reason == "" {
			t.Errorf("%s was skipped without a reason", res.Code)
		}
	}
	f = newFake(t)
	f.askErr = errors.New("refused")
	f.resolve = nil
	r = f.examine(codeResolver)
	if len(r.Results) != 2 || r.Results[1].Reason != "wait for "+codeResponder {
		t.Errorf("%+v", r.Results)
	}
}

// An ordinary user is told what could not be seen.
func TestOrdinaryUser(t *testing.T) {
	f := newFake(t)
	tcpSite(f)
	if err := os.RemoveAll(filepath.Join(f.root, "proc/702/fd")); err != nil {
		t.Fatal(err)
	}
	f.host.UID = 1000
	r := f.examine(codeUpstreamProcess)
	if r.Skipped != 1 || r.Results[0].Reason != needRoot {
		t.Errorf("%+v", r.Results)
	}
	var b strings.Builder
	if err := r.Write(&b, false); err != nil || b.String() != "SKIP  1 check needs root (sudo ward doctor)\n0 ok   (-v lists all)\n" {
		t.Errorf("%v %q", err, b.String())
	}
}

// What an ordinary user may not look into is not said to be in order.
func TestUnseen(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("SKIPPED: needs an ordinary user: root sees everything")
	}
	f := newFake(t)
	f.host.UID = os.Getuid()
	f.mode("var/lib/ward", 0)
	f.mode("run/hapi", 0)
	defer func() { f.mode("var/lib/ward", 0o700); f.mode("run/hapi", 0o700) }()
	for _, code := range []string{codeStateMode, codeFuture, codeSpace, codeInodes, codeUpstreamSocket} {
		if r := f.examine(code); r.Skipped != 1 || r.Results[0].Reason != needRoot {
			t.Errorf("%s: %+v", code, r.Results)
		}
	}
	// With hidepid only one's own processes are to be seen.
	f.conf = strings.Replace(wholeSite, ", systemd.unit: portal.service", "", 1)
	if r := f.examine(codeSharedUser); r.Skipped != 1 {
		t.Errorf("%+v", r.Results)
	}
}

// Ward's own listeners, and a server on loopback alone, are no bypass.
func TestNoFalseBypass(t *testing.T) {
	f := newFake(t)
	tcpSite(f)
	f.conf = strings.ReplaceAll(f.conf, "10.0.0.5:8443", "10.0.0.5:8080")
	f.listens("10.0.0.5:8080", 990, 1)
	f.listens("0.0.0.0:22", 0, 2)
	f.listens("[::1]:8080", 992, 3)
	for _, res := range f.examine(codeUpstreamNetwork, codeServerElsewhere).Results {
		if res.Level != OK {
			t.Errorf("%+v", res)
		}
	}
}

// Ward mesh keeps others from the port.
func TestGuarded(t *testing.T) {
	f := newFake(t)
	tcpSite(f)
	f.conf += "mesh: {guard: true}\n"
	f.socket("/run/ward/mesh/admin.sock", 0o660)
	f.status["/run/ward/mesh/admin.sock"] = healthy()
	if r := f.examine(codeUpstreamOpen); r.OK != 1 {
		t.Errorf("%+v", r.Results)
	}
}

func TestUnknownCode(t *testing.T) {
	if _, err := Run(t.Context(), Options{Host: newFake(t).host, Codes: []string{"W0999"}}); err == nil {
		t.Error("a code that does not exist was accepted")
	}
}

// Every code has a page, and every page a cause, an example and how to mend it.
func TestPages(t *testing.T) {
	seen := map[string]bool{}
	for _, code := range Codes() {
		page, ok := Explain(code)
		if !ok || seen[code] || !regexp.MustCompile(`(?s)^`+code+` [^\n]+\n\nCause: \S.+\nExample: \S.+\nMend: \S.+\n$`).MatchString(page) {
			t.Errorf("%s: %v %q", code, ok, page)
		}
		seen[code] = true
	}
	for _, title := range regexp.MustCompile(`(?m)^## (\S+)`).FindAllStringSubmatch(pages, -1) {
		if !seen[title[1]] {
			t.Errorf("a page about %s, which no check has", title[1])
		}
	}
	for i, c := range checks() {
		for _, ground := range c.after {
			if j := slices.Index(Codes(), ground); j < 0 || j >= i {
				t.Errorf("%s stands on %s, which is not made before it", c.code, ground)
			}
		}
	}
	if _, ok := Explain("W0213"); ok {
		t.Error("a page of another package's")
	}
}

func TestReportIsOneObject(t *testing.T) {
	b, err := json.Marshal(newFake(t).examine())
	if err != nil || !strings.HasPrefix(string(b), `{"schema":"ward.doctor/1"`) {
		t.Errorf("%v %s", err, b)
	}
}

// A bug report holds nothing that names a patient, a device, a user or a secret.
func TestBundleIsRedacted(t *testing.T) {
	f := newFake(t)
	f.conf += `devices:
  - {id: /device/ox-0042, identifiers: [{type: SYSID, system: 'urn:oid:1.2.3', value: FE-ED-AB-EE}], via: [/app/portal], patient: {ref: Patient/secret123}}
tokens: [{issuer: 'https://idp.clinic.example/tenant-secret', audience: ['secret-audience']}]
bindings: [{client_id: secret-client, workloads: [/app/portal]}]
`
	f.says(func(s *status) {
		s.Problems = []string{"Patient/secret123"}
		s.Audit.Error = "Patient/secret123"
	})
	b, err := json.Marshal(Bundle(t.Context(), f.examine()))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"secret", "ox-0042", "FE-ED", "991", "hapi", "10.0.0.5", f.root, "hunter2"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("%q is in the report: %s", secret, b)
		}
	}
	for _, want := range []string{`"schema":"ward.report/1"`, "spiffe://clinic.example/app/portal", "W0975", `"devices":1`, "idp.clinic.example"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing: %s", want, b)
		}
	}
}
