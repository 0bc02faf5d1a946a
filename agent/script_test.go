package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// The scripts in testdata/script drive the real binary. What they compare with is what users see; run
// `go test ./agent -run TestScript -update` after a change that is meant.
func TestMain(m *testing.M) {
	syscall.Umask(0o022) // Ward refuses files that others can write
	testscript.Main(m, map[string]func(){"ward": main})
}

var update = flag.Bool("update", false, "write what the commands say into the scripts")

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         inMemory(t),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			home := e.WorkDir + "/home"
			e.Setenv("HOME", home)
			e.Values[startedKey{}] = new(started)
			e.Setenv("UID", strconv.Itoa(os.Getuid()))
			return os.Mkdir(home, 0o700)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "installed":
				_, err := os.Stat(defaultConfig)
				return err == nil, nil
			}
			return false, fmt.Errorf("no such condition")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "masked": masked, "find": find, "start": start, "quits": quits,
		},
	})
}

// inMemory is a folder for the scripts in memory, where there is much of that and programs may run: of a slow disk Ward tells
// in its status. It is "", for the usual place, elsewhere.
func inMemory(t *testing.T) string {
	t.Helper()
	var s unix.Statfs_t
	if unix.Statfs("/dev/shm", &s) != nil || s.Bavail*uint64(s.Bsize) < 1<<30 || s.Flags&unix.ST_NOEXEC != 0 || unix.Access("/dev/shm", unix.W_OK) != nil { //nolint:gosec // no size is negative
		return ""
	}
	dir, err := os.MkdirTemp("/dev/shm", "ward")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// exits runs a command that must end with exactly that status: exits 2 ward foo
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND...")
	}
	status := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			ts.Fatalf("%v", err)
		}
		status = ended.ExitCode()
	}
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("exit status %d, want %s", status, args[0])
	}
}

// masked writes a copy of an output in which everything that differs between two runs has been replaced: masked stdout out
func masked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: masked FILE COPY")
	}
	text := strings.ReplaceAll(ts.ReadFile(args[0]), ts.Getenv("HOME"), "~")
	text = strings.ReplaceAll(text, ts.Getenv("WORK"), "$WORK")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(mask(text)), 0o600))
}

var masks = []struct{ pattern, with string }{
	{`\b01[0-9A-HJKMNP-TV-Z]{24}\b`, "<id>"},
	{`SVID [0-9a-f]{6} became [0-9a-f]{6}`, "SVID <serial> became <serial>"},
	{`\(exe\.path: [^)]*\)`, "(<its selectors>)"},
	{`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z`, "<instant>"},
	{`(?m)^\d{2}:\d{2}:\d{2}\b`, "<time>"},
	{`\b\d+\.\d+m?s\b`, "<took>"},
	{`\b(root) [A-Za-z0-9+/]{43}=`, "$1 <hash>"},
	{`(policy set) [0-9a-f]{12}\b`, "$1 <hash>"},
	{`\b\d+( (?:records|segments|signed|checkpoints)\b)`, "<n>$1"},
	{`, \d+( signed by) \d+`, ", <n>$1 <n>"},
	{`(checkpoints of \S+/|^host )\S+`, "$1<host>"},
	{`\b(up|in) (?:\d+(?:ms|s|m|d)|\d+h\d+m)\b`, "$1 <took>"},
	{`\bexpired \d+m\d+s ago`, "expired <took> ago"},
	{`\b\d+ allowed\b`, "<n> allowed"}, // the rotation takes a few calls more or less
	{`serial [0-9a-f]{32}`, "serial <serial>"},
	{`/run/ward-up-\d+`, "/run/ward-up-<n>"},
	{`127\.0\.0\.1:\d{5}\b`, "127.0.0.1:<port>"},
	{`\bward (?:devel\S*)`, "ward devel"},
	{`go1\.\d+\S*`, "go1.x"},
}

// mask replaces what differs between two runs.
func mask(text string) string {
	for _, m := range masks {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	return text
}

// find sets a variable to the part of a file that a pattern's group matches: find stdout 'explain (\S+)' DECISION
func find(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: find FILE PATTERN NAME")
	}
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile(args[0]))
	if len(m) != 2 {
		ts.Fatalf("nothing in %s matches %s", args[0], args[1])
	}
	ts.Setenv(args[2], m[1])
}

// started is the daemon that a script has running.
type started struct {
	cmd  *exec.Cmd
	done chan error // how it ended
}

type startedKey struct{}

// start runs a command until quits, and goes on once its output has a line that matches: start ready ward run -c ward.yaml
func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start PATTERN COMMAND...")
	}
	ready := regexp.MustCompile(args[0])
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Args[0], cmd.Dir = args[1], ts.Getenv("WORK")
	cmd.Env = []string{"HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH")}
	out, in, err := os.Pipe()
	ts.Check(err)
	cmd.Stdout, cmd.Stderr = in, in
	ts.Check(cmd.Start())
	_ = in.Close()
	d := ts.Value(startedKey{}).(*started)
	d.cmd, d.done = cmd, make(chan error, 1)
	is, said := make(chan bool, 1), new(strings.Builder)
	go func() {
		lines := bufio.NewScanner(out)
		for waiting := true; lines.Scan(); {
			if waiting {
				fmt.Fprintln(said, lines.Text())
				if ready.MatchString(lines.Text()) {
					is <- true
					waiting = false
				}
			}
		}
		_ = out.Close()
		d.done <- cmd.Wait()
		close(is)
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		for range is {
		}
	})
	if !<-is {
		ts.Fatalf("%s ended without saying %s:\n%s", strings.Join(args[1:], " "), args[0], said)
	}
}

// quits sends the started command a signal, upon which it must end with status 0: quits INT
func quits(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: quits INT|TERM")
	}
	d := ts.Value(startedKey{}).(*started)
	ts.Check(d.cmd.Process.Signal(signals[args[0]]))
	if err := <-d.done; err != nil {
		ts.Fatalf("%s ended badly: %v", d.cmd, err)
	}
}
