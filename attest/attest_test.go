package attest_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/launch"
	"github.com/wardmesh/ward/attest/peer"
	wardunix "github.com/wardmesh/ward/attest/unix"
)

func TestSelectors(t *testing.T) {
	a := attest.Selector{Type: attest.UnixUID, Value: "1"}
	b := attest.Selector{Type: attest.UnixUID, Value: "2"}
	c := attest.Selector{Type: attest.SystemdUserUnit, Value: "x.service"}
	s := attest.NewSelectors(b, a, c, a)
	if diff := cmp.Diff(attest.Selectors{c, a, b}, s); diff != "" {
		t.Error(diff)
	}
	if !s.Contains(attest.NewSelectors(a, c)) || s.Contains(attest.NewSelectors(a, attest.Selector{Type: attest.UnixGID, Value: "1"})) {
		t.Error("Contains is wrong")
	}
	if c.Strength() != attest.Weak || a.Strength() != attest.Strong {
		t.Error("a user's own unit is weak, a uid is strong")
	}
	if got, want := s.String(), "systemd.user_unit: x.service, unix.uid: 1, unix.uid: 2"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

// Facts that could not be read are no attestation, whatever else is known.
func TestRunFailsWithAnAttestor(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	broken := errors.New("broken")
	a, err := attest.Run(t.Context(), p, []attest.Attestor{wardunix.Attestor{}, failing{broken}})
	if !errors.Is(err, broken) || len(a.Selectors) != 0 {
		t.Fatalf("%v, %v", a, err)
	}
}

type failing struct{ err error }

func (failing) Name() string { return "failing" }
func (f failing) Attest(context.Context, attest.Process) ([]attest.Selector, error) {
	return nil, f.err
}

// What an honest process gets, over each kind of connection and on each kind of kernel.
func TestAttestation(t *testing.T) {
	path := program(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	uid, groups := uint32(os.Geteuid()), []uint32(nil)
	var change []func(*exec.Cmd)
	if uid == 0 {
		uid, groups = 12345, []uint32{12346, 12347}
		change = append(change, asUser(uid))
	} else {
		own, err := os.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range own {
			groups = append(groups, uint32(g))
		}
	}
	gid := uid
	if os.Geteuid() != 0 {
		gid = uint32(os.Getegid())
	}
	want := []attest.Selector{
		{Type: attest.UnixUID, Value: fmt.Sprint(uid)},
		{Type: attest.UnixGID, Value: fmt.Sprint(gid)},
		{Type: attest.ExePath, Value: path},
		{Type: attest.ExeSHA256, Value: hex.EncodeToString(sum[:])},
	}
	for _, g := range groups {
		want = append(want, attest.Selector{Type: attest.UnixGroup, Value: fmt.Sprint(g)})
	}
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			check := func(t *testing.T, actor *process, p *peer.Process, strength attest.Strength) {
				t.Helper()
				a := run(t, p, allAttestors(t))
				if diff := cmp.Diff(attest.NewSelectors(want...), omit(a.Selectors, attest.SystemdUnit, attest.SystemdUserUnit)); diff != "" {
					t.Error(diff)
				}
				if a.Strength != strength {
					t.Errorf("strength %v; want %v", a.Strength, strength)
				}
				if p.PID() != actor.pid() {
					t.Errorf("pid %d; want %d", p.PID(), actor.pid())
				}
				actor.kill()
				await(t, p.Done(), "the exit")
				if err := p.Alive(); !errors.Is(err, attest.ErrExited) {
					t.Errorf("after exit: %v", err)
				}
			}
			t.Run("Unix", func(t *testing.T) {
				l := listenUnix(t)
				actor := start(t, path, change...)
				actor.do("unix " + l.Addr().String())
				_, p := acceptPinned(t, pinner, l)
				strength := attest.Strong
				if without.PeerPidfd {
					strength = attest.Weak
				}
				check(t, actor, p, strength)
			})
			for network, addresses := range map[string][2]string{
				"IPv4":                     {"127.0.0.1:0", "127.0.0.1"},
				"IPv4, another address":    {"127.77.0.53:0", "127.77.0.53"},
				"IPv6":                     {"[::1]:0", "::1"},
				"IPv4 to a dual listener":  {"[::]:0", "127.0.0.1"},
				"IPv4 from an IPv6 socket": {"127.0.0.1:0", "::ffff:127.0.0.1"},
				"both in an IPv6 socket":   {"[::]:0", "::ffff:127.0.0.1"},
			} {
				t.Run(network, func(t *testing.T) {
					l, err := net.Listen("tcp", addresses[0])
					if err != nil {
						t.Skipf("SKIPPED: needs IPv6: %v", err)
					}
					defer l.Close()
					actor := start(t, path, change...)
					to := netip.AddrPortFrom(netip.MustParseAddr(addresses[1]), uint16(l.Addr().(*net.TCPAddr).Port))
					actor.do("tcp " + to.String())
					_, p := acceptPinned(t, pinner, l)
					check(t, actor, p, attest.Strong)
				})
			}
		})
	}
}

func omit(s attest.Selectors, kinds ...string) (out attest.Selectors) {
next:
	for _, x := range s {
		for _, k := range kinds {
			if x.Type == k {
				continue next
			}
		}
		out = append(out, x)
	}
	return out
}

// What Ward knows of another user's process with the privileges that it has: without any, user and groups.
func TestPrivileges(t *testing.T) {
	rootOnly(t, "be two users")
	for _, c := range []struct {
		name string
		caps []uintptr
		path bool // the executable and its exec are seen
		tcp  bool // a TCP connection finds its process
	}{
		{"none", nil, false, false},
		{"SYS_PTRACE", []uintptr{unix.CAP_SYS_PTRACE}, true, false},
		{"SYS_PTRACE and DAC_READ_SEARCH", []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Getenv(inside) == "" {
				asOtherUser(t, c.caps)
				return
			}
			pinner := newPinner(t, peer.Options{})
			_, p := acceptPinned(t, pinner, inheritedListener(t, 3))
			a := run(t, p, allAttestors(t))
			want := attest.NewSelectors(
				attest.Selector{Type: attest.UnixUID, Value: "12345"}, attest.Selector{Type: attest.UnixGID, Value: "12345"},
				attest.Selector{Type: attest.UnixGroup, Value: "12346"}, attest.Selector{Type: attest.UnixGroup, Value: "12347"})
			if diff := cmp.Diff(want, omit(a.Selectors, attest.SystemdUnit, attest.SystemdUserUnit, attest.ExePath, attest.ExeSHA256)); diff != "" {
				t.Error(diff)
			}
			if got := values(a.Selectors, attest.ExePath); (len(got) == 1) != c.path {
				t.Errorf("path %v", got)
			}
			q, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, inheritedListener(t, 4)))
			if c.tcp && (err != nil || q.PID() != p.PID()) || !c.tcp && !errors.Is(err, peer.ErrNotAttributable) {
				t.Errorf("over TCP: %v", err)
			}
			// Its own user's it always knows.
			l := listenTCP(t, "127.0.0.1:0")
			actor := start(t, os.Args[0])
			actor.do("tcp " + l.Addr().String())
			if _, p := acceptPinned(t, pinner, l); p.PID() != actor.pid() {
				t.Errorf("pid %d; want %d", p.PID(), actor.pid())
			}
		})
	}
}

// asOtherUser runs the calling test again as user 12399, with two listeners to which user 12345 has connected.
func asOtherUser(t *testing.T, caps []uintptr) {
	t.Helper()
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{unixListener, tcpListener} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	actor := start(t, "", asUser(12345))
	actor.do("unix " + unixListener.Addr().String())
	actor.do("tcp " + tcpListener.Addr().String())
	ward := program(t)
	inNamespaces(t, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args[0], cmd.ExtraFiles = ward, ward, files
		a := attributes(cmd)
		a.Credential = &syscall.Credential{Uid: 12399, Gid: 12399}
		a.AmbientCaps = caps
	})
}

func inheritedListener(t *testing.T, fd uintptr) net.Listener {
	t.Helper()
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestServeHTTP(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{})
			var l net.Listener = listenTCP(t, "127.0.0.1:0")
			if network == "unix" {
				l = listenUnix(t)
			}
			listener, err := pinner.Listen(l, func(err error) { t.Error(err) })
			if err != nil {
				t.Fatal(err)
			}
			type connKey struct{}
			server := &http.Server{
				ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					p, err := r.Context().Value(connKey{}).(*peer.Conn).Process()
					if err != nil {
						t.Error(err)
						return
					}
					n, _ := io.Copy(io.Discard, r.Body)
					fmt.Fprintf(w, "%d %d", p.PID(), n)
				}),
			}
			served := make(chan struct{})
			go func() { defer close(served); server.Serve(listener) }()
			defer func() { server.Close(); <-served }()
			client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, l.Addr().Network(), l.Addr().String())
			}}}
			defer client.CloseIdleConnections()
			for size := range 3 { // on one connection
				reply, err := client.Post("http://ward/", "text/plain", io.LimitReader(zeros{}, int64(size)<<20))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(reply.Body)
				reply.Body.Close()
				if want := fmt.Sprintf("%d %d", os.Getpid(), size<<20); err != nil || string(body) != want {
					t.Fatalf("%q %v; want %q", body, err, want)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// gRPC sees the wrapped connection in its handshake, where the process is handed on as authentication.
type pinned struct {
	credentials.TransportCredentials
}

type pinnedInfo struct{ process *peer.Process }

func (pinnedInfo) AuthType() string { return "pinned" }

func (pinned) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := c.(*peer.Conn).Process()
	return c, pinnedInfo{p}, err
}

func (p pinned) Clone() credentials.TransportCredentials { return p }

func TestServeGRPC(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	listener, err := pinner.Listen(l, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(pinned{insecure.NewCredentials()}))
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnDeadline(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	conn, _ := acceptPinned(t, pinner, l)
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("got %v; want a timeout", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	actor.do("send x")
	if n, err := conn.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	actor.do("close")
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v; want EOF", err)
	}
	conn.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v; want net.ErrClosed", err)
	}
}

// A peer whose process cannot be pinned never comes out of Accept.
func TestListenerRefuses(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	gone := start(t, "")
	gone.do("unix " + l.Addr().String())
	gone.kill()
	honest := start(t, "")
	honest.do("unix " + l.Addr().String())
	var refused []error
	listener, err := pinner.Listen(l, func(err error) { refused = append(refused, err) })
	if err != nil {
		t.Fatal(err)
	}
	p, err := accept[*peer.Conn](t, listener).Process()
	if err != nil || p.PID() != honest.pid() {
		t.Fatal(p, err)
	}
	if len(refused) != 1 || !errors.Is(refused[0], attest.ErrExited) {
		t.Fatalf("refused: %v", refused)
	}
}

func TestNotLoopback(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	var own net.IP
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			own = n.IP
		}
	}
	if own == nil {
		t.Skip("SKIPPED: needs a network address beside loopback")
	}
	l := listenTCP(t, net.JoinHostPort(own.String(), "0"))
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = pinner.TCP(t.Context(), accept[*net.TCPConn](t, l))
	wantError(t, err, peer.ErrNotAttributable)
}

// A connection in another network namespace may have the addresses of somebody else's here.
func TestOtherNetworkNamespace(t *testing.T) {
	rootOnly(t, "make a network namespace")
	pinner := newPinner(t, peer.Options{}) // asks about the namespace of this process
	conn := inOtherNetns(t)
	defer conn.Close()
	_, err := pinner.TCP(t.Context(), conn)
	wantError(t, err, peer.ErrNotAttributable)
}

// inOtherNetns returns the accepted end of a connection in a network namespace of its own.
func inOtherNetns(t *testing.T) *net.TCPConn {
	t.Helper()
	type result struct {
		conn *net.TCPConn
		err  error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		c, err := func() (*net.TCPConn, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
				return nil, fmt.Errorf("ip: %w: %s", err, out)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer l.Close()
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { client.Close() })
			c, err := l.Accept()
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}()
		results <- result{c, err}
	}()
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn
}

// A client that dialled an address which was redirected is found by what it dialled.
func TestRedirected(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenTCP(t, "127.0.0.1:0")
	actor := start(t, "")
	actor.do("tcp " + l.Addr().String())
	conn := accept[*net.TCPConn](t, l)
	dialled := l.Addr().(*net.TCPAddr).AddrPort()
	if _, err := pinner.TCPTo(t.Context(), conn, dialled); err != nil {
		t.Fatal(err)
	}
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr("127.128.0.5"), 80)
	_, err := pinner.TCPTo(t.Context(), conn, elsewhere)
	wantError(t, err, peer.ErrNotAttributable)
}

// In a user namespace that maps one user, everybody else looks like the same one.
func TestUnmappedUsers(t *testing.T) {
	rootOnly(t, "have processes of two user namespaces")
	if os.Getenv(inside) == "" {
		l := listenUnix(t)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		actor := start(t, "", asUser(12345))
		actor.do("unix " + l.Addr().String())
		inNamespaces(t, func(cmd *exec.Cmd) {
			a := attributes(cmd)
			a.Cloneflags = unix.CLONE_NEWUSER
			a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			cmd.ExtraFiles = []*os.File{f}
		})
		return
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = newPinner(t, peer.Options{}).Unix(accept[*net.UnixConn](t, l))
	wantError(t, err, attest.ErrMismatch)
}

func TestPinnerCloses(t *testing.T) {
	pinner, err := peer.New(peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	if err := pinner.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done(), "the pinner's end")
	wantError(t, p.Alive(), peer.ErrClosed)
	actor.do("unix " + l.Addr().String())
	if _, err := pinner.Unix(accept[*net.UnixConn](t, l)); !errors.Is(err, peer.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

// One user's connections do not use up what others need.
func TestTooManyConnections(t *testing.T) {
	pinner := newPinner(t, peer.Options{PerUser: 2})
	l := listenUnix(t)
	actor := start(t, "")
	var held []*peer.Process
	for range 2 {
		actor.do("unix " + l.Addr().String())
		p, err := pinner.Unix(accept[*net.UnixConn](t, l))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, p)
	}
	actor.do("unix " + l.Addr().String())
	conn := accept[*net.UnixConn](t, l)
	_, err := pinner.Unix(conn)
	wantError(t, err, peer.ErrTooMany)
	held[0].Close()
	if _, err := pinner.Unix(conn); err != nil {
		t.Fatalf("after one was closed: %v", err)
	}
}

// Descriptors are what a busy host runs out of first.
func TestNothingLeaks(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	attestors := allAttestors(t)
	actor := start(t, "")
	actor.do("unix " + unixListener.Addr().String())
	uc := accept[*net.UnixConn](t, unixListener)
	actor.do("tcp " + tcpListener.Addr().String())
	tc := accept[*net.TCPConn](t, tcpListener)
	once := func() {
		p, err := pinner.Unix(uc)
		if err != nil {
			t.Fatal(err)
		}
		run(t, p, attestors)
		p.Close()
		if p, err = pinner.TCP(t.Context(), tc); err != nil {
			t.Fatal(err)
		}
		run(t, p, attestors)
		p.Close()
	}
	once()
	before := descriptors(t)
	for range 10 {
		once()
	}
	if after := descriptors(t); after > before {
		t.Fatalf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestLaunch(t *testing.T) {
	path := program(t)
	l := listenUnix(t)
	pinner := newPinner(t, peer.Options{})
	var s launch.Supervisor
	defer s.Close(t.Context())
	begin := func(name string) *process {
		cmd := exec.Command(path)
		cmd.Env = append(os.Environ(), actorEnv+"=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Start(name, cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); c.Wait() })
		r := &remote{cmd: cmd, in: in, lines: bufio.NewScanner(out)}
		if err := r.ready(); err != nil {
			t.Fatal(err)
		}
		return &process{remote: r, t: t}
	}
	names := func(actor *process) []string {
		t.Helper()
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		return values(run(t, p, []attest.Attestor{&s}).Selectors, attest.Launch)
	}
	ehr, portal := begin("ehr"), begin("portal")
	if diff := cmp.Diff([]string{"ehr"}, names(ehr)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"portal"}, names(portal)); diff != "" {
		t.Error(diff)
	}
	if got := names(start(t, path)); got != nil {
		t.Errorf("a process that was not launched is %v", got)
	}
	portal.do("fork")
	portal.do("child unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	if got := values(run(t, p, []attest.Attestor{&s}).Selectors, attest.Launch); got != nil {
		t.Errorf("what a child has started itself is %v", got)
	}
	for _, name := range []string{"", "a b", "a/b", "ä"} {
		if _, err := s.Start(name, exec.Command(path)); err == nil {
			t.Errorf("the name %q is accepted", name)
		}
	}
}

// The path of an executable is a fact only if it leads to what runs.
func TestExecutable(t *testing.T) {
	l := listenUnix(t)
	pinner := newPinner(t, peer.Options{})
	e, err := exe.New(exe.Options{SHA256: true})
	if err != nil {
		t.Fatal(err)
	}
	attestOf := func(t *testing.T, path string, then func()) attest.Selectors {
		actor := start(t, path)
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		then()
		defer actor.kill() // nobody may write to what runs
		return run(t, p, []attest.Attestor{e}).Selectors
	}
	t.Run("deleted", func(t *testing.T) {
		path := program(t)
		s := attestOf(t, path, func() { os.Remove(path) })
		if values(s, attest.ExePath) != nil || len(values(s, attest.ExeSHA256)) != 1 {
			t.Error(s)
		}
	})
	t.Run("deleted by name only", func(t *testing.T) {
		path := copyProgram(t, "actor (deleted)")
		s := attestOf(t, path, func() {})
		if diff := cmp.Diff([]string{path}, values(s, attest.ExePath)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("replaced", func(t *testing.T) {
		path := program(t)
		s := attestOf(t, path, func() {
			if err := os.Rename(copyProgram(t, "trusted"), path); err != nil {
				t.Fatal(err)
			}
		})
		if values(s, attest.ExePath) != nil {
			t.Error(s)
		}
	})
	t.Run("too large to hash", func(t *testing.T) {
		small, err := exe.New(exe.Options{SHA256: true, MaxBytes: 1000})
		if err != nil {
			t.Fatal(err)
		}
		actor := start(t, "")
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		s := run(t, p, []attest.Attestor{small}).Selectors
		if values(s, attest.ExeSHA256) != nil || len(values(s, attest.ExePath)) != 1 {
			t.Error(s)
		}
	})
	t.Run("changed in place", func(t *testing.T) {
		path := program(t)
		before := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		// The same length, and as good as the same times; what is appended to an ELF file does not hinder it.
		appendTo(t, path, "a")
		a := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		if out, err := exec.Command("truncate", "-s", "-1", path).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		appendTo(t, path, "b")
		b := values(attestOf(t, path, func() {}), attest.ExeSHA256)[0]
		if before == a || a == b || before == b {
			t.Errorf("hashes %s, %s, %s", before, a, b)
		}
	})
	t.Run("another file at its path in a mount namespace", func(t *testing.T) {
		rootOnly(t, "mount")
		trusted := copyProgram(t, "trusted")
		evil := copyProgram(t, "evil")
		appendTo(t, evil, "x")
		actor := start(t, "/bin/sh", func(cmd *exec.Cmd) {
			cmd.Args = []string{"sh", "-c", `mount --bind "$0" "$1" && exec "$1"`, evil, trusted}
			attributes(cmd).Unshareflags = unix.CLONE_NEWNS
		})
		actor.do("unix " + l.Addr().String())
		_, p := acceptPinned(t, pinner, l)
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID())); err != nil || link != trusted {
			t.Fatalf("the attack did not come about: %s %v", link, err)
		}
		s := run(t, p, []attest.Attestor{e}).Selectors
		if got := values(s, attest.ExePath); got != nil {
			t.Errorf("the attacker gets the path %v", got)
		}
	})
}

// appendTo writes from another process: a descriptor of ours could be inherited, and then nobody may exec the file.
func appendTo(t *testing.T, path, text string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", `printf %s "$1" >> "$0"`, path, text).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
}

func TestTurns(t *testing.T) {
	var turns attest.Turns
	done, err := turns.Take(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	// Another user does not wait.
	other, err := turns.Take(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	other()
	// The same one does.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.Take(ended, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	next := make(chan func())
	go func() {
		d, _ := turns.Take(context.Background(), 1)
		next <- d
	}()
	done()
	(<-next)()
}
