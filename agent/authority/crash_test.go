package authority_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wardmesh/ward/agent/authority"
)

// The child's environment: the folder, and the step of the first run after which it kills itself.
const (
	childDir  = "WARD_TEST_AUTHORITY_DIR"
	childStep = "WARD_TEST_AUTHORITY_STEP"
	childTurn = "WARD_TEST_AUTHORITY_TURN" // set: the child rotates its CA instead of issuing
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir, os.Getenv(childStep))
	}
	os.Exit(m.Run())
}

// child opens the authority and issues without end. It prints `begin`, then `ca` with the CA, then `svid` with each
// certificate that IssueX509 has returned. It ends by being killed.
func child(dir, dieAt string) {
	var mu sync.Mutex
	say := func(what string, der []byte) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(what + " " + base64.StdEncoding.EncodeToString(der) + "\n") // one write: a line is whole or absent
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	say("begin", nil)
	a, err := authority.Open(context.Background(), authority.WithSteps(options(dir), func(step string) {
		if step == dieAt {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}))
	if err != nil {
		fail(err)
	}
	say("ca", a.X509Bundle().X509Authorities()[0].Raw)
	if os.Getenv(childTurn) != "" {
		turn(a, say, fail)
	}
	for range 8 {
		go func() {
			for {
				chain, err := a.IssueX509(context.Background(), request(&testing.T{}, "/app/portal"))
				if err != nil {
					fail(err)
				}
				say("svid", chain[0].Raw)
			}
		}()
	}
	select {}
}

// killed runs a child until it is killed: by itself at a step or, when there is none, by a call of kill, which
// watch may make at any line that the child prints. It returns what the child has printed.
func killed(t *testing.T, dir, step string, watch func(line string, kill func())) (cas, svids []*x509.Certificate) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childStep+"="+step)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { cmd.Process.Kill() }
	defer kill()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
		watch(line, kill)
		what, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil || what == "begin" {
			continue
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if what == "ca" {
			cas = append(cas, cert)
		} else {
			svids = append(svids, cert)
		}
	}
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v\n%s", err, &stderr)
	}
	return cas, svids
}

// survivor opens what a killed child has left, and checks that it is whole.
func survivor(t *testing.T, dir string, svids []*x509.Certificate) *x509.Certificate {
	t.Helper()
	a, err := authority.Open(context.Background(), options(dir))
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	defer a.Close()
	for _, c := range svids {
		if id, err := a.Issued(context.Background(), c); err != nil || id != c.URIs[0].String() {
			t.Errorf("a certificate that was returned is not in the journal: %q, %v", id, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".unfinished-*")); err != nil || len(left) > 0 {
		t.Errorf("unfinished files are left: %v %v", left, err)
	}
	if _, err := a.IssueX509(context.Background(), request(t, "/app/portal")); err != nil {
		t.Errorf("after a kill: %v", err)
	}
	return a.X509Bundle().X509Authorities()[0]
}

// TestKilledInFirstRun kills the first run after each of its steps, and at random moments.
func TestKilledInFirstRun(t *testing.T) {
	for _, step := range []string{"folder", "journal", "key", "certificate", "record"} {
		t.Run("after "+step, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			killed(t, dir, step, func(string, func()) {})
			key, _ := os.ReadFile(filepath.Join(dir, "x509-ca-1.key"))
			ca := survivor(t, dir, nil)
			if again := survivor(t, dir, nil); !again.Equal(ca) {
				t.Error("another CA at the next start")
			}
			if now, err := os.ReadFile(filepath.Join(dir, "x509-ca-1.key")); err != nil || key != nil && !bytes.Equal(now, key) {
				t.Errorf("the key that was there has been replaced: %v", err)
			}
		})
	}
	t.Run("at random", func(t *testing.T) {
		before := 0
		for range 25 {
			dir := filepath.Join(t.TempDir(), "ca")
			delay := time.Duration(mathrand.Int64N(int64(20 * time.Millisecond)))
			var timers []*time.Timer
			cas, svids := killed(t, dir, "", func(line string, kill func()) {
				if strings.HasPrefix(line, "begin") {
					timers = append(timers, time.AfterFunc(delay, kill))
				}
			})
			for _, timer := range timers {
				timer.Stop()
			}
			ca := survivor(t, dir, svids)
			if len(cas) == 0 {
				before++
			} else if !cas[0].Equal(ca) {
				t.Error("another CA after a kill")
			}
			if again := survivor(t, dir, svids); !again.Equal(ca) {
				t.Error("another CA at the next start")
			}
		}
		t.Logf("%d of 25 were killed before the first run had ended", before)
	})
}

// TestKilledWhileIssuing kills one authority again and again, at random certificates.
func TestKilledWhileIssuing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := survivor(t, dir, nil)
	var all []*x509.Certificate
	for range 30 {
		left := mathrand.IntN(60)
		cas, svids := killed(t, dir, "", func(line string, kill func()) {
			if strings.HasPrefix(line, "svid") {
				if left--; left < 0 {
					kill()
				}
			}
		})
		if len(cas) != 1 || !cas[0].Equal(ca) {
			t.Fatal("another CA after a kill")
		}
		all = append(all, svids...)
		if got := survivor(t, dir, all); !got.Equal(ca) {
			t.Fatal("another CA after a kill")
		}
	}
	t.Logf("30 kills, %d certificates returned, all in the journal", len(all))
}
