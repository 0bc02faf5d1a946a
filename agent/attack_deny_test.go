package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
)

// denyConfig is a host's config in a folder of its own, in which no daemon runs yet.
func denyConfig(t *testing.T) (c *console, f configFlag, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ward") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	text := fmt.Sprintf(`trust_domain: clinic.test
authority: {dir: authority}
agent: {socket: %[1]s/w.sock}
admin: {socket: %[1]s/a.sock, egress: %[1]s/e.sock, ingress: %[1]s/i.sock, mesh: %[1]s/m.sock}
audit: {dir: audit}
mesh: {dns: '', listen: '', sockets: ''}
`, dir)
	f.Config = filepath.Join(dir, "ward.yaml")
	if err := os.WriteFile(f.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &console{ctx: t.Context(), out: new(bytes.Buffer), err: new(bytes.Buffer)}, f, dir
}

func isDenied(t *testing.T, f configFlag) map[string]bool {
	t.Helper()
	cfg, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, id := range cfg.Deny {
		all[id.Path()] = true
	}
	return all
}

// Two operators deny at the same moment: neither command may undo what the other has told.
func TestAttackDenialsAtOnceAreAllKept(t *testing.T) {
	c, f, _ := denyConfig(t)
	const n = 12
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			own := &console{ctx: c.ctx, out: io.Discard, err: io.Discard}
			if err := (denyAddCommand{configFlag: f, ID: fmt.Sprintf("/app/n%d", i)}).Run(own); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := isDenied(t, f); len(got) != n {
		t.Errorf("%d of %d denials are left: %v", len(got), n, got)
	}
}

// An operator with a narrow umask must not write a file that keeps the daemons from starting again.
func TestAttackDenyFileCanBeReadWhateverTheUmask(t *testing.T) {
	c, f, dir := denyConfig(t)
	old := unix.Umask(0o077)
	err := (denyAddCommand{configFlag: f, ID: "/app/a"}).Run(c)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{"conf.d": 0o755, "conf.d/ward-deny.yaml": 0o644} {
		if fi, err := os.Stat(filepath.Join(dir, path)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %o", path, fi.Mode(), err, want)
		}
	}
}

// A reason is a YAML comment. What ends a line there could add entries of the reason's author's choice, or make a file
// with which nothing starts.
func TestAttackReasonCannotLeaveItsComment(t *testing.T) {
	c, f, _ := denyConfig(t)
	for _, reason := range []string{"a\u2028  - spiffe://clinic.test/app/b", "a\u2029b", "a\u0085b", "a\nb", "a\rb", "a\x00b", "a\xffb", "\ufeffb", "a\u202eb"} {
		if err := (denyAddCommand{configFlag: f, ID: "/app/a", Reason: reason}).Run(c); err == nil {
			t.Errorf("%q was taken: %v", reason, isDenied(t, f))
		}
	}
	if err := (denyAddCommand{configFlag: f, ID: "/app/a", Reason: "gestohlen: Gerät № 7 # \"x\""}).Run(c); err != nil {
		t.Error(err)
	}
	if got := isDenied(t, f); len(got) != 1 || !got["/app/a"] {
		t.Errorf("denied: %v", got)
	}
}

// A role that hangs, or that may not be asked, may go on with the old list: the command must not say that the new one
// is in force.
func TestAttackSilentRoleIsNotTakenForAStoppedOne(t *testing.T) {
	c, f, dir := denyConfig(t)
	l, err := net.Listen("unix", filepath.Join(dir, "i.sock")) // listens, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c.ctx = ctx
	err = (denyAddCommand{configFlag: f, ID: "/app/a"}).Run(c)
	if err == nil || !strings.Contains(err.Error(), "ingress (does not answer)") {
		t.Errorf("%v; said %q", err, c.out)
	}
	// Nor may it say so the second time, because the line is written.
	again, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c.ctx = again
	err = (denyAddCommand{configFlag: f, ID: "/app/a"}).Run(c)
	if err == nil || !strings.Contains(err.Error(), "not everywhere in force") {
		t.Errorf("%v; said %q", err, c.out)
	}
	if got := isDenied(t, f); !got["/app/a"] {
		t.Error("the denial is not even written")
	}
}

// A role that has said that it goes on with the old list is named as that, though the patience ends amid the next
// question.
func TestDenyNamesARoleByTheLastThatItSaid(t *testing.T) {
	c, f, dir := denyConfig(t)
	l, err := net.Listen("unix", filepath.Join(dir, "i.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			_ = json.NewEncoder(w).Encode(admin.Status{Role: "ingress", Config: "of before"})
			return
		}
		cancel()
		<-r.Context().Done()
	})}
	go func() { _ = s.Serve(l) }()
	defer func() { _ = s.Close() }()
	c.ctx = ctx
	err = (denyAddCommand{configFlag: f, ID: "/app/a"}).Run(c)
	if err == nil || !strings.Contains(err.Error(), "not everywhere in force: ingress: ") {
		t.Errorf("%v; said %q", err, c.out)
	}
}

// What cannot be written leaves what was there, and nothing half.
func TestAttackDenyOnAFullDisk(t *testing.T) {
	c, f, dir := denyConfig(t)
	if err := (denyAddCommand{configFlag: f, ID: "/app/a"}).Run(c); err != nil {
		t.Fatal(err)
	}
	full := replaceFile(filepath.Join(dir, "missing", "x.yaml"), "x")
	if !errors.Is(full, os.ErrNotExist) {
		t.Errorf("%v", full)
	}
	// A link in the place of the temporary file leads nowhere.
	victim := filepath.Join(dir, "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("kept"), 0o600), os.Symlink(victim, filepath.Join(dir, "conf.d", ".ward-deny.yaml.new"))); err != nil {
		t.Fatal(err)
	}
	if err := (denyAddCommand{configFlag: f, ID: "/app/b"}).Run(c); err == nil {
		t.Error("a link was followed")
	}
	if b, _ := os.ReadFile(victim); string(b) != "kept" {
		t.Errorf("victim: %q", b)
	}
	if got := isDenied(t, f); !got["/app/a"] {
		t.Errorf("what was denied is denied no more: %v", got)
	}
}
