package up

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wardmesh/ward/agent/config"
)

// folder is short enough for sockets in it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "up")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "ward")
}

func TestWhatIsWrittenIsGoodConfig(t *testing.T) {
	s, err := prepare(Options{Dir: folder(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.clean()
	cfg, err := config.Load(s.configFile, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Workloads) != 5 || cfg.Services[0].Name != serviceName {
		t.Errorf("%+v", cfg)
	}
}

// Two demonstrations in one folder would mix up their ports and state.
func TestSecondDemonstrationLeavesTheFirstAlone(t *testing.T) {
	dir := folder(t)
	s, err := prepare(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.clean()
	before, err := os.ReadFile(s.configFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("the second was not refused with advice: %v", err)
	}
	if after, _ := os.ReadFile(s.configFile); string(after) != string(before) {
		t.Error("the second changed the first one's config")
	}
}

// As root, what others have put into the folder must not lead to files of root's.
func TestFolderThatOthersCanWriteIsRefusedUntouched(t *testing.T) {
	dir := folder(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(filepath.Dir(dir), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ward.log", "ward.yaml"} {
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	if s, err := prepare(Options{Dir: dir}); err == nil {
		s.clean()
		t.Error("the folder was used")
	} else if !strings.Contains(err.Error(), "chmod go-w") || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("no advice: %v", err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "precious" {
		t.Error("a file that the folder only links to was written")
	}
}

func TestEditedPoliciesAreKept(t *testing.T) {
	dir := folder(t)
	s, err := prepare(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.clean()
	file := filepath.Join(dir, "policy", "10-care.cedar")
	if err := os.WriteFile(file, []byte("// mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = prepare(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	s.clean()
	if b, _ := os.ReadFile(file); string(b) != "// mine\n" {
		t.Error("an edited policy was overwritten")
	}
}

func TestFolderTooDeepForSockets(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("SKIPPED: as root the sockets lie in a folder of their own; this needs an ordinary user")
	}
	_, err := prepare(Options{Dir: filepath.Join(folder(t), strings.Repeat("x", 100))})
	if err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("got %v", err)
	}
}
