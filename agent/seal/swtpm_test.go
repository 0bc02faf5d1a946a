package seal_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// softwareTPM starts swtpm and returns the Unix socket on which it speaks. With the same state folder it is the same
// TPM, booted again. It ends with the test, or by stop.
func softwareTPM(t testing.TB, state string) (socket string, stop func()) {
	t.Helper()
	binary, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("SKIPPED: needs swtpm, a TPM 2.0 in software (Debian: apt-get install swtpm)")
	}
	dir, err := os.MkdirTemp("", "swtpm") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "tpm")
	// As a daemon it returns once it listens.
	out, err := exec.Command(binary, "socket", "--tpm2", "--daemon", "--tpmstate", "dir="+state, "--pid", "file="+filepath.Join(dir, "pid"),
		"--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		defer unix.Close(process)
		if err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); err != nil {
			t.Errorf("stop swtpm: %v", err)
			return
		}
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 10_000); err != unix.EINTR {
				return
			}
		}
	}
	t.Cleanup(stop)
	return socket, stop
}
