package attest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// acceptReferred accepts as a proxy does that hands its callers' references to the agent.
func acceptReferred(t testing.TB, p *peer.Pinner, l net.Listener) (*peer.Referred, attest.Reference) {
	t.Helper()
	w, err := p.Refer(l, func(err error) { t.Errorf("refused: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	c := accept[*peer.Referred](t, w)
	r, err := c.Reference()
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

func resolve(t testing.TB, p *peer.Pinner, r attest.Reference) *peer.Process {
	t.Helper()
	process, err := p.Resolve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Close() })
	return process
}

// A caller that one pinner names is pinned by another, and is then heard.
func TestReference(t *testing.T) {
	proxy, agent := newPinner(t, peer.Options{}), newPinner(t, peer.Options{})
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			var l net.Listener = listenTCP(t, "127.0.0.1:0")
			if network == "unix" {
				l = listenUnix(t)
			}
			caller := start(t, "")
			caller.do(network + " " + l.Addr().String())
			caller.do("send hello")
			c, r := acceptReferred(t, proxy, l)
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
			p := resolve(t, agent, r)
			if p.PID() != caller.pid() || p.Strength() != attest.Strong || int(p.UID()) != os.Getuid() || c.UID() != p.UID() {
				t.Fatalf("pid %d, %v, uid %d", p.PID(), p.Strength(), p.UID())
			}
			run(t, p, allAttestors(t))
			if err := c.Confirm(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
				t.Fatalf("%q %v", buf[:n], err)
			}
			if network == "tcp" && c.Dialed() != l.Addr().(*net.TCPAddr).AddrPort() {
				t.Errorf("dialled %v", c.Dialed())
			}
			if s := proxy.Status(); s.Held != 0 || s.Referred != 1 || s.ExecEvents {
				t.Errorf("the proxy, which looks into nobody: %+v", s)
			}
			caller.kill()
			if network == "unix" {
				await(t, c.Done(), "the exit")
			}
			if err := c.Confirm(); err == nil {
				t.Error("confirmed after its caller has exited")
			}
			await(t, p.Done(), "the exit")
		})
	}
}

// Who has no buffer to wait with gets what a Read would get, and holds none while it waits.
func TestReferredReadLent(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			var l net.Listener = listenTCP(t, "127.0.0.1:0")
			if network == "unix" {
				l = listenUnix(t)
			}
			caller := start(t, "")
			caller.do(network + " " + l.Addr().String())
			c, _ := acceptReferred(t, pinner, l)
			buf, held := make([]byte, 64), 0
			waits := make(chan struct{}, 64)
			lend := func() []byte { held++; return buf }
			back := func() { held--; waits <- struct{}{} }
			var n int
			var err error
			read := make(chan struct{})
			go func() {
				defer close(read)
				n, err = c.ReadLent(lend, back)
			}()
			await(t, waits, "the wait without a buffer")
			caller.do("send hello")
			await(t, read, "what was sent")
			if err != nil || string(buf[:n]) != "hello" || held != 1 {
				t.Fatalf("%q %v, %d buffers held", buf[:n], err, held)
			}
			caller.kill()
			n, err = c.ReadLent(lend, back)
			if n != 0 || err == nil {
				t.Fatalf("%d bytes and %v of a caller that has exited", n, err)
			}
		})
	}
}

// A set tells when a caller has something to say or has gone, and nobody gets at the socket for that.
func TestReferredEpoll(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			var l net.Listener = listenTCP(t, "127.0.0.1:0")
			if network == "unix" {
				l = listenUnix(t)
			}
			caller := start(t, "")
			caller.do(network + " " + l.Addr().String())
			c, _ := acceptReferred(t, pinner, l)
			epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(epoll) }()
			event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: 7}
			if err := c.EpollCtl(epoll, unix.EPOLL_CTL_ADD, &event); err != nil {
				t.Fatal(err)
			}
			events := make([]unix.EpollEvent, 2)
			if n, err := unix.EpollWait(epoll, events, 0); n != 0 || err != nil {
				t.Fatalf("%d events and %v of a caller that says nothing", n, err)
			}
			caller.do("send hello")
			if n, err := unix.EpollWait(epoll, events, 10_000); n != 1 || err != nil || events[0].Fd != 7 {
				t.Fatalf("%d events and %v: %v", n, err, events)
			}
			if c.Closed() {
				t.Error("closed")
			}
			_ = c.Close()
			if err := c.EpollCtl(epoll, unix.EPOLL_CTL_DEL, &event); err == nil || !c.Closed() {
				t.Errorf("%v after it was closed", err)
			}
		})
	}
}

// One user's callers that are only named count like those that are pinned.
func TestReferredPerUser(t *testing.T) {
	proxy := newPinner(t, peer.Options{PerUser: 2})
	l := listenUnix(t)
	caller := start(t, "")
	var conns []*peer.Referred
	refer := func() error {
		caller.do("unix " + l.Addr().String())
		c, err := proxy.Referred(accept[net.Conn](t, l))
		if err == nil {
			conns = append(conns, c)
		}
		return err
	}
	for range 2 {
		if err := refer(); err != nil {
			t.Fatal(err)
		}
	}
	if err := refer(); !errors.Is(err, peer.ErrTooMany) {
		t.Fatalf("got %v", err)
	}
	conns[0].Close()
	if err := refer(); err != nil {
		t.Fatal(err)
	}
	if s := proxy.Status(); s.Referred != 2 {
		t.Errorf("%+v", s)
	}
}

// A kernel that cannot name a process soundly is told so at the start, not at each caller.
func TestReferOldKernel(t *testing.T) {
	proxy := newPinner(t, peer.Options{Without: peer.Missing{PeerPidfd: true}})
	_, err := proxy.Refer(listenUnix(t), nil)
	if !errors.Is(err, peer.ErrNoReference) || !strings.Contains(err.Error(), "6.5") {
		t.Fatalf("got %v", err)
	}
}

// A proxy without any capability, to which /proc hides everybody else (ProtectProc=invisible), names its callers and
// attests its server.
func TestReferWithoutPrivileges(t *testing.T) {
	rootOnly(t, "be two users, and hide /proc from one")
	if os.Getenv(inside) == "" {
		referOutside(t)
		return
	}
	if entries, err := os.ReadDir("/proc/1"); err == nil {
		t.Fatalf("/proc is not hidden: %v", entries)
	}
	proxy := newPinner(t, peer.Options{})
	answers, questions := json.NewDecoder(os.NewFile(6, "answers")), json.NewEncoder(os.NewFile(5, "questions"))
	for i, network := range []string{"unix", "tcp"} {
		l := inheritedListener(t, uintptr(3+i))
		c, r := acceptReferred(t, proxy, l)
		if err := questions.Encode(r); err != nil {
			t.Fatal(err)
		}
		var resolved bool
		if err := answers.Decode(&resolved); err != nil || !resolved {
			t.Fatalf("over %s: %v", network, err)
		}
		if err := c.Confirm(); err != nil {
			t.Errorf("over %s: %v", network, err)
		}
		server, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		a, err := proxy.Serving(t.Context(), server, units(t))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"0"}, values(a.Selectors, attest.UnixUID)); diff != "" {
			t.Errorf("over %s: %s", network, diff)
		}
	}
}

// referOutside is the agent's side: it resolves what the proxy asks.
func referOutside(t *testing.T) {
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
	questions, questionsIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer questions.Close()
	answersOut, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	caller := start(t, "", asUser(12345))
	caller.do("unix " + unixListener.Addr().String())
	caller.do("tcp " + tcpListener.Addr().String())
	agent := newPinner(t, peer.Options{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := json.NewDecoder(questions)
		for {
			var r attest.Reference
			if err := in.Decode(&r); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				return
			}
			p, err := agent.Resolve(t.Context(), r)
			if err != nil {
				t.Errorf("resolve %v: %v", r, err)
			} else {
				if p.PID() != caller.pid() || p.UID() != 12345 {
					t.Errorf("pid %d, uid %d", p.PID(), p.UID())
				}
				p.Close()
			}
			if _, err := io.WriteString(answers, map[bool]string{true: "true\n", false: "false\n"}[err == nil]); err != nil {
				t.Error(err)
			}
		}
	}()
	program := program(t)
	inNamespaces(t, func(cmd *exec.Cmd) {
		sh, err := exec.LookPath("sh")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args = append([]string{"sh", "-ec", `mount --make-rprivate / && mount -t proc -o hidepid=invisible proc /proc &&
			exec setpriv --reuid 12399 --regid 12399 --clear-groups --bounding-set=-all --inh-caps=-all "$0" "$@"`, program}, cmd.Args[1:]...)
		cmd.Path, cmd.ExtraFiles = sh, append(files, questionsIn, answersOut)
		attributes(cmd).Unshareflags = unix.CLONE_NEWNS
	})
	questionsIn.Close()
	answersOut.Close()
	<-done
}

// Connections that netfilter redirects are attributed by what their client dialled, in both ways of accepting.
func TestRedirectedByNetfilter(t *testing.T) {
	rootOnly(t, "redirect in a network namespace of its own")
	if !inNamespaces(t, func(cmd *exec.Cmd) { attributes(cmd).Cloneflags = unix.CLONE_NEWNET }) {
		return
	}
	for _, args := range []string{"link set lo up", "address add 192.0.2.1/32 dev lo", "route add 198.51.100.0/24 dev lo src 192.0.2.1"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	l := listenTCP(t, "127.0.0.1:0")
	redirect(t, l.Addr().(*net.TCPAddr).AddrPort().Port())
	pinner := newPinner(t, peer.Options{})
	for _, dialed := range []string{
		"127.128.0.5:80",    // the mesh range
		"198.51.100.7:443",  // another host, as seen by a client whose traffic is intercepted: it has a routed address
		l.Addr().String(),   // tracked, and not redirected
		"127.128.0.6:15001", // not twice the same
	} {
		t.Run(dialed, func(t *testing.T) {
			want := netip.MustParseAddrPort(dialed)
			caller := start(t, "")
			caller.do("tcp " + dialed)
			c, p := acceptPinned(t, pinner, l)
			if got, err := c.Dialed(); err != nil || got != want || p.PID() != caller.pid() {
				t.Fatalf("pid %d dialled %v, %v", p.PID(), got, err)
			}
			caller = start(t, "")
			caller.do("tcp " + dialed)
			referred, r := acceptReferred(t, pinner, l)
			if referred.Dialed() != want || r.Conn.Dialed != want {
				t.Fatalf("dialled %v and %v", referred.Dialed(), r.Conn.Dialed)
			}
			if p := resolve(t, pinner, r); p.PID() != caller.pid() {
				t.Fatalf("pid %d; want %d", p.PID(), caller.pid())
			}
			if err := referred.Confirm(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%v is %d", r, caller.pid())
		})
	}
}

// redirect sends everything that goes to 127.128.0.0/10 and 198.51.100.0/24 to port, here.
func redirect(t *testing.T, port uint16) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "test"})
	chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	for _, prefix := range []string{"127.128.0.0/10", "198.51.100.0/24"} {
		p := netip.MustParsePrefix(prefix).Masked()
		mask := net.CIDRMask(p.Bits(), 32)
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: []byte{0, 0, 0, 0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Redir{RegisterProtoMin: 1},
		}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
