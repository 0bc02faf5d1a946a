package broker_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	"github.com/wardmesh/ward/attest/unix"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

// The test binary starts itself in these roles: the test is egress, the others are processes of their own.
const (
	roleVariable = "WARD_TEST_ROLE"
	agentRole    = "agent"  // the agent's Broker API; answers `memory` and `cpu` on stdin
	callerRole   = "caller" // a workload: dials, says ready, and on stdin executes another program; its end ends it
)

func play(role string) int {
	var err error
	switch role {
	case agentRole:
		err = playAgent(os.Args[1])
	case callerRole:
		err = playCaller(os.Args[1])
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// playAgent serves as agent/daemon makes it, with every attestor on. This very binary is the broker and its callers.
func playAgent(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: workload.Tables()})
	if err != nil {
		return err
	}
	uid := strconv.Itoa(os.Getuid())
	txn := db.Txn(true)
	if err := workload.NewRegistry(db).Load(txn, []*workload.Entry{lent("portal", "unix.uid", uid, "exe.path", self)}, nil); err != nil {
		return err
	}
	txn.Commit()
	hashes, err := exe.New(exe.Options{SHA256: true})
	if err != nil {
		return err
	}
	units, err := systemd.New()
	if err != nil {
		return err
	}
	attestors := []attest.Attestor{unix.Attestor{}, units, hashes}
	pinner, err := peer.New(peer.Options{PerUser: 4096})
	if err != nil {
		return err
	}
	defer pinner.Close()
	ca := newAuthority(&testing.B{})
	service, err := workload.NewService(workload.Options{Registry: workload.NewRegistry(db), Attestors: attestors, Issuer: ca, Bundles: ca,
		Denials: workload.NoDenials{}, Kept: workload.NoKept{}, Observer: workload.NoObserver{}, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	defer service.Close()
	server, err := broker.New(broker.Options{Lender: service, Attestors: attestors, Registerer: prometheus.NewRegistry(),
		Pin: func(c net.Conn) (workload.Process, error) { return c.(*peer.Conn).Process() },
		Resolve: func(ctx context.Context, r attest.Reference) (workload.Process, error) {
			p, err := pinner.Resolve(ctx, r)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
		Brokers: func() ([]attest.Selectors, <-chan struct{}) {
			return []attest.Selectors{sel("unix.uid", uid, "exe.path", self)}, nil
		},
	})
	if err != nil {
		return err
	}
	plain, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	l, err := pinner.Listen(plain, func(error) {})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	server.SetReady()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := tellUsage(in.Text() == "memory"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server.Shutdown(ctx)
	return <-served
}

func tellUsage(rest bool) error {
	if rest {
		for range 3 { // each lets stacks that have grown shrink by half, as time does
			runtime.GC()
		}
		debug.FreeOSMemory()
	}
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			fmt.Println((used.Utime.Nano()+used.Stime.Nano())/1000, strings.Fields(v)[0])
		}
	}
	return nil
}

// playCaller is an application: plain, and with no idea of identities.
func playCaller(address string) error {
	network, address, _ := strings.Cut(address, ":")
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	// It stays open in whatever program this process becomes.
	if err := raw.Control(func(fd uintptr) { _, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFD, 0) }); err != nil {
		return err
	}
	fmt.Println("ready")
	if in := bufio.NewScanner(os.Stdin); in.Scan() {
		sleep, err := exec.LookPath("sleep")
		if err != nil {
			return err
		}
		return syscall.Exec(sleep, []string{"sleep", "60"}, nil)
	}
	return nil
}

// child is the test binary in a role.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(t testing.TB, role, argument string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, argument)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(c.end)
	if first := c.line(); first != "ready" {
		t.Fatal(first)
	}
	return c
}

// end lets the child finish, and waits for it. One that has become another program is killed.
func (c *child) end() {
	if c.cmd.ProcessState != nil {
		return
	}
	c.in.Close()
	timer := time.AfterFunc(5*time.Second, func() { _ = c.cmd.Process.Kill() })
	_ = c.cmd.Wait()
	timer.Stop()
}

func (c *child) line() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("the child said nothing: %v", c.out.Err())
	}
	return c.out.Text()
}

// usage is the child's processor time and its resident memory in KiB.
func (c *child) usage(what string) (cpu time.Duration, rss int) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, what); err != nil {
		c.t.Fatal(err)
	}
	var micros int64
	if _, err := fmt.Sscan(c.line(), &micros, &rss); err != nil {
		c.t.Fatal(err)
	}
	return time.Duration(micros) * time.Microsecond, rss
}

// ward is an agent and an egress ward on real sockets, with nothing between them and the kernel.
type ward struct {
	t      testing.TB
	agent  *child
	client *broker.Client
	pinner *peer.Pinner
}

func realWard(t testing.TB) *ward {
	t.Helper()
	w := &ward{t: t}
	socket := filepath.Join(t.TempDir(), "broker.sock")
	w.agent = start(t, agentRole, socket)
	var err error
	if w.pinner, err = peer.New(peer.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.pinner.Close() })
	w.client, err = broker.NewClient(broker.ClientOptions{Socket: socket, Verify: broker.ServedBy(uint32(os.Getuid())), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	return w
}

// listen is where callers connect: a listener of egress, which takes references.
func (w *ward) listen(network string) (l net.Listener, address string) {
	w.t.Helper()
	address = "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(w.t.TempDir(), "service.sock")
	}
	plain, err := net.Listen(network, address)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err = w.pinner.Refer(plain, func(err error) { w.t.Errorf("not taken: %v", err) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l, network + ":" + l.Addr().String()
}

// call starts a caller and returns its connection with the reference to it.
func (w *ward) call(network string) (*child, *peer.Referred, attest.Reference) {
	w.t.Helper()
	l, address := w.listen(network)
	caller := start(w.t, callerRole, address)
	c, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	referred := c.(*peer.Referred)
	r, err := referred.Reference()
	if err != nil {
		w.t.Fatal(err)
	}
	return caller, referred, r
}

func (w *ward) borrow(r attest.Reference) *broker.Loan {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l, err := w.client.Borrow(ctx, r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l
}
