package doctor

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/agent/config"
)

// hospital is a host with a HAPI that everybody can reach, callers here and elsewhere, and listeners that are no FHIR
// servers.
func hospital(t *testing.T) *fake {
	f := newFake(t)
	f.process(702, 992, "java", "/system.slice/hapi.service", 5002)
	f.process(703, 0, "sshd", "/system.slice/ssh.service", 5003)
	f.process(704, 33, "nginx", "/system.slice/nginx.service", 5004)
	f.process(705, 991, "portal", "/system.slice/portal.service", 5005, 5006)
	f.process(706, 1000, "curl", "/user.slice/user-1000.slice/session-1.scope", 5007)
	f.process(707, 0, "ward", "/system.slice/ward-ingress.service", 5008)
	f.listens("0.0.0.0:8080", 992, 5002)
	f.listens("0.0.0.0:22", 0, 5003)
	f.listens("127.0.0.1:80", 33, 5004)
	f.listens("10.0.0.5:8443", 990, 5008)
	f.connected("127.0.0.1:40001", "127.0.0.1:8080", 991, 5005)
	f.connected("127.0.0.1:8080", "127.0.0.1:40001", 992, 6001)
	f.connected("10.0.0.5:40002", "10.0.0.5:8080", 991, 5006)
	f.connected("10.0.0.5:8080", "10.0.0.5:40002", 992, 6002)
	f.connected("127.0.0.1:40003", "127.0.0.1:8080", 1000, 5007)
	f.connected("10.0.0.5:8080", "10.0.0.9:51000", 992, 6003)
	return f
}

func discover(t *testing.T, f *fake, o DiscoverOptions) *Found {
	t.Helper()
	found, err := Discover(t.Context(), f.host, o)
	if err != nil {
		t.Fatal(err)
	}
	found.Domain = "" // the tests' host has its own
	return found
}

func TestProposal(t *testing.T) {
	f := hospital(t)
	said := string(discover(t, f, DiscoverOptions{}).Propose(epoch))
	if *update {
		if err := os.WriteFile("testdata/proposal.yaml", []byte(said), 0o644); err != nil { //nolint:gosec // part of the source
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/proposal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), said); d != "" {
		t.Error(d)
	}
	c, err := config.Parse("ward.yaml", []byte(said))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Workloads) != 2 || len(c.Services) != 2 || c.Services[0].Mode != config.ModeObserve || len(c.Services[1].Callers) != 2 {
		t.Errorf("%+v", c)
	}
	if strings.Contains(said, "hunter2") {
		t.Error("a command line is shown")
	}
}

// A container's processes cannot be told from each other by what config can say: root's are left out, with the reason.
func TestContainersAreNotProposed(t *testing.T) {
	f := newFake(t)
	f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n")
	scope := "/system.slice/docker-0123456789ab.scope"
	f.process(702, 0, "hapi", scope, 5002)
	f.process(703, 0, "portal", "/system.slice/docker-ba9876543210.scope", 5003)
	f.listens("127.0.0.1:8443", 0, 5002)
	f.connected("127.0.0.1:40001", "127.0.0.1:8443", 0, 5003)
	said := string(discover(t, f, DiscoverOptions{}).Propose(epoch))
	c, err := config.Parse("ward.yaml", []byte(said))
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if len(c.Workloads) != 0 || len(c.Services) != 1 || strings.Contains(said, "'docker-") || !strings.Contains(said, "would be every program of root") || c.Services[0].Listen.Port() == 8443 {
		t.Errorf("%s", said)
	}
}

// Without root the unit is a guess, and says so; what was found is proposed all the same.
func TestProposalWithoutRoot(t *testing.T) {
	f := hospital(t)
	for _, pid := range []string{"702", "703", "704", "705", "706", "707"} {
		if err := os.RemoveAll(f.root + "/proc/" + pid + "/fd"); err != nil {
			t.Fatal(err)
		}
	}
	f.host.UID = 1000
	said := string(discover(t, f, DiscoverOptions{}).Propose(epoch))
	if !strings.Contains(said, "process: {uid: 992, unit: 'hapi.service'}} # the unit is a guess") {
		t.Error(said)
	}
	if err := config.Check("ward.yaml", []byte(said)); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}

func TestEmptyHost(t *testing.T) {
	f := newFake(t)
	f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n")
	said := discover(t, f, DiscoverOptions{}).Propose(epoch)
	if err := config.Check("ward.yaml", said); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}

// Only a probe sends anything, and only to loopback.
func TestProbe(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.URL.Path != "/fhir/metadata" || r.Method != http.MethodGet {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"resourceType":"CapabilityStatement"}`))
	}))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	f := newFake(t)
	f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n")
	f.process(702, 992, "thing", "/system.slice/fhir-thing.service", 5002)
	f.listens(at.String(), 992, 5002)
	if found := discover(t, f, DiscoverOptions{}); asked != 0 || found.Servers[0].FHIR != Likely {
		t.Errorf("asked %d times: %+v", asked, found)
	}
	found := discover(t, f, DiscoverOptions{Probe: true})
	if asked == 0 || found.Servers[0].FHIR != Answered || found.Servers[0].Base != "/fhir" {
		t.Errorf("asked %d times: %+v", asked, found)
	}
	if said := found.Propose(epoch); !strings.Contains(string(said), "base: /fhir\n") || config.Check("ward.yaml", said) != nil {
		t.Errorf("%s", said)
	}
}

// A server that only seemed to be one is not proposed once it was asked.
func TestProbeRefutes(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	f := newFake(t)
	f.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n")
	f.process(702, 992, "fhir", "/system.slice/x.service", 5002)
	f.listens(server.Listener.Addr().String(), 992, 5002)
	found := discover(t, f, DiscoverOptions{Probe: true})
	if found.Servers[0].FHIR != Possible || !strings.Contains(string(found.Propose(epoch)), "services: []") {
		t.Errorf("%+v\n%s", found, found.Propose(epoch))
	}
}

func TestUnitOf(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/system.slice/hapi.service":                                        "hapi.service",
		"/system.slice/system-x.slice/x@1.service":                          "x@1.service",
		"/system.slice/docker-0123.scope/init":                              "docker-0123.scope",
		"/system.slice/_tasks.service":                                      "tasks.service",
		"/system.slice/hapi.service/portal.service":                         "hapi.service",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/a.service": "",
		"/system.slice/user@1000.service/app.slice/a.service":               "",
		"/hapi.service":              "",
		"/system.slice/x/y":          "",
		"/":                          "",
		"":                           "",
		"/../system.slice/a.service": "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%s: %q, want %q", cgroup, got, want)
		}
	}
}

// The names of processes, units and sockets are chosen by others. Whatever they are, the proposal is a config and holds
// nothing that they put into it.
func FuzzPropose(f *testing.F) {
	f.Add("hapi.service", "java", "/run/hapi/fhir.sock", "hapi", uint32(992))
	f.Add("x'}, proxy: true}\nworkloads: []\n.service", "a\x1b[2J\u202e", "/run/fhir'\n.sock", "", uint32(0))
	f.Add("", "", "", "", uint32(4294967295))
	f.Add("A@-.scope", "---", "/", "#", uint32(1))
	f.Fuzz(func(t *testing.T, unit, name, path, login string, uid uint32) {
		if uid == 1<<32-1 {
			uid-- // no process has it (setreuid(2))
		}
		who := Party{UID: uid, User: login, Known: true, Unit: unit, Name: name}
		found := Found{Servers: []Server{
			{Network: "tcp", Address: "127.0.0.1:8080", FHIR: Likely, Why: "its unit is called " + unit, Who: who, Callers: []Caller{{who, 1}, {Party{UID: 1, Known: true, Unit: name}, 2}}, Exposed: []string{"0.0.0.0:8080"}},
			{Network: "unix", Address: path, FHIR: Likely, Why: name, Who: who},
			{Network: "tcp", Address: "127.0.0.1:80", FHIR: Possible, Why: name, Who: who},
		}}
		said := found.Propose(epoch)
		c, err := config.Parse("ward.yaml", said)
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		if len(c.Services) > 2 || len(c.Workloads) > 2 || len(c.Services[0].Callers) != len(c.Workloads) {
			t.Fatalf("%s", said)
		}
	})
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b]0;x\a\u202e\xff\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := plain(s); plain(got) != got || strings.ContainsAny(got, "\n\r\x1b") {
			t.Errorf("%q", got)
		}
	})
}

// This very kernel, as whoever runs the tests.
func TestThisHost(t *testing.T) {
	h := ThisHost()
	if k := h.Kernel(); k.Release == "" || !k.SockDiag {
		t.Errorf("%+v", k)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	sockets, err := h.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	listening, connected := uint64(0), false
	for _, s := range sockets {
		if s.Listening && s.Local.String() == l.Addr().String() && int(s.UID) == os.Getuid() {
			listening = s.Inode
		}
		connected = connected || !s.Listening && s.Local.String() == c.LocalAddr().String() && s.Remote.String() == l.Addr().String()
	}
	if listening == 0 || !connected {
		t.Fatalf("listening %d, connected %v", listening, connected)
	}
	held := socketHolders(t.Context(), h.Proc, readProcesses(h.Proc), []uint64{listening})[listening]
	if len(held) != 1 || held[0].PID != os.Getpid() {
		t.Errorf("%+v", held)
	}
	if _, err := h.Clock(); err != nil {
		t.Error(err)
	}
	if s, err := h.Space(t.TempDir()); err != nil || s.Free <= 0 || s.Device == 0 {
		t.Errorf("%+v %v", s, err)
	}
	found, err := Discover(t.Context(), h, DiscoverOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if said := found.Propose(epoch); config.Check("ward.yaml", said) != nil {
		t.Errorf("%v\n%s", config.Check("ward.yaml", said), said)
	}
	c2, err := config.Parse("/etc/ward/ward.yaml", []byte("trust_domain: clinic.example\n"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Options{Config: c2, Path: "/etc/ward/ward.yaml", Host: h, Version: "x"})
	if err != nil || len(r.Results) != len(checks()) {
		t.Errorf("%+v %v", r, err)
	}
}

func TestSocketsThatCannotBeRead(t *testing.T) {
	f := newFake(t)
	f.host.Sockets = func() ([]Socket, error) { return nil, errors.New("no") }
	if _, err := Discover(t.Context(), f.host, DiscoverOptions{}); err == nil {
		t.Error("nothing was found, silently")
	}
}

// A real server on a real port, as whoever runs the tests: it is found where everybody can reach it, and it is known
// for who it is.
func TestRealBypass(t *testing.T) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	run := func(uid int, codes ...string) *Report {
		c, err := config.Parse("/etc/ward/ward.yaml", []byte(strings.Replace(wholeSite, "'unix:/run/hapi/fhir.sock', process: {uid: 992, unit: hapi.service}",
			"127.0.0.1:"+port+", process: {uid: "+strconv.Itoa(uid)+"}", 1)))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(t.Context(), Options{Config: c, Path: "/etc/ward/ward.yaml", Host: ThisHost(), Version: "x", Codes: codes})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(os.Getuid(), codeUpstreamNetwork); r.Failures != 1 || r.Results[0].Findings[0].What != "FHIR server answers without Ward on 0.0.0.0:"+port {
		t.Errorf("%+v", r.Results)
	}
	if r := run(os.Getuid(), codeUpstreamProcess); r.OK != 1 || len(r.Results) != 1 {
		t.Errorf("%+v", r.Results)
	}
	if r := run(os.Getuid()+1, codeUpstreamProcess); r.Failures != 1 {
		t.Errorf("%+v", r.Results)
	}
}
