package intercept_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy/intercept"
)

// Users of these tests.
const (
	ward     = 7001 // Ward's own
	app      = 7002 // intercepted
	attacker = 7003
)

const vip = "127.128.0.5:8080"

// patience is how long a test waits for what must happen.
const patience = time.Minute

func meshRange() netip.Prefix { return netip.MustParsePrefix("127.128.0.0/10") }

func newTable(t *testing.T, cgroups string) *intercept.Table {
	t.Helper()
	table, err := intercept.New(intercept.Options{Cgroups: cgroups, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// apply makes r the rules for the time of the test.
func apply(t *testing.T, r intercept.Rules) *intercept.Table {
	t.Helper()
	needNamespace(t)
	table := newTable(t, "")
	t.Cleanup(func() {
		if _, err := intercept.Clear(); err != nil {
			t.Error(err)
		}
	})
	if err := table.Apply(r); err != nil {
		t.Fatal(err)
	}
	return table
}

// server listens as uid and tells who came. It greets each caller with word.
type server struct {
	net.Listener
	accepted chan net.Conn
}

func listen(t *testing.T, uid int, network, address, word string) *server {
	t.Helper()
	s := &server{accepted: make(chan net.Conn, 16)}
	as(t, uid, func() {
		var err error
		if s.Listener, err = net.Listen(network, address); err != nil {
			t.Error(err)
		}
	})
	if s.Listener == nil {
		t.FailNow()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// What is accepted inherits its owner from the listening socket only where the thread is the same user's.
		as(t, uid, func() {
			for {
				c, err := s.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, word)
				s.accepted <- c
			}
		})
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
		for {
			select {
			case c := <-s.accepted:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return s
}

// call dials as uid, within a time, and returns what it is greeted with.
func call(t *testing.T, uid int, network, address string, within time.Duration) (word string, err error) {
	t.Helper()
	as(t, uid, func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, address, within); err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 64)
		var n int
		n, err = c.Read(b)
		word = string(b[:n])
	})
	return word, err
}

func wantWord(t *testing.T, uid int, network, address, want string) {
	t.Helper()
	if got, err := call(t, uid, network, address, patience); got != want || err != nil {
		t.Errorf("uid %d at %s: %q, %v; want %q", uid, address, got, err, want)
	}
}

// wantRefused wants an answer at once, and it is no.
func wantRefused(t *testing.T, uid int, network, address string) {
	t.Helper()
	if got, err := call(t, uid, network, address, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("uid %d at %s: %q, %v; want a refusal", uid, address, got, err)
	}
}

func originalDestination(t *testing.T, c net.Conn) netip.AddrPort {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var dst netip.AddrPort
	cerr := raw.Control(func(fd uintptr) {
		var m *unix.IPv6Mreq                                                        // a sockaddr_in fits into it
		if m, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, 80); err == nil { // SO_ORIGINAL_DST
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4]))
		}
	})
	if err := errors.Join(err, cerr); err != nil {
		t.Fatal(err)
	}
	return dst
}

func TestMeshRangeIsLedToEgress(t *testing.T) {
	needNamespace(t)
	egress := listen(t, ward, "tcp4", "127.77.0.1:8080", "egress")
	apply(t, intercept.Rules{Range: meshRange(), Egress: addr(egress), Owners: []uint32{ward}})
	for _, to := range []string{vip, "127.128.0.0:1", "127.191.255.255:65535"} {
		wantWord(t, app, "tcp4", to, "egress")
		c := <-egress.accepted
		if got := originalDestination(t, c); got.String() != to {
			t.Errorf("original destination %s, want %s", got, to)
		}
		_ = c.Close()
	}
	// Its neighbours are left alone.
	listen(t, attacker, "tcp4", "127.127.255.255:8080", "neighbour")
	wantWord(t, app, "tcp4", "127.127.255.255:8080", "neighbour")
}

func addr(s *server) netip.AddrPort { return s.Addr().(*net.TCPAddr).AddrPort() }

// Any local user can bind the address of a service. It must get nothing by that.
func TestSquattingTheRangeGetsNothing(t *testing.T) {
	needNamespace(t)
	squatter := listen(t, attacker, "tcp4", vip, "squatter")
	wantWord(t, app, "tcp4", vip, "squatter") // without Ward's rules it would
	_ = (<-squatter.accepted).Close()
	udp, err := net.ListenPacket("udp4", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()

	rules := intercept.Rules{Range: meshRange(), Egress: netip.MustParseAddrPort("127.77.0.1:8080"), Owners: []uint32{ward}}
	apply(t, rules)
	wantRefused(t, app, "tcp4", vip) // egress is down, and that is all
	t.Run("egress runs", func(t *testing.T) {
		listen(t, ward, "tcp4", rules.Egress.String(), "egress")
		wantWord(t, app, "tcp4", vip, "egress")
		wantWord(t, attacker, "tcp4", vip, "egress") // which attests it and says no
		wantWord(t, 0, "tcp4", vip, "egress")
	})
	t.Run("UDP", func(t *testing.T) {
		c, err := net.Dial("udp4", vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("secret")); err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v, want a refusal", err)
			}
		}
		_ = udp.SetReadDeadline(time.Now())
		if n, _, err := udp.ReadFrom(make([]byte, 64)); err == nil {
			t.Errorf("the squatter read %d bytes", n)
		}
	})
	select {
	case c := <-squatter.accepted:
		t.Errorf("the squatter has a connection of %s", c.RemoteAddr())
	default:
	}
}

// A connection that a victim had opened to a squatter before Ward ran ends.
func TestConnectionsFromBeforeEnd(t *testing.T) {
	needNamespace(t)
	squatter := listen(t, attacker, "tcp4", vip, "squatter")
	c, err := net.Dial("tcp4", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	theirs := <-squatter.accepted
	defer theirs.Close()
	if _, err := io.ReadFull(c, make([]byte, len("squatter"))); err != nil {
		t.Fatal(err)
	}
	apply(t, intercept.Rules{Range: meshRange(), Egress: netip.MustParseAddrPort("127.77.0.1:8080"), Owners: []uint32{ward}})
	_, _ = io.WriteString(c, "secret")
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want a reset", err)
	}
	_ = theirs.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := theirs.Read(make([]byte, 64)); n != 0 {
		t.Errorf("the squatter read %d bytes, %v", n, err)
	}
}

// While egress restarts, a stranger who binds its port (any user can, if it is not a low one) is not reached.
func TestSquattingEgressGetsNothing(t *testing.T) {
	needNamespace(t)
	egress := netip.MustParseAddrPort("127.77.0.1:8080")
	apply(t, intercept.Rules{Range: meshRange(), Egress: egress, Owners: []uint32{ward}})
	for name, bind := range map[string]string{"its address": egress.String(), "every address": "0.0.0.0:8080", "every IPv6 address": "[::]:8080"} {
		t.Run(name, func(t *testing.T) {
			network := "tcp"
			squatter := listen(t, attacker, network, bind, "squatter")
			for _, to := range []string{vip, egress.String()} {
				if word, err := call(t, app, "tcp4", to, 500*time.Millisecond); err == nil {
					t.Errorf("at %s the application met %q", to, word)
				}
			}
			select {
			case c := <-squatter.accepted:
				t.Errorf("the squatter has a connection of %s", c.RemoteAddr())
			default:
			}
		})
	}
	t.Run("the service manager may hold the socket", func(t *testing.T) {
		listen(t, 0, "tcp4", egress.String(), "egress")
		wantWord(t, app, "tcp4", vip, "egress")
	})
}

// The process that wrote the rules is killed; they stay.
func TestKilledWriterLeavesTheRules(t *testing.T) {
	needNamespace(t)
	if os.Getenv("WARD_TEST_WRITER") != "" {
		table := newTable(t, "")
		if err := table.Apply(intercept.Rules{Range: meshRange(), Egress: netip.MustParseAddrPort("127.77.0.1:8080"), Owners: []uint32{ward}}); err != nil {
			t.Fatal(err)
		}
		go func() { _ = table.Run(context.Background()) }()
		_, _ = os.Stdout.WriteString("written\n")
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledWriterLeavesTheRules$")
	cmd.Env = append(os.Environ(), "WARD_TEST_WRITER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = intercept.Clear() })
	b := make([]byte, len("written\n"))
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "written\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	listen(t, attacker, "tcp4", vip, "squatter")
	wantRefused(t, app, "tcp4", vip)
	if removed, err := intercept.Clear(); !removed || err != nil {
		t.Fatal(removed, err)
	}
	wantWord(t, app, "tcp4", vip, "squatter")
}

func TestInterceptedUser(t *testing.T) {
	needNamespace(t)
	egress := listen(t, ward, "tcp4", "127.77.0.1:8081", "egress")
	listen(t, 0, "tcp", "[::]:8080", "fhir")
	listen(t, 0, "tcp", "127.0.0.1:8082", "other")
	// A connection from before is cut: it goes around Ward.
	var before net.Conn
	as(t, app, func() {
		var err error
		if before, err = net.Dial("tcp4", "127.0.0.1:8080"); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	defer before.Close()
	if _, err := io.ReadFull(before, make([]byte, len("fhir"))); err != nil {
		t.Fatal(err)
	}
	apply(t, intercept.Rules{Egress: addr(egress), Owners: []uint32{ward}, Flows: []intercept.Flow{{User: app, Ports: []uint16{8080, 9090}}}})
	_, _ = io.WriteString(before, "x")
	_ = before.SetReadDeadline(time.Now().Add(patience))
	if _, err := before.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from before: %v, want a reset", err)
	}

	wantWord(t, app, "tcp4", "127.0.0.1:8080", "egress")
	if got := originalDestination(t, <-egress.accepted); got.String() != "127.0.0.1:8080" {
		t.Errorf("original destination %s", got)
	}
	wantWord(t, app, "tcp4", "127.0.0.1:9090", "egress") // where nobody listens
	wantWord(t, app, "tcp4", "127.0.0.1:8082", "other")
	wantRefused(t, app, "tcp6", "[::1]:8080")
	wantWord(t, attacker, "tcp4", "127.0.0.1:8080", "fhir")
	wantWord(t, attacker, "tcp6", "[::1]:8080", "fhir")
	wantWord(t, ward, "tcp4", "127.0.0.1:8080", "fhir") // or it would go in circles
	wantWord(t, app, "tcp4", addr(egress).String(), "egress")

	t.Run("a server of the intercepted user answers", func(t *testing.T) {
		listen(t, app, "tcp4", "127.0.0.1:7070", "portal")
		var c net.Conn
		as(t, attacker, func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 9090}}
			var err error
			if c, err = d.Dial("tcp4", "127.0.0.1:7070"); err != nil {
				t.Error(err)
			}
		})
		if c == nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, make([]byte, len("portal"))); err != nil {
			t.Error(err)
		}
	})
}

func TestGuardedUpstream(t *testing.T) {
	needNamespace(t)
	listen(t, 0, "tcp", "[::]:8080", "fhir") // on every address, as servers do
	old, err := net.Dial("tcp4", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := io.ReadFull(old, make([]byte, len("fhir"))); err != nil {
		t.Fatal(err)
	}
	apply(t, intercept.Rules{Guarded: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}, Dialers: []uint32{ward}})
	for _, to := range [][2]string{{"tcp4", "127.0.0.1:8080"}, {"tcp4", "127.9.9.9:8080"}, {"tcp6", "[::1]:8080"}} {
		wantWord(t, ward, to[0], to[1], "fhir")
		wantRefused(t, attacker, to[0], to[1])
		wantRefused(t, 0, to[0], to[1])
	}
	_, _ = io.WriteString(old, "GET /")
	_ = old.SetReadDeadline(time.Now().Add(patience))
	if _, err := old.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger's connection from before: %v, want a reset", err)
	}
}

// A change of rules leaves the calls that run alone.
func TestChangeKeepsConnections(t *testing.T) {
	needNamespace(t)
	egress := listen(t, ward, "tcp4", "127.77.0.1:8080", "egress")
	rules := intercept.Rules{Range: meshRange(), Egress: addr(egress), Owners: []uint32{ward}}
	table := apply(t, rules)
	c, err := net.Dial("tcp4", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	theirs := <-egress.accepted
	defer theirs.Close()
	if _, err := io.ReadFull(c, make([]byte, len("egress"))); err != nil {
		t.Fatal(err)
	}
	exchange := func(when string) {
		t.Helper()
		deadline := time.Now().Add(patience)
		_, _ = c.SetDeadline(deadline), theirs.SetDeadline(deadline)
		if _, err := io.WriteString(c, when); err != nil {
			t.Fatal(when, err)
		}
		if _, err := io.ReadFull(theirs, make([]byte, len(when))); err != nil {
			t.Fatal(when, err)
		}
		if _, err := io.WriteString(theirs, when); err != nil {
			t.Fatal(when, err)
		}
		if _, err := io.ReadFull(c, make([]byte, len(when))); err != nil {
			t.Fatal(when, err)
		}
	}
	exchange("before")
	for _, when := range []string{"first change", "second change"} {
		rules.Flows = append(rules.Flows, intercept.Flow{User: app, Ports: []uint16{uint16(9000 + len(rules.Flows))}})
		if err := table.Apply(rules); err != nil {
			t.Fatal(err)
		}
		exchange(when)
	}
	// A new writer, as after an upgrade.
	if err := newTable(t, "").Apply(rules); err != nil {
		t.Fatal(err)
	}
	exchange("another writer")
	if s := table.Status(); len(s.Counts) == 0 || s.Err != nil {
		t.Errorf("%+v", s)
	}
}

func TestClear(t *testing.T) {
	needNamespace(t)
	if removed, err := intercept.Clear(); removed || err != nil {
		t.Fatal(removed, err)
	}
	apply(t, intercept.Rules{Range: meshRange(), Egress: netip.MustParseAddrPort("127.77.0.1:80"), Owners: []uint32{ward}, Flows: []intercept.Flow{{User: app, Ports: []uint16{80}}},
		Guarded: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}, Dialers: []uint32{ward}})
	if removed, err := intercept.Clear(); !removed || err != nil {
		t.Fatal(removed, err)
	}
	if out := ruleset(t); strings.TrimSpace(out) != "" {
		t.Errorf("left behind: %s", out)
	}
	if removed, err := intercept.Clear(); removed || err != nil {
		t.Fatal(removed, err)
	}
}
