package attest_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	inside       = "WARD_TEST_INSIDE"     // set: this process runs one test, in the namespaces that it needs
	actorEnv     = "WARD_TEST_ACTOR"      // set: this process is an actor
	actorConnEnv = "WARD_TEST_ACTOR_CONN" // the descriptor of its connection, inherited
	actorPassEnv = "WARD_TEST_ACTOR_PASS" // the descriptor over which its parent passes descriptors
)

func TestMain(m *testing.M) {
	if os.Getenv(actorEnv) != "" {
		a := actor{conn: inherited(actorConnEnv), pass: inherited(actorPassEnv)}
		a.run(os.Stdin, os.Stdout)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func inherited(env string) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return n
	}
	return -1
}

// actor is a process of its own that does, line by line, what it is told, and answers each line. Its connection
// is a bare descriptor that survives execve, as an attacker would have it.
type actor struct {
	conn, pass int
	listener   int
	child      *remote
}

func (a *actor) run(in io.Reader, out io.Writer) {
	fmt.Fprintln(out, "ready")
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		answer, err := a.do(verb, rest)
		if err != nil {
			answer = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
		} else {
			answer = "ok " + answer
		}
		fmt.Fprintln(out, answer)
	}
	// Whoever told it what to do is another program now; it keeps its connection for as long as that lasts.
	for a.conn >= 0 {
		if n, err := unix.Read(a.conn, make([]byte, 64)); n <= 0 && err != unix.EINTR {
			return
		}
	}
}

func (a *actor) do(verb, rest string) (string, error) {
	switch verb {
	case "unix": // connect to a Unix socket
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return "", err
		}
		a.conn = fd
		return "", unix.Connect(fd, &unix.SockaddrUnix{Name: rest})
	case "tcp": // connect to ADDRESS [from PORT]
		to, from, _ := strings.Cut(rest, " ")
		return a.tcp(netip.MustParseAddrPort(to), from)
	case "listen": // serve ADDRESS or a PATH, and hand back the address; "shared" for SO_REUSEPORT
		address, how, _ := strings.Cut(rest, " ")
		return a.listen(address, how == "shared")
	case "accept":
		fd, _, err := unix.Accept(a.listener)
		a.conn = fd
		return "", err
	case "unlisten":
		return "", unix.Close(a.listener)
	case "attach": // ptrace the process with this pid, and let it run on
		pid, err := strconv.Atoi(rest)
		if err != nil {
			return "", err
		}
		traced := make(chan error)
		go trace(pid, traced)
		return "", <-traced
	case "send":
		_, err := unix.Write(a.conn, []byte(rest))
		return "", err
	case "receive":
		buf := make([]byte, 4096)
		n, err := unix.Read(a.conn, buf)
		if err != nil {
			return "", err
		}
		return string(buf[:n]), nil
	case "descriptor": // pass a descriptor to the peer
		return "", unix.Sendmsg(a.conn, []byte(rest), unix.UnixRights(0), nil, 0)
	case "reset": // close with RST
		if err := unix.SetsockoptLinger(a.conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return "", err
		}
		return "", unix.Close(a.conn)
	case "close":
		return "", unix.Close(a.conn)
	case "exec": // become another program, which goes on as an actor
		env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, actorConnEnv+"=") })
		env = append(env, fmt.Sprintf("%s=%04d", actorConnEnv, a.conn)) // of one length for all
		return "", syscall.Exec(rest, []string{rest}, env)
	case "setresuid":
		uid, err := strconv.Atoi(rest)
		if err != nil {
			return "", err
		}
		return "", syscall.Setresuid(uid, uid, uid)
	case "cgroup": // move into the cgroup in this folder
		return "", os.WriteFile(filepath.Join(rest, "cgroup.procs"), []byte("0"), 0)
	case "cat":
		b, err := os.ReadFile(rest)
		return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", " "), err
	case "fork": // start another actor, which inherits the connection if told so
		return "", a.fork(rest == "inherit", -1)
	case "forkas":
		uid, err := strconv.Atoi(rest)
		if err != nil {
			return "", err
		}
		return "", a.fork(true, uid)
	case "child": // have the other actor do something
		return a.child.ask(rest)
	case "pass": // pass the connection to the other actor
		return "", unix.Sendmsg(a.pass, []byte{0}, unix.UnixRights(a.conn), nil, 0)
	case "take": // receive it
		return "", a.take()
	case "exit":
		os.Exit(0)
	}
	return "", errors.New("what is " + verb + "?")
}

func (a *actor) tcp(to netip.AddrPort, from string) (string, error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	a.conn = fd
	if from != "" {
		port, err := strconv.Atoi(from)
		if err != nil {
			return "", err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return "", err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return "", err
		}
	}
	if to.Addr().Is6() {
		return "", unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	}
	return "", unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}

func (a *actor) listen(address string, shared bool) (string, error) {
	var to unix.Sockaddr = &unix.SockaddrUnix{Name: address}
	family := unix.AF_UNIX
	if port, err := netip.ParseAddrPort(address); err == nil {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(port.Port()), Addr: port.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	a.listener = fd
	if family == unix.AF_INET {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return "", err
		}
	}
	if shared {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return "", err
		}
	}
	if err := errors.Join(unix.Bind(fd, to), unix.Listen(fd, 16)); err != nil {
		return "", err
	}
	own, err := unix.Getsockname(fd)
	if in, ok := own.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String(), err
	}
	return address, err
}

func (a *actor) fork(inherit bool, uid int) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	a.pass = pair[0]
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), actorEnv+"=1", actorPassEnv+"=3")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "pair")}
	if inherit {
		cmd.Env = append(cmd.Env, actorConnEnv+"=4")
		dup, err := unix.Dup(a.conn)
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(dup), "conn"))
	}
	if uid >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	a.child, err = control(cmd)
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	return err
}

func (a *actor) take() error {
	oob := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(a.pass, make([]byte, 1), oob, 0)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	a.conn = fds[0]
	return nil
}

// remote is the other end of an actor.
type remote struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func control(cmd *exec.Cmd) (*remote, error) {
	r := &remote{cmd: cmd}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.in, r.lines = in, bufio.NewScanner(out)
	return r, r.ready()
}

// ready waits until the actor's program runs.
func (r *remote) ready() error {
	if !r.lines.Scan() || r.lines.Text() != "ready" {
		return fmt.Errorf("the actor is not ready: %q %v", r.lines.Text(), r.lines.Err())
	}
	return nil
}

func (r *remote) ask(line string) (string, error) {
	if _, err := fmt.Fprintln(r.in, line); err != nil {
		return "", err
	}
	if !r.lines.Scan() {
		return "", fmt.Errorf("the actor is gone: %v", r.lines.Err())
	}
	answer := r.lines.Text()
	if rest, found := strings.CutPrefix(answer, "error "); found {
		return "", errors.New(rest)
	}
	return strings.TrimPrefix(answer, "ok "), nil
}

// process is an actor in the hands of a test.
type process struct {
	*remote
	t testing.TB
}

// start starts an actor that ends with the test. change may alter how; path may be another program than this.
func start(t testing.TB, path string, change ...func(*exec.Cmd)) *process {
	t.Helper()
	if path == "" {
		path = program(t)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), actorEnv+"=1")
	for _, c := range change {
		c(cmd)
	}
	r, err := control(cmd)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{remote: r, t: t}
	t.Cleanup(p.kill)
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// do fails the test when the actor fails.
func (p *process) do(line string) string {
	p.t.Helper()
	answer, err := p.ask(line)
	if err != nil {
		p.t.Fatalf("actor: %s: %v", line, err)
	}
	return answer
}

// exec turns the actor into the program at path, its connection kept.
func (p *process) exec(path string) {
	p.t.Helper()
	fmt.Fprintln(p.in, "exec "+path)
	if err := p.ready(); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the actor and reaps it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.in.Close()
	_ = p.cmd.Wait()
}

func asUser(uid uint32) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		attributes(cmd).Credential = &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid + 1, uid + 2}}
	}
}

func attributes(cmd *exec.Cmd) *syscall.SysProcAttr {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	return cmd.SysProcAttr
}

// program is a copy of this test that every user may run: the one that `go test` builds lies in a private folder.
func program(t testing.TB) string {
	t.Helper()
	return copyProgram(t, "actor")
}

func copyProgram(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ward-attest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	// A copy by another process: one that we had open for writing could be held open by a child forked meanwhile.
	if out, err := exec.Command("cp", self, path).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func rootOnly(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(inside) == "" {
		t.Skipf("SKIPPED: needs root, to %s", what)
	}
}

// inNamespaces runs the calling test again in a process that change has put into namespaces, and reports
// whether this is that process. When it is not, it has waited for it.
func inNamespaces(t *testing.T, change func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+strings.ReplaceAll(regexp.QuoteMeta(strings.ReplaceAll(t.Name(), " ", "_")), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.WaitDelay = 10 * time.Second
	change(cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "--- PASS: "+strings.ReplaceAll(t.Name(), " ", "_")+" ") {
		t.Fatal("nothing was tested inside")
	}
	return false
}

// trace attaches to a process, says whether it could, and lets it run on until it ends.
func trace(pid int, traced chan<- error) {
	runtime.LockOSThread() // who traces is a thread, and never unlock
	if err := unix.PtraceAttach(pid); err != nil {
		traced <- err
		return
	}
	for first := true; ; first = false {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		for errors.Is(err, unix.EINTR) {
			_, err = unix.Wait4(pid, &status, unix.WALL, nil)
		}
		switch {
		case err == nil && first:
			err = unix.PtraceCont(pid, 0) // it stopped for the tracer's sake
		case err == nil && status.Stopped():
			err = unix.PtraceCont(pid, int(status.StopSignal())) // whatever it is sent, it gets
		case err == nil:
			return
		}
		if first {
			traced <- err
		}
		if err != nil {
			return
		}
	}
}
