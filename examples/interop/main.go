// Command interop runs Ward from end to end with parts that Ward's authors did not write, and checks what each of
// them saw:
//
//   - npm oidc-provider issues the access tokens, by authorization code and by client credentials;
//   - npm @medplum/fhir-router with its in-memory repository is the FHIR server, loaded with HL7's own examples;
//   - npm fhir-kit-client and curl are the applications. They know http://fhir.ehr.mesh.internal and an access
//     token, and nothing of Ward; curl also comes by http_proxy and by the service's Unix socket;
//   - PyPI's spiffe package is a foreign client of the Workload API.
//
// Between them stands the ward binary as it is shipped, started with `ward run --config FILE`. All of it lives in a
// network, mount and process namespace of its own: there, and only there, resolv.conf names Ward's DNS responder,
// port 80 of 127.77.0.1 is Ward's egress, and nothing else can be reached. Every application has a user of its own.
//
// The parts are installed, by npm and pip, into a cache folder before the namespaces are entered; nothing is put into
// the repository. README.md beside this file says what is checked.
//
//	go run ./examples/interop            # the checks
//	go run ./examples/interop -crash 20  # 20 SIGKILLs of ward under load
//	go run ./examples/interop -bypass    # tricks that a lenient FHIR server falls for
//	go run ./examples/interop -live      # roles apart, under load and attack, while everything changes
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// options is the command line.
type options struct {
	verbose bool
	keep    bool
	crash   int
	bypass  bool
	live    bool
	calls   int
	only    string
	cache   string
	ward    string
	inside  string
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "act" { // one of -live's applications
		return act(os.Stdin, stdout)
	}
	var o options
	flags := flag.NewFlagSet("interop", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.verbose, "v", false, "show each call and its answer")
	flags.BoolVar(&o.keep, "keep", false, "keep the folder with config, logs and the audit trail")
	flags.IntVar(&o.crash, "crash", 0, "kill ward under load this `many` times, instead of the checks")
	flags.BoolVar(&o.bypass, "bypass", false, "try the tricks of FHIR's bypass table against a lenient FHIR server, instead of the checks")
	flags.BoolVar(&o.live, "live", false, "run the roles apart under load while everything changes, and attack them, instead of the checks")
	flags.IntVar(&o.calls, "calls", 10000, "with -live: so `many` calls while everything changes")
	flags.StringVar(&o.only, "only", "", "with -live: only these `phases` of idle, load, latency, streams, upgrade, kill, attack, whole")
	flags.StringVar(&o.cache, "cache", "", "`folder` for what npm and pip install (default $XDG_CACHE_HOME/ward-interop)")
	flags.StringVar(&o.ward, "ward", "", "a ward `binary` to check, instead of one built from this repository")
	flags.StringVar(&o.inside, "inside", "", "used by the program itself, once it is in its namespaces")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 || o.crash < 0 || o.calls < 1 {
		flags.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.inside != "" {
		return inside(ctx, o, stdout, stderr)
	}
	lacking, err := outside(ctx, o, stdout, stderr)
	switch {
	case len(lacking) > 0:
		fmt.Fprintf(stdout, "SKIPPED: the end-to-end checks with real parts need %s\n", strings.Join(lacking, ", "))
		return 0
	case err != nil:
		if errors.Is(err, errFailed) {
			return 1 // and it has been said why
		}
		fmt.Fprintln(stderr, "interop:", err)
		return 1
	}
	return 0
}

// outside installs the parts, makes the folder in which everything happens, and starts this program again in
// namespaces of its own. It says what the machine lacks, if anything.
func outside(ctx context.Context, o options, stdout, stderr io.Writer) (lacking []string, err error) {
	syscall.Umask(0o022) // what is installed and laid out must be readable by the applications' users
	t, lacking := findTools(ctx)
	if len(lacking) > 0 {
		return lacking, nil
	}
	p, err := install(ctx, o, t, stderr)
	if err != nil {
		return nil, err
	}
	dir, err := layOut(ctx, o, p, stderr)
	if dir != "" && !o.keep {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	if err != nil {
		return nil, err
	}
	if o.keep {
		fmt.Fprintln(stdout, "everything stays in", dir)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-inside", dir, "-crash", fmt.Sprint(o.crash), fmt.Sprintf("-bypass=%v", o.bypass), fmt.Sprintf("-live=%v", o.live), "-calls", fmt.Sprint(o.calls), "-only", o.only}
	if o.verbose {
		args = append(args, "-v")
	}
	runtime.LockOSThread() // Pdeathsig watches the thread, not the process
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, self, args...) //nolint:gosec // this very program
	cmd.Stdout, cmd.Stderr, cmd.Dir = stdout, stderr, "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "LC_ALL=C.UTF-8"}
	// As the first process of a process namespace it takes everything with it when it ends, however it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	err = cmd.Run()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) { // clone(2)
		return []string{"namespaces of its own, so CAP_SYS_ADMIN and a kernel that has them: " + err.Error()}, nil
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, errFailed
	}
	return nil, err
}

// errFailed says that checks failed, after they have said so themselves.
var errFailed = errors.New("failed")

// inside is the program in its namespaces: it sets the place up, starts the clinic and runs the checks.
func inside(ctx context.Context, o options, stdout, stderr io.Writer) int {
	p, err := readParts(o.inside)
	if err == nil {
		err = enter(p)
	}
	if err != nil {
		fmt.Fprintln(stderr, "interop:", err)
		return 1
	}
	r := &report{out: stdout, verbose: o.verbose}
	w := &world{parts: p, report: r}
	defer w.close()
	start := w.start
	if o.live {
		start = w.startClinic
	}
	if err := start(ctx); err != nil {
		fmt.Fprintln(stderr, "interop:", err)
		w.showLogs(stderr)
		return 1
	}
	fmt.Fprintln(stdout, w.cast())
	switch {
	case o.bypass:
		w.bypass(ctx)
	case o.live:
		w.runLive(ctx, o.calls, o.only, stderr)
	case o.crash > 0:
		w.crash(ctx, o.crash)
	default:
		w.checks(ctx)
	}
	if r.failed > 0 {
		w.showLogs(stderr)
	}
	fmt.Fprintf(stdout, "%d passed, %d failed\n", r.passed, r.failed)
	if r.failed > 0 || r.passed == 0 || ctx.Err() != nil {
		return 1
	}
	return 0
}

// report prints what was checked, a line each.
type report struct {
	out            io.Writer
	verbose        bool
	passed, failed int
}

// check runs one check and prints what it found. f says in words what which part did.
func (r *report) check(name string, f func() (string, error)) {
	said, err := f()
	if err != nil {
		r.failed++
		fmt.Fprintf(r.out, "FAIL  %s: %v\n", name, err)
		return
	}
	r.passed++
	fmt.Fprintf(r.out, "ok    %s: %s\n", name, said)
}

func (r *report) note(format string, args ...any) {
	if r.verbose {
		fmt.Fprintf(r.out, "      "+format+"\n", args...)
	}
}

// at gives a path in the folder in which everything happens.
func (p *parts) at(elem ...string) string { return filepath.Join(append([]string{p.Dir}, elem...)...) }
