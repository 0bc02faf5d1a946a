package api_test

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
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	"github.com/wardmesh/ward/attest/unix"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

// The test binary starts itself in these roles, so that what a server costs is measured without its clients,
// and so that clients are processes of their own.
const (
	roleVariable = "WARD_TEST_ROLE"
	wardRole     = "ward"  // the whole server; answers `usage` on stdin
	floorRole    = "floor" // a bare gRPC server that replays a captured answer; likewise
	leaveRole    = "leave" // a workload that hands its open stream to a child and exits
	fetchRole    = "fetch" // a workload that asks who it is, prints the answer, and holds the stream until stdin ends
)

func play(role string) int {
	var err error
	switch role {
	case wardRole:
		err = playServer(serveWard)
	case floorRole:
		err = playServer(serveFloor)
	case leaveRole:
		err = playLeave()
	case fetchRole:
		err = playFetch()
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// playServer serves on the socket named by the first argument and tells its own usage when asked.
func playServer(serve func(path string) (func(), error)) error {
	stop, err := serve(os.Args[1])
	if err != nil {
		return err
	}
	defer stop()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var used syscall.Rusage
		if in.Text() == "memory" {
			for range 3 { // each lets stacks that have grown shrink by half, as time does
				runtime.GC()
			}
			debug.FreeOSMemory()
		}
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
			return err
		}
		rss, err := residentKiB()
		if err != nil {
			return err
		}
		cpu := time.Duration(used.Utime.Nano() + used.Stime.Nano())
		fmt.Println(cpu.Nanoseconds(), rss)
	}
	return nil
}

func residentKiB() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("no VmRSS")
}

// serveWard is a server as agent/daemon makes it, with the hash attestor on.
func serveWard(path string) (func(), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: workload.Tables()})
	if err != nil {
		return nil, err
	}
	e := entry("portal", "unix.uid", strconv.Itoa(os.Getuid()), "exe.path", self)
	txn := db.Txn(true)
	if err := workload.NewRegistry(db).Load(txn, []*workload.Entry{e}, nil); err != nil {
		return nil, err
	}
	txn.Commit()
	ca := newAuthority(&testing.B{})
	stop, _, err := serveReal(path, db, ca)
	return stop, err
}

func serveReal(path string, db *memdb.MemDB, ca *authority) (stop func(), service *workload.Service, err error) {
	hashes, err := exe.New(exe.Options{SHA256: true})
	if err != nil {
		return nil, nil, err
	}
	units, err := systemd.New()
	if err != nil {
		return nil, nil, err
	}
	pinner, err := peer.New(peer.Options{})
	if err != nil {
		return nil, nil, err
	}
	service, err = workload.NewService(workload.Options{
		Registry: workload.NewRegistry(db), Attestors: []attest.Attestor{unix.Attestor{}, units, hashes}, Issuer: ca, Bundles: ca,
		Denials: workload.NoDenials{}, Kept: workload.NoKept{}, Observer: workload.NoObserver{}, Log: zap.NewNop(),
	})
	if err != nil {
		return nil, nil, err
	}
	server, err := api.New(api.Options{
		Watcher: service, Registerer: prometheus.NewRegistry(), Limits: api.Limits{RatePerUID: 1e6, ConnsPerUID: 1e6, StreamsPerUID: 1e6, Conns: 1e6},
		Pin: func(c net.Conn) (workload.Process, error) { return c.(*peer.Conn).Process() },
	})
	if err != nil {
		return nil, nil, err
	}
	plain, err := net.Listen("unix", path)
	if err != nil {
		return nil, nil, err
	}
	l, err := pinner.Listen(plain, func(error) {})
	if err != nil {
		return nil, nil, err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	server.SetReady()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Shutdown(ctx)
		<-served
		service.Close()
		_ = pinner.Close()
	}, service, nil
}

// floor replays one answer.
type floor struct {
	spiffe.UnimplementedSpiffeWorkloadAPIServer
	answer *spiffe.X509SVIDResponse
}

func (f floor) FetchX509SVID(_ *spiffe.X509SVIDRequest, s spiffe.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := s.Send(f.answer); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// serveFloor replays the answer in the file beside the socket.
func serveFloor(path string) (func(), error) {
	captured, err := os.ReadFile(filepath.Join(filepath.Dir(path), "answer"))
	if err != nil {
		return nil, err
	}
	answer := &spiffe.X509SVIDResponse{}
	if err := proto.Unmarshal(captured, answer); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	spiffe.RegisterSpiffeWorkloadAPIServer(s, floor{answer: answer})
	go func() { _ = s.Serve(l) }()
	return s.Stop, nil
}

// playFetch is go-spiffe in a process of its own.
func playFetch() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+os.Args[1]))
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.FetchX509SVID(ctx); err != nil {
		return err // a source would wait until it is let in
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	fmt.Println(svid.ID)
	bufio.NewScanner(os.Stdin).Scan()
	return nil
}

// playLeave opens a stream, starts a child that inherits the connection, prints the child's pid, and exits when
// stdin ends.
func playLeave() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	plain, err := net.Dial("unix", os.Args[1])
	if err != nil {
		return err
	}
	file, err := plain.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	once := make(chan net.Conn, 1)
	once <- plain
	dial := func(context.Context, string) (net.Conn, error) { return <-once, nil }
	conn, err := grpc.NewClient("passthrough:///handed", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	if err := first(spiffe.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &spiffe.X509SVIDRequest{})); err != nil {
		return err
	}
	heir := exec.Command("sleep", "60")
	heir.ExtraFiles = []*os.File{file}
	if err := heir.Start(); err != nil {
		return err
	}
	fmt.Println(heir.Process.Pid)
	bufio.NewScanner(os.Stdin).Scan()
	return nil
}

// child is the test binary in a role.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	first string // the first line that it said
}

// start runs binary, the test's own or a copy of it.
func start(t testing.TB, binary, role, path string, as *syscall.Credential) *child {
	t.Helper()
	cmd := exec.Command(binary, path)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
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
	c.first = c.line()
	return c
}

func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// end lets the child finish, and waits for it.
func (c *child) end() {
	c.in.Close()
	_ = c.cmd.Wait()
}

func (c *child) line() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("the child said nothing: %v", c.out.Err())
	}
	return c.out.Text()
}

// usage is the server's processor time and resident memory so far.
func (c *child) usage(question string) (cpu time.Duration, residentKiB int) {
	c.t.Helper()
	fmt.Fprintln(c.in, question)
	if _, err := fmt.Sscan(c.line(), &cpu, &residentKiB); err != nil {
		c.t.Fatal(err)
	}
	return cpu, residentKiB
}
