package daemon_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

// softwareTPM starts swtpm for one test and returns the Unix socket on which it speaks.
func softwareTPM(t *testing.T) string {
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
	// As a daemon it returns once it listens.
	out, err := exec.Command(binary, "socket", "--tpm2", "--daemon", "--tpmstate", "dir="+dir, "--pid", "file="+dir+"/pid",
		"--server", "type=unixio,path="+dir+"/tpm", "--flags", "not-need-init,startup-clear").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm: %v\n%s", err, out)
	}
	text, err := os.ReadFile(dir + "/pid")
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
	t.Cleanup(func() {
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
	})
	return dir + "/tpm"
}

// sealed makes a config of which the keys are sealed.
func sealed(t *testing.T, file, keys string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	was, now := "authority: {dir: authority}", "authority: {dir: authority, keys: "+keys+"}"
	if i := strings.Index(string(text), "authority: {dir: authority, keys: "); i >= 0 {
		was, _, _ = strings.Cut(string(text)[i:], "\n")
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), was, now, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func none(t *testing.T, pattern string) {
	t.Helper()
	if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
		t.Errorf("there is %v", found)
	}
}

func some(t *testing.T, pattern string) {
	t.Helper()
	if found, err := filepath.Glob(pattern); err != nil || len(found) == 0 {
		t.Errorf("there is no %s", pattern)
	}
}

// From the first start to a start without the authority, nothing that is worth stealing lies on the disk in the clear.
func TestSealedByTPM(t *testing.T) {
	file := write(t, "")
	dir := filepath.Dir(file)
	socket := softwareTPM(t)
	sealed(t, file, fmt.Sprintf("{seal: tpm, tpm: %s}", socket))
	j, _ := begin(t, file)
	before := fetch(t, j.cfg)
	if s := j.status(t); !s.Healthy() || !s.Authority.CAs[0].Sealed {
		t.Errorf("status %+v", s)
	}
	j.stop()
	some(t, dir+"/authority/x509-ca-1.key.sealed")
	some(t, dir+"/authority/kek.tpm")
	some(t, dir+"/agent/kek.tpm")
	some(t, dir+"/agent/svids/*.svid")
	none(t, dir+"/authority/*.key")
	none(t, dir+"/agent/kek")

	j, _ = begin(t, file)
	a, _ := before.Bundles.Get(j.cfg.TrustDomain)
	b, _ := fetch(t, j.cfg).Bundles.Get(j.cfg.TrustDomain)
	if !a.Equal(b) {
		t.Error("the bundle changed with a restart")
	}
	serial := fetch(t, j.cfg).DefaultSVID().Certificates[0].SerialNumber.Text(16)
	j.stop()

	// The authority's disk is not there, with its part of the TPM's keys.
	way := damaged["disk not mounted"]
	if err := way.hurt(dir + "/authority"); err != nil {
		t.Fatal(err)
	}
	j, began := begin(t, file)
	if got := fetch(t, j.cfg).DefaultSVID().Certificates[0].SerialNumber.Text(16); got != serial {
		t.Errorf("serial %s, not the kept %s", got, serial)
	}
	t.Logf("SVID sealed by swtpm served %s after the start", time.Since(began).Round(time.Millisecond))
	j.stop()
	none(t, dir+"/authority/*") // nothing was begun anew in the empty folder
	if err := way.mend(dir + "/authority"); err != nil {
		t.Fatal(err)
	}

	// On another machine the files are worth nothing, and Ward says so.
	sealed(t, file, fmt.Sprintf("{seal: tpm, tpm: %s}", softwareTPM(t)))
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "another TPM") || !strings.Contains(err.Error(), "authority.keys") {
		t.Errorf("started with another TPM: %v", err)
	}
}

// Keys that are there stay as they are when config begins to seal; the next CA's is sealed, and until then Ward says that
// this one is not.
func TestSealingBegins(t *testing.T) {
	file := write(t, "")
	dir := filepath.Dir(file)
	j, _ := begin(t, file)
	fetch(t, j.cfg)
	j.stop()
	folder := filepath.Join(dir, "credentials")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "ward-keys"), []byte(strings.Repeat("0123456789abcdef", 2)), 0o400); err != nil {
		t.Fatal(err)
	}
	sealed(t, file, "{seal: credential}")

	t.Setenv("CREDENTIALS_DIRECTORY", "")
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "LoadCredentialEncrypted=ward-keys") {
		t.Errorf("started without the credential: %v", err)
	}

	t.Setenv("CREDENTIALS_DIRECTORY", folder)
	j, _ = begin(t, file)
	if s := j.status(t); s.Authority.CAs[0].Sealed || !strings.Contains(strings.Join(s.Problems, "\n"), "ward ca rotate") {
		t.Errorf("status %+v", s)
	}
	for _, o := range []admin.CAOrder{{Step: "prepare"}, {Step: "activate", Force: true}} {
		if _, err := admin.Order(t.Context(), j.cfg.Admin.Socket, o); err != nil {
			t.Fatal(err)
		}
	}
	if s := j.status(t); !s.Healthy() || !s.Authority.CAs[1].Sealed {
		t.Errorf("status %+v", s)
	}
	none(t, dir+"/authority/*.key")
}
